package renter

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/exactjson"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/wire"
)

// transient is a failure that the next try may not have: the lease goes on at
// the provider's while we are away.
type transient struct{ error }

func (t transient) Unwrap() error { return t.error }

func isTransient(err error) bool {
	var t transient
	return errors.As(err, &t)
}

func (l *Rental) detach() {
	if l.feed != nil {
		l.feed.Close()
		l.feed, l.service = nil, ""
		l.sent = uint256.Int{} // what was not acknowledged may not have arrived
	}
}

// attach asks for the lease's stream and reads its first event. payload is an
// open or a voucher; what shows that it is us, the lease's secret or a fresh
// proof, is added here.
func (l *Rental) attach(ctx context.Context, payload wire.Payload) error {
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
func (l *Rental) shows(ctx context.Context) (http.Header, error) {
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
func (l *Rental) refused(err error) error {
	if errors.Is(err, &wire.VerificationFailed) && l.row.Secret != "" {
		l.row.Secret = "" // replaced meanwhile: prove ourselves the next time
	}
	return transient{fmt.Errorf("channel %s: %w", l.id, err)}
}

// first reads the lease event, which every stream starts with.
func (l *Rental) first(ctx context.Context) error {
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
func (l *Rental) remember(ctx context.Context, held *wire.HeldVoucher) error {
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
func (l *Rental) payableWith(ctx context.Context, voucher channel.Voucher, signed uint256.Int) error {
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
func (l *Rental) forgotten(from, to uint256.Int) uint64 {
	var step, count uint256.Int
	step.Rsh(&l.credit, 3)
	count.Div(count.Sub(&to, &from), step.AddUint64(&step, 1))
	return count.Uint64() + 1
}

// Bounds of what a provider says about a lease; all of it goes to disk.
const (
	maxSecret = 256
	maxAccess = 64 << 10
)

// fitting holds a lease to them, and takes out of the way to the GPUs what could
// steer a terminal: it is there to be shown.
func fitting(lease *wire.Lease) error {
	switch {
	case len(lease.Secret) > maxSecret || lease.Secret != peer.Printable(lease.Secret):
		return fmt.Errorf("%w: a lease's secret of %d bytes, at most %d printable ones are kept", peer.ErrProtocol, len(lease.Secret), maxSecret)
	case len(lease.Access) > maxAccess:
		return fmt.Errorf("%w: %d bytes on how to reach the GPUs, at most %d are kept", peer.ErrProtocol, len(lease.Access), maxAccess)
	}
	var err error
	if lease.Access, err = peer.PlainJSON(lease.Access); err != nil {
		return fmt.Errorf("%w: how to reach the GPUs: %w", peer.ErrProtocol, err)
	}
	return nil
}

// begin takes a lease up, or again.
func (l *Rental) begin(ctx context.Context, lease wire.Lease, document []byte) error {
	l.service = peer.Printable(lease.State)
	if lease.LeaseID == l.row.Lease && l.checker != nil {
		if err := l.sameMeter(ctx, lease, document); err != nil {
			return err
		}
		l.row.Access, l.row.Recalled = lease.Access, uint256.Int{} // nothing is forgotten that is after it
		if lease.Secret != "" {
			l.row.Secret = lease.Secret
		}
		return l.save(ctx)
	}
	if l.row.Lease != (common.Hash{}) {
		return l.another(ctx, lease, document)
	}
	if err := l.recall(lease.OfferHash); err != nil {
		return err
	}
	if err := l.catchUp(ctx, lease); err != nil {
		return err
	}
	err := l.judge(lease)
	if errors.Is(err, peer.ErrDemand) && (len(l.row.Past) > 0 || !l.row.Recalled.IsZero()) { // of what we may not have seen, or have forgotten
		return errors.Join(err, l.replaced(ctx, lease))
	}
	if err != nil {
		return l.dispute(ctx, err, document)
	}
	l.row.Lease, l.row.Secret, l.row.Devices, l.row.Access, l.row.Binding = lease.LeaseID, lease.Secret, lease.Devices, lease.Access, lease.Binding
	l.row.Carried, _ = l.row.knows(lease)
	l.row.OwedBefore = lease.OwedBefore.Int
	if err := l.startClock(); err != nil {
		return l.dispute(ctx, fmt.Errorf("%w: %w", peer.ErrProtocol, err), document)
	}
	l.hear()
	return l.save(ctx)
}

// judge holds a new lease against what was asked for.
func (l *Rental) judge(lease wire.Lease) error {
	if lease.LeaseID == (common.Hash{}) {
		return fmt.Errorf("%w: a lease without an id", peer.ErrProtocol) // it would be begun anew, with its clock, each time
	}
	if lease.OfferHash != l.offer.Hash {
		return fmt.Errorf("%w: the lease is under offer %s, %s was agreed", peer.ErrOffer, lease.OfferHash, l.offer.Hash)
	}
	if _, err := l.offer.MeterOf(lease.LeaseID, l.id, lease.Binding); err != nil {
		return err
	}
	if len(lease.Devices) != l.row.GPUs {
		return fmt.Errorf("%w: %d in the lease, %d were rented", metering.ErrDevices, len(lease.Devices), l.row.GPUs)
	}
	for _, uuid := range lease.Devices {
		if uuid == "" || uuid != peer.Printable(uuid) {
			return fmt.Errorf("%w: a device is called %.60q", peer.ErrProtocol, uuid)
		}
	}
	if _, ok := l.row.knows(lease); !ok {
		return fmt.Errorf("%w: the lease begins with %s owed, the channel owes %s", peer.ErrDemand, lease.OwedBefore.Dec(), l.row.OwedBefore.Dec())
	}
	return nil
}

// startClock starts our own clock for the lease when it was first asked for,
// which is the one bound on its beginning that cannot be wrong: it was not there
// before, and its first byte may be late or come with a second answer. What a
// provider could gain by it, the credit bounds.
func (l *Rental) startClock() error {
	state := metering.CheckerState{BootID: l.row.AskedBoot, Owed: l.row.OwedBefore, Start: *l.row.Asked}
	if err := l.resumeChecker(state); err != nil {
		return err
	}
	state = l.checker.State()
	l.row.Checker = &state
	return nil
}

// replaced is a lease that we did not ask for: ours ended while we were away,
// and attaching began another. Nobody uses it, so it is given back at once, and
// nothing is paid of it: any payee can say so, and what an honest one loses by
// it is a moment, or less than its credit where this database is from a backup.
func (l *Rental) replaced(ctx context.Context, lease wire.Lease) error {
	l.row.Secret = lease.Secret
	l.row.Ended = "the provider ended the lease while nobody was attached, or names another that nobody here asked for, which is not paid"
	err := errors.Join(l.stopClock(ctx), l.save(ctx))
	if _, failed := l.release(ctx); failed != nil {
		boundlog.Warn(l.r.w.Log, "a lease that nobody asked for could not be given back: close the rental", l.id, failed)
	}
	return err
}

// broken is a stream that ended: to be attached to again, unless what came is
// no stream.
func (l *Rental) broken(ctx context.Context, err error) error {
	if errors.Is(err, wire.ErrEventTooLong) {
		return l.dispute(ctx, fmt.Errorf("%w: %w", peer.ErrProtocol, err), nil)
	}
	return transient{fmt.Errorf("channel %s: stream ended: %w", l.id, err)}
}

// credential answers a challenge with payload, showing that it is us.
func (l *Rental) credential(ctx context.Context, payload wire.Payload, action string) (wire.Credential, error) {
	challenge, err := l.usable(ctx)
	if err != nil {
		return wire.Credential{}, err
	}
	if action != "" {
		l.name(&payload)
	}
	if action != "" && l.row.Secret != "" {
		payload.LeaseSecret = l.row.Secret
	}
	if action != "" && l.row.Secret == "" {
		if payload.Proof, err = wire.Prove(ctx, l.r.w.Key, l.row.Terms, challenge.ID, action); err != nil {
			return wire.Credential{}, fmt.Errorf("channel %s: signing a proof: %w", l.id, err)
		}
	}
	return wire.Credential{
		Challenge: challenge, Source: wire.Source(l.row.Terms.ChainID, l.row.Terms.Payer), Payload: payload,
	}, nil
}

// name says which channel it is, also to a provider that has lost its database.
func (l *Rental) name(payload *wire.Payload) {
	payload.Salt = &l.row.Terms.Salt
	if signer := wire.Address(l.row.Terms.AuthorizedSigner); signer != (wire.Address{}) {
		payload.AuthorizedSigner = &signer
	}
}

// usable returns the newest challenge, or asks for one if it has expired.
func (l *Rental) usable(ctx context.Context) (wire.Challenge, error) {
	if l.challenge != nil {
		expires, err := time.Parse(time.RFC3339, l.challenge.Expires)
		if l.challenge.Expires == "" || (err == nil && time.Until(expires) > 5*time.Second) {
			return *l.challenge, nil
		}
	}
	c, _, err := l.peer.Challenge(ctx, l.row.GPUs)
	if err != nil {
		return c, transient{fmt.Errorf("channel %s: %w", l.id, err)}
	}
	l.challenge = &c
	return c, nil
}

// post sends a payload for which no stream is wanted and returns the answer's
// body. A challenge that the provider no longer takes is replaced once.
func (l *Rental) post(ctx context.Context, payload wire.Payload, action string, limit time.Duration) ([]byte, http.Header, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for attempt := 0; ; attempt++ {
		if action != "" && l.row.Secret == "" {
			l.challenge = nil
		}
		c, err := l.credential(ctx, payload, action)
		if err != nil {
			return nil, nil, err
		}
		header := http.Header{}
		if action != "" {
			if header, err = l.shows(ctx); err != nil {
				return nil, nil, err
			}
		}
		resp, err := l.peer.Send(ctx, http.MethodPost, l.row.GPUs, c, header)
		if err == nil {
			defer resp.Body.Close()
			body, err := l.peer.Body(resp)
			return body, resp.Header, err
		}
		stale := errors.Is(err, &wire.ChallengeNotFound) || errors.Is(err, &wire.PaymentExpired) || errors.Is(err, &wire.InvalidChallenge)
		unknown := action != "" && l.row.Secret != "" && errors.Is(err, &wire.VerificationFailed)
		if attempt > 0 || !(stale || unknown) {
			return nil, nil, err
		}
		if l.challenge = nil; unknown {
			l.row.Secret = ""
		}
	}
}
