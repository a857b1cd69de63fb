package admit

import (
	"context"
	"errors"
	"log/slog"
	"math/big"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
)

const (
	// lostGasWindow is the time over which Budget.Lost counts.
	lostGasWindow = time.Hour
	// sponsoredGasWindow is the time over which Budget.Spent counts.
	sponsoredGasWindow = 24 * time.Hour
	// cooldown is how long challenges do not offer to send deposits after one was
	// refused for what others have cost. Then somebody may ask again.
	cooldown = time.Minute
	// callGas is more than a transaction takes that is sent for a renter whose payer is a key.
	callGas = 200_000
	// MaxGas is what any transaction that is sent for a renter may take: a payer that is a contract checks its signature itself,
	// and takes as much gas for that as it likes.
	MaxGas = 2 * callGas
	// MaxInFlight is how many transactions for renters may be in flight at once: a
	// settlement that is submitted then has to wait for no more.
	MaxInFlight = 8
)

// sponsoredKinds are the transactions that are sent for renters.
var sponsoredKinds = []chain.Kind{chain.Open, chain.TopUp, chain.Close, chain.Deposit, chain.Refund}

// Budget is what a GasSponsor may spend, in wei. All are set.
type Budget struct {
	Lost                *big.Int // on deposits that reverted, in an hour
	Spent, PerPayer     *big.Int // on what was sent for renters in a day, and for the channels of one payer
	ReservedSettlements int      // settlements that the key's coin must pay for besides; none if negative
}

// GasSponsor sends transactions for renters and decides whether the provider still pays the gas of them. What they have cost is
// read from the outbox, so that neither a restart nor a re-org, nor another process on the same database, forgets it. Fields are
// set before first use.
type GasSponsor struct {
	Sender      *chain.Sender
	Contracts   []chain.Contract // that settlements go to
	Budget      Budget
	MinTransfer uint256.Int // base units that are worth a transaction of ours
	Poll        time.Duration
	Log         *slog.Logger

	turn  chan struct{} // held between looking at the budgets and being in the outbox
	began time.Time
	rest  atomic.Int64 // nanoseconds after began, by a clock that is never set, until which challenges do not offer to
}

// NewGasSponsor returns a sponsor that has refused nothing yet. The other fields are set before first use.
func NewGasSponsor(sender *chain.Sender, contracts []chain.Contract, budget Budget) *GasSponsor {
	return &GasSponsor{Sender: sender, Contracts: contracts, Budget: budget, turn: make(chan struct{}, 1), began: time.Now()}
}

// coolDown has challenges not offer to send deposits for a while. It is true where they did until now.
func (g *GasSponsor) coolDown() bool {
	return g.rest.Swap(int64(time.Since(g.began)+cooldown)) == 0
}

// Offers reports whether challenges offer to send deposits: not for a while after one was refused for what others have cost.
func (g *GasSponsor) Offers() bool { return int64(time.Since(g.began)) >= g.rest.Load() }

// A room is what one bound leaves for a transaction, in wei, and the refusal of one that costs more. nil: as much as it takes.
type room struct {
	left    *big.Int
	refusal func() error
}

// A bound tells what it leaves, or refuses.
type bound func(context.Context) (room, error)

// Submit sends a renter's deposit if what deposits have cost leaves
// room for one that reverts, if the budgets and the reserve leave room for one
// that does not, and if what it is for can be reserved.
func (g *GasSponsor) Submit(ctx context.Context, terms channel.Terms, call chain.Call, reserve func() error) (chain.TxID, error) {
	return g.inTurn(ctx, terms, call, func() error {
		if g.rest.Swap(0) != 0 {
			g.Log.Info("deposits are sent for renters again")
		}
		return reserve()
	}, g.affordRevert, g.keepReserve, g.withinBudgets(terms.Payer))
}

// SubmitReturn sends a close or the refund of a whole deposit for a renter. What
// fetches enough to be worth its gas is a settlement of ours: its fee is raised as
// one's, and it gives way to none.
func (g *GasSponsor) SubmitReturn(ctx context.Context, s channel.State, call chain.Call) (chain.TxID, error) {
	if !g.fetches(s) {
		return g.inTurn(ctx, s.Terms, call, nothing, g.affordReturn(s.Terms.Payer), g.keepReserve)
	}
	if err := g.Sender.Store.Sponsor(ctx, s.ID, s.Terms.Payer); err != nil {
		return "", err
	}
	call.MaxGas = MaxGas
	id, err := g.Sender.Submit(ctx, call)
	return id, g.explain(err, room{})
}

func nothing() error { return nil }

// AffordReturn lets the first close or refund for a payer in a day through whatever
// others have cost, so that a budget that is used up keeps nobody's deposit here. A
// payer can deposit again by itself and ask again, so that the next ones must be
// within the budgets.
func (g *GasSponsor) AffordReturn(ctx context.Context, payer common.Address) error {
	_, err := g.affordReturn(payer)(ctx)
	return err
}

func (g *GasSponsor) affordReturn(payer common.Address) bound {
	return func(ctx context.Context) (room, error) {
		now := time.Now()
		_, returned, err := g.Sender.Sponsored(ctx, now.Add(-sponsoredGasWindow), now, payer, chain.Close, chain.Refund)
		if err != nil || returned.Sign() == 0 {
			return room{}, err
		}
		return g.withinBudgets(payer)(ctx)
	}
}

// SubmitPart sends the refund of a part of a deposit. A payer can ask for many,
// so that it must be within the budgets, too.
func (g *GasSponsor) SubmitPart(ctx context.Context, s channel.State, call chain.Call) (chain.TxID, error) {
	bounds := []bound{g.withinBudgets(s.Terms.Payer)}
	if !g.fetches(s) {
		bounds = append(bounds, g.keepReserve)
	}
	return g.inTurn(ctx, s.Terms, call, nothing, bounds...)
}

// fetches reports whether to end a channel brings us enough to be worth its gas.
func (g *GasSponsor) fetches(s channel.State) bool {
	left := s.Unsettled()
	return !left.IsZero() && !left.Lt(&g.MinTransfer)
}

// inTurn submits a call for a channel's payer if the bounds leave room for what it costs, one at a
// time: what is in the outbox counts for the next. Its fee is raised only as far as
// they go.
func (g *GasSponsor) inTurn(ctx context.Context, terms channel.Terms, call chain.Call, reserve func() error, bounds ...bound) (chain.TxID, error) {
	select {
	case g.turn <- struct{}{}:
		defer func() { <-g.turn }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if err := g.AwaitRoom(ctx); err != nil {
		return "", err
	}
	var least room
	for _, b := range bounds {
		r, err := b(ctx)
		if err != nil {
			return "", err
		}
		if r.left != nil && (least.left == nil || r.left.Cmp(least.left) < 0) {
			least = r
		}
	}
	if err := reserve(); err != nil {
		return "", err
	}
	spent, err := g.SpentFor(ctx, terms.Payer)
	if err != nil {
		return "", err
	}
	call.Budget = g.budgetAfter(spent)
	call.MaxGas, call.MaxCost = MaxGas, least.left
	if err := g.Sender.Store.Sponsor(ctx, terms.ID(), terms.Payer); err != nil {
		return "", err
	}
	id, err := g.Sender.Submit(ctx, call)
	return id, g.explain(err, least)
}

// explain tells a renter why its transaction was not sent where it takes too much.
func (g *GasSponsor) explain(err error, least room) error {
	var dear *chain.TooDear
	switch {
	case !errors.As(err, &dear):
		return err
	case dear.Cost == nil:
		return wire.NotServed.With("this transaction takes %d gas, and this provider sends none for others that takes more than %d: send it yourself and give its hash", dear.Gas, MaxGas)
	}
	return least.refusal()
}

// AwaitRoom waits until fewer than MaxInFlight transactions for renters are in flight.
func (g *GasSponsor) AwaitRoom(ctx context.Context) error {
	for {
		flying, err := g.Sender.InFlight(ctx)
		if err != nil {
			return err
		}
		others := 0
		for _, tx := range flying {
			if tx.GivesWay() {
				others++
			}
		}
		if others < MaxInFlight {
			return nil
		}
		if chain.Pause(ctx, g.Poll) != nil {
			return wire.Unavailable.With("this provider has %d transactions for others in flight: send the same request again later", others)
		}
	}
}

// Spent is what was sent for renters within sponsoredGasWindow, and for one payer, in wei.
type Spent struct{ All, Payer *big.Int }

func (g *GasSponsor) SpentFor(ctx context.Context, payer common.Address) (s Spent, err error) {
	now := time.Now()
	s.All, s.Payer, err = g.Sender.Sponsored(ctx, now.Add(-sponsoredGasWindow), now, payer, sponsoredKinds...)
	return s, err
}

// budgetAfter is what may still be spent for a payer, in wei.
func (g *GasSponsor) budgetAfter(s Spent) *big.Int {
	left := new(big.Int).Sub(g.Budget.Spent, s.All)
	if payers := new(big.Int).Sub(g.Budget.PerPayer, s.Payer); payers.Cmp(left) < 0 {
		left = payers
	}
	if left.Sign() < 0 {
		left.SetInt64(0)
	}
	return left
}

func (g *GasSponsor) affordRevert(ctx context.Context) (room, error) {
	lost, risked, err := g.Sender.Wasted(ctx, time.Now().Add(-lostGasWindow), chain.Open, chain.TopUp, chain.Deposit)
	if err != nil {
		return room{}, err
	}
	budget := g.Budget.Lost
	if new(big.Int).Add(lost, risked).Cmp(budget) < 0 || lost.Cmp(budget) < 0 && risked.Sign() == 0 {
		return room{}, nil
	}
	if lost.Cmp(budget) < 0 {
		return room{}, wire.Unavailable.With("this provider has as many deposits of others in flight as it risks: send the same request again later")
	}
	if g.coolDown() {
		g.Log.Warn("deposits that reverted have cost as much gas as Limits.LostGas allows in an hour: renters must send their own until it has passed",
			"lost_wei", lost, "budget_wei", budget)
	}
	return room{}, wire.Unavailable.With("this provider sends no deposits for others at the moment: send the transaction yourself and give its hash, or come back within an hour")
}

// withinBudgets holds what is sent for renters to what it may cost in a day.
func (g *GasSponsor) withinBudgets(payer common.Address) bound {
	return func(ctx context.Context) (room, error) {
		s, err := g.SpentFor(ctx, payer)
		if err != nil {
			return room{}, err
		}
		own := room{new(big.Int).Sub(g.Budget.PerPayer, s.Payer), func() error {
			return wire.TooMany.With("this provider has sent as much for payer %s in a day as it does for one: send the transaction yourself and give its hash, or come back tomorrow", payer)
		}}
		all := room{new(big.Int).Sub(g.Budget.Spent, s.All), func() error {
			if g.coolDown() {
				g.Log.Warn("what was sent for renters has cost as much gas as Limits.SponsoredGas allows in a day: renters must send their own deposits until it has passed",
					"cost_wei", s.All, "budget_wei", g.Budget.Spent)
			}
			return wire.Unavailable.With("this provider has sent as much for others in a day as it does: send the transaction yourself and give its hash, or come back tomorrow")
		}}
		for _, r := range []room{own, all} {
			if r.left.Sign() <= 0 {
				return r, r.refusal()
			}
		}
		if all.left.Cmp(own.left) < 0 {
			return all, nil
		}
		return own, nil
	}
}

// keepReserve refuses to send for others what the reserve must not pay for.
func (g *GasSponsor) keepReserve(ctx context.Context) (room, error) {
	f, err := g.Funds(ctx)
	if err != nil {
		return room{}, err
	}
	r := room{new(big.Int).Sub(f.Coin, f.Reserve), func() error {
		if g.coolDown() {
			g.Log.Warn("the key's coin is kept for settlements: nothing is sent for renters until there is more", "key", g.Sender.Address(),
				"coin_wei", f.Coin, "reserve_wei", f.Reserve)
		}
		return wire.Unavailable.With("this provider keeps its coin for settlements at the moment: send the transaction yourself, or come back later")
	}}
	if r.left.Cmp(f.Gift) < 0 {
		return r, r.refusal()
	}
	return r, nil
}

// Funds is what the key has for gas, in wei.
type Funds struct {
	Coin    *big.Int // not yet promised to a transaction
	Least   *big.Int // what one settlement takes, at twice the present price
	Reserve *big.Int // what is kept for settlements
	Gift    *big.Int // what a transaction for a renter whose payer is a key takes at most, its fee raised as far as it may be
}

func (g *GasSponsor) Funds(ctx context.Context) (Funds, error) {
	coin, err := g.Sender.Coin(ctx)
	if err != nil {
		return Funds{}, err
	}
	price, err := g.Sender.GasPrice(ctx)
	if err != nil {
		return Funds{}, err
	}
	price = new(big.Int).Lsh(price, 1)
	f := Funds{Coin: coin, Least: SettlementCost(price, g.Contracts...), Gift: new(big.Int).Mul(price, big.NewInt(2*callGas))}
	f.Reserve = new(big.Int).Mul(f.Least, big.NewInt(int64(max(g.Budget.ReservedSettlements, 0))))
	return f, nil
}

// SettlementCost is what a settlement of one channel costs at a price of gas, in wei: the dearest of some contracts.
func SettlementCost(price *big.Int, contracts ...chain.Contract) *big.Int {
	dearest := new(big.Int)
	for _, contract := range contracts {
		batch, row := contract.SettlementGas()
		need := new(big.Int).SetUint64((batch+row)*5/4 + 30_000) // as a Sender asks for
		if need.Mul(need, price); need.Cmp(dearest) > 0 {
			dearest = need
		}
	}
	return dearest
}

// WarnPoor says so at the start where the key cannot pay for what it is for.
func (g *GasSponsor) WarnPoor(ctx context.Context) {
	log := g.Log.With("key", g.Sender.Address())
	f, err := g.Funds(ctx)
	switch {
	case err != nil:
		log.Warn("what coin the key has for settlements is not known", "error", err)
	case f.Coin.Cmp(f.Least) < 0:
		log.Error("the key has no coin to settle with: what renters voucher cannot be fetched until it has", "coin_wei", f.Coin, "reserve_wei", f.Reserve)
	case f.Coin.Cmp(f.Reserve) < 0:
		log.Warn("the key has less coin than is kept for settlements: nothing is sent for renters until it has more", "coin_wei", f.Coin, "reserve_wei", f.Reserve)
	}
}
