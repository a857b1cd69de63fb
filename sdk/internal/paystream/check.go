package paystream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/exactjson"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/slots"
	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/internal/billed"
	"github.com/gpupay/gpupay/sdk/internal/evidence"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// parted is for a lease's clock that may have been set forward since it began there,
// for time that it missed: what was billed before lies on it no more.
func (l *checks) parted(began metering.Instant) {
	state := l.Checker.State()
	by := began.Boot - state.Start.Boot
	if by <= 0 {
		return
	}
	l.Row.Spans = l.Wallet.Billed.Part(l.Row.Spans, state.BootID)
	l.Wallet.Log.Warn("this host's clock may have missed time, after a reboot or a pause: it is set forward for the lease, by what its credit allows",
		"channel", l.ID, "lease", l.Row.Lease, "by", time.Duration(by))
}

// Check holds a record against everything that this renter knows, and keeps it
// with the checker's state in one step. What does not hold is a dispute.
func (l *checks) Check(ctx context.Context, document []byte) error {
	var rec metering.SignedRecord
	if err := exactjson.Unmarshal(document, &rec); err != nil {
		return l.Dispute(ctx, fmt.Errorf("%w: usage record: %w", peer.ErrProtocol, err), document)
	}
	shared := l.credits.With(l.Terms)
	shared.Lock()
	defer shared.Unlock()
	use := shared.Join(l.ID, l.Row.GPUs, l.Price, l.Offer.Offer)
	most, err := l.mostOwed(ctx)
	if err == nil {
		err = shared.Look(context.WithoutCancel(ctx), l.Payer, l.Wallet.Clock)
	}
	if err != nil {
		return err
	}
	taken := u256.Min(use.Left(l.Wallet.Clock.Now(), l.Wallet.Tolerance), l.credit)
	most.Sub(&most, &taken)
	began := l.Checker.State().Start
	err = l.Checker.CheckWithin(rec, most)
	l.parted(began)
	if errors.Is(err, verify.ErrReplayed) {
		return nil
	}
	if err != nil {
		return l.contradicted(ctx, rec, document, err)
	}
	state := l.Checker.State()
	row := l.Row
	row.Checker = &state
	known, err := l.bills(ctx, &row, rec, document)
	if err != nil {
		return errors.Join(err, l.Forget())
	}
	use.Owed = state.Owed
	if err := shared.Look(context.WithoutCancel(ctx), l.Payer, l.Wallet.Clock); err != nil {
		return errors.Join(err, l.Forget())
	}
	row.Beside = shared.Beside(l.ID)
	err = l.tooDense(rec)
	if err == nil {
		err = l.Wallet.Billed.Book(l.Terms.Payee, l.ID, row.Spans, l.Wallet.Tolerance)
	}
	if err != nil {
		return errors.Join(l.Dispute(ctx, err, evidence.OfRecord(rec, document)), l.Forget())
	}
	// A Close that interrupts must not lose a record that was checked.
	if err := l.Store.Accept(context.WithoutCancel(ctx), row, rec); err != nil {
		l.Wallet.Billed.Keep(l.Terms.Payee, l.ID, l.Row.Spans)
		return errors.Join(err, l.Forget())
	}
	l.Row = row
	l.hear()
	l.Show(ctx)
	l.Requests.forget(known, row.Books) // what others see owed counts them by now
	return nil
}

// bills notes in a row what a record bills: the time of the lease's own devices, which no other lease may bill, or the requests that it
// sent. It returns those that were known.
func (l *checks) bills(ctx context.Context, row *rental.Row, rec metering.SignedRecord, document []byte) (known map[uint64]slots.Own, err error) {
	state := row.Checker
	if l.Offer.Share == nil {
		row.Spans = billed.Add(row.Spans, billed.RealOnly(rec), billed.Hearing{Boot: state.BootID, Began: state.Start.Boot, Now: state.Start.Boot + state.Elapsed})
		return nil, nil
	}
	if row.Books, known, err = l.requests(ctx, rec, document); err != nil {
		return nil, err
	}
	for id := range known {
		row.Requested = max(row.Requested, id)
	}
	return known, nil
}

// mostOwed is the most that an honest record can say, however long we were away:
// the newest voucher that was signed, prepayment and all, whether it has arrived
// or not, the offer's credit, and one reading of each device, which may come as
// late as the offer bills a gap. A provider suspends at the credit, so a record
// over it contradicts the offer that it signed. What the chain says was settled
// explains nothing: one endpoint alone may say it, and a voucher of ours that this
// database has lost the provider shows.
func (l *checks) mostOwed(ctx context.Context) (uint256.Int, error) {
	paid, err := l.Payer.State(context.WithoutCancel(ctx), l.ID)
	if err != nil {
		return uint256.Int{}, err
	}
	most, err := l.Price.Charge(uint64(l.Row.GPUs) * uint64(l.Offer.MaxGap) * uint64(time.Millisecond))
	if err != nil {
		return most, err
	}
	most.Add(&most, &l.credit)
	most.Add(&most, &paid.Signed)
	return *most.AddUint64(&most, 1), nil // each charge is rounded by itself
}

// spareRecords is how many records a lease may have beyond what its offer and its
// vouchers explain: restarts and takeovers of the provider make one each.
const spareRecords = 64

// ErrFlood is renter.ErrFlood.
var ErrFlood = errors.New("provider sends more records than it offered")

// tooDense refuses records that are denser than half of the time between them
// that was offered: each is kept, and costs us disk ([verify.RecordRoom]). One more may come with each
// voucher, after which a suspended lease goes on.
func (l *checks) tooDense(rec metering.SignedRecord) error {
	half := max(int64(l.Offer.RecordEvery)*int64(time.Millisecond)/2, 1)
	most := spareRecords + l.Row.Vouchers + uint64(l.Checker.Elapsed()/half)
	if rec.Sequence <= most {
		return nil
	}
	return fmt.Errorf("lease %s, record %d: %w: %d could be in %s, with a record each %d ms", rec.LeaseID, rec.Sequence, ErrFlood, most,
		time.Duration(l.Checker.Elapsed()).Round(time.Millisecond), l.Offer.RecordEvery)
}

// Forget brings the checker back to what is on disk.
func (l *checks) Forget() error {
	return l.resumeChecker(*l.Row.Checker)
}

// contradicted is a record that does not hold. One that we have already is
// harmless, one that differs from it is a fork: two signed words for one time.
func (l *checks) contradicted(ctx context.Context, rec metering.SignedRecord, document []byte, cause error) error {
	earlier, err := l.Store.Record(ctx, l.ID, rec.LeaseID, rec.Sequence)
	if err != nil {
		return err
	}
	if earlier == nil {
		if l.Row.Checker.Sequence == 0 && rec.OwedBefore != l.Row.OwedBefore { // nobody signed where the lease was said to begin
			cause = fmt.Errorf("%w: the lease and its first record are about different things: %w", peer.ErrProtocol, cause)
		}
		return l.Dispute(ctx, cause, evidence.OfRecord(rec, document))
	}
	var kept metering.SignedRecord
	if err := json.Unmarshal(earlier, &kept); err != nil {
		return fmt.Errorf("channel %s: record %d on disk does not parse; restore the database from its backup: %w", l.ID, rec.Sequence, err)
	}
	domain := l.Escrow.Domain()
	separator := metering.Domain(domain.ChainID(), domain.Escrow())
	if errors.Is(cause, verify.ErrSequence) && rec.Digest(separator) == kept.Digest(separator) {
		return nil
	}
	if errors.Is(cause, verify.ErrSequence) { // signed, and not what was signed before
		cause = fmt.Errorf("lease %s, record %d: %w: there are two of this number", rec.LeaseID, rec.Sequence, verify.ErrForked)
	}
	proven := l.Store.Prove(context.WithoutCancel(ctx), l.Row.Offer, l.Row.Binding, kept, rec, l.Wallet.Now().UnixMilli())
	both, err := json.Marshal(map[string]json.RawMessage{"accepted": evidence.OfRecord(kept, earlier), "refused": evidence.OfRecord(rec, document)})
	if err != nil {
		return err
	}
	return errors.Join(l.Dispute(ctx, cause, both), proven)
}

// resumeChecker has records checked on from a state, by what this renter knows itself about the lease.
func (l *checks) resumeChecker(state verify.State) error {
	meter, err := l.Offer.MeterOf(l.Row.Lease, l.ID, l.Row.Binding)
	if err != nil {
		return err
	}
	checker, err := verify.Resume(verify.Config{
		Key: meter, Tolerance: l.Wallet.Tolerance, Clock: l.Wallet.Clock,
		RecordEvery: l.Offer.MinRecordEvery(),
		Lease: l.Offer.Meters(metering.Lease{
			ID: l.Row.Lease, ChannelID: l.ID, OfferHash: l.Offer.Hash,
			ChainID: l.Row.Terms.ChainID, Escrow: l.Row.Terms.Escrow,
			Price: l.Price, OwedBefore: l.Row.OwedBefore, Devices: l.Row.Devices,
		}),
	}, state)
	if err == nil {
		l.Checker = checker
	}
	return err
}

// sameMeter holds what a stream says of a lease that we know against the meter that was bound to it: it has one for its
// whole life. Two that the payee signed are kept as a proof. A lease that has ended may be shown without any.
func (l *checks) sameMeter(ctx context.Context, lease wire.Lease, document []byte) error {
	if lease.Binding == nil || lease.Binding.Same(l.Row.Binding) {
		return nil
	}
	cause := fmt.Errorf("lease %s: %w: it is shown with another meter than before", l.Row.Lease, wire.ErrMeter)
	if l.Row.Binding == nil {
		return l.Dispute(ctx, cause, document)
	}
	p, err := audit.NewBindingEquivocation(l.Row.Offer, *l.Row.Binding, *lease.Binding)
	if err != nil {
		return l.Dispute(ctx, cause, document)
	}
	kept := l.Store.KeepProof(context.WithoutCancel(ctx), p, l.ID, l.Wallet.Now().UnixMilli())
	return errors.Join(l.Dispute(ctx, fmt.Errorf("%w: %w", cause, wallet.ErrBoundTwice), document), kept)
}

// ForgottenOffer is an offer that the payee signed and this database does not have. It may have ended meanwhile, since a lease
// keeps it; its price is held to the caps, and its credit to that of the offer that this database has: a payee could have signed
// it a moment ago, for the time that we were away.
func (l *leaseStream) ForgottenOffer(ctx context.Context, hash common.Hash) (wire.SignedOffer, error) {
	if hash == l.Offer.Hash {
		return l.Offer, nil
	}
	offer, err := l.Peer.PastOffer(ctx, hash)
	if err != nil {
		return offer, err
	}
	if common.Address(offer.Payee) != l.Terms.Payee || common.Address(offer.Escrow) != l.Terms.Escrow || offer.ChainID != l.Terms.ChainID {
		return offer, fmt.Errorf("%w: offer %s is of payee %s in escrow %s on chain %d, the channel pays %s in %s on chain %d",
			peer.ErrOffer, hash, offer.Payee, offer.Escrow, offer.ChainID, l.Terms.Payee, l.Terms.Escrow, l.Terms.ChainID)
	}
	if err := l.Peer.Sells(offer.Offer); err != nil {
		return offer, err
	}
	if offer.Credit > l.Offer.Credit {
		return offer, fmt.Errorf("%w: offer %s has a credit of %d GPU-seconds, %d were agreed", peer.ErrOffer, hash, offer.Credit, l.Offer.Credit)
	}
	if err := Plausible(offer.Offer, l.maxCredit, l.Wallet.Patience); err != nil {
		return offer, err
	}
	if (offer.Share == nil) != (l.Offer.Share == nil) {
		return offer, fmt.Errorf("%w: offer %s shares its GPUs by slots otherwise than the one that was agreed", peer.ErrOffer, hash)
	}
	_, err = l.Wallet.CheckPrice(offer.Offer)
	return offer, err
}

// Bounds of what an offer may say, beside wire.MaxGap.
const (
	maxOfferTick = time.Minute
	maxKinds     = 64  // of devices
	maxModel     = 128 // bytes of a device's name
)

// Plausible holds an offer's figures to what they can be: each of them bounds
// what the renter can lose or wait for, so one that is out of all proportion
// makes a bound that bounds nothing.
func Plausible(o wire.Offer, maxCredit, patience time.Duration) error {
	for _, figure := range []struct {
		name            string
		is, least, most int64
		unit            string
	}{
		{"credit", int64(min(o.Credit, math.MaxInt64)), 1, max(int64(maxCredit/time.Second), 1), "GPU-seconds"},
		{"tick", o.Tick, 1, maxOfferTick.Milliseconds(), "ms"},
		{"gap", o.MaxGap, o.Tick, wire.MaxGap.Milliseconds(), "ms"},
		{"time between records", o.RecordEvery, metering.MinRecordEvery.Milliseconds(), max(patience, metering.MinRecordEvery).Milliseconds(), "ms"},
	} {
		if figure.is < figure.least || figure.is > figure.most {
			return fmt.Errorf("%w: a %s of %d %s, from %d to %d is plausible: nothing was signed", peer.ErrOffer, figure.name, figure.is, figure.unit, figure.least, figure.most)
		}
	}
	if len(o.Devices) > maxKinds {
		return fmt.Errorf("%w: %d kinds of devices", peer.ErrOffer, len(o.Devices))
	}
	for _, d := range o.Devices {
		if len(d.Model) > maxModel || d.Model != peer.Printable(d.Model) || d.Count < 0 {
			return fmt.Errorf("%w: %d of a device called %.60q", peer.ErrOffer, d.Count, d.Model)
		}
	}
	return nil
}
