package renter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/exactjson"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/awake"
	"github.com/gpupay/gpupay/sdk/internal/billed"
	"github.com/gpupay/gpupay/sdk/internal/evidence"
	"github.com/gpupay/gpupay/sdk/internal/peer"
)

// checks holds what the provider says of the lease against the offer, our clock and what was signed before. What does not hold is
// a dispute.
type checks struct {
	onChain
	checker  *metering.Checker
	demand   demand
	awake    awake.Clock // what silence and patience are measured by
	listened time.Time   // ledger.heard, by awake
}

// parted is for a lease's clock that may have been set forward since it began there,
// for time that it missed: what was billed before lies on it no more.
func (l *checks) parted(began metering.Instant) {
	state := l.checker.State()
	by := began.Boot - state.Start.Boot
	if by <= 0 {
		return
	}
	l.row.Spans = l.r.w.Billed.Part(l.row.Spans, state.BootID)
	l.r.w.Log.Warn("this host's clock may have missed time, after a reboot or a pause: it is set forward for the lease, by what its credit allows",
		"channel", l.id, "lease", l.row.Lease, "by", time.Duration(by))
}

// check holds a record against everything that this renter knows, and keeps it
// with the checker's state in one step. What does not hold is a dispute.
func (l *checks) check(ctx context.Context, document []byte) error {
	var rec metering.SignedRecord
	if err := exactjson.Unmarshal(document, &rec); err != nil {
		return l.dispute(ctx, fmt.Errorf("%w: usage record: %w", peer.ErrProtocol, err), document)
	}
	shared := l.r.credits.With(l.terms)
	shared.Lock()
	defer shared.Unlock()
	use := shared.Join(l.id, l.row.GPUs, l.price, l.offer.Offer)
	most, err := l.mostOwed(ctx)
	if err == nil {
		err = shared.Look(context.WithoutCancel(ctx), l.payer, l.r.w.Clock)
	}
	if err != nil {
		return err
	}
	taken := u256.Min(use.Left(l.r.w.Clock.Now(), l.r.w.Tolerance), l.credit)
	most.Sub(&most, &taken)
	began := l.checker.State().Start
	err = l.checker.CheckWithin(rec, most)
	l.parted(began)
	if errors.Is(err, metering.ErrReplayed) {
		return nil
	}
	if err != nil {
		return l.contradicted(ctx, rec, document, err)
	}
	state := l.checker.State()
	row := l.row
	row.Checker = &state
	row.Spans = billed.Add(row.Spans, billed.RealOnly(rec), billed.Hearing{Boot: state.BootID, Began: state.Start.Boot, Now: state.Start.Boot + state.Elapsed})
	use.Owed = state.Owed
	if err := shared.Look(context.WithoutCancel(ctx), l.payer, l.r.w.Clock); err != nil {
		return errors.Join(err, l.forget())
	}
	row.Beside = shared.Beside(l.id)
	err = l.tooDense(rec)
	if err == nil {
		err = l.r.w.Billed.Book(l.terms.Payee, l.id, row.Spans, l.r.w.Tolerance)
	}
	if err != nil {
		return errors.Join(l.dispute(ctx, err, evidence.OfRecord(rec, document)), l.forget())
	}
	// A Close that interrupts must not lose a record that was checked.
	if err := l.r.store.accept(context.WithoutCancel(ctx), row, rec); err != nil {
		l.r.w.Billed.Keep(l.terms.Payee, l.id, l.row.Spans)
		return errors.Join(err, l.forget())
	}
	l.row = row
	l.hear()
	l.show(ctx)
	return nil
}

// mostOwed is the most that an honest record can say, however long we were away:
// the newest voucher that was signed, prepayment and all, whether it has arrived
// or not, the offer's credit, and one reading of each device, which may come as
// late as the offer bills a gap. A provider suspends at the credit, so a record
// over it contradicts the offer that it signed. What the chain says was settled
// explains nothing: one endpoint alone may say it, and a voucher of ours that this
// database has lost the provider shows.
func (l *checks) mostOwed(ctx context.Context) (uint256.Int, error) {
	paid, err := l.payer.State(context.WithoutCancel(ctx), l.id)
	if err != nil {
		return uint256.Int{}, err
	}
	most, err := l.price.Charge(uint64(l.row.GPUs) * uint64(l.offer.MaxGap) * uint64(time.Millisecond))
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

// tooDense refuses records that are denser than half of the time between them
// that was offered: each is kept, and costs us disk ([metering.RecordRoom]). One more may come with each
// voucher, after which a suspended lease goes on.
func (l *checks) tooDense(rec metering.SignedRecord) error {
	half := max(int64(l.offer.RecordEvery)*int64(time.Millisecond)/2, 1)
	most := spareRecords + l.row.Vouchers + uint64(l.checker.Elapsed()/half)
	if rec.Sequence <= most {
		return nil
	}
	return fmt.Errorf("lease %s, record %d: %w: %d could be in %s, with a record each %d ms", rec.LeaseID, rec.Sequence, ErrFlood, most,
		time.Duration(l.checker.Elapsed()).Round(time.Millisecond), l.offer.RecordEvery)
}

// forget brings the checker back to what is on disk.
func (l *checks) forget() error {
	return l.resumeChecker(*l.row.Checker)
}

// contradicted is a record that does not hold. One that we have already is
// harmless, one that differs from it is a fork: two signed words for one time.
func (l *checks) contradicted(ctx context.Context, rec metering.SignedRecord, document []byte, cause error) error {
	earlier, err := l.r.store.record(ctx, l.id, rec.LeaseID, rec.Sequence)
	if err != nil {
		return err
	}
	if earlier == nil {
		if l.row.Checker.Sequence == 0 && rec.OwedBefore != l.row.OwedBefore { // nobody signed where the lease was said to begin
			cause = fmt.Errorf("%w: the lease and its first record are about different things: %w", peer.ErrProtocol, cause)
		}
		return l.dispute(ctx, cause, evidence.OfRecord(rec, document))
	}
	var kept metering.SignedRecord
	if err := json.Unmarshal(earlier, &kept); err != nil {
		return fmt.Errorf("channel %s: record %d on disk does not parse; restore the database from its backup: %w", l.id, rec.Sequence, err)
	}
	domain := l.escrow.Domain()
	separator := metering.Domain(domain.ChainID(), domain.Escrow())
	if errors.Is(cause, metering.ErrSequence) && rec.Digest(separator) == kept.Digest(separator) {
		return nil
	}
	if errors.Is(cause, metering.ErrSequence) { // signed, and not what was signed before
		cause = fmt.Errorf("lease %s, record %d: %w: there are two of this number", rec.LeaseID, rec.Sequence, metering.ErrForked)
	}
	proven := l.r.store.Prove(context.WithoutCancel(ctx), l.row.Offer, l.row.Binding, kept, rec, l.r.w.Now().UnixMilli())
	both, err := json.Marshal(map[string]json.RawMessage{"accepted": evidence.OfRecord(kept, earlier), "refused": evidence.OfRecord(rec, document)})
	if err != nil {
		return err
	}
	return errors.Join(l.dispute(ctx, cause, both), proven)
}

// resumeChecker has records checked on from a state.
func (l *checks) resumeChecker(state metering.CheckerState) error {
	config, err := l.checking()
	if err != nil {
		return err
	}
	checker, err := metering.ResumeChecker(config, state)
	if err == nil {
		l.checker = checker
	}
	return err
}

// checking is what this renter knows by itself about the lease.
func (l *checks) checking() (metering.CheckerConfig, error) {
	meter, err := l.offer.MeterOf(l.row.Lease, l.id, l.row.Binding)
	return metering.CheckerConfig{
		Key: meter, Tolerance: l.r.w.Tolerance, Clock: l.r.w.Clock,
		RecordEvery: l.offer.MinRecordEvery(),
		Lease: l.offer.Meters(metering.Lease{
			ID: l.row.Lease, ChannelID: l.id, OfferHash: l.offer.Hash,
			ChainID: l.row.Terms.ChainID, Escrow: l.row.Terms.Escrow,
			Price: l.price, OwedBefore: l.row.OwedBefore, Devices: l.row.Devices,
		}),
	}, err
}
