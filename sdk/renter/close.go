package renter

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/exactjson"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// releaseWait is how long each of the records before the final one may take to
// come over the stream after the lease was released; all of them together may
// take as long as Patience, where that is more.
const releaseWait = 5 * time.Second

// Close ends the rental with the provider's help: it gives the lease back,
// checks the final record and pays it exactly, has the provider close the
// channel, and waits until the refund is on the chain.
//
// ErrRefused means that the provider does not close: Leave gets the deposit
// back without it. A *Dispute beside a Closing means that the channel is closed
// and that the provider lied about the last seconds, which were not paid.
func (l *Rental) Close(ctx context.Context) (Closing, error) {
	release, err := l.takeOver(ctx)
	if err != nil {
		return Closing{}, err
	}
	defer release()
	defer l.detach()
	if done, err := l.over(ctx); done || err != nil {
		return l.closing(), err
	}
	if l.row.Phase == PhaseOpening {
		return Closing{}, fmt.Errorf("channel %s: it was not opened: resume the rental to open it, or leave it", l.id)
	}
	if l.row.URL == "" {
		return Closing{}, fmt.Errorf("channel %s: %w: it was found on the chain, and who its provider is was lost: leave it", l.id, peer.ErrRefused)
	}
	if err := errors.Join(l.stopClock(ctx), l.enter(ctx, PhaseClosing)); err != nil {
		return Closing{}, err
	}
	lied, unheard := l.lastRecord(ctx) // first of all: the lease is billed until it is given back, and that takes no chain
	if ctx.Err() != nil {
		return Closing{}, ctx.Err()
	}
	closed, err := l.awaitChain(ctx)
	if err != nil || closed {
		c, err := l.ending(ctx, false, err)
		return c, errors.Join(err, lied)
	}
	if unheard != nil {
		return Closing{}, unheard
	}
	if err := l.requestClose(ctx); err != nil {
		return Closing{}, errors.Join(err, lied)
	}
	if err := l.awaitClosed(ctx); err != nil {
		return Closing{}, errors.Join(err, lied)
	}
	fault.Point(fault.CloseSeen)
	c, err := l.ending(ctx, false, nil)
	return c, errors.Join(err, lied)
}

// stopClock ends, on disk with what is saved next, the time that is paid: the lease is being given back, or its provider says that
// it is over. How late the provider answers, and what it bills meanwhile, makes no difference.
func (l *checks) stopClock(ctx context.Context) error {
	if l.checker == nil {
		return nil
	}
	most, err := l.mostOwed(ctx)
	if err != nil {
		return err
	}
	began := l.checker.State().Start
	l.checker.Stop(most)
	l.parted(began)
	state := l.checker.State()
	if before := l.row.Checker; before != nil {
		state.Elapsed = before.Elapsed // when a record was heard of last: a lease that this database has forgotten began after that
	}
	l.row.Checker = &state
	return nil
}

// awaitChain asks whether the channel is closed already, and waits out an
// endpoint that does not answer.
func (l *onChain) awaitChain(ctx context.Context) (closed bool, err error) {
	pace := chain.Backoff{Least: l.r.w.Poll, Most: max(l.r.w.Poll, 15*time.Second)}
	for {
		closed, err := l.closedOnChain(ctx)
		if err == nil || !errors.Is(err, chain.ErrUnreachable) {
			return closed, err
		}
		wait := pace.Next()
		boundlog.Warn(l.r.w.Log, "the chain cannot be read: waiting for it", l.id, err, "retry", wait)
		if err := chain.Pause(ctx, wait); err != nil {
			return false, err
		}
	}
}

func (l *onChain) closedOnChain(ctx context.Context) (bool, error) {
	view, err := l.settledView(ctx)
	return view.Finalized, err
}

// settledView is the channel at the depth at which a transaction counts.
func (l *onChain) settledView(ctx context.Context) (channel.ChainView, error) {
	head, err := l.r.w.Backend.BlockNumber(ctx)
	if err != nil {
		return channel.ChainView{}, fmt.Errorf("channel %s: %w", l.id, chain.Unread("the newest block", err))
	}
	depth := min(l.r.w.Confirmations-1, head)
	return l.escrow.View(ctx, l.id, new(big.Int).SetUint64(head-depth))
}

// lastRecord gives the lease back and pays what its final record says, if it
// holds: lied is what it was caught at. Nothing but our own doing, or a provider
// that is not there at all, keeps the close from being asked for after it.
func (l *Rental) lastRecord(ctx context.Context) (lied, err error) {
	paid, err := l.payer.State(ctx, l.id)
	if err != nil || l.row.Dispute != "" || l.checker == nil || paid.Status == channel.Closing {
		return nil, err
	}
	err = l.finalRecord(ctx)
	var lie *wallet.Dispute
	if errors.As(err, &lie) {
		return err, l.enter(ctx, PhaseClosing)
	}
	if unpaid := l.payExact(ctx); unpaid != nil {
		boundlog.Warn(l.r.w.Log, "the lease's last seconds could not be paid", l.id, unpaid)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if errors.Is(err, peer.ErrUnreachable) {
		return nil, fmt.Errorf("channel %s: %w: close again, or leave it: %w", l.id, peer.ErrRefused, err)
	}
	if err != nil {
		boundlog.Warn(l.r.w.Log, "the lease's last record is not there", l.id, err)
	}
	return nil, nil
}

func (l *Rental) finalRecord(ctx context.Context) error {
	if l.row.Ended == "" || l.row.Secret != "" { // if that is refused, another lease was on the channel since
		if err := l.reattach(ctx); err != nil && !isTransient(err) {
			return err
		}
	}
	if l.row.Checker == nil || l.row.Checker.Final {
		return nil
	}
	answer, err := l.release(ctx)
	if err != nil {
		return err
	}
	fault.Point(fault.LeaseReturned)
	return l.released(ctx, answer)
}

// release ends the lease. Nothing is billed after its answer, which carries
// the final record.
func (l *leaseStream) release(ctx context.Context) (answer wire.Released, err error) {
	body, _, err := l.post(ctx, wire.Payload{Action: wire.ActionRelease, ChannelID: l.id}, wire.ActionRelease, time.Minute)
	if err != nil {
		return answer, err
	}
	if err := exactjson.Unmarshal(body, &answer); err != nil {
		return answer, fmt.Errorf("channel %s: %w: the answer to a release: %w", l.id, peer.ErrProtocol, err)
	}
	return answer, nil
}

// released checks the record in a release's answer, after those before it that
// the stream still carries. If they never come it cannot be checked: it is not
// paid then, and no lie either. It is held against what was signed, which a restored
// database may have forgotten: also where no stream was there to show it.
func (l *leaseStream) released(ctx context.Context, answer wire.Released) error {
	if err := l.remember(ctx, answer.Voucher); err != nil {
		return err
	}
	document := answer.Record
	if string(document) == "null" || len(document) == 0 {
		return nil
	}
	var rec metering.SignedRecord
	if err := exactjson.Unmarshal(document, &rec); err != nil {
		return l.dispute(ctx, fmt.Errorf("%w: final record: %w", peer.ErrProtocol, err), document)
	}
	if rec.LeaseID == l.row.Lease {
		if err := l.drain(ctx, rec.Sequence-1); err != nil {
			return err
		}
	}
	if rec.LeaseID != l.row.Lease || rec.Sequence > l.row.Checker.Sequence+1 {
		return fmt.Errorf("channel %s: record %d came after record %d: what lies between was never shown, and is not paid", l.id, rec.Sequence, l.row.Checker.Sequence)
	}
	return l.check(ctx, document)
}

// drain reads records from the stream up to a number.
func (l *leaseStream) drain(outer context.Context, last uint64) error {
	if l.feed == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(outer, max(releaseWait, l.r.w.Patience))
	defer cancel()
	wait := time.NewTimer(releaseWait)
	defer wait.Stop()
	for l.row.Checker.Sequence < last {
		select {
		case <-ctx.Done():
			return outer.Err()
		case <-wait.C:
			return nil
		case e, ok := <-l.feed.Events:
			if !ok {
				return nil
			}
			if e.Name != wire.EventUsage {
				continue
			}
			if err := l.check(outer, e.Data); err != nil {
				return err
			}
			wait.Reset(releaseWait) // a database from long ago has many to read
		}
	}
	return nil
}

// requestClose ends payments, on disk first, and asks the provider to close.
func (l *Rental) requestClose(ctx context.Context) error {
	voucher, err := l.newest(ctx)
	if err != nil {
		return err
	}
	if err := l.endPayments(ctx); err != nil {
		return err
	}
	fault.Point(fault.PaymentsEnded)
	amount := wire.NewAmount(voucher.Cumulative)
	_, _, err = l.post(ctx, wire.Payload{
		Action: wire.ActionClose, ChannelID: l.id, CumulativeAmount: &amount, Signature: voucher.Signature,
	}, wire.ActionClose, peer.ChainTimeout)
	if err == nil || errors.Is(err, &wire.ChannelFinalized) {
		fault.Point(fault.CloseAnswered)
		return nil // the chain has the last word
	}
	if view, err := l.settledView(ctx); err == nil && view.Finalized {
		return nil // closed by an earlier request, whose answer got lost
	}
	return fmt.Errorf("channel %s: %w: leave it: %w", l.id, peer.ErrRefused, err)
}

// newest is the voucher that was signed last: as it is on disk or, where a
// crash came before its signature, signed again.
func (l *ledger) newest(ctx context.Context) (channel.Voucher, error) {
	paid, err := l.payer.State(ctx, l.id)
	if err != nil {
		return channel.Voucher{}, err
	}
	if len(paid.Signature) > 0 {
		return channel.Voucher{ChannelID: l.id, Cumulative: paid.Signed, Signature: paid.Signature}, nil
	}
	return l.payer.Pay(ctx, l.id, paid.Signed)
}

// awaitClosed believes the chain, not the provider.
func (l *onChain) awaitClosed(ctx context.Context) error {
	_, err := l.finalView(ctx)
	if err == nil || ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("channel %s: %w: it said so, the chain does not: leave it: %w", l.id, peer.ErrRefused, err)
}

// finalView is the channel as it ended. Endpoints have many nodes: one that is
// behind the one that was asked before is waited for, or the books would say
// what was settled before the end. One that does not answer is waited out.
func (l *onChain) finalView(ctx context.Context) (channel.ChainView, error) {
	limit := time.Now().Add(max(l.r.w.Patience, 10*l.r.w.Poll))
	for {
		began := time.Now()
		var view channel.ChainView
		at, err := l.r.moment(ctx, l.r.w.Confirmations)
		if err == nil {
			view, err = l.escrow.View(ctx, l.id, at.block)
		}
		if err == nil && view.Finalized {
			l.row.sighted(at)
			return view, nil
		}
		if errors.Is(err, chain.ErrUnreachable) {
			boundlog.Warn(l.r.w.Log, "closing: the chain cannot be read", l.id, err)
			limit = limit.Add(time.Since(began) + l.r.w.Poll)
		} else if time.Now().After(limit) {
			return view, errors.Join(fmt.Errorf("channel %s is not closed on the chain", l.id), err)
		}
		if err := chain.Pause(ctx, l.r.w.Poll); err != nil {
			return view, err
		}
	}
}

// ending reports how the channel ended and closes the rental.
func (l *onChain) ending(ctx context.Context, forced bool, err error) (Closing, error) {
	if err != nil {
		return Closing{}, err
	}
	view, err := l.finalView(ctx)
	if err != nil {
		return Closing{}, err
	}
	paid, err := l.payer.Observe(ctx, l.id, view)
	if err != nil {
		return Closing{}, err
	}
	if err := l.awaitTold(ctx); err != nil {
		return Closing{}, err
	}
	c := Closing{
		Channel: l.id, Deposit: view.Deposit, Owed: l.owed(), Signed: paid.Cost(), Settled: view.Settled, Forced: forced,
	}
	c.Refunded.Sub(&view.Deposit, &view.Settled)
	c.Note = l.refundWaits(ctx)
	return c, l.finish(ctx, c)
}

// toldTries is how often the end of a rental asks what became of its transactions.
const toldTries = 10

// awaitTold has the books say which of our transactions about the channel were mined before it closed. The refund is here
// whatever became of them: what the node does not show by then is asked for again before the end counts as final.
func (l *onChain) awaitTold(ctx context.Context) error {
	for try := 1; ; try++ {
		err := l.r.w.Sync(ctx, l.id)
		if err == nil {
			return nil
		}
		if try == toldTries {
			boundlog.Warn(l.r.w.Log, "closing: what became of the rental's transactions is not known yet", l.id, err)
			return nil
		}
		if err := chain.Pause(ctx, l.r.w.Poll); err != nil {
			return err
		}
	}
}

// refundWaits says so if the token refused to pay the refund out, or another before it: then the escrow owes it, without a
// deadline.
func (l *onChain) refundWaits(ctx context.Context) string {
	credit, err := l.escrow.Credit(ctx, l.terms.Payer, l.terms.Token, nil)
	if err != nil || credit.Amount.IsZero() {
		return ""
	}
	return fmt.Sprintf("token %s refused to pay: escrow %s owes %s %s base units of it, which anyone can have paid out to it (withdrawCreditWithAuthorization)",
		l.terms.Token, l.terms.Escrow, l.terms.Payer, credit.Amount.Dec())
}

// finish notes how the rental ended. It stays listed until no re-org can undo it.
func (l *ledger) finish(ctx context.Context, c Closing) error {
	c.Channel = l.id
	l.row.Closed, l.row.Phase = &c, PhaseClosed
	l.r.w.Log.Info("rental closed", "channel", l.id, "settled", c.Settled.Dec(), "refunded", c.Refunded.Dec(), "note", c.Note)
	return l.save(ctx)
}

// closing is how the rental ended, zero if it has not.
func (l *ledger) closing() Closing {
	if l.row.Closed == nil {
		return Closing{}
	}
	return *l.row.Closed
}
