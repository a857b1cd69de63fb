package pool

import (
	"context"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

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
		c := Channel{ID: r.Channel, URL: r.URL, Phase: r.Phase, Promised: r.Promised, Owed: u256.Max(r.Owed, r.Paid)}
		if r.Phase != renter.PhaseOpening || r.Promised.IsZero() {
			c.Deposit = r.Deposit
		}
		c.Owed = u256.Min(c.Owed, c.Deposit)
		c.Refundable.Sub(&c.Deposit, &c.Owed)
		if !c.Refundable.IsZero() {
			if c.From, err = p.back(ctx, r); err != nil {
				return m, fmt.Errorf("pool: when the money of channel %s is back: %w", r.Channel, err)
			}
		}
		m.Owed.Add(&m.Owed, &c.Owed)
		m.Refundable.Add(&m.Refundable, &c.Refundable)
		m.Promised.Add(&m.Promised, &c.Promised)
		m.Parked.Add(&m.Parked, &c.Deposit)
		m.Channels = append(m.Channels, c)
	}
	return m, nil
}

// back is when a channel's refund is there at the latest.
func (p *Pool) back(ctx context.Context, r renter.State) (time.Time, error) {
	rental, err := p.client.Rental(ctx, r.Channel)
	if err != nil {
		return time.Time{}, err
	}
	w := p.client.Wallet()
	escrow, err := chain.NewEscrow(ctx, w.Backend, rental.Terms().Escrow)
	if err != nil {
		return time.Time{}, err
	}
	view, err := escrow.View(ctx, r.Channel, nil)
	if err != nil {
		return time.Time{}, err
	}
	asked := p.now()
	if view.CloseRequestedAt != 0 {
		asked = time.Unix(int64(view.CloseRequestedAt), 0)
	}
	return asked.Add(escrow.Grace()), nil
}
