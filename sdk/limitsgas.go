package sdk

import (
	"context"
	"fmt"
	"math/big"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wire"
)

const (
	// lostGasWindow is the time over which Limits.LostGas counts.
	lostGasWindow = time.Hour
	// sponsoredGasWindow is the time over which Limits.SponsoredGas counts.
	sponsoredGasWindow = 24 * time.Hour
	// refrain is how long challenges do not offer to send deposits after one was
	// refused for what others have cost. Then somebody may ask again.
	refrain = time.Minute
	// sponsoredGas is more than any transaction that is sent for a renter takes.
	sponsoredGas = 200_000
	// maxGifts is how many transactions for renters may be in flight at once: a
	// settlement that is submitted then has to wait for no more.
	maxGifts = 8
)

// sponsoredKinds are the transactions that are sent for renters.
var sponsoredKinds = []chain.Kind{chain.Open, chain.TopUp, chain.Close, chain.Deposit, chain.Refund}

// sponsor decides whether we still send transactions for strangers. What they
// have cost is read from the outbox, so that neither a restart nor a re-org, nor
// another process on the same database, forgets it.
type sponsor struct {
	turn  chan struct{} // held between looking at the budgets and being in the outbox
	began time.Time
	rest  atomic.Int64 // nanoseconds after began, by a clock that is never set, until which we do not offer to
}

func newSponsor() *sponsor { return &sponsor{turn: make(chan struct{}, 1), began: time.Now()} }

// refrains has challenges not offer to send deposits for a while. It is true
// where they did until now.
func (s *sponsor) refrains() bool {
	return s.rest.Swap(int64(time.Since(s.began)+refrain)) == 0
}

// sponsors reports whether challenges offer to send deposits.
func (p *Provider) sponsors() bool {
	return p.gasless && int64(time.Since(p.sponsor.began)) >= p.sponsor.rest.Load()
}

// submitSponsored sends a renter's deposit if what deposits have cost leaves
// room for one that reverts, if the budgets and the reserve leave room for one
// that does not, and if what it is for can be reserved.
func (p *Provider) submitSponsored(ctx context.Context, terms channel.Terms, call chain.Call, reserve func() error) (chain.TxID, error) {
	return p.inSponsorTurn(ctx, terms, call, func() error {
		for _, room := range []func(context.Context) error{
			p.affordRevert,
			p.keepReserve,
			p.withinBudgets(terms.Payer),
		} {
			if err := room(ctx); err != nil {
				return err
			}
		}
		if p.sponsor.rest.Swap(0) != 0 {
			p.config.Log.Info("deposits are sent for renters again")
		}
		return reserve()
	})
}

// submitReturn sends a close or the refund of a whole deposit for a renter. What
// fetches enough to be worth its gas is a settlement of ours: its fee is raised as
// one's, and it gives way to none.
func (p *Provider) submitReturn(ctx context.Context, s channel.State, call chain.Call) (chain.TxID, error) {
	if !p.fetches(s) {
		return p.inSponsorTurn(ctx, s.Terms, call, func() error {
			if err := p.affordReturn(ctx, s.Terms.Payer); err != nil {
				return err
			}
			return p.keepReserve(ctx)
		})
	}
	if err := p.sender.Store.Sponsor(ctx, s.ID, s.Terms.Payer); err != nil {
		return "", err
	}
	return p.sender.Submit(ctx, call)
}

// affordReturn lets the first close or refund for a payer in a day through whatever
// others have cost, so that a budget that is used up keeps nobody's deposit here. A
// payer can deposit again by itself and ask again, so that the next ones must be
// within the budgets.
func (p *Provider) affordReturn(ctx context.Context, payer common.Address) error {
	now := time.Now()
	_, returned, err := p.sender.Sponsored(ctx, now.Add(-sponsoredGasWindow), now, payer, chain.Close, chain.Refund)
	if err != nil || returned.Sign() == 0 {
		return err
	}
	return p.withinBudgets(payer)(ctx)
}

// submitPart sends the refund of a part of a deposit. A payer can ask for many,
// so that it must be within the budgets, too.
func (p *Provider) submitPart(ctx context.Context, s channel.State, call chain.Call) (chain.TxID, error) {
	return p.inSponsorTurn(ctx, s.Terms, call, func() error {
		if err := p.withinBudgets(s.Terms.Payer)(ctx); err != nil || p.fetches(s) {
			return err
		}
		return p.keepReserve(ctx)
	})
}

// fetches reports whether to end a channel brings us enough to be worth its gas.
func (p *Provider) fetches(s channel.State) bool {
	left := s.Unsettled()
	return !left.IsZero() && !left.Lt(&p.minTransfer)
}

// inSponsorTurn submits a call for a channel's payer if room says so, one at a
// time: what is in the outbox counts for the next. Its fee is raised only as far as
// the budgets go.
func (p *Provider) inSponsorTurn(ctx context.Context, terms channel.Terms, call chain.Call, room func() error) (chain.TxID, error) {
	select {
	case p.sponsor.turn <- struct{}{}:
		defer func() { <-p.sponsor.turn }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if err := p.awaitGifts(ctx); err != nil {
		return "", err
	}
	if err := room(); err != nil {
		return "", err
	}
	spent, err := p.sponsoredFor(ctx, terms.Payer)
	if err != nil {
		return "", err
	}
	call.Budget = p.budgetAfter(spent)
	if err := p.sender.Store.Sponsor(ctx, terms.ID(), terms.Payer); err != nil {
		return "", err
	}
	return p.sender.Submit(ctx, call)
}

// awaitGifts waits until fewer than maxGifts transactions for renters are in flight.
func (p *Provider) awaitGifts(ctx context.Context) error {
	for {
		flying, err := p.sender.InFlight(ctx)
		if err != nil {
			return err
		}
		gifts := 0
		for _, tx := range flying {
			if tx.GivesWay() {
				gifts++
			}
		}
		if gifts < maxGifts {
			return nil
		}
		if chain.Pause(ctx, p.config.Poll) != nil {
			return wire.Unavailable.With("this provider has %d transactions for others in flight: send the same request again later", gifts)
		}
	}
}

// spent is what was sent for renters within sponsoredGasWindow, in wei.
type spent struct{ all, payer *big.Int }

func (p *Provider) sponsoredFor(ctx context.Context, payer common.Address) (s spent, err error) {
	now := time.Now()
	s.all, s.payer, err = p.sender.Sponsored(ctx, now.Add(-sponsoredGasWindow), now, payer, sponsoredKinds...)
	return s, err
}

// budgetAfter is what may still be spent for a payer, in wei.
func (p *Provider) budgetAfter(s spent) *big.Int {
	left := new(big.Int).Sub(p.config.Limits.SponsoredGas, s.all)
	if payers := new(big.Int).Sub(p.config.Limits.SponsoredGasPerPayer, s.payer); payers.Cmp(left) < 0 {
		left = payers
	}
	if left.Sign() < 0 {
		left.SetInt64(0)
	}
	return left
}

func (p *Provider) affordRevert(ctx context.Context) error {
	lost, risked, err := p.sender.Wasted(ctx, time.Now().Add(-lostGasWindow), chain.Open, chain.TopUp, chain.Deposit)
	if err != nil {
		return err
	}
	budget := p.config.Limits.LostGas
	if new(big.Int).Add(lost, risked).Cmp(budget) < 0 || lost.Cmp(budget) < 0 && risked.Sign() == 0 {
		return nil
	}
	if lost.Cmp(budget) < 0 {
		return wire.Unavailable.With("this provider has as many deposits of others in flight as it risks: send the same request again later")
	}
	if p.sponsor.refrains() {
		p.config.Log.Warn("deposits that reverted have cost as much gas as Limits.LostGas allows in an hour: renters must send their own until it has passed",
			"lost_wei", lost, "budget_wei", budget)
	}
	return wire.Unavailable.With("this provider sends no deposits for others at the moment: send the transaction yourself and give its hash, or come back within an hour")
}

// withinBudgets holds what is sent for renters to what it may cost in a day.
func (p *Provider) withinBudgets(payer common.Address) func(context.Context) error {
	return func(ctx context.Context) error {
		s, err := p.sponsoredFor(ctx, payer)
		if err != nil {
			return err
		}
		if s.payer.Cmp(p.config.Limits.SponsoredGasPerPayer) >= 0 {
			return wire.TooMany.With("this provider has sent as much for payer %s in a day as it does for one: send the transaction yourself and give its hash, or come back tomorrow", payer)
		}
		if s.all.Cmp(p.config.Limits.SponsoredGas) < 0 {
			return nil
		}
		if p.sponsor.refrains() {
			p.config.Log.Warn("what was sent for renters has cost as much gas as Limits.SponsoredGas allows in a day: renters must send their own deposits until it has passed",
				"cost_wei", s.all, "budget_wei", p.config.Limits.SponsoredGas)
		}
		return wire.Unavailable.With("this provider has sent as much for others in a day as it does: send the transaction yourself and give its hash, or come back tomorrow")
	}
}

// keepReserve refuses to send for others what the reserve must not pay for.
func (p *Provider) keepReserve(ctx context.Context) error {
	f, err := p.funds(ctx)
	if err != nil {
		return err
	}
	if f.coin.Cmp(new(big.Int).Add(f.reserve, f.gift)) >= 0 {
		return nil
	}
	if p.sponsor.refrains() {
		p.config.Log.Warn("the key's coin is kept for settlements: nothing is sent for renters until there is more", "key", p.sender.Address(),
			"coin_wei", f.coin, "reserve_wei", f.reserve)
	}
	return wire.Unavailable.With("this provider keeps its coin for settlements at the moment: send the transaction yourself, or come back later")
}

// funds is what the key has for gas, in wei.
type funds struct {
	coin    *big.Int // not yet promised to a transaction
	least   *big.Int // what one settlement takes, at twice the present price
	reserve *big.Int // what is kept for settlements
	gift    *big.Int // what a transaction for a renter takes at most, its fee raised as far as it may be
}

func (p *Provider) funds(ctx context.Context) (funds, error) {
	coin, err := p.sender.Coin(ctx)
	if err != nil {
		return funds{}, err
	}
	price, err := p.sender.GasPrice(ctx)
	if err != nil {
		return funds{}, err
	}
	price = new(big.Int).Lsh(price, 1)
	f := funds{coin: coin, least: new(big.Int), gift: new(big.Int).Mul(price, big.NewInt(2*sponsoredGas))}
	for _, contract := range p.contracts() {
		batch, row := contract.SettlementGas()
		need := new(big.Int).SetUint64((batch+row)*5/4 + 30_000) // as a Sender asks for
		if need.Mul(need, price); need.Cmp(f.least) > 0 {
			f.least = need
		}
	}
	f.reserve = new(big.Int).Mul(f.least, big.NewInt(int64(max(p.config.Limits.ReservedSettlements, 0))))
	return f, nil
}

// contracts are those that settlements go to.
func (p *Provider) contracts() []chain.Contract {
	if p.x402 == nil {
		return []chain.Contract{p.escrow}
	}
	return []chain.Contract{p.escrow, p.x402.contract}
}

// warnPoor says so at the start where the key cannot pay for what it is for.
func (p *Provider) warnPoor(ctx context.Context) {
	log := p.config.Log.With("key", p.sender.Address())
	f, err := p.funds(ctx)
	switch {
	case err != nil:
		log.Warn("what coin the key has for settlements is not known", "error", err)
	case f.coin.Cmp(f.least) < 0:
		log.Error("the key has no coin to settle with: what renters voucher cannot be fetched until it has", "coin_wei", f.coin, "reserve_wei", f.reserve)
	case f.coin.Cmp(f.reserve) < 0:
		log.Warn("the key has less coin than is kept for settlements: nothing is sent for renters until it has more", "coin_wei", f.coin, "reserve_wei", f.reserve)
	}
}

// worthSending refuses a top-up that we would send and that is not worth its gas.
func (p *Provider) worthSending(amount uint256.Int) error {
	if !amount.Lt(&p.minTransfer) {
		return nil
	}
	return wire.PaymentInsufficient.With("the top-up is %s, the least that this provider sends for others is %s: add more, or send the transaction yourself and give its hash",
		amount.Dec(), p.minTransfer.Dec())
}

// leastTransfer is ProviderConfig.MinTransfer in base units.
func (p *Provider) leastTransfer() (uint256.Int, error) {
	if p.config.MinTransfer != "" {
		v, err := units.Parse(p.config.MinTransfer, p.token.Decimals)
		if err != nil {
			err = fmt.Errorf("provider: MinTransfer: %w", err)
		}
		return v, err
	}
	v, err := p.minDeposit()
	v.Div(&v, uint256.NewInt(10))
	return v, err
}

// leastDelta is ProviderConfig.MinVoucherDelta in base units.
func (p *Provider) leastDelta() (uint256.Int, error) {
	if p.config.MinVoucherDelta == "" {
		return uint256.Int{}, nil
	}
	v, err := units.Parse(p.config.MinVoucherDelta, p.token.Decimals)
	if err != nil {
		return v, fmt.Errorf("provider: MinVoucherDelta: %w", err)
	}
	var most uint256.Int
	if most.Rsh(&p.credit, 2); v.Gt(&most) {
		return v, fmt.Errorf("provider: MinVoucherDelta (%s) is over a quarter of what Credit is worth (%s): a renter could not pay in time", p.config.MinVoucherDelta, units.Format(most, p.token.Decimals))
	}
	return v, nil
}
