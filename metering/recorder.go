package metering

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
)

// ErrFinal says that a lease's last record was already written.
var ErrFinal = errors.New("the lease's final record was written")

// Lease is what payee and payer agreed on before the first second. Both sides
// fill it in from the signed offer and the channel.
type Lease struct {
	ID         common.Hash
	ChannelID  common.Hash
	OfferHash  common.Hash
	ChainID    uint64
	Escrow     common.Address
	Price      Price       // of one device's time
	OwedBefore uint256.Int // what the channel owed when the lease began
	Devices    []string    // UUIDs

	// MaxGap is the longest unobserved interval that the offer lets the payee
	// bill. A checker refuses evidence metered with a longer one; zero allows any.
	MaxGap time.Duration
	// Tick is how often the offer says that each device is read; zero: any.
	Tick time.Duration
	// Models are the kinds of devices that the offer has, and Simulated says that it
	// has such as are none. A checker refuses time of others; of any if Models is empty.
	Models    []Model
	Simulated bool

	// Share is how leases share the devices. A checker takes time in its slots alone, or
	// none but of devices that the lease has for itself if it is zero.
	Share Share
}

// Validate refuses a lease without devices or with a price that is none.
func (l Lease) Validate() error {
	if err := (Config{Devices: l.Devices}).defaults().validate(); err != nil {
		return fmt.Errorf("lease %s: %w", l.ID, err)
	}
	if l.OwedBefore.Gt(maxAmount) {
		return fmt.Errorf("%w: lease %s begins with more owed than a channel can hold", ErrPrice, l.ID)
	}
	if l.Share.Shared() {
		if err := l.Share.Validate(); err != nil {
			return fmt.Errorf("lease %s: %w", l.ID, err)
		}
		if int(l.Share.GPUs) != len(l.Devices) {
			return fmt.Errorf("%w: lease %s has slots of %d GPUs, and %d devices", ErrDevice, l.ID, l.Share.GPUs, len(l.Devices))
		}
	}
	return l.Price.Validate()
}

// Owed is what the channel owes in all when the lease has used nanos.
func (l Lease) Owed(nanos uint64) (uint256.Int, error) {
	charge, err := l.Price.Charge(nanos)
	if err != nil {
		return uint256.Int{}, err
	}
	charge.Add(&charge, &l.OwedBefore)
	if charge.Gt(maxAmount) {
		return uint256.Int{}, fmt.Errorf("%w: lease %s owes more than a channel can hold", ErrPrice, l.ID)
	}
	return charge, nil
}

// maxLasts is more nanoseconds than any lease takes, and can be added to without
// overflow.
const maxLasts = math.MaxInt64 / 4

// lasts is how long, in nanoseconds over all devices, the lease runs until more
// than an amount is owed.
func (l Lease) lasts(owed uint256.Int) int64 {
	if l.Price.Amount.IsZero() || owed.Gt(maxAmount) {
		return maxLasts
	}
	var open uint256.Int // 97 + 42 bits do not overflow 256
	if owed.Gt(&l.OwedBefore) {
		open.Sub(&owed, &l.OwedBefore)
	}
	open.AddUint64(&open, 1) // a charge is rounded down
	open.Mul(&open, uint256.NewInt(l.Price.Unit.Nanos()))
	open.Div(&open, &l.Price.Amount)
	if open.Gt(uint256.NewInt(maxLasts)) {
		return maxLasts
	}
	return int64(open.Uint64())
}

// Recorder writes the records of one lease. It is not for several goroutines
// at once: two records of one number would be a fork, signed by the payee.
type Recorder struct {
	lease  Lease
	domain common.Hash
	signer Signer
	last   *Record
}

// NewRecorder starts a chain of records, or goes on after last.
func NewRecorder(lease Lease, signer Signer, last *Record) (*Recorder, error) {
	if err := lease.Validate(); err != nil {
		return nil, err
	}
	r := &Recorder{lease: lease, domain: Domain(lease.ChainID, lease.Escrow), signer: signer}
	if last == nil {
		return r, nil
	}
	if last.LeaseID != lease.ID || last.ChannelID != lease.ChannelID || last.OfferHash != lease.OfferHash {
		return nil, fmt.Errorf("%w: the last record is of lease %s, not %s", ErrRecord, last.LeaseID, lease.ID)
	}
	if last.OwedBefore != lease.OwedBefore || int(last.Devices) != len(lease.Devices) {
		return nil, fmt.Errorf("%w: lease %s no longer has the terms of its record %d", ErrRecord, lease.ID, last.Sequence)
	}
	copied := *last
	r.last = &copied
	return r, nil
}

// Last is the newest record, if there is one.
func (r *Recorder) Last() (Record, bool) {
	if r.last == nil {
		return Record{}, false
	}
	return *r.last, true
}

// Draft is a record that nobody has signed yet, and the evidence that it hashes.
type Draft struct {
	Record   Record   `json:"record"`
	Evidence Evidence `json:"evidence"`
}

// Draft states one cut as the next record. Store it, with [Meter.Save], before you
// have it signed: after a crash the same draft must be signed again, since another
// record of its number would be a fork.
func (r *Recorder) Draft(evidence Evidence, final bool) (Draft, error) {
	record, err := r.next(evidence, final)
	return Draft{Record: record, Evidence: evidence}, err
}

// Signer is the address of the metering key.
func (r *Recorder) Signer() common.Address { return r.signer.Address() }

// Digest is what a signature of a record is over.
func (r *Recorder) Digest(record Record) common.Hash { return record.Digest(r.domain) }

// Sign signs a draft that follows the last record, which it then is.
func (r *Recorder) Sign(ctx context.Context, d Draft) (SignedRecord, error) {
	if err := r.follows(d.Record); err != nil {
		return SignedRecord{}, err
	}
	signature, err := r.signer.Sign(ctx, r.Digest(d.Record))
	if err != nil {
		return SignedRecord{}, fmt.Errorf("sign record %d of lease %s: %w", d.Record.Sequence, r.lease.ID, err)
	}
	record := d.Record
	r.last = &record
	return SignedRecord{Record: record, Signature: signature, Evidence: d.Evidence}, nil
}

// follows refuses a draft that is not of this lease or not the next.
func (r *Recorder) follows(d Record) error {
	var sequence uint64
	var previous common.Hash
	if r.last != nil {
		sequence, previous = r.last.Sequence, r.Digest(*r.last)
	}
	if d.LeaseID != r.lease.ID || d.Sequence != sequence+1 || d.Previous != previous {
		return fmt.Errorf("%w: draft %d of lease %s does not follow record %d of lease %s", ErrRecord, d.Sequence, d.LeaseID, sequence, r.lease.ID)
	}
	return nil
}

// Next drafts and signs the record of one cut in one step, for who keeps nothing
// that a crash could take. A payee stores the draft in between.
func (r *Recorder) Next(ctx context.Context, evidence Evidence, final bool) (SignedRecord, error) {
	draft, err := r.Draft(evidence, final)
	if err != nil {
		return SignedRecord{}, err
	}
	return r.Sign(ctx, draft)
}

func (r *Recorder) next(e Evidence, final bool) (Record, error) {
	if err := e.Validate(); err != nil {
		return Record{}, err
	}
	if err := r.lease.shares(e); err != nil {
		return Record{}, fmt.Errorf("lease %s: %w", r.lease.ID, err)
	}
	last := Record{}
	previous := common.Hash{}
	if r.last != nil {
		last, previous = *r.last, r.last.Digest(r.domain)
	}
	if last.Final {
		return Record{}, fmt.Errorf("%w: record %d of lease %s", ErrFinal, last.Sequence, r.lease.ID)
	}
	if uint64(e.Total-e.Nanos) != last.Nanos || last.Sequence == math.MaxUint64 {
		return Record{}, fmt.Errorf("%w: the cut starts at %d ns, record %d of lease %s ended at %d",
			ErrEvidence, e.Total-e.Nanos, last.Sequence, r.lease.ID, last.Nanos)
	}
	owed, err := r.lease.Owed(uint64(e.Total))
	if err != nil {
		return Record{}, err
	}
	from, to := e.wall()
	return Record{
		LeaseID:      r.lease.ID,
		ChannelID:    r.lease.ChannelID,
		OfferHash:    r.lease.OfferHash,
		Sequence:     last.Sequence + 1,
		Previous:     previous,
		Nanos:        uint64(e.Total),
		Devices:      uint32(len(r.lease.Devices)),
		OwedBefore:   r.lease.OwedBefore,
		Owed:         owed,
		From:         from,
		To:           to,
		Final:        final,
		EvidenceHash: e.Hash(),
	}, nil
}

// wall is the stretch of wall time that the evidence spans.
func (e Evidence) wall() (from, to uint64) {
	for _, d := range e.Devices {
		if d.From.Wall > 0 && (from == 0 || uint64(d.From.Wall) < from) {
			from = uint64(d.From.Wall)
		}
		if d.To.Wall > 0 {
			to = max(to, uint64(d.To.Wall))
		}
	}
	return from, to
}
