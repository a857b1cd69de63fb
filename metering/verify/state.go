package verify

import (
	"encoding/json"
	"fmt"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/metering"
)

// State is what a checker must remember over a restart of the payer.
type State struct {
	BootID   string           `json:"bootId"`            // the boot that Start.Boot counts from
	Ceiling  *Ceiling         `json:"ceiling,omitempty"` // nil before the first CheckWithin, and of older states
	Devices  []Device         `json:"devices"`           // as the last record left them
	Elapsed  int64            `json:"elapsed,string"`    // ns the lease had run when this was saved
	Final    bool             `json:"final"`
	Kept     uint64           `json:"kept,omitempty,string"` // bytes that the records take, see RecordRoom
	Last     common.Hash      `json:"last"`                  // digest of the last good record
	Nanos    uint64           `json:"nanos,string"`
	Owed     uint256.Int      `json:"owed"`              // base units, payable of the last good record: all that it says, but of time after Stopped
	Payable  *uint256.Int     `json:"payable,omitempty"` // base units, the most that is payable after Stop; nil: it runs, or an older state
	Rest     uint32           `json:"rest,omitempty"`    // parts of a nanosecond that the last good record carries over, of a lease with a Share
	Sequence uint64           `json:"sequence,string"`
	Start    metering.Instant `json:"start"`                    // before the lease began, on the payer's clocks
	Stopped  int64            `json:"stopped,string,omitempty"` // ns the lease had run at Stop; 0: it runs
	Unsure   bool             `json:"unsure,omitempty"`         // another boot since the last record: how long it was, the wall clock says
}

// Ceiling is the most that an honest payee could owe when the lease had run for
// At nanoseconds. From there it owes more only as the GPUs run, whatever it is
// paid meanwhile: a payment raises what may be owed in all, and makes no GPU time.
type Ceiling struct {
	At   int64       `json:"at,string"` // ns of the lease, on the payer's own clock
	Owed uint256.Int `json:"owed"`      // base units
}

// Device is where a device's evidence ended, and what it was; Name is empty
// where that is not known.
type Device struct {
	BootID      string `json:"bootId"`
	MemoryBytes uint64 `json:"memoryBytes,string"`
	Mono        int64  `json:"mono,string"`
	Name        string `json:"name"`
	Stopped     bool   `json:"stopped,omitempty"` // an error at its end stops what follows
	Total       int64  `json:"total,string"`
	UUID        string `json:"uuid"`
	VBIOS       string `json:"vbios"`
}

// MarshalJSON writes the amount as a decimal string: as a value, uint256.Int
// would be written as its words.
func (s State) MarshalJSON() ([]byte, error) {
	type plain State
	return json.Marshal(struct {
		plain
		Owed string `json:"owed"`
	}{plain(s), s.Owed.Dec()})
}

// Skip goes over the records before rec that were never shown: a provider states what it
// metered when it suspends a lease, and no tick carries that. What they can cost
// stays bounded, since a record's time is counted from the lease's beginning: it
// may not fall, and not run ahead of our clock. A lease in slots could use all of that and
// more than it used: of one, what was not shown may bill nothing.
func (s State) Skip(rec metering.SignedRecord) (State, error) {
	if rec.Sequence <= s.Sequence+1 {
		return s, nil
	}
	added := uint64(max(0, rec.Evidence.Nanos))
	if added > rec.Nanos || rec.Nanos-added < s.Nanos {
		return s, fmt.Errorf("lease %s, record %d: %w: %d ns, of which %d are new, after %d", rec.LeaseID, rec.Sequence, ErrBackwards, rec.Nanos, added, s.Nanos)
	}
	if e := rec.Evidence; e.Kind == metering.KindSlots && (rec.Nanos-added != s.Nanos || carried(e) != s.Rest) {
		return s, fmt.Errorf("lease %s, record %d: %w: requests of %d ns are billed in records that were not shown", rec.LeaseID, rec.Sequence, ErrSequence, rec.Nanos-added-s.Nanos)
	}
	last := s.Devices
	s.Rest = carried(rec.Evidence)
	s.Sequence, s.Last, s.Nanos, s.Devices = rec.Sequence-1, rec.Previous, rec.Nanos-added, nil
	for _, d := range rec.Evidence.Devices {
		from := Device{UUID: d.Device.UUID, Total: d.Total - d.Nanos.Allocated}
		for _, before := range last {
			if before.UUID != from.UUID {
				continue
			}
			if from.Total < before.Total {
				return s, fmt.Errorf("lease %s, record %d: %w: %s shows time from %d ns, an earlier record went to %d", rec.LeaseID, rec.Sequence, ErrBackwards, from.UUID, from.Total, before.Total)
			}
			from.Name, from.MemoryBytes, from.VBIOS = before.Name, before.MemoryBytes, before.VBIOS
			if from.BootID, from.Mono = before.BootID, before.Mono; d.Device.BootID != before.BootID {
				from.BootID = "" // its end is in a record that was not shown
			}
		}
		s.Devices = append(s.Devices, from)
	}
	return s, nil
}

// carried is what a record takes over from the one before.
func carried(e metering.Evidence) uint32 {
	if e.Slots == nil {
		return 0
	}
	return e.Slots.Carried
}
