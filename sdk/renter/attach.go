package renter

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/exactjson"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/wire"
)

// leaseStream speaks to the provider: it attaches to the lease's stream, begins the lease or takes it up, and gives it back.
type leaseStream struct {
	checks
	challenge *wire.Challenge    // the newest, reused for vouchers until it expires
	feed      *peer.Subscription // nil: not attached
	delivered uint256.Int        // the newest voucher that the provider is known to have
	sent      uint256.Int        // the newest that went into the stream, zero if none did
	counted   uint256.Int        // the newest that row.Vouchers counts
}

// transient is a failure that the next try may not have: the lease goes on at
// the provider's while we are away.
type transient struct{ error }

func (t transient) Unwrap() error { return t.error }

func isTransient(err error) bool {
	var t transient
	return errors.As(err, &t)
}

func (l *leaseStream) detach() {
	if l.feed != nil {
		l.feed.Close()
		l.feed, l.service = nil, ""
		l.sent = uint256.Int{} // what was not acknowledged may not have arrived
	}
}

// attach asks for the lease's stream and reads its first event. payload is an
// open or a voucher; what shows that it is us, the lease's secret or a fresh
// proof, is added here.
func (l *leaseStream) attach(ctx context.Context, payload wire.Payload) error {
	l.detach()
	if l.row.Secret == "" && payload.Action != wire.ActionOpen {
		l.challenge = nil // a proof needs one that was not used
	}
	c, err := l.credential(ctx, payload, "attach")
	if err != nil {
		return err
	}
	header, err := l.shows(ctx)
	if err != nil {
		return err
	}
	if l.row.Checker != nil && l.row.Checker.Sequence > 0 {
		header.Set("Last-Event-ID", strconv.FormatUint(l.row.Checker.Sequence, 10))
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel) // until the stream is there, ctx can end it
	timer := time.AfterFunc(peer.ChainTimeout, cancel)
	open, err := l.peer.Subscribe(life, l.row.GPUs, c, header)
	timer.Stop()
	if !stop() && err == nil {
		open.Close()
		err = ctx.Err()
	}
	l.challenge = nil // it may be used up
	if err != nil {
		cancel()
		return l.refused(err)
	}
	l.feed = open
	if err := l.first(ctx); err != nil {
		l.detach()
		return err
	}
	return nil
}

// shows is a header with the newest record that we have: a provider that has lost
// it must not sign another one of its number.
func (l *leaseStream) shows(ctx context.Context) (http.Header, error) {
	header := http.Header{}
	if l.row.Checker == nil || l.row.Checker.Sequence == 0 {
		return header, nil
	}
	document, err := l.r.store.record(ctx, l.id, l.row.Lease, l.row.Checker.Sequence)
	if document == nil || err != nil {
		return header, err
	}
	var rec metering.SignedRecord
	if err := exactjson.Unmarshal(document, &rec); err != nil {
		return header, fmt.Errorf("channel %s: record %d on disk does not parse; restore the database from its backup: %w", l.id, l.row.Checker.Sequence, err)
	}
	return header, wire.ShownRecord{Record: rec.Record, Signature: rec.Signature, Binding: l.row.Binding}.Set(header)
}

// refused sorts what came instead of a stream.
func (l *leaseStream) refused(err error) error {
	if errors.Is(err, &wire.VerificationFailed) && l.row.Secret != "" {
		l.row.Secret = "" // replaced meanwhile: prove ourselves the next time
	}
	return transient{fmt.Errorf("channel %s: %w", l.id, err)}
}

// first reads the lease event, which every stream starts with.
func (l *leaseStream) first(ctx context.Context) error {
	wait := time.NewTimer(min(peer.AnswerTimeout, l.r.w.Patience))
	defer wait.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-wait.C:
		return transient{fmt.Errorf("channel %s: %w: its stream does not begin", l.id, peer.ErrSilent)}
	case e, ok := <-l.feed.Events:
		if !ok {
			return l.broken(ctx, l.feed.Err)
		}
		var lease wire.Lease
		if e.Name != wire.EventLease || exactjson.Unmarshal(e.Data, &lease) != nil || lease.ChannelID != l.id {
			return l.dispute(ctx, fmt.Errorf("%w: it begins with %.40q and not with this channel's lease", peer.ErrProtocol, e.Name), e.Data)
		}
		if err := fitting(&lease); err != nil {
			return l.dispute(ctx, err, e.Data)
		}
		paid, err := l.payer.State(ctx, l.id)
		if err != nil {
			return err
		}
		l.delivered = paid.Signed // it was shown when we attached
		if err := l.remember(ctx, lease.Voucher); err != nil {
			return err
		}
		return l.begin(ctx, lease, e.Data)
	}
}

// remember adopts a voucher of ours that the provider has and this database does not, as after a restore: before any record is
// held against what was signed. What we did not sign is nobody's word, and changes nothing.
func (l *leaseStream) remember(ctx context.Context, held *wire.HeldVoucher) error {
	paid, err := l.payer.State(ctx, l.id)
	if err != nil {
		return err
	}
	if held == nil || !held.CumulativeAmount.Gt(&paid.Signed) {
		return nil
	}
	voucher := channel.Voucher{ChannelID: l.id, Cumulative: held.CumulativeAmount.Int, Signature: held.Signature}
	if err := l.escrow.Domain().Verify(voucher, l.terms.Signer()); err != nil {
		boundlog.Warn(l.r.w.Log, "provider shows a voucher that we did not sign: it is left alone", l.id, err)
		return nil
	}
	if err := l.payableWith(ctx, voucher, paid.Signed); err != nil {
		return err
	}
	l.row.Vouchers += l.forgotten(paid.Signed, voucher.Cumulative)
	l.row.Recalled = voucher.Cumulative
	if err := l.save(ctx); err != nil {
		return err
	}
	if _, err := l.payer.Recall(context.WithoutCancel(ctx), voucher); err != nil {
		return err
	}
	l.delivered, l.counted = voucher.Cumulative, voucher.Cumulative
	l.show(ctx)
	l.r.w.Log.Warn("provider has a newer voucher of ours than this database, which was restored from a backup: it counts as signed",
		"channel", l.id, "cumulative", voucher.Cumulative.Dec(), "known", paid.Signed.Dec())
	return nil
}

// payableWith has the records count that a voucher explains which is heard of after the lease was stopped.
func (l *checks) payableWith(ctx context.Context, voucher channel.Voucher, signed uint256.Int) error {
	if l.row.Checker == nil || l.row.Checker.Payable == nil {
		return nil
	}
	most, err := l.mostOwed(ctx)
	if err != nil {
		return err
	}
	most.Add(&most, &voucher.Cumulative)
	most.Sub(&most, &signed)
	state := *l.row.Checker
	state.Payable = &most
	l.row.Checker = &state
	return l.forget()
}

// forgotten is how many vouchers may lie between two that are known: a provider asks for the next when half of its credit, or
// of a share of it, is used.
func (l *checks) forgotten(from, to uint256.Int) uint64 {
	var step, count uint256.Int
	step.Rsh(&l.credit, 3)
	count.Div(count.Sub(&to, &from), step.AddUint64(&step, 1))
	return count.Uint64() + 1
}

// broken is a stream that ended: to be attached to again, unless what came is
// no stream.
func (l *leaseStream) broken(ctx context.Context, err error) error {
	if errors.Is(err, wire.ErrEventTooLong) {
		return l.dispute(ctx, fmt.Errorf("%w: %w", peer.ErrProtocol, err), nil)
	}
	return transient{fmt.Errorf("channel %s: stream ended: %w", l.id, err)}
}
