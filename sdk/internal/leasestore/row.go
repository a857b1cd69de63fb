package leasestore

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/usage"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Row is a lease as it stands on disk.
type Row struct {
	ID         string `db:"id"`
	Channel    string `db:"channel"`
	Offer      string `db:"offer"`
	SecretHash string `db:"secret_hash"`
	GPUs       int    `db:"gpus"`
	Allocation string `db:"allocation"`
	OwedBefore string `db:"owed_before"`
	State      string `db:"state"`
	Reason     string `db:"reason"`
	Meter      string `db:"meter"`
	StartedAt  int64  `db:"started_at"`
	EndedAt    int64  `db:"ended_at"`     // unix seconds
	Owner      string `db:"owner"`        // the gateway that runs it, where several share the database
	Term       int64  `db:"term"`         // grows with each change of owner
	Sequence   int64  `db:"sequence"`     // of the newest record
	Stream     int64  `db:"stream"`       // the newest stream
	Command    string `db:"command"`      // why another gateway wants it ended
	Held       int64  `db:"held"`         // 1: ended, and its devices not taken back yet, nor what its node metered last taken over
	Pending    string `db:"pending"`      // JSON of the record that is about to be signed; empty: none
	Suspended  int64  `db:"suspended_at"` // unix nanoseconds; 0 where it is not
	Carried    int64  `db:"carried"`      // what the leases before it were not charged, in metering.Fractions, less than one base unit
	MeterKey   string `db:"meter_key"`    // address of the key that signs its records; empty: the one that its offer names
	Binding    string `db:"binding"`      // JSON of the wire.MeterBinding that says so, at a gateway
}

// Allocate says which devices a lease has, and says to them whose they are.
func (r *Row) Allocate(a *gpu.Allocation) error {
	a.LeaseID, a.Term = common.HexToHash(r.ID), r.Term
	text, err := json.Marshal(a)
	r.Allocation = string(text)
	return err
}

// Placed reports whether devices were allocated to the lease.
func (r Row) Placed() bool { return r.Allocation != "" && r.Allocation != "{}" }

// Columns are those of a Row, for SELECT.
var Columns = database.Columns[Row]()

// State is where a lease is in its life.
type State string

// What a lease goes through: see ARCHITECTURE.md.
const (
	Allocating State = wire.StateAllocating
	Active     State = wire.StateActive
	Suspended  State = wire.StateSuspended
	Ending     State = wire.StateEnding
	Ended      State = wire.StateEnded
)

// Allocated is what the lease was given, in the term of its row.
func (r Row) Allocated() (gpu.Allocation, error) {
	var a gpu.Allocation
	err := json.Unmarshal([]byte(r.Allocation), &a)
	a.LeaseID, a.Term = common.HexToHash(r.ID), r.Term
	return a, err
}

// AtNode reports whether a node meters the lease.
func (r Row) AtNode() bool {
	a, err := r.Allocated()
	return err == nil && a.Node != ""
}

// LetAgain reports whether a device of an allocation is in a later lease.
func LetAgain(a gpu.Allocation, later []Row) bool {
	return a.Node == "" && !a.Shared && slices.ContainsFunc(later, func(row Row) bool { // a node takes back what is in this lease
		b, err := row.Allocated()
		return err == nil && slices.ContainsFunc(a.Devices, func(device string) bool { return slices.Contains(b.Devices, device) })
	})
}

// Spare takes out of a row the devices that another lease has. It is inventory.ErrTaken where none would be left.
func (r *Row) Spare(other gpu.Allocation) error {
	a, err := r.Allocated()
	if err != nil || a.Node != "" || a.Shared || len(a.Devices) == 0 {
		return err
	}
	if a.Devices = inventory.Without(a.Devices, other.Devices); len(a.Devices) == 0 {
		return inventory.ErrTaken
	}
	return r.Allocate(&a)
}

// SigningKey is the address of the key that signs a lease's records.
func (r Row) SigningKey(offer wire.SignedOffer) common.Address {
	return common.HexToAddress(cmp.Or(r.MeterKey, common.Address(offer.Meter).Hex()))
}

// MeterBinding is the payee's word for whose key signs; nil where the offer names the key, and at a node.
func (r Row) MeterBinding() (*wire.MeterBinding, error) {
	if r.Binding == "" {
		return nil, nil
	}
	var b wire.MeterBinding
	if err := json.Unmarshal([]byte(r.Binding), &b); err != nil {
		return nil, fmt.Errorf("stored meter binding of lease %s: %w", r.ID, err)
	}
	return &b, nil
}

// Pending is the next record of a lease, before it is signed, and where the
// meter is after it, as that one writes it.
type Pending struct {
	usage.Draft
	Meter json.RawMessage `json:"meter"`
}

// Resume is where the meter was at the lease's newest record, signed or about to
// be, and the record that is about to be.
func (r Row) Resume(last *metering.SignedRecord) (json.RawMessage, *metering.Record, *Pending, error) {
	var record *metering.Record
	if last != nil {
		record = &last.Record
	}
	if r.Pending != "" {
		pending := &Pending{}
		if err := json.Unmarshal([]byte(r.Pending), pending); err != nil {
			return nil, nil, nil, fmt.Errorf("stored draft of lease %s: %w", r.ID, err)
		}
		return pending.Meter, record, pending, nil
	}
	if last == nil {
		return nil, nil, nil, nil
	}
	return json.RawMessage(r.Meter), record, nil, nil
}

// Forgets reports a channel that is charged more than its lease's records say, with which they are charged in one step: some of them are forgotten.
func Forgets(s channel.State, before uint256.Int, last *metering.SignedRecord) bool {
	if last != nil {
		before = last.Owed
	}
	return s.Spent.Gt(&before)
}

// SuspendedSince is when a suspension began that an earlier process wrote down as of then: its time goes on, so that a provider that starts
// often keeps no GPU for who does not pay. A quarter of it is left whatever the clock says, since nobody could pay while no process was
// there.
func SuspendedSince(then, now time.Time, timeout time.Duration) time.Time {
	if then.IsZero() || then.After(now) {
		return now
	}
	if latest := now.Add(-timeout * 3 / 4); then.Before(latest) {
		return latest
	}
	return then
}
