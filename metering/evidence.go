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

// Hole is a stretch of monotonic time that was not billed.
type Hole struct {
	From   int64  `json:"from,string"`
	Reason string `json:"reason"`
	To     int64  `json:"to,string"`
}

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

// beforeReboot is the most time, in nanoseconds, that can be billed of what lies
// before the first reboot.
func (d DeviceEvidence) beforeReboot() int64 {
	s := d.Stretches()
	if len(s) == 1 {
		return 0
	}
	return max(0, s[0].To-s[0].From)
}

// rebooted reports whether the evidence shows the end of a boot.
func (d DeviceEvidence) rebooted() bool {
	return slices.ContainsFunc(d.Gaps, func(g Hole) bool { return g.Reason == ReasonReboot })
}

// Cut ends a stretch of metering and returns its evidence. The interval that
// is still open at the cut is counted whole in the next one: a cut, wherever it
// falls, changes no bill.
func (m *Meter) Cut() Evidence {
	m.mu.Lock()
	defer m.mu.Unlock()

	e := Evidence{
		MaxGap:  int64(m.config.MaxGap),
		Root:    m.tree.Root(),
		Samples: m.tree.Count(),
		Source:  m.source,
		Tick:    int64(m.config.Tick),
	}
	for _, d := range m.devices {
		de := d.cut()
		e.Devices = append(e.Devices, de)
		e.Nanos += de.Nanos.Allocated
		e.Total += de.Total
		e.Simulated = e.Simulated || de.Device.Simulated
	}
	if m.config.Keep > 0 && !m.unkept {
		m.keep(cut{root: e.Root, samples: m.samples})
	}
	m.samples, m.unkept = nil, false
	m.tree.Clear()
	m.saved = m.state()
	return e
}

func (d *device) cut() DeviceEvidence {
	p := d.part
	d.before.add(d.since)
	e := DeviceEvidence{
		Device:   d.id,
		Energy:   p.energy,
		From:     p.from,
		Gaps:     p.gaps,
		Memory:   p.memory,
		MoreGaps: p.moreGaps,
		MoreXIDs: p.moreXIDs,
		Nanos:    d.since,
		Samples:  p.samples,
		To:       d.last.At,
		Total:    d.before.Allocated,
		XIDs:     p.xids,
	}
	if p.samples > 0 {
		e.Missing = p.has.Missing()
	}
	if d.known.seen != "" { // as they are now, not as they were when the lease began
		e.Device.BootID, e.Device.Driver = d.known.bootID, d.known.driver
	}
	if d.last.Device != "" { // whose clock the last stamp is on, whether or not the device answered since the host was rebooted
		e.Device.BootID = d.last.BootID
	}
	e.Device.Simulated = e.Device.Simulated || d.last.Simulated
	d.since = Nanos{}
	d.part = part{from: d.last.At}
	return e
}

// Encode is the canonical form of a reading: a leaf of the tree.
func (r Reading) Encode() []byte { return r.append(nil) }

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
