package paystream

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
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Detach closes the stream. The lease goes on.
func (l *leaseStream) Detach() {
	if l.Feed != nil {
		l.Feed.Close()
		l.Feed, l.Service = nil, ""
		l.sent = uint256.Int{} // what was not acknowledged may not have arrived
	}
}

// Attach asks for the lease's stream and reads its first event. payload is an
// open or a voucher; what shows that it is us, the lease's secret or a fresh
// proof, is added here.
func (l *leaseStream) Attach(ctx context.Context, payload wire.Payload) error {
	l.Detach()
	if l.Row.Secret == "" && payload.Action != wire.ActionOpen {
		l.Challenge = nil // a proof needs one that was not used
	}
	c, err := l.credential(ctx, payload, "attach")
	if err != nil {
		return err
	}
	header, err := l.shows(ctx)
	if err != nil {
		return err
	}
	if l.Row.Checker != nil && l.Row.Checker.Sequence > 0 {
		header.Set("Last-Event-ID", strconv.FormatUint(l.Row.Checker.Sequence, 10))
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel) // until the stream is there, ctx can end it
	timer := time.AfterFunc(peer.ChainTimeout, cancel)
	open, err := l.Peer.Subscribe(life, l.Row.GPUs, c, header)
	timer.Stop()
	if !stop() && err == nil {
		open.Close()
		err = ctx.Err()
	}
	l.Challenge = nil // it may be used up
	if err != nil {
		cancel()
		if errors.Is(err, &wire.VerificationFailed) {
			l.Row.Secret = "" // replaced meanwhile: prove ourselves the next time
		}
		return rental.Transient(fmt.Errorf("channel %s: %w", l.ID, err))
	}
	l.Feed = open
	if err := l.First(ctx); err != nil {
		l.Detach()
		return err
	}
	return nil
}

// shows is a header with the newest record that we have: a provider that has lost
// it must not sign another one of its number.
func (l *leaseStream) shows(ctx context.Context) (http.Header, error) {
	header := http.Header{}
	if l.Row.Checker == nil || l.Row.Checker.Sequence == 0 {
		return header, nil
	}
	document, err := l.Store.Record(ctx, l.ID, l.Row.Lease, l.Row.Checker.Sequence)
	if document == nil || err != nil {
		return header, err
	}
	var rec metering.SignedRecord
	if err := exactjson.Unmarshal(document, &rec); err != nil {
		return header, fmt.Errorf("channel %s: record %d on disk does not parse; restore the database from its backup: %w", l.ID, l.Row.Checker.Sequence, err)
	}
	return header, wire.ShownRecord{Record: rec.Record, Signature: rec.Signature, Binding: l.Row.Binding}.Set(header)
}

// First reads the lease event, which every stream starts with.
func (l *leaseStream) First(ctx context.Context) error {
	wait := time.NewTimer(min(peer.AnswerTimeout, l.Wallet.Patience))
	defer wait.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-wait.C:
		return rental.Transient(fmt.Errorf("channel %s: %w: its stream does not begin", l.ID, peer.ErrSilent))
	case e, ok := <-l.Feed.Events:
		if !ok {
			return l.broken(ctx, l.Feed.Err)
		}
		var lease wire.Lease
		if e.Name != wire.EventLease || exactjson.Unmarshal(e.Data, &lease) != nil || lease.ChannelID != l.ID {
			return l.Dispute(ctx, fmt.Errorf("%w: it begins with %.40q and not with this channel's lease", peer.ErrProtocol, e.Name), e.Data)
		}
		if err := Fitting(&lease); err != nil {
			return l.Dispute(ctx, err, e.Data)
		}
		paid, err := l.Payer.State(ctx, l.ID)
		if err != nil {
			return err
		}
		l.delivered = l.taken(paid.Signed, lease.Voucher)
		l.Requests.hears(l.delivered, l.Row.Deposit)
		l.credits.With(l.Terms).Count(l.ID, l.Requests)
		if err := l.remember(ctx, lease.Voucher); err != nil {
			return err
		}
		return l.begin(ctx, lease, e.Data)
	}
}

// taken is what the provider counts of the newest voucher, which was shown when we
// attached: one that grows by less than the least step is left alone.
func (l *leaseStream) taken(signed uint256.Int, held *wire.HeldVoucher) uint256.Int {
	switch {
	case l.Row.MinDelta.IsZero():
		return signed
	case held == nil:
		return uint256.Int{}
	}
	return u256.Min(signed, held.CumulativeAmount.Int)
}

// remember adopts a voucher of ours that the provider has and this database does not, as after a restore: before any record is
// held against what was signed. What we did not sign is nobody's word, and changes nothing.
func (l *leaseStream) remember(ctx context.Context, held *wire.HeldVoucher) error {
	paid, err := l.Payer.State(ctx, l.ID)
	if err != nil {
		return err
	}
	if held == nil || !held.CumulativeAmount.Gt(&paid.Signed) {
		return nil
	}
	voucher := channel.Voucher{ChannelID: l.ID, Cumulative: held.CumulativeAmount.Int, Signature: held.Signature}
	if err := l.Escrow.Domain().Verify(voucher, l.Terms.Signer()); err != nil {
		boundlog.Warn(l.Wallet.Log, "provider shows a voucher that we did not sign: it is left alone", l.ID, err)
		return nil
	}
	if err := l.payableWith(ctx, voucher, paid.Signed); err != nil {
		return err
	}
	l.Row.Vouchers += l.forgotten(paid.Signed, voucher.Cumulative)
	l.Row.Recalled = voucher.Cumulative
	if err := l.Save(ctx); err != nil {
		return err
	}
	if _, err := l.Payer.Recall(context.WithoutCancel(ctx), voucher); err != nil {
		return err
	}
	l.delivered, l.counted = voucher.Cumulative, voucher.Cumulative
	l.Requests.hears(l.delivered, l.Row.Deposit)
	l.Show(ctx)
	l.Wallet.Log.Warn("provider has a newer voucher of ours than this database, which was restored from a backup: it counts as signed",
		"channel", l.ID, "cumulative", voucher.Cumulative.Dec(), "known", paid.Signed.Dec())
	return nil
}

// payableWith has the records count that a voucher explains which is heard of after the lease was stopped.
func (l *checks) payableWith(ctx context.Context, voucher channel.Voucher, signed uint256.Int) error {
	if l.Row.Checker == nil || l.Row.Checker.Payable == nil {
		return nil
	}
	most, err := l.mostOwed(ctx)
	if err != nil {
		return err
	}
	most.Add(&most, &voucher.Cumulative)
	most.Sub(&most, &signed)
	state := *l.Row.Checker
	state.Payable = &most
	l.Row.Checker = &state
	return l.Forget()
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
		return l.Dispute(ctx, fmt.Errorf("%w: %w", peer.ErrProtocol, err), nil)
	}
	return rental.Transient(fmt.Errorf("channel %s: stream ended: %w", l.ID, err))
}

// Bounds of what a provider says about a lease; all of it goes to disk.
const (
	maxSecret = 256
	maxAccess = 64 << 10
)

// Fitting holds a lease to them, and takes out of the way to the GPUs what could
// steer a terminal: it is there to be shown.
func Fitting(lease *wire.Lease) error {
	switch {
	case len(lease.Secret) > maxSecret || lease.Secret != peer.Printable(lease.Secret):
		return fmt.Errorf("%w: a lease's secret of %d bytes, at most %d printable ones are kept", peer.ErrProtocol, len(lease.Secret), maxSecret)
	case len(lease.Access) > maxAccess:
		return fmt.Errorf("%w: %d bytes on how to reach the GPUs, at most %d are kept", peer.ErrProtocol, len(lease.Access), maxAccess)
	}
	lease.Access = peer.PlainJSON(lease.Access)
	return nil
}

// begin takes a lease up, or again.
func (l *leaseStream) begin(ctx context.Context, lease wire.Lease, document []byte) error {
	l.Service = peer.Printable(lease.State)
	if lease.LeaseID == l.Row.Lease && l.Checker != nil {
		if err := l.sameMeter(ctx, lease, document); err != nil {
			return err
		}
		l.Row.Access, l.Row.Recalled = lease.Access, uint256.Int{} // nothing is forgotten that is after it
		if lease.Secret != "" {
			l.Row.Secret = lease.Secret
		}
		return l.Save(ctx)
	}
	if l.Row.Lease != (common.Hash{}) {
		return l.another(ctx, lease, document)
	}
	if err := l.recall(lease.OfferHash); err != nil {
		return err
	}
	if err := l.catchUp(ctx, lease); err != nil {
		return err
	}
	err := l.Judge(lease)
	if errors.Is(err, peer.ErrDemand) && (len(l.Row.Past) > 0 || !l.Row.Recalled.IsZero()) { // of what we may not have seen, or have forgotten
		return errors.Join(err, l.replaced(ctx, lease))
	}
	if err != nil {
		return l.Dispute(ctx, err, document)
	}
	l.Row.Lease, l.Row.Secret, l.Row.Devices, l.Row.Access, l.Row.Binding = lease.LeaseID, lease.Secret, lease.Devices, lease.Access, lease.Binding
	l.Row.Carried, _ = l.Row.Knows(lease)
	l.Row.OwedBefore = lease.OwedBefore.Int
	if err := l.startClock(); err != nil {
		return l.Dispute(ctx, fmt.Errorf("%w: %w", peer.ErrProtocol, err), document)
	}
	l.hear()
	return l.Save(ctx)
}

// Judge holds a new lease against what was asked for.
func (l *checks) Judge(lease wire.Lease) error {
	if lease.LeaseID == (common.Hash{}) {
		return fmt.Errorf("%w: a lease without an id", peer.ErrProtocol) // it would be begun anew, with its clock, each time
	}
	if lease.OfferHash != l.Offer.Hash {
		return fmt.Errorf("%w: the lease is under offer %s, %s was agreed", peer.ErrOffer, lease.OfferHash, l.Offer.Hash)
	}
	if _, err := l.Offer.MeterOf(lease.LeaseID, l.ID, lease.Binding); err != nil {
		return err
	}
	if len(lease.Devices) != l.Row.GPUs {
		return fmt.Errorf("%w: %d in the lease, %d were rented", verify.ErrDevices, len(lease.Devices), l.Row.GPUs)
	}
	for _, uuid := range lease.Devices {
		if uuid == "" || uuid != peer.Printable(uuid) {
			return fmt.Errorf("%w: a device is called %.60q", peer.ErrProtocol, uuid)
		}
	}
	if _, ok := l.Row.Knows(lease); !ok {
		return fmt.Errorf("%w: the lease begins with %s owed, the channel owes %s", peer.ErrDemand, lease.OwedBefore.Dec(), l.Row.OwedBefore.Dec())
	}
	return nil
}

// startClock starts our own clock for the lease when it was first asked for,
// which is the one bound on its beginning that cannot be wrong: it was not there
// before, and its first byte may be late or come with a second answer. What a
// provider could gain by it, the credit bounds.
func (l *checks) startClock() error {
	state := verify.State{BootID: l.Row.AskedBoot, Owed: l.Row.OwedBefore, Start: *l.Row.Asked}
	if err := l.resumeChecker(state); err != nil {
		return err
	}
	state = l.Checker.State()
	l.Row.Checker = &state
	return nil
}

// replaced is a lease that we did not ask for: ours ended while we were away,
// and attaching began another. Nobody uses it, so it is given back at once, and
// nothing is paid of it: any payee can say so, and what an honest one loses by
// it is a moment, or less than its credit where this database is from a backup.
func (l *leaseStream) replaced(ctx context.Context, lease wire.Lease) error {
	l.Row.Secret = lease.Secret
	l.Row.Ended = "the provider ended the lease while nobody was attached, or names another that nobody here asked for, which is not paid"
	err := errors.Join(l.StopClock(ctx), l.Save(ctx))
	if _, failed := l.Release(ctx); failed != nil {
		boundlog.Warn(l.Wallet.Log, "a lease that nobody asked for could not be given back: close the rental", l.ID, failed)
	}
	return err
}

// credential answers a challenge with payload, showing that it is us.
func (l *leaseStream) credential(ctx context.Context, payload wire.Payload, action string) (wire.Credential, error) {
	challenge, err := l.usable(ctx)
	if err != nil {
		return wire.Credential{}, err
	}
	if action != "" {
		payload.Salt = &l.Row.Terms.Salt // which channel it is, also to a provider that has lost its database
		if signer := wire.Address(l.Row.Terms.AuthorizedSigner); signer != (wire.Address{}) {
			payload.AuthorizedSigner = &signer
		}
		if payload.LeaseSecret = l.Row.Secret; l.Row.Secret == "" {
			if payload.Proof, err = wire.Prove(ctx, l.Wallet.Key, l.Row.Terms, challenge.ID, action); err != nil {
				return wire.Credential{}, fmt.Errorf("channel %s: signing a proof: %w", l.ID, err)
			}
		}
	}
	return wire.Credential{
		Challenge: challenge, Source: wire.Source(l.Row.Terms.ChainID, l.Row.Terms.Payer), Payload: payload,
	}, nil
}

// usable returns the newest challenge, or asks for one if it has expired.
func (l *leaseStream) usable(ctx context.Context) (wire.Challenge, error) {
	if l.Challenge != nil {
		expires, err := time.Parse(time.RFC3339, l.Challenge.Expires)
		if l.Challenge.Expires == "" || (err == nil && time.Until(expires) > 5*time.Second) {
			return *l.Challenge, nil
		}
	}
	c, _, err := l.Peer.Challenge(ctx, l.Row.GPUs)
	if err != nil {
		return c, rental.Transient(fmt.Errorf("channel %s: %w", l.ID, err))
	}
	l.Challenge = &c
	return c, nil
}

// post sends a payload for which no stream is wanted and returns the answer's
// body. A challenge that the provider no longer takes is replaced once.
func (l *leaseStream) post(ctx context.Context, payload wire.Payload, action string, limit time.Duration) ([]byte, http.Header, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for attempt := 0; ; attempt++ {
		if action != "" && l.Row.Secret == "" {
			l.Challenge = nil
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
		resp, err := l.Peer.Send(ctx, http.MethodPost, l.Row.GPUs, c, header)
		if err == nil {
			defer resp.Body.Close()
			body, err := l.Peer.Body(resp)
			return body, resp.Header, err
		}
		stale := errors.Is(err, &wire.ChallengeNotFound) || errors.Is(err, &wire.PaymentExpired) || errors.Is(err, &wire.InvalidChallenge)
		unknown := action != "" && l.Row.Secret != "" && errors.Is(err, &wire.VerificationFailed)
		if attempt > 0 || !(stale || unknown) {
			return nil, nil, err
		}
		if l.Challenge = nil; unknown {
			l.Row.Secret = ""
		}
	}
}
