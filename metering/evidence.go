package metering

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
)

// ErrEvidence says that a record's evidence does not support what it states.
var ErrEvidence = errors.New("evidence does not support the record")

// Evidence is what a record's nanoseconds were counted from, between two cuts
// of the meter. The record carries its hash; the evidence travels beside it.
//
// The fields stand in the order of their JSON keys: the encoding is canonical
// (RFC 8785), so that anybody can write it again and get the same hash.
type Evidence struct {
	Devices   []DeviceEvidence `json:"devices"`
	Kind      string           `json:"kind,omitempty"`  // KindSlots; empty: of a lease that has its devices for itself
	MaxGap    int64            `json:"maxGap,string"`   // ns
	Nanos     int64            `json:"nanos,string"`    // billed since the cut before, over all devices
	Root      common.Hash      `json:"root"`            // of the samples since the cut before
	Samples   uint64           `json:"samples,string"`  // how many
	Simulated bool             `json:"simulated"`       // no real GPU was involved
	Slots     *SlotEvidence    `json:"slots,omitempty"` // of KindSlots: then its devices' times are not added up, and its slots' are
	Source    string           `json:"source"`          // what read the devices
	Tick      int64            `json:"tick,string"`     // ns
	Total     int64            `json:"total,string"`    // billed since the lease began, over all devices
}

// DeviceEvidence is one device's part of the evidence.
type DeviceEvidence struct {
	Device   Device   `json:"device"`
	Energy   uint64   `json:"energy,string"`             // millijoules used
	From     Instant  `json:"from"`                      // the last reading of the cut before, or the first of all
	Gaps     []Hole   `json:"gaps,omitempty"`            // time that was not billed, and why
	Memory   uint64   `json:"memory,string"`             // the most bytes in use
	Missing  []string `json:"missing,omitempty"`         // figures that the device does not report
	MoreGaps uint64   `json:"moreGaps,omitempty,string"` // left out of Gaps
	MoreXIDs uint64   `json:"moreXids,omitempty,string"` // left out of XIDs
	Nanos    Nanos    `json:"nanos"`                     // since the cut before
	Samples  uint64   `json:"samples,string"`
	To       Instant  `json:"to"`
	Total    int64    `json:"total,string"` // billed since the lease began
	XIDs     []XID    `json:"xids,omitempty"`
}

// Nanos are the nanoseconds of one device, or a sum over devices. Allocated,
// Down, Gap and Paused add up to the time between the first and the last
// reading. Active and Throttled are parts of Allocated.
type Nanos struct {
	Active    int64 `json:"active,string"`    // something ran on the device at the interval's end
	Allocated int64 `json:"allocated,string"` // billed
	Down      int64 `json:"down,string"`
	Gap       int64 `json:"gap,string"`
	Paused    int64 `json:"paused,string"`
	Throttled int64 `json:"throttled,string"` // slowed by heat or the power brake: the provider's doing
}

// Hole is a stretch of monotonic time that was not billed.
type Hole struct {
	From   int64  `json:"from,string"`
	Reason string `json:"reason"`
	To     int64  `json:"to,string"`
}

// Reasons of a gap.
const (
	ReasonInterval = "interval" // longer than MaxGap
	ReasonStalled  = "stalled"  // the driver did not answer
	ReasonDevice   = "device"   // another UUID answered
	ReasonReboot   = "reboot"   // another boot id
	ReasonDriver   = "driver"   // another version or generation of the driver
	ReasonEnergy   = "energy"   // the energy counter ran backwards: the driver was reloaded
	ReasonSuspend  = "suspend"  // the host slept
	ReasonRestart  = "restart"  // the meter itself was restarted
)

// Stretch is a part of a device's evidence on the clock of one boot, in
// nanoseconds of monotonic time. Unbilled time may lie in it.
type Stretch struct {
	BootID   string // empty: of a boot before, which the evidence does not name
	From, To int64
}

// Stretches are the parts between which the host was rebooted, in order; the last
// one is of the boot that the evidence names. A reboot is in the list of gaps, and
// its ends are on two clocks.
func (d DeviceEvidence) Stretches() []Stretch {
	var before []Stretch
	at := d.From.Mono
	for _, g := range d.Gaps {
		if g.Reason != ReasonReboot {
			continue
		}
		if g.To != at { // else the first reading was made after it
			before = append(before, Stretch{From: at, To: g.From})
		}
		at = g.To
	}
	return append(before, Stretch{BootID: d.Device.BootID, From: at, To: d.To.Mono})
}

// Encode is the canonical form of a reading: a leaf of the tree.
func (r Reading) Encode() []byte { return r.Append(nil) }

// Encode is the canonical form of the evidence.
func (e Evidence) Encode() []byte { return canonical(e) }

// Hash is keccak256 of the canonical form. A record states it.
func (e Evidence) Hash() common.Hash { return crypto.Keccak256Hash(e.Encode()) }

// canonical writes a struct whose fields stand in the order of their keys.
func canonical(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic("metering: a struct of numbers and strings does not encode: " + err.Error())
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// Validate checks that the figures agree with one another. It cannot check
// that they are true.
func (e Evidence) Validate() error {
	if err := e.known(); err != nil {
		return err
	}
	var nanos, total int64
	var samples uint64
	simulated := false
	for _, d := range e.Devices {
		if err := d.validate(e.MaxGap); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrEvidence, d.Device.UUID, err)
		}
		if total > math.MaxInt64-d.Total && e.Kind != KindSlots { // bounds nanos as well, which is less; slots are not billed by these
			return fmt.Errorf("%w: the totals overflow", ErrEvidence)
		}
		nanos += d.Nanos.Allocated
		total += d.Total
		samples += d.Samples
		simulated = simulated || d.Device.Simulated
	}
	if samples != e.Samples || simulated != e.Simulated {
		return fmt.Errorf("%w: %d samples, simulated: %v; its devices say %d and %v", ErrEvidence, e.Samples, e.Simulated, samples, simulated)
	}
	if e.Kind == KindSlots {
		return e.slots()
	}
	if e.Slots != nil {
		return fmt.Errorf("%w: it has slots, and is not of that kind", ErrEvidence)
	}
	if nanos != e.Nanos || total != e.Total {
		return fmt.Errorf("%w: the devices sum to %d ns of %d, it states %d of %d", ErrEvidence, nanos, total, e.Nanos, e.Total)
	}
	return nil
}

func (d DeviceEvidence) validate(maxGap int64) error {
	n := d.Nanos
	for _, v := range []int64{n.Active, n.Allocated, n.Down, n.Gap, n.Paused, n.Throttled} {
		if v < 0 {
			return errors.New("a negative time")
		}
	}
	if n.Active > n.Allocated || n.Throttled > n.Allocated {
		return errors.New("more active or throttled time than allocated")
	}
	if d.From.Mono < 0 || d.To.Mono < 0 || slices.ContainsFunc(d.Gaps, func(g Hole) bool { return g.From < 0 || g.To < 0 }) {
		return errors.New("a stamp before the host's boot")
	}
	if d.Total < n.Allocated {
		return errors.New("more time since the last record than since the start")
	}
	return d.contradicts(maxGap)
}
