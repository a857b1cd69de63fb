package pool

import (
	"context"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/budget"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/route"
)

// resume takes up what an earlier process left: rentals, and reservations that records have come to name.
func (p *Pool) resume(ctx context.Context) error {
	rentals, err := p.client.Rentals(ctx)
	if err != nil {
		return fmt.Errorf("pool: %w", err)
	}
	for _, r := range rentals {
		if !r.Share.Shared() || r.Phase == renter.PhaseClosed {
			continue
		}
		if err := p.owns(r); err != nil {
			return err
		}
		if err := p.adopt(ctx, r); err != nil {
			return fmt.Errorf("pool: %w", err)
		}
	}
	open, err := p.books.Channels(ctx)
	if err != nil {
		return fmt.Errorf("pool: %w", err)
	}
	for _, id := range open {
		rental, err := p.client.Rental(ctx, common.HexToHash(id))
		if err != nil { // of another database: what it counts at stays
			p.log.Warn("reservations stay at their most: their channel's rental is not to be had", "channel", id, "err", err)
			continue
		}
		if phase := rental.Snapshot().Phase; phase == renter.PhaseClosed || phase == renter.PhaseFinished {
			p.settle(ctx, rental)
		} else {
			p.correct(ctx, rental)
		}
	}
	return nil
}

// owns refuses to go on with what another wallet has paid for, or in another token: its records could not be paid, or would count as so many of this one.
func (p *Pool) owns(r renter.State) error {
	payer, token := p.client.Address(), p.client.Token().Address
	if r.Payer == payer && r.Token == token {
		return nil
	}
	return fmt.Errorf("pool: wallet %s has a deposit at %s, of token %s, in this database, and this is wallet %s with token %s: open it with that wallet and token, and close it, before another one uses the same files",
		r.Payer, redact.URL(r.URL), r.Token, payer, token)
}

// adopt goes on with a rental where it was left.
func (p *Pool) adopt(ctx context.Context, r renter.State) error {
	p.mu.Lock()
	s := p.site(r.URL)
	p.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r.Phase {
	case renter.PhaseRunning:
		rental, err := p.client.Rental(ctx, r.Channel)
		if err != nil {
			return err
		}
		return s.run(rental)
	case renter.PhaseOpening:
		if s.opening == nil && s.lease == nil {
			over := make(chan struct{})
			s.opening = over
			p.begin(func(ctx context.Context) {
				s.open(ctx, over, func(ctx context.Context) (*renter.Rental, error) { return s.p.client.Resume(ctx, r.Channel) })
			})
			return nil
		}
	}
	leave := r.Phase == renter.PhaseLeaving || r.Phase == renter.PhaseOpening
	s.ending++
	p.begin(func(ctx context.Context) {
		defer s.ended()
		s.finish(ctx, r.Channel, nil, leave)
	})
	return nil
}

// batch is how many records are read at once.
const batch = 64

// settle has nothing more be billed on a channel that is over. What a record that was not read bills would be forgotten: then it waits for
// the next start.
func (p *Pool) settle(ctx context.Context, rental *renter.Rental) {
	if !p.correct(ctx, rental) {
		return
	}
	if err := p.books.Settle(context.WithoutCancel(ctx), rental.ID().Hex()); err != nil {
		p.log.Warn("what no record of a closed channel names stays at its most", "channel", rental.ID(), "err", err)
	}
}

// correct has the reservations count at what the records of a rental bill, as far as they came, and reports whether all were read.
func (p *Pool) correct(ctx context.Context, rental *renter.Rental) bool {
	err := p.read(context.WithoutCancel(ctx), rental)
	if err != nil {
		p.log.Warn("what records bill is not corrected yet: it counts at its most, or as it was measured", "channel", rental.ID(), "err", err)
	}
	return err == nil
}

func (p *Pool) read(ctx context.Context, rental *renter.Rental) error {
	shown := rental.Snapshot()
	if shown.Sequence == 0 {
		return nil
	}
	for {
		after, err := p.books.Sequence(ctx, shown.Channel.Hex(), shown.Lease.Hex())
		if err != nil || after >= shown.Sequence {
			return err
		}
		records, err := p.client.RecordsAfter(ctx, shown.Channel, shown.Lease, after, batch)
		if err != nil || len(records) == 0 {
			return err
		}
		for _, rec := range records {
			r, err := billed(shown.Price, rec)
			if err == nil {
				err = p.books.Correct(ctx, r)
			}
			if err != nil {
				return err
			}
		}
	}
}

// billed is what a record bills, a request at a time, rounded up.
func billed(price metering.Price, rec metering.SignedRecord) (budget.Record, error) {
	r := budget.Record{Channel: rec.ChannelID.Hex(), Lease: rec.LeaseID.Hex(), Sequence: rec.Sequence}
	slots := rec.Evidence.Slots
	if slots == nil {
		return r, nil
	}
	t, err := termsOf(price, slots.Share())
	if err != nil {
		return r, err
	}
	r.Unnamed = slots.MoreNanos > 0
	for _, request := range slots.Requests {
		r.Bills = append(r.Bills, budget.Bill{Request: request.ID, Cost: route.Price{PerSlotSecond: t.price}.Pay(time.Duration(request.Nanos), 0, 0)})
	}
	return r, nil
}
