package paystream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/exactjson"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// releaseWait is how long each of the records before the final one may take to
// come over the stream after the lease was released, or Patience, where that is
// less; all of them together may take the longer of the two.
const releaseWait = 5 * time.Second

// releaseAgain is how long a release is asked for again, or Patience, where that is less.
const releaseAgain = time.Minute

// StopClock ends, on disk with what is saved next, the time that is paid: the lease is being given back, or its provider says that
// it is over. How late the provider answers, and what it bills meanwhile, makes no difference.
func (l *checks) StopClock(ctx context.Context) error {
	if l.Checker == nil {
		return nil
	}
	most, err := l.mostOwed(ctx)
	if err != nil {
		return err
	}
	began := l.Checker.State().Start
	l.Checker.Stop(most)
	l.parted(began)
	state := l.Checker.State()
	if before := l.Row.Checker; before != nil {
		state.Elapsed = before.Elapsed // when a record was heard of last: a lease that this database has forgotten began after that
	}
	l.Row.Checker = &state
	return nil
}

// LastRecord gives the lease back and pays what its final record says, if it
// holds: lied is what it was caught at. Nothing but our own doing, or a provider
// that is not there at all, keeps the close from being asked for after it.
func (l *Lease) LastRecord(ctx context.Context) (lied, err error) {
	paid, err := l.Payer.State(ctx, l.ID)
	if err != nil || l.Row.Dispute != "" || l.Checker == nil || paid.Status == channel.Closing {
		return nil, err
	}
	err = l.finalRecord(ctx)
	var lie *wallet.Dispute
	if errors.As(err, &lie) {
		return err, l.Enter(ctx, rental.PhaseClosing)
	}
	unpaid := l.PayExact(ctx)
	if unpaid != nil {
		boundlog.Warn(l.Wallet.Log, "the lease's last seconds could not be paid", l.ID, unpaid)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if own := errors.Join(err, unpaid); wallet.StorageFailed(own) { // to close now would leave unpaid what was used
		return nil, fmt.Errorf("channel %s: what was used last is not in our database: close again: %w", l.ID, own)
	}
	if errors.Is(err, peer.ErrUnreachable) {
		return nil, fmt.Errorf("channel %s: %w: close again, or leave it: %w", l.ID, peer.ErrRefused, err)
	}
	if err != nil {
		boundlog.Warn(l.Wallet.Log, "the lease's last record is not there", l.ID, err)
	}
	return nil, nil
}

// errUnshown is a final record before which others are missing.
var errUnshown = errors.New("what lies between was never shown, and is not paid")

// finalRecord asks again while the provider says that the failure is its own, or that it has no time now, or its stream broke off: a disk that fails for a moment must not
// leave unpaid what was used, as it would once the close is asked for. That costs nothing, our clock has stopped.
func (l *Lease) finalRecord(ctx context.Context) error {
	pace := chain.Backoff{Least: 100 * time.Millisecond, Most: 5 * time.Second}
	for until := time.Now().Add(min(releaseAgain, l.Wallet.Patience)); ; {
		err := l.giveBack(ctx)
		var problem *wire.Problem
		its := errors.As(err, &problem) && (problem.Status >= http.StatusInternalServerError || problem.Status == http.StatusTooManyRequests || problem.Status == http.StatusRequestTimeout)
		pause := pace.Next()
		if !its && !errors.Is(err, errUnshown) || time.Now().Add(pause).After(until) || chain.Pause(ctx, pause) != nil {
			return err
		}
	}
}

func (l *Lease) giveBack(ctx context.Context) error {
	if l.Row.Ended == "" || l.Row.Secret != "" { // if that is refused, another lease was on the channel since
		if err := l.Reattach(ctx); err != nil && !rental.IsTransient(err) {
			return err
		}
	}
	if l.Row.Checker == nil || l.Row.Checker.Final {
		return nil
	}
	answer, err := l.Release(ctx)
	if err != nil {
		return err
	}
	fault.Point(fault.LeaseReturned)
	return l.Released(ctx, answer)
}

// Release ends the lease. Nothing is billed after its answer, which carries
// the final record.
func (l *leaseStream) Release(ctx context.Context) (answer wire.Released, err error) {
	body, _, err := l.post(ctx, wire.Payload{Action: wire.ActionRelease, ChannelID: l.ID}, wire.ActionRelease, time.Minute)
	if err != nil {
		return answer, err
	}
	if err := exactjson.Unmarshal(body, &answer); err != nil {
		return answer, fmt.Errorf("channel %s: %w: the answer to a release: %w", l.ID, peer.ErrProtocol, err)
	}
	return answer, nil
}

// Released checks the record in a release's answer, after those before it that
// the stream still carries. If they never come it cannot be checked: it is not
// paid then, and no lie either. It is held against what was signed, which a restored
// database may have forgotten: also where no stream was there to show it.
func (l *leaseStream) Released(ctx context.Context, answer wire.Released) error {
	if err := l.remember(ctx, answer.Voucher); err != nil {
		return err
	}
	document := answer.Record
	if string(document) == "null" || len(document) == 0 {
		return nil
	}
	var rec metering.SignedRecord
	if err := exactjson.Unmarshal(document, &rec); err != nil {
		return l.Dispute(ctx, fmt.Errorf("%w: final record: %w", peer.ErrProtocol, err), document)
	}
	if rec.LeaseID == l.Row.Lease {
		if err := l.drain(ctx, rec.Sequence-1); err != nil {
			return err
		}
	}
	if rec.LeaseID != l.Row.Lease || rec.Sequence > l.Row.Checker.Sequence+1 {
		return fmt.Errorf("channel %s: record %d came after record %d: %w", l.ID, rec.Sequence, l.Row.Checker.Sequence, errUnshown)
	}
	return l.Check(ctx, document)
}

// drain reads records from the stream up to a number.
func (l *leaseStream) drain(outer context.Context, last uint64) error {
	if l.Feed == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(outer, max(releaseWait, l.Wallet.Patience))
	defer cancel()
	each := min(releaseWait, l.Wallet.Patience)
	wait := time.NewTimer(each)
	defer wait.Stop()
	for l.Row.Checker.Sequence < last {
		select {
		case <-ctx.Done():
			return outer.Err()
		case <-wait.C:
			return nil
		case e, ok := <-l.Feed.Events:
			if !ok {
				return nil
			}
			if e.Name != wire.EventUsage {
				continue
			}
			if err := l.Check(outer, e.Data); err != nil {
				return err
			}
			wait.Reset(each) // a database from long ago has many to read
		}
	}
	return nil
}

// RequestClose ends payments, on disk first, and asks the provider to close.
func (l *Lease) RequestClose(ctx context.Context) error {
	if err := l.payRest(ctx); err != nil {
		boundlog.Warn(l.Wallet.Log, "what a top-up that came late may cover is not paid", l.ID, err)
	}
	voucher, err := l.Newest(ctx)
	if err != nil {
		return err
	}
	if err := l.EndPayments(ctx); err != nil {
		return err
	}
	fault.Point(fault.PaymentsEnded)
	amount := wire.NewAmount(voucher.Cumulative)
	_, _, err = l.post(ctx, wire.Payload{
		Action: wire.ActionClose, ChannelID: l.ID, CumulativeAmount: &amount, Signature: voucher.Signature,
	}, wire.ActionClose, peer.ChainTimeout)
	if err == nil || errors.Is(err, &wire.ChannelFinalized) {
		fault.Point(fault.CloseAnswered)
		return nil // the chain has the last word
	}
	if view, err := l.SettledView(ctx); err == nil && view.Finalized {
		return nil // closed by an earlier request, whose answer got lost
	}
	return fmt.Errorf("channel %s: %w: leave it: %w", l.ID, peer.ErrRefused, err)
}

// payRest pays what was owed beyond the deposit that this database knew when the last record was paid: a top-up may have come since, of
// a process that died before it saw it.
func (l *Lease) payRest(ctx context.Context) error {
	owed := l.Owed()
	if !l.Row.Deposit.Lt(&owed) || l.Row.Dispute != "" || l.Checker == nil {
		return nil
	}
	seen, err := l.Look(ctx, l.Wallet.Confirmations)
	if err != nil || !seen.There {
		return err
	}
	if _, err := l.Payer.Observe(ctx, l.ID, seen.ChainView); err != nil {
		return err
	}
	return l.PayExact(ctx)
}

// GiveBack ends the lease of a channel that is paid no more, keeps its last record, and forgets a top-up that was not signed. A
// provider that does not answer ends the lease when it sees the request to close, or when its credit is used.
func (l *Lease) GiveBack(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, peer.AnswerTimeout)
	defer cancel()
	var err error
	if l.Checker != nil && l.Row.Ended == "" {
		runs := l.Row.Checker
		var answer wire.Released
		l.Requests.Stop()
		if err = l.StopClock(ctx); err == nil {
			answer, err = l.Release(ctx)
		}
		if err == nil {
			l.Row.Ended = "it was given back: a leave is signed"
			err = errors.Join(l.Save(ctx), l.Released(ctx, answer))
		} else { // it goes on, and is paid if the leave is taken back
			l.Row.Checker = runs
			err = errors.Join(err, l.Forget())
		}
	}
	if err = errors.Join(err, l.FinishTopUp(ctx)); err != nil {
		l.Wallet.Log.Warn("a leave is signed, and the lease is not given back, or its last record or a top-up not known", "channel", l.ID, "error", err)
	}
}
