package renter

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/billed"
	"github.com/gpupay/gpupay/sdk/internal/sharedcredit"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Phase is how far a rental has come, on disk.
type Phase string

const (
	PhaseOpening  Phase = "opening"  // the channel may or may not be funded
	PhaseRunning  Phase = "running"  // the lease runs, or did when we last heard of it
	PhaseDisputed Phase = "disputed" // the provider was caught: nothing more is paid, the deposit is still to be got back
	PhaseClosing  Phase = "closing"  // being closed with the provider's help
	PhaseLeaving  Phase = "leaving"  // being left without it
	PhaseClosed   Phase = "closed"   // the refund is here, or the channel was never funded; a re-org could still undo that
	PhaseFinished Phase = "finished" // and no re-org can any more
)

// rentalRow is what a rental must not forget. Amounts are base units.
type rentalRow struct {
	URL     string          `json:"url"`
	Terms   channel.Terms   `json:"terms"`
	Offer   json.RawMessage `json:"offer"`
	GPUs    int             `json:"gpus"`
	Options Options         `json:"options"`
	Deposit uint256.Int     `json:"deposit"` // meant for it, until the chain has it
	// Seen is the newest block as of which the chain had Deposit; zero before it did. SeenTime is its time in unix seconds,
	// and no later than our clock could be off then; zero in older databases.
	Seen     uint64      `json:"seen,omitempty"`
	SeenTime int64       `json:"seenTime,omitempty"`
	MinDelta uint256.Int `json:"minDelta"`

	// Made is when the rental was put on disk, unix seconds; zero in databases that
	// did not keep it.
	Made int64 `json:"made,omitempty"`

	// Sponsored: the provider sends deposits that we only sign.
	Sponsored bool `json:"sponsored"`
	// Coinless: our coin did not pay for a top-up, and the provider sends it and those after it.
	Coinless bool `json:"coinless,omitempty"`
	// Funding is the open as it was signed: sent again after a crash, it can
	// move the money only once.
	Funding *wire.Payload `json:"funding,omitempty"`
	// TopUp is the same for a top-up that is not known to have arrived.
	TopUp *wire.Payload `json:"topUp,omitempty"`
	// Moved is what deposits of ours have moved into the channel, by transactions that
	// were mined and authorizations that were seen used and have ended. It never falls.
	Moved uint256.Int `json:"moved"`
	// Before is the deposit that TopUp adds to.
	Before uint256.Int `json:"before"`
	// TopUps counts them: it is the salt that tells equal ones apart.
	TopUps uint64 `json:"topUps"`
	// Promises are the authorizations that were signed for this channel and may
	// still move money into it, or could after a re-org.
	Promises []promise `json:"promises,omitempty"`

	// PastOffers are those that a lease was asked for under before Offer: it may
	// have begun with an answer that got lost.
	PastOffers []json.RawMessage `json:"pastOffers,omitempty"`

	// Asked is when the lease was first asked for, on our clocks: a lease whose
	// first byte got lost began after it.
	Asked     *metering.Instant `json:"asked,omitempty"`
	AskedBoot string            `json:"askedBoot,omitempty"`

	// Vouchers counts those that were sent, roughly: a crash loses a few.
	Vouchers uint64 `json:"vouchers,omitempty"`
	// Beside is what of the payee's credit other channels could not have any more, at the newest record.
	Beside map[common.Hash]*sharedcredit.Taken `json:"beside,omitempty"`
	// Spans are the stretches of each device's time that were billed.
	Spans []billed.Span `json:"spans,omitempty"`

	Lease      common.Hash            `json:"lease"`
	Secret     string                 `json:"secret,omitempty"`
	Devices    []string               `json:"devices,omitempty"`
	Access     json.RawMessage        `json:"-"` // often a password: the lease's stream brings it again
	OwedBefore uint256.Int            `json:"owedBefore"`
	Binding    *wire.MeterBinding     `json:"binding,omitempty"` // whose key signs its records; nil: the one that its offer names
	Checker    *metering.CheckerState `json:"checker,omitempty"`
	Ended      string                 `json:"ended,omitempty"` // why the lease is over
	Dispute    string                 `json:"dispute,omitempty"`
	// OfSite is whether Dispute is held against the rental's site alone: nothing that the payee signed proves it.
	OfSite bool     `json:"ofSite,omitempty"`
	Closed *Closing `json:"closed,omitempty"`

	// Past are the channel's leases before this one.
	Past []pastLease `json:"past,omitempty"`
	// Carried is what they used and were not charged for, in metering.Fractions: the next lease is, once it makes a base unit.
	Carried uint64 `json:"carried,omitempty"`
	// Recalled is the newest voucher of ours that a provider showed and this database had forgotten.
	Recalled uint256.Int `json:"recalled,omitzero"`
	// Cancels numbers the close request that is being taken back, zero: none is.
	Cancels uint64 `json:"cancels,omitempty"`

	Phase Phase `json:"-"`
}

// rentalStore keeps rentals and checked records.
type rentalStore struct{ wallet.Store }

// create puts a rental on disk before anything of it is signed.
func (s rentalStore) create(ctx context.Context, row rentalRow) error {
	document, err := json.Marshal(&row) // by reference: uint256.Int only then writes a decimal
	if err != nil {
		return err
	}
	return s.DB.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(
			`INSERT INTO rentals (channel, state, url, document, updated_at) VALUES (?, ?, ?, ?, ?)`),
			row.Terms.ID().Hex(), row.Phase, row.URL, string(document), time.Now().UnixMilli())
		return err
	})
}

func (s rentalStore) save(ctx context.Context, row rentalRow) error {
	return s.DB.Update(ctx, func(tx *sqlx.Tx) error { return saveRental(ctx, tx, row) })
}

func saveRental(ctx context.Context, tx *sqlx.Tx, row rentalRow) error {
	document, err := json.Marshal(&row) // by reference: uint256.Int only then writes a decimal
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, tx.Rebind(`UPDATE rentals SET state = ?, document = ?, updated_at = ? WHERE channel = ?`),
		row.Phase, string(document), time.Now().UnixMilli(), row.Terms.ID().Hex())
	return err
}

// accept keeps a checked record and what the checker knows after it, in one
// step, before a voucher is signed for it.
func (s rentalStore) accept(ctx context.Context, row rentalRow, rec metering.SignedRecord) error {
	defer fault.Point(fault.CheckerStored)
	document, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return s.DB.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(
			`INSERT INTO rental_records (channel, lease, sequence, record) VALUES (?, ?, ?, ?)`),
			rec.ChannelID.Hex(), rec.LeaseID.Hex(), int64(rec.Sequence), string(document))
		if err != nil {
			return fmt.Errorf("channel %s, record %d: %w", rec.ChannelID, rec.Sequence, err)
		}
		return saveRental(ctx, tx, row)
	})
}

// record returns the accepted record of a number, or nil.
func (s rentalStore) record(ctx context.Context, id, lease common.Hash, sequence uint64) (json.RawMessage, error) {
	return s.Record(ctx, "rental_records", id, lease, sequence)
}

// records returns every accepted record of a channel, in order.
func (s rentalStore) records(ctx context.Context, id common.Hash) ([]metering.SignedRecord, error) {
	return s.Records(ctx, "rental_records", id)
}

// load returns one rental, or channel.ErrUnknown.
func (s rentalStore) load(ctx context.Context, id common.Hash) (rentalRow, error) {
	rows, err := s.list(ctx, `WHERE channel = ?`, id.Hex())
	if err != nil {
		return rentalRow{}, err
	}
	if len(rows) == 0 {
		return rentalRow{}, fmt.Errorf("%w: %s is no rental in this database", channel.ErrUnknown, id)
	}
	return rows[0], nil
}

// unfinished returns the rentals that may still hold money, oldest first.
func (s rentalStore) unfinished(ctx context.Context) ([]rentalRow, error) {
	return s.list(ctx, `WHERE state <> ? ORDER BY updated_at`, PhaseFinished)
}

func (s rentalStore) list(ctx context.Context, where string, args ...any) ([]rentalRow, error) {
	var found []struct {
		State    string `db:"state"`
		Document string `db:"document"`
	}
	db := s.DB.View()
	if err := db.SelectContext(ctx, &found, db.Rebind(`SELECT state, document FROM rentals `+where), args...); err != nil {
		return nil, fmt.Errorf("reading rentals: %w", err)
	}
	rows := make([]rentalRow, len(found))
	for i, f := range found {
		if err := json.Unmarshal([]byte(f.Document), &rows[i]); err != nil {
			return nil, fmt.Errorf("a rental on disk does not parse; restore the database from its backup: %w", err)
		}
		rows[i].Phase = Phase(f.State)
	}
	return rows, nil
}
