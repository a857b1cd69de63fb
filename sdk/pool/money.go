package pool

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/route"
)

// Money is where the money is: of the client's key, in base units of the token, all as of one block. What the key was ever sent is Wallet, Parked
// and Settled together, for a key that pays through the client's database alone.
type Money struct {
	Wallet     uint256.Int // that the key has
	Parked     uint256.Int // in channels that are not over: Owed and Refundable
	Owed       uint256.Int // of it, what records bill or vouchers pay, or requests count that no record names yet, and providers have not fetched yet
	Refundable uint256.Int // of it, what comes back
	Settled    uint256.Int // that providers have fetched, from channels that are over, too
	Promised   uint256.Int // that signed authorizations may still move from the wallet into channels
	Coin       bool        // the key has coin of the chain to ask for what a provider does not help to give back, and to take it
	Today      route.Nano  // that counts against today's budget
	Channels   []Channel   // those that are not over, the ones of rentals of GPUs that are not shared among them
}

// Channel is the money at one provider.
type Channel struct {
	ID         common.Hash
	URL        string
	Phase      renter.Phase
	Parked     uint256.Int
	Owed       uint256.Int
	Refundable uint256.Int // at least, but for 2 s by which a lease's records may be over our measure, and the time since the last one where GPUs are not shared: a provider that is gone may never fetch what it is owed
	Settled    uint256.Int
	Promised   uint256.Int
	// From is when Refundable is back at the latest, by the chain's clock: the end of the grace period, which begins when the close is
	// asked for on the chain, or now where it is not yet. With the provider's help it is a matter of blocks. Zero: nothing is in it, or the
	// key has no coin to ask with.
	From time.Time
}

// booksTimeout bounds how long the books are read for the names of providers where the chain says nothing.
const booksTimeout = 2 * time.Second

// Money asks the chain and the books where the money is; no provider is asked. Where the chain does not say, it is an error, and of the Money only
// Today is known, and who has some: ID, URL and Phase of Channels.
func (p *Pool) Money(ctx context.Context) (Money, error) {
	today, err := p.books.Counted(ctx, p.now(), "")
	var m Money
	if err == nil {
		m, err = p.money(ctx)
	}
	if m.Today = today; err == nil {
		return m, nil
	}
	books, cancel := context.WithTimeout(context.WithoutCancel(ctx), booksTimeout)
	defer cancel()
	all, unread := p.client.History(books)
	m = Money{Today: today}
	for _, r := range all {
		if r.Phase != renter.PhaseClosed && r.Phase != renter.PhaseFinished {
			m.Channels = append(m.Channels, Channel{ID: r.Channel, URL: r.URL, Phase: r.Phase})
		}
	}
	return m, errors.Join(fmt.Errorf("pool: where the money is: %w", err), unread)
}

// money is all but Today. A channel that is opened, or over, while the chain is asked is in the books before or after: either is looked for on the
// chain, as of the block as of which the wallet is.
func (p *Pool) money(ctx context.Context) (m Money, err error) {
	pending, err := p.books.Pending(ctx) // before the rentals: what is billed meanwhile is there twice, and not left out
	if err != nil {
		return m, err
	}
	before, err := p.client.Rentals(ctx)
	if err != nil {
		return m, err
	}
	wallet := p.client.Wallet()
	backend, owner := chain.Agreed(wallet.Backend), p.client.Address()
	head, err := backend.HeaderByNumber(ctx, nil)
	if err != nil {
		return m, chain.Unread("the newest block", err)
	}
	if m.Wallet, err = p.client.Token().BalanceAt(ctx, owner, head.Number); err != nil {
		return m, err
	}
	coin, err := backend.BalanceAt(ctx, owner, head.Number)
	if err != nil {
		return m, chain.Unread("the coin of "+owner.String(), err)
	}
	after, err := p.client.Rentals(ctx)
	if err != nil {
		return m, err
	}
	ours := slices.DeleteFunc(joined(before, after), func(r renter.State) bool { return r.Token != p.client.Token().Address })
	m.Coin = coin.Cmp(leavingCosts(head.BaseFee, len(ours))) >= 0
	look := looker{backend: backend, block: head.Number, escrows: make(map[common.Address]*chain.Escrow), now: wallet.Now(), coin: m.Coin, pending: pending}
	looked := make(map[common.Hash]bool)
	for _, r := range ours {
		c, over, err := look.at(ctx, r)
		if err != nil {
			return m, fmt.Errorf("channel %s: %w", r.Channel, err)
		}
		m.Settled.Add(&m.Settled, &c.Settled)
		if looked[r.Channel] = true; !over {
			m.add(c)
		}
	}
	all, err := p.client.History(ctx)
	if err != nil {
		return m, err
	}
	for _, r := range all { // the others are over for long
		if !looked[r.Channel] && r.Closed != nil && r.Token == p.client.Token().Address {
			m.Settled.Add(&m.Settled, &r.Closed.Settled)
		}
	}
	again, err := backend.HeaderByNumber(ctx, head.Number)
	if err == nil && again.Hash() != head.Hash() {
		err = fmt.Errorf("block %s was replaced meanwhile", head.Number)
	}
	return m, err
}

// leavingCosts is what it costs, in wei, to ask for the deposits of so many channels and to take them: some 120,000 gas each, at twice the fee of now.
func leavingCosts(baseFee *big.Int, channels int) *big.Int {
	const gas = 120_000
	if baseFee == nil {
		baseFee = new(big.Int)
	}
	cost := new(big.Int).Mul(baseFee, big.NewInt(2*gas*int64(max(channels, 1))))
	return cost.Add(cost, big.NewInt(1))
}

// joined are the rentals of both lists, as the second has them where it does.
func joined(before, after []renter.State) []renter.State {
	for _, r := range before {
		if !slices.ContainsFunc(after, func(s renter.State) bool { return s.Channel == r.Channel }) {
			after = append(after, r)
		}
	}
	return after
}

// add counts a channel.
func (m *Money) add(c Channel) {
	m.Parked.Add(&m.Parked, &c.Parked)
	m.Owed.Add(&m.Owed, &c.Owed)
	m.Refundable.Add(&m.Refundable, &c.Refundable)
	m.Promised.Add(&m.Promised, &c.Promised)
	m.Channels = append(m.Channels, c)
}

// looker reads channels as of one block.
type looker struct {
	backend chain.Backend
	block   *big.Int
	escrows map[common.Address]*chain.Escrow
	now     time.Time
	coin    bool
	pending map[string]route.Nano // by channel, of requests that no record names yet
}

// at is the money in a rental's channel, as the chain has it; over: it has paid out all.
func (l looker) at(ctx context.Context, r renter.State) (c Channel, over bool, err error) {
	escrow := l.escrows[r.Escrow]
	if escrow == nil {
		if escrow, err = chain.NewEscrow(ctx, l.backend, r.Escrow); err != nil {
			return c, false, err
		}
		l.escrows[r.Escrow] = escrow
	}
	view, err := escrow.View(ctx, r.Channel, l.block)
	if errors.Is(err, channel.ErrUnknown) { // one that is being opened is not there yet, and one that was given up never comes
		return Channel{ID: r.Channel, URL: r.URL, Phase: r.Phase, Promised: r.Promised}, r.Phase == renter.PhaseClosed || r.Phase == renter.PhaseFinished, nil
	}
	if err != nil {
		return c, false, err
	}
	c = Channel{ID: r.Channel, URL: r.URL, Phase: r.Phase, Settled: view.Settled, Promised: r.Promised}
	c.Parked.Sub(&view.Deposit, &view.Settled)
	owed, pending := r.Owed, l.pending[r.Channel.Hex()].RoundUp()
	owed.Add(&owed, &pending) // of 96 bits each
	spent := u256.Max(u256.Min(u256.Max(owed, r.Paid), view.Deposit), view.Settled)
	c.Owed.Sub(&spent, &view.Settled)
	if c.Refundable.Sub(&c.Parked, &c.Owed); l.coin && !c.Refundable.IsZero() {
		asked := l.now
		if view.CloseRequestedAt != 0 {
			asked = time.Unix(int64(view.CloseRequestedAt), 0)
		}
		c.From = asked.Add(escrow.Grace())
	}
	return c, view.Finalized, nil
}
