package renter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// pastLease is a lease of the channel that was before the rental's.
type pastLease struct {
	ID         common.Hash     `json:"id"`
	Offer      json.RawMessage `json:"offer"`
	Devices    []string        `json:"devices"`
	OwedBefore uint256.Int     `json:"owedBefore"`

	Binding *wire.MeterBinding `json:"binding,omitempty"` // as of the rental's lease

	// Heard is when its newest record came, on our clocks: the next lease began after it. Nil in older databases.
	Heard     *metering.Instant `json:"heard,omitempty"`
	HeardBoot string            `json:"heardBoot,omitempty"`
}

// Reopen takes back a close that was requested on the chain, by Leave or by who relayed what SignLeave signed, and begins
// another lease on the channel, where the one before ended with the request: what its records say is paid first, and the new
// one is under the provider's offer of now, within the caps. Run pays for it then. Of a channel whose close was taken back, or
// never requested, it begins the next lease where the one before has ended, and leaves one that goes on as it is.
//
// It sends a transaction, for which it takes native coin (ErrNoGas). It can be cut off and called again, also in another
// process. After the grace period anyone may have sent the withdrawal: then there is nothing to reopen (channel.ErrFinalized).
// A request that was signed and is not on the chain cannot be taken back (channel.ErrClosing): whoever has it can send it.
func (l *Rental) Reopen(ctx context.Context) error {
	release, err := l.takeOver(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := l.mayReopen(ctx); err != nil {
		return err
	}
	paid, err := l.payer.State(ctx, l.id)
	if err != nil {
		return err
	}
	if l.row.Phase == PhaseLeaving || paid.Closed {
		if err := l.cancelClose(ctx); err != nil {
			return err
		}
	}
	return l.renew(ctx)
}

// mayReopen refuses what would put money where it is not to be.
func (l *Rental) mayReopen(ctx context.Context) error {
	if done, err := l.over(ctx); done || err != nil {
		return errors.Join(err, fmt.Errorf("channel %s: %w: rent again", l.id, channel.ErrFinalized))
	}
	switch {
	case l.row.Dispute != "":
		return &wallet.Dispute{Channel: l.id, Reason: errors.New(l.row.Dispute)}
	case l.row.Phase != PhaseLeaving && l.row.Phase != PhaseRunning || l.row.found():
		return fmt.Errorf("channel %s: the rental is %s: only one that runs, or is being left, can be reopened", l.id, l.row.Phase)
	}
	return l.r.w.Vet(ctx, l.row.Terms.Payee, peer.SiteOf(l.row.URL))
}

// cancelClose has the chain forget a close request. Which one is on disk before that is signed: each can be taken back once.
func (l *onChain) cancelClose(ctx context.Context) error {
	if err := l.awaitRequest(ctx); err != nil {
		return err
	}
	pace := chain.Backoff{Least: l.r.w.Poll, Most: 8 * l.r.w.Poll}
	for try := 0; ; try++ {
		view, err := l.settledView(ctx)
		var requests uint64
		if err == nil {
			requests, err = l.escrow.CloseRequests(ctx, l.id)
		}
		switch {
		case err != nil:
		case view.Finalized:
			return fmt.Errorf("channel %s: %w: rent again", l.id, channel.ErrFinalized)
		case view.CloseRequestedAt == 0 && l.row.Cancels != 0 && l.row.Cancels == requests:
			return l.reopened(ctx, view)
		case view.CloseRequestedAt == 0:
			return fmt.Errorf("channel %s: %w: no close is requested on the chain, and who has the request that was signed can send it: leave it", l.id, channel.ErrClosing)
		default:
			err = l.sendCancel(ctx, requests)
		}
		if errors.Is(err, wallet.ErrNoGas) || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		if try >= wallet.LeaveRounds {
			return fmt.Errorf("channel %s: %w: to take the close request back was tried %d times: %w", l.id, wallet.ErrStuck, try, errors.Join(err, wallet.ErrNotYet))
		}
		if err != nil {
			boundlog.Warn(l.r.w.Log, "reopening: not yet", l.id, err)
		}
		if err := chain.Pause(ctx, pace.Next()); err != nil {
			return err
		}
	}
}

// awaitRequest waits for a close request of ours that is on its way: one that comes later would close what was reopened.
func (l *onChain) awaitRequest(ctx context.Context) error {
	sent, err := l.r.w.Sender.Find(ctx, l.id, chain.RequestClose)
	if err != nil {
		return err
	}
	for _, tx := range sent {
		if tx.State != chain.Pending {
			continue
		}
		_, err := l.r.w.Sender.Wait(ctx, tx.ID, l.r.w.Confirmations)
		var reverted *chain.Reverted
		if err != nil && !errors.As(err, &reverted) {
			return err
		}
	}
	return nil
}

func (l *onChain) sendCancel(ctx context.Context, requests uint64) error {
	own, err := l.r.w.HasGas(ctx)
	if err != nil {
		return err
	}
	if !own {
		return l.noGasToReopen(nil)
	}
	now, err := l.escrow.Now(ctx)
	if err != nil {
		return err
	}
	if l.row.Cancels != requests {
		l.row.Cancels = requests
		if err := l.save(ctx); err != nil {
			return err
		}
	}
	deadline := uint64(now.Add(leaveTTL).Unix())
	signature, err := l.r.w.Key.Sign(ctx, l.escrow.Domain().CancelCloseDigest(l.id, requests, deadline))
	if err != nil {
		return fmt.Errorf("channel %s: signing that the close request is taken back: %w", l.id, err)
	}
	err = l.r.w.Sender.SendOnce(ctx, l.escrow.CancelCloseAuthorizedCall(l.row.Terms, deadline, signature), l.r.w.Confirmations)
	if errors.Is(err, chain.ErrFunds) { // a little coin is as good as none
		return l.noGasToReopen(err)
	}
	return err
}

func (l *onChain) noGasToReopen(cause error) error {
	err := fmt.Errorf("channel %s: %w: send %s some: taking a close request back is a transaction", l.id, wallet.ErrNoGas, l.r.Address())
	return errors.Join(err, cause)
}

// reopened has the channel paid again.
func (l *onChain) reopened(ctx context.Context, view channel.ChainView) error {
	if err := l.r.w.Sender.Sync(ctx); err != nil { // what was cut off is in the books as mined
		return err
	}
	if _, err := l.payer.Observe(ctx, l.id, view); err != nil {
		return err
	}
	if _, err := l.payer.Reopen(ctx, l.id); err != nil {
		return err
	}
	l.row.Cancels = 0
	return l.enter(ctx, PhaseRunning)
}

// renew ends what is left of the lease before and begins another. The provider may see later than we do that the channel is
// open again: it is asked for as long as Patience.
func (l *Rental) renew(ctx context.Context) error {
	pace := chain.Backoff{Least: l.r.w.Poll, Most: 15 * time.Second}
	for began := time.Now(); ; {
		err := l.next(ctx)
		if err == nil || ctx.Err() != nil || !isTransient(err) && !errors.Is(err, peer.ErrUnreachable) {
			return err
		}
		l.detach()
		if time.Since(began) > l.r.w.Patience {
			return fmt.Errorf("channel %s: it is open, and no lease begins on it: reopen it again, close it or leave it: %w", l.id, err)
		}
		if err := chain.Pause(ctx, pace.Next()); err != nil {
			return err
		}
	}
}

// next is one try to renew.
func (l *Rental) next(ctx context.Context) error {
	if l.row.Lease != (common.Hash{}) && l.row.Ended == "" {
		if err := l.reattach(ctx); err != nil {
			return err
		}
		if l.service != wire.StateEnded && l.row.Ended == "" {
			return nil // it goes on
		}
		if err := l.follow(ctx, nil); err != nil || l.row.Ended == "" {
			return errors.Join(err, l.save(ctx))
		}
	}
	l.detach()
	if l.row.Lease != (common.Hash{}) {
		if err := l.payExact(ctx); err != nil {
			return err
		}
		q, err := l.r.quote(ctx, l.row.URL, l.row.GPUs)
		if err != nil {
			return err
		}
		if common.Address(q.Offer.Payee) != l.row.Terms.Payee || common.Address(q.Offer.Escrow) != l.row.Terms.Escrow {
			return fmt.Errorf("%w: the channel pays %s through %s, the new offer wants %s through %s: leave it",
				peer.ErrOffer, l.row.Terms.Payee, l.row.Terms.Escrow, q.Offer.Payee, q.Offer.Escrow)
		}
		if err := q.available(); err != nil {
			return err
		}
		if err := l.turnOver(); err != nil {
			return err
		}
		now := l.r.w.Clock.Now()
		l.row.Asked, l.row.AskedBoot = &now, l.r.w.Clock.BootID()
		if err := errors.Join(l.agree(q.Offer), l.save(ctx)); err != nil {
			return err
		}
	}
	return l.reattach(ctx)
}

// turnOver makes room in the books for the channel's next lease.
func (l *checks) turnOver() error {
	carried, err := l.carried()
	if err != nil {
		return err
	}
	past := pastLease{ID: l.row.Lease, Offer: l.row.Offer, Devices: l.row.Devices, OwedBefore: l.row.OwedBefore, Binding: l.row.Binding}
	if c := l.row.Checker; c != nil {
		past.Heard, past.HeardBoot = &metering.Instant{Boot: c.Start.Boot + c.Elapsed, Mono: c.Start.Mono + c.Elapsed, Wall: c.Start.Wall + c.Elapsed}, c.BootID
	}
	l.row.Past = append(l.row.Past, past)
	l.row.Carried = carried
	l.row.OwedBefore = l.owed()
	l.row.Lease, l.row.Secret, l.row.Devices, l.row.Access, l.row.Ended = common.Hash{}, "", nil, nil, ""
	l.row.Checker, l.checker, l.row.PastOffers, l.row.Binding = nil, nil, nil, nil
	l.demand = demand{}
	return nil
}

// carried is what the channel's leases used so far and were not charged for, in metering.Fractions.
func (l *checks) carried() (uint64, error) {
	at := l.row.Checker
	if at == nil {
		return l.row.Carried, nil
	}
	left, err := l.offer.Uncharged(at.Nanos, at.Final)
	return l.row.Carried + left, err
}

// of is the records of one lease.
func of(lease common.Hash, records []metering.SignedRecord) (its []metering.SignedRecord) {
	for _, rec := range records {
		if rec.LeaseID == lease {
			its = append(its, rec)
		}
	}
	return its
}

// knows reports whether what a lease begins with is what this database has, with what the leases before were not charged, or no
// more than a voucher that it had forgotten and the base unit that forgotten leases may have left. What of it is then still
// carried is the second result.
func (row *rentalRow) knows(lease wire.Lease) (carried uint64, ok bool) {
	if carried, ok = wire.CarriesTo(row.OwedBefore, lease.OwedBefore.Int, row.Carried); ok {
		return carried, true
	}
	if row.Recalled.IsZero() || row.Recalled.Lt(&row.OwedBefore) || lease.OwedBefore.Lt(&row.OwedBefore) {
		return 0, false
	}
	if _, ok = wire.CarriesTo(row.Recalled, lease.OwedBefore.Int, metering.Fractions); ok || lease.OwedBefore.Lt(&row.Recalled) {
		return metering.Fractions - 1, true
	}
	return 0, false
}
