package provider

import (
	"fmt"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/settle"
	"github.com/gpupay/gpupay/sdk/units"
)

// prices is what people say in a configuration (units of the token, an hour) as what is charged: in base units.
type prices struct {
	price       metering.Price
	credit      uint256.Int // for Config.Terms.Credit of GPU time
	minDeposit  uint256.Int
	minTransfer uint256.Int // worth a transaction of ours
	minDelta    uint256.Int // what a voucher must add
	row         uint256.Int // what a channel must bring to be settled; zero: by the gas of its contract

	decimals uint8 // of the token
}

// pricesOf refuses what cannot be charged exactly.
func pricesOf(c Config, decimals uint8) (prices, error) {
	p := prices{row: c.Settlement.LeastRow, decimals: decimals}
	var err error
	if p.price, err = units.PerHour(c.PricePerGPUHour, decimals); err != nil {
		return p, fmt.Errorf("provider: PricePerGPUHour: %w", err)
	}
	if p.credit, err = p.price.Charge(uint64(c.Terms.Credit)); err != nil {
		return p, fmt.Errorf("provider: Terms.Credit: %w", err)
	}
	if p.minTransfer, err = p.amount("Terms.MinTransfer", c.Terms.MinTransfer); err != nil {
		return p, err
	}
	if p.minDeposit, err = p.amount("Deposits.Min", c.Deposits.Min); c.Deposits.Min == "" {
		p.minDeposit, err = p.price.Charge(uint64(10 * time.Minute))
	}
	if err != nil {
		return p, err
	}
	if c.Terms.MinTransfer == "" {
		p.minTransfer.Div(&p.minDeposit, uint256.NewInt(10))
	}
	p.minDelta, err = p.leastDelta(c.Terms.MinVoucherDelta)
	return p, err
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
