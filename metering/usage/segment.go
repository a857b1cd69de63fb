package usage

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/internal/ident"
)

// Bounds on the lists in one record's evidence, so that a device that reports
// an error a millisecond cannot make records too large to send. What is left
// out is counted.
const (
	maxXIDs = 64
	maxGaps = 64
)

// device is one device's side of a meter.
type device struct {
	id     metering.Device
	before metering.Nanos // up to the last cut
	since  metering.Nanos // from the last cut
	part   part           // the rest of the evidence since the last cut

	last      metering.Reading // the reading before; no Device if there was none
	known     identity         // of the last one in which a device answered and said who it is
	pausing   bool             // the lease was paused at some time since the last reading
	restarted bool             // the last reading was made before a restart
}

// identity is what tells a device, and its counters, from another.
type identity struct {
	bootID, driver, seen string
	generation, energy   uint64
	has                  metering.Fields
}

// identify is empty for a reading in which no device answered.
func identify(r *metering.Reading) identity {
	if !answered(r) {
		return identity{}
	}
	return identity{bootID: r.BootID, driver: r.Driver, seen: r.Seen, generation: r.Generation, energy: r.Energy, has: r.Has}
}

// part is what the evidence of one cut says beside the nanoseconds.
type part struct {
	from     metering.Instant
	samples  uint64
	has      metering.Fields
	energy   uint64
	memory   uint64
	xids     []metering.XID
	gaps     []metering.Hole
	moreXIDs uint64
	moreGaps uint64
}

// observe counts one reading: first which class the interval is of, then the
// evidence, then it becomes the reading before. Evidence has the clocks of two
// boots at most: readings of a third wait for the cut, and their time is not billed.
func (d *device) observe(r metering.Reading, maxGap time.Duration, paused bool) Interval {
	if d.late(r) || d.rebooted(r) && d.part.rebooted() {
		d.last.XIDs = append(d.last.XIDs, r.XIDs...) // bad news counts whenever it comes
		for _, x := range r.XIDs {
			x.Mono = max(x.Mono, d.last.At.Mono) // it stops what follows
			d.part.xid(x)
		}
		return Interval{Class: Late}
	}

	in := d.interval(r, maxGap)
	d.count(in, r)
	d.note(in, r)
	if !paused {
		d.part.samples++
	}

	d.last = r
	d.pausing = paused
	d.restarted = false
	if answered(&r) {
		d.known = identify(&r)
	}
	return in
}

// late says that a reading is not newer than the one before: a call that hung
// came back after the watchdog had given up on it.
func (d *device) late(r metering.Reading) bool {
	return d.last.Device != "" && !d.rebooted(r) && r.At.Mono <= d.last.At.Mono
}

// rebooted says that the stamps of the two readings count from different
// starts. Where a system names no boots, time that ran backwards over a restart
// shows it.
func (d *device) rebooted(r metering.Reading) bool {
	if d.last.Device == "" {
		return false
	}
	return r.BootID != d.last.BootID || (d.restarted && r.At.Mono <= d.last.At.Mono)
}

// interval decides who pays for the time between the reading before and r. The
// first rule that fits wins; only an interval that none fits is billed.
func (d *device) interval(r metering.Reading, maxGap time.Duration) Interval {
	if d.last.Device == "" {
		return Interval{Class: Opened}
	}
	if d.rebooted(r) {
		return Interval{Class: Gap, Reason: metering.ReasonReboot}
	}
	nanos := r.At.Mono - d.last.At.Mono
	if d.restarted {
		return Interval{Class: Gap, Nanos: nanos, Reason: metering.ReasonRestart}
	}
	in := Interval{Class: Allocated, Nanos: nanos}
	if reason := d.gap(r, maxGap); reason != "" {
		in.Class, in.Reason = Gap, reason
	} else if fault := cmp.Or(fault(r), fault(d.last)); fault != "" {
		in.Class, in.Reason = Down, fault
	}
	if d.pausing {
		in.Class = Paused
	}
	return in
}

// gap says why the device was not observed throughout, or "".
func (d *device) gap(r metering.Reading, maxGap time.Duration) string {
	if r.Health == metering.Stalled || d.last.Health == metering.Stalled {
		return metering.ReasonStalled
	}
	if r.At.Mono-d.last.At.Mono > int64(maxGap) {
		return metering.ReasonInterval
	}
	slept := (r.At.Boot - r.At.Mono) - (d.last.At.Boot - d.last.At.Mono)
	if slept > int64(suspend) {
		return metering.ReasonSuspend
	}
	if !answered(&r) || d.known.seen == "" { // its health says the rest
		return ""
	}
	if r.Seen != d.known.seen {
		return metering.ReasonDevice
	}
	if r.Driver != d.known.driver || r.Generation != d.known.generation {
		return metering.ReasonDriver
	}
	if r.Has&d.known.has&metering.HasEnergy != 0 && r.Energy < d.known.energy {
		return metering.ReasonEnergy
	}
	return ""
}

func answered(r *metering.Reading) bool { return r.Health == metering.Healthy && r.Seen != "" }

func (d *device) count(in Interval, r metering.Reading) {
	switch in.Class {
	case Gap:
		d.since.Gap += in.Nanos
	case Down:
		d.since.Down += in.Nanos
	case Paused:
		d.since.Paused += in.Nanos
	case Allocated:
		d.since.Allocated += in.Nanos
		d.since.Throttled += throttled(d.last, r, in.Nanos)
		if active(r) {
			d.since.Active += in.Nanos
		}
	}
}

// throttled is how much of an interval the provider's heat or power brake
// slowed. A software power cap is not in the counters: the renter bought a card
// with that limit.
func throttled(last, r metering.Reading, nanos int64) int64 {
	if last.Has&r.Has&metering.HasThrottle == 0 {
		return 0
	}
	slow := grown(last.Thermal, r.Thermal) + grown(last.PowerBrake, r.PowerBrake)
	if slow > uint64(nanos) || slow < grown(last.Thermal, r.Thermal) {
		return nanos // both at once, or counted a little past the stamp
	}
	return int64(slow)
}

func grown(from, to uint64) uint64 {
	if to < from {
		return 0
	}
	return to - from
}

// active says whether something ran. A MIG slice reports no utilization; there
// the number of processes has to do.
func active(r metering.Reading) bool {
	if r.Has&metering.HasUtilization != 0 {
		return r.Utilization > 0
	}
	return r.Has&metering.HasProcesses != 0 && r.Processes > 0
}

// note writes down the evidence of an interval.
func (d *device) note(in Interval, r metering.Reading) {
	p := &d.part
	if p.samples == 0 && d.since == (metering.Nanos{}) && (in.Class == Opened || in.Reason == metering.ReasonReboot) {
		p.from = r.At
	}
	if r.Health == metering.Healthy { // a broken device reports nothing, which says nothing about what it can report
		p.has |= r.Has
	}
	if r.Has&d.last.Has&metering.HasEnergy != 0 && in.Class != Gap {
		p.energy += grown(d.last.Energy, r.Energy)
	}
	p.memory = max(p.memory, r.Memory)
	if in.Class != Opened { // what happened before the lease is not this renter's doing
		for _, x := range r.XIDs {
			p.xid(x)
		}
	}
	if in.Class == Gap || in.Class == Down {
		p.gap(metering.Hole{From: d.last.At.Mono, Reason: in.Reason, To: r.At.Mono})
	}
}

func (p *part) xid(x metering.XID) {
	if len(p.xids) < maxXIDs {
		p.xids = append(p.xids, x)
		return
	}
	p.moreXIDs++
	if !x.Stops() {
		return
	}
	for i := range p.xids { // why nothing was billed must not be among what is left out
		if !p.xids[i].Stops() {
			p.xids[i] = x
			return
		}
	}
}

// gap adds an unbilled stretch, or lengthens the one before: a GPU that is lost
// for an hour is one line.
func (p *part) gap(g metering.Hole) {
	if n := len(p.gaps); n > 0 && p.gaps[n-1].Reason == g.Reason && p.gaps[n-1].To == g.From {
		p.gaps[n-1].To = g.To
		return
	}
	if len(p.gaps) == maxGaps {
		p.moreGaps++
		if g.Reason == metering.ReasonReboot { // without it no stamp after it can be told from one before
			p.gaps[maxGaps-1] = g
		}
		return
	}
	p.gaps = append(p.gaps, g)
}

// rebooted reports whether a boot ended since the last cut.
func (p *part) rebooted() bool {
	return slices.ContainsFunc(p.gaps, func(g metering.Hole) bool { return g.Reason == metering.ReasonReboot })
}

// clean makes a reading's texts fit for canonical JSON.
func clean(r metering.Reading) metering.Reading {
	r.BootID, r.Detail, r.Driver, r.Seen = ident.Printable(r.BootID), ident.Printable(r.Detail), ident.Printable(r.Driver), ident.Printable(r.Seen)
	r.Health = metering.Health(ident.Printable(string(r.Health)))
	xids := r.XIDs
	r.XIDs = nil
	for _, x := range xids {
		r.XIDs = append(r.XIDs, metering.NewXID(x.Code, x.Mono)) // the blame is the catalog's, not the source's
	}
	return r
}

// fault says why a reading cannot bill, or "" if it can.
func fault(r metering.Reading) string {
	if r.Health != metering.Healthy {
		if r.Detail == "" {
			return cmp.Or(string(r.Health), string(metering.Failed)) // never "", which would bill
		}
		return fmt.Sprintf("%s: %s", r.Health, r.Detail)
	}
	if r.Seen != r.Device {
		return string(metering.Replaced)
	}
	for _, x := range r.XIDs {
		if x.Stops() {
			return fmt.Sprintf("xid %d", x.Code)
		}
	}
	return ""
}
