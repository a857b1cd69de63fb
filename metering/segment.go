package metering

import (
	"cmp"
	"slices"
	"strings"
	"time"
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
	id     Device
	before Nanos // up to the last cut
	since  Nanos // from the last cut
	part   part  // the rest of the evidence since the last cut

	last      Reading  // the reading before; no Device if there was none
	known     identity // of the last one in which a device answered and said who it is
	pausing   bool     // the lease was paused at some time since the last reading
	restarted bool     // the last reading was made before a restart
}

// identity is what tells a device, and its counters, from another.
type identity struct {
	bootID, driver, seen string
	generation, energy   uint64
	has                  Fields
}

// identity is empty for a reading in which no device answered.
func (r *Reading) identity() identity {
	if !r.answered() {
		return identity{}
	}
	return identity{bootID: r.BootID, driver: r.Driver, seen: r.Seen, generation: r.Generation, energy: r.Energy, has: r.Has}
}

// part is what the evidence of one cut says beside the nanoseconds.
type part struct {
	from     Instant
	samples  uint64
	has      Fields
	energy   uint64
	memory   uint64
	xids     []XID
	gaps     []Hole
	moreXIDs uint64
	moreGaps uint64
}

// observe counts one reading: first which class the interval is of, then the
// evidence, then it becomes the reading before. Evidence has the clocks of two
// boots at most: readings of a third wait for the cut, and their time is not billed.
func (d *device) observe(r Reading, maxGap time.Duration, paused bool) Interval {
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
	if r.answered() {
		d.known = r.identity()
	}
	return in
}

// late says that a reading is not newer than the one before: a call that hung
// came back after the watchdog had given up on it.
func (d *device) late(r Reading) bool {
	return d.last.Device != "" && !d.rebooted(r) && r.At.Mono <= d.last.At.Mono
}

// rebooted says that the stamps of the two readings count from different
// starts. Where a system names no boots, time that ran backwards over a restart
// shows it.
func (d *device) rebooted(r Reading) bool {
	if d.last.Device == "" {
		return false
	}
	return r.BootID != d.last.BootID || (d.restarted && r.At.Mono <= d.last.At.Mono)
}

// interval decides who pays for the time between the reading before and r. The
// first rule that fits wins; only an interval that none fits is billed.
func (d *device) interval(r Reading, maxGap time.Duration) Interval {
	if d.last.Device == "" {
		return Interval{Class: Opened}
	}
	if d.rebooted(r) {
		return Interval{Class: Gap, Reason: ReasonReboot}
	}
	nanos := r.At.Mono - d.last.At.Mono
	if d.restarted {
		return Interval{Class: Gap, Nanos: nanos, Reason: ReasonRestart}
	}
	in := Interval{Class: Allocated, Nanos: nanos}
	if reason := d.gap(r, maxGap); reason != "" {
		in.Class, in.Reason = Gap, reason
	} else if fault := cmp.Or(r.fault(), d.last.fault()); fault != "" {
		in.Class, in.Reason = Down, fault
	}
	if d.pausing {
		in.Class = Paused
	}
	return in
}

// gap says why the device was not observed throughout, or "".
func (d *device) gap(r Reading, maxGap time.Duration) string {
	if r.Health == Stalled || d.last.Health == Stalled {
		return ReasonStalled
	}
	if r.At.Mono-d.last.At.Mono > int64(maxGap) {
		return ReasonInterval
	}
	slept := (r.At.Boot - r.At.Mono) - (d.last.At.Boot - d.last.At.Mono)
	if slept > int64(suspend) {
		return ReasonSuspend
	}
	if !r.answered() || d.known.seen == "" { // its health says the rest
		return ""
	}
	if r.Seen != d.known.seen {
		return ReasonDevice
	}
	if r.Driver != d.known.driver || r.Generation != d.known.generation {
		return ReasonDriver
	}
	if r.Has&d.known.has&HasEnergy != 0 && r.Energy < d.known.energy {
		return ReasonEnergy
	}
	return ""
}

func (r Reading) answered() bool { return r.Health == Healthy && r.Seen != "" }

func (d *device) count(in Interval, r Reading) {
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
		if r.active() {
			d.since.Active += in.Nanos
		}
	}
}

// throttled is how much of an interval the provider's heat or power brake
// slowed. A software power cap is not in the counters: the renter bought a card
// with that limit.
func throttled(last, r Reading, nanos int64) int64 {
	if last.Has&r.Has&HasThrottle == 0 {
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
func (r Reading) active() bool {
	if r.Has&HasUtilization != 0 {
		return r.Utilization > 0
	}
	return r.Has&HasProcesses != 0 && r.Processes > 0
}

// note writes down the evidence of an interval.
func (d *device) note(in Interval, r Reading) {
	p := &d.part
	if p.samples == 0 && d.since == (Nanos{}) && (in.Class == Opened || in.Reason == ReasonReboot) {
		p.from = r.At
	}
	if r.Health == Healthy { // a broken device reports nothing, which says nothing about what it can report
		p.has |= r.Has
	}
	if r.Has&d.last.Has&HasEnergy != 0 && in.Class != Gap {
		p.energy += grown(d.last.Energy, r.Energy)
	}
	p.memory = max(p.memory, r.Memory)
	if in.Class != Opened { // what happened before the lease is not this renter's doing
		for _, x := range r.XIDs {
			p.xid(x)
		}
	}
	if in.Class == Gap || in.Class == Down {
		p.gap(Hole{From: d.last.At.Mono, Reason: in.Reason, To: r.At.Mono})
	}
}

func (p *part) xid(x XID) {
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
func (p *part) gap(g Hole) {
	if n := len(p.gaps); n > 0 && p.gaps[n-1].Reason == g.Reason && p.gaps[n-1].To == g.From {
		p.gaps[n-1].To = g.To
		return
	}
	if len(p.gaps) == maxGaps {
		p.moreGaps++
		if g.Reason == ReasonReboot { // without it no stamp after it can be told from one before
			p.gaps[maxGaps-1] = g
		}
		return
	}
	p.gaps = append(p.gaps, g)
}

// rebooted reports whether a boot ended since the last cut.
func (p *part) rebooted() bool {
	return slices.ContainsFunc(p.gaps, func(g Hole) bool { return g.Reason == ReasonReboot })
}

// clean makes a reading's texts fit for canonical JSON.
func (r Reading) clean() Reading {
	r.BootID, r.Detail, r.Driver, r.Seen = printable(r.BootID), printable(r.Detail), printable(r.Driver), printable(r.Seen)
	r.Health = Health(printable(string(r.Health)))
	xids := r.XIDs
	r.XIDs = nil
	for _, x := range xids {
		r.XIDs = append(r.XIDs, NewXID(x.Code, x.Mono)) // the blame is the catalog's, not the source's
	}
	return r
}

// printable keeps ASCII of at most 128 bytes: what two JSON writers escape alike.
func printable(s string) string {
	if len(s) > 128 {
		s = s[:128]
	}
	if isPrintable(s) {
		return s
	}
	return strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, s)
}

func isPrintable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
