package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/route"
)

// Money is where the money is: of the client's key, in base units of the token.
type Money struct {
	Wallet     uint256.Int // that the key has
	Parked     uint256.Int // in channels that are not over: Owed and Refundable
	Owed       uint256.Int // of it, what records bill or vouchers pay, fetched by providers or not
	Refundable uint256.Int // of it, what comes back
	Promised   uint256.Int // that signed authorizations may still move from the wallet into channels
	Today      route.Nano  // that counts against today's budget
	Channels   []Channel   // those that are not over, the ones of rentals of GPUs that are not shared among them
}

// Channel is the money at one provider.
type Channel struct {
	ID         common.Hash
	URL        string
	Phase      renter.Phase
	Deposit    uint256.Int
	Owed       uint256.Int
	Refundable uint256.Int
	Promised   uint256.Int
	// From is when Refundable is back at the latest, by the chain's clock: the end of the grace period, which begins when the close is
	// asked for on the chain, or now where it is not yet. With the provider's help it is a matter of blocks. Zero: nothing is in it.
	From time.Time
}

// Money asks the chain and the books where the money is.
func (p *Pool) Money(ctx context.Context) (Money, error) {
	var m Money
	rentals, err := p.client.Rentals(ctx)
	if err == nil {
		m.Wallet, err = p.client.Token().Balance(ctx, p.client.Address())
	}
	if err == nil {
		m.Today, err = p.books.Counted(ctx, p.now(), "")
	}
	if err != nil {
		return m, fmt.Errorf("pool: where the money is: %w", err)
	}
	for _, r := range rentals {
		if r.Phase == renter.PhaseClosed {
			continue
		}
		c, over, err := p.at(ctx, r)
		if err != nil {
			return m, fmt.Errorf("pool: where the money of channel %s is: %w", r.Channel, err)
		}
		if over {
			continue
		}
		m.Owed.Add(&m.Owed, &c.Owed)
		m.Refundable.Add(&m.Refundable, &c.Refundable)
		m.Promised.Add(&m.Promised, &c.Promised)
		m.Parked.Add(&m.Parked, &c.Deposit)
		m.Channels = append(m.Channels, c)
	}
	return m, nil
}

// at is the money in a rental's channel, as the chain has it; over: it has paid out all.
func (p *Pool) at(ctx context.Context, r renter.State) (c Channel, over bool, err error) {
	rental, err := p.client.Rental(ctx, r.Channel)
	if err != nil {
		return c, false, err
	}
	escrow, err := chain.NewEscrow(ctx, p.client.Wallet().Backend, rental.Terms().Escrow)
	if err != nil {
		return c, false, err
	}
	view, err := escrow.View(ctx, r.Channel, nil)
	if err != nil && !errors.Is(err, channel.ErrUnknown) { // one that is being opened is not there yet
		return c, false, err
	}
	c = Channel{ID: r.Channel, URL: r.URL, Phase: r.Phase, Deposit: view.Deposit, Promised: r.Promised}
	c.Owed = u256.Min(u256.Max(r.Owed, r.Paid), c.Deposit)
	if c.Refundable.Sub(&c.Deposit, &c.Owed); !c.Refundable.IsZero() {
		asked := p.client.Wallet().Now()
		if view.CloseRequestedAt != 0 {
			asked = time.Unix(int64(view.CloseRequestedAt), 0)
		}
		c.From = asked.Add(escrow.Grace())
	}
	return c, view.Finalized, nil
}
