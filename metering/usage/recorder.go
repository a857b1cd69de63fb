package usage

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/internal/ident"
)

// ErrFinal says that a lease's last record was already written.
var ErrFinal = errors.New("the lease's final record was written")

// Recorder writes the records of one lease. It is not for several goroutines
// at once: two records of one number would be a fork, signed by the payee.
type Recorder struct {
	lease  metering.Lease
	domain common.Hash
	signer metering.Signer
	last   *metering.Record
}

// NewRecorder starts a chain of records, or goes on after last.
func NewRecorder(lease metering.Lease, signer metering.Signer, last *metering.Record) (*Recorder, error) {
	if err := lease.Validate(); err != nil {
		return nil, err
	}
	r := &Recorder{lease: lease, domain: metering.Domain(lease.ChainID, lease.Escrow), signer: signer}
	if last == nil {
		return r, nil
	}
	if last.LeaseID != lease.ID || last.ChannelID != lease.ChannelID || last.OfferHash != lease.OfferHash {
		return nil, fmt.Errorf("%w: the last record is of lease %s, not %s", metering.ErrRecord, last.LeaseID, lease.ID)
	}
	if last.OwedBefore != lease.OwedBefore || int(last.Devices) != len(lease.Devices) {
		return nil, fmt.Errorf("%w: lease %s no longer has the terms of its record %d", metering.ErrRecord, lease.ID, last.Sequence)
	}
	copied := *last
	r.last = &copied
	return r, nil
}

// Last is the newest record, if there is one.
func (r *Recorder) Last() (metering.Record, bool) {
	if r.last == nil {
		return metering.Record{}, false
	}
	return *r.last, true
}

// Draft is a record that nobody has signed yet, and the evidence that it hashes.
type Draft struct {
	Record   metering.Record   `json:"record"`
	Evidence metering.Evidence `json:"evidence"`
}

// Draft states one cut as the next record. Store it, with [Meter.Save], before you
// have it signed: after a crash the same draft must be signed again, since another
// record of its number would be a fork. A device that is not of the offer's kinds is [metering.ErrModel].
func (r *Recorder) Draft(evidence metering.Evidence, final bool) (Draft, error) {
	record, err := r.next(evidence, final)
	return Draft{Record: record, Evidence: evidence}, err
}

// Signer is the address of the metering key.
func (r *Recorder) Signer() common.Address { return r.signer.Address() }

// Sells refuses a device that no record of the lease may be of: see [metering.Lease.Sells].
func (r *Recorder) Sells(d metering.Device) error {
	d.Name = ident.Printable(d.Name) // as the meter has it
	if err := r.lease.Sells(d); err != nil {
		return fmt.Errorf("lease %s: %w", r.lease.ID, err)
	}
	return nil
}

// Digest is what a signature of a record is over.
func (r *Recorder) Digest(record metering.Record) common.Hash { return record.Digest(r.domain) }

// Sign signs a draft that follows the last record, which it then is.
func (r *Recorder) Sign(ctx context.Context, d Draft) (metering.SignedRecord, error) {
	if err := r.follows(d.Record); err != nil {
		return metering.SignedRecord{}, err
	}
	signature, err := r.signer.Sign(ctx, r.Digest(d.Record))
	if err != nil {
		return metering.SignedRecord{}, fmt.Errorf("sign record %d of lease %s: %w", d.Record.Sequence, r.lease.ID, err)
	}
	record := d.Record
	r.last = &record
	return metering.SignedRecord{Record: record, Signature: signature, Evidence: d.Evidence}, nil
}

// follows refuses a draft that is not of this lease or not the next.
func (r *Recorder) follows(d metering.Record) error {
	var sequence uint64
	var previous common.Hash
	if r.last != nil {
		sequence, previous = r.last.Sequence, r.Digest(*r.last)
	}
	if d.LeaseID != r.lease.ID || d.Sequence != sequence+1 || d.Previous != previous {
		return fmt.Errorf("%w: draft %d of lease %s does not follow record %d of lease %s", metering.ErrRecord, d.Sequence, d.LeaseID, sequence, r.lease.ID)
	}
	return nil
}

// Next drafts and signs the record of one cut in one step, for who keeps nothing
// that a crash could take. A payee stores the draft in between.
func (r *Recorder) Next(ctx context.Context, evidence metering.Evidence, final bool) (metering.SignedRecord, error) {
	draft, err := r.Draft(evidence, final)
	if err != nil {
		return metering.SignedRecord{}, err
	}
	return r.Sign(ctx, draft)
}

func (r *Recorder) next(e metering.Evidence, final bool) (metering.Record, error) {
	if err := e.Validate(); err != nil {
		return metering.Record{}, err
	}
	for _, d := range e.Devices { // of one that was never described nothing is billed
		if err := r.Sells(d.Device); d.Device.Name != "" && err != nil {
			return metering.Record{}, err
		}
	}
	if err := r.lease.Share.Match(e); err != nil {
		return metering.Record{}, fmt.Errorf("lease %s: %w", r.lease.ID, err)
	}
	last := metering.Record{}
	previous := common.Hash{}
	if r.last != nil {
		last, previous = *r.last, r.last.Digest(r.domain)
	}
	if last.Final {
		return metering.Record{}, fmt.Errorf("%w: record %d of lease %s", ErrFinal, last.Sequence, r.lease.ID)
	}
	if uint64(e.Total-e.Nanos) != last.Nanos || last.Sequence == math.MaxUint64 {
		return metering.Record{}, fmt.Errorf("%w: the cut starts at %d ns, record %d of lease %s ended at %d",
			metering.ErrEvidence, e.Total-e.Nanos, last.Sequence, r.lease.ID, last.Nanos)
	}
	owed, err := r.lease.Owed(uint64(e.Total))
	if err != nil {
		return metering.Record{}, err
	}
	from, to := wall(e)
	return metering.Record{
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
func wall(e metering.Evidence) (from, to uint64) {
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
