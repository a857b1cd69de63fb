package provider

import (
	"fmt"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/offering"
	"github.com/gpupay/gpupay/sdk/settle"
	"github.com/gpupay/gpupay/sdk/units"
)

// prices is what people say in a configuration (units of the token, an hour) as what is charged: in base units.
type prices struct {
	rates       map[string]offering.Rate // by class
	credit      uint256.Int              // for Config.Terms.Credit of GPU time, of the cheapest class
	minDeposit  uint256.Int              // of the cheapest class
	minTransfer uint256.Int              // worth a transaction of ours
	reserve     uint256.Int              // stays on the key's address
	minDelta    uint256.Int              // what a voucher must add
	row         uint256.Int              // what a channel must bring to be settled; zero: by the gas of its contract

	decimals uint8 // of the token
}

// pricesOf refuses what cannot be charged exactly.
func pricesOf(c Config, decimals uint8) (prices, error) {
	p := prices{row: c.Settlement.LeastRow, decimals: decimals, rates: make(map[string]offering.Rate)}
	for i, id := range c.classes().IDs() {
		rate, credit, err := p.rateOf(c, c.priceOf(id))
		if err != nil && id != "" {
			return p, fmt.Errorf("%w (of class %s)", err, id)
		} else if err != nil {
			return p, err
		}
		p.rates[id] = rate
		if i == 0 {
			p.credit, p.minDeposit = credit, rate.MinDeposit
		}
		p.credit, p.minDeposit = u256.Min(p.credit, credit), u256.Min(p.minDeposit, rate.MinDeposit)
	}
	var err error
	if p.minTransfer, err = p.amount("Terms.MinTransfer", c.Terms.MinTransfer); err != nil {
		return p, err
	}
	if p.reserve, err = p.amount("Payout.Reserve", c.Payout.Reserve); err != nil {
		return p, err
	}
	if c.Terms.MinTransfer == "" {
		p.minTransfer.Div(&p.minDeposit, uint256.NewInt(10))
	}
	p.minDelta, err = p.leastDelta(c.Terms.MinVoucherDelta)
	return p, err
}

// rateOf is what GPUs of a price cost, and what the credit of one comes to.
func (p *prices) rateOf(c Config, hourly string) (r offering.Rate, credit uint256.Int, err error) {
	if r.Price, err = units.PerHour(hourly, p.decimals); err != nil {
		return r, credit, fmt.Errorf("provider: PricePerGPUHour: %w", err)
	}
	if credit, err = r.Price.Charge(uint64(c.Terms.Credit)); err != nil {
		return r, credit, fmt.Errorf("provider: Terms.Credit: %w", err)
	}
	if r.MinDeposit, err = p.amount("Deposits.Min", c.Deposits.Min); c.Deposits.Min == "" {
		r.MinDeposit, err = r.Price.Charge(uint64(10 * time.Minute))
	}
	return r, credit, err
}

// amount is what a field of the configuration comes to; nothing where it is empty.
func (p *prices) amount(field, text string) (v uint256.Int, err error) {
	if text == "" {
		return v, nil
	}
	if v, err = units.Parse(text, p.decimals); err != nil {
		err = fmt.Errorf("provider: %s: %w", field, err)
	}
	return v, err
}

// leastDelta is Config.Terms.MinVoucherDelta in base units.
func (p *prices) leastDelta(text string) (uint256.Int, error) {
	v, err := p.amount("Terms.MinVoucherDelta", text)
	if err != nil {
		return v, err
	}
	var most uint256.Int
	if most.Rsh(&p.credit, 2); v.Gt(&most) {
		return v, fmt.Errorf("provider: Terms.MinVoucherDelta (%s) is over a quarter of what Terms.Credit is worth (%s): a renter could not pay in time", text, units.Format(most, p.decimals))
	}
	return v, nil
}

// leastRow is what a channel of a contract must bring to be settled, base units.
func (p *prices) leastRow(contract chain.Contract) uint256.Int {
	if !p.row.IsZero() {
		return p.row
	}
	batch, row := contract.SettlementGas()
	return settle.RowOf(p.minTransfer, batch, row)
}

// worthSettling refuses a least deposit that is less than the least row: nothing of
// such a channel would ever be settled, and its payer leaves with all that it used.
func (p *prices) worthSettling(contract chain.Contract) error {
	if row := p.leastRow(contract); p.minDeposit.Lt(&row) {
		return fmt.Errorf("provider: Deposits.Min is %s, and of a channel less than %s is not settled (Terms.MinTransfer, Settlement.LeastRow): deposit more, or lower those",
			units.Format(p.minDeposit, p.decimals), units.Format(row, p.decimals))
	}
	return nil
}

// hourly are the prices of all classes.
func (p *prices) hourly() (all []metering.Price) {
	for _, rate := range p.rates {
		all = append(all, rate.Price)
	}
	return all
}
