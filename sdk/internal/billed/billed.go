// Package billed notes for which time each GPU of a payee was billed, in whichever leases and
// channels, and finds time that is billed twice.
package billed

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
)

// ErrTwice says that one GPU is billed twice for the same time.
var ErrTwice = errors.New("one GPU is billed twice for the same time")

// Span is time of one device that was billed: Billed nanoseconds of it lie
// between From and To on the clock of the device's host, and between Since and
// Until on this renter's own.
type Span struct {
	UUID   string `json:"uuid"`
	Parent string `json:"parent,omitempty"` // of a MIG slice, the GPU that it was cut from
	BootID string `json:"bootId"`           // of the host; where it names none, its clock shows nothing
	From   int64  `json:"from,string"`      // ns of the host's monotonic time
	To     int64  `json:"to,string"`
	Billed int64  `json:"billed,string"` // ns

	Ours  string `json:"ours,omitempty"`         // the boot that Since and Until count from; empty: it is not known
	Since int64  `json:"since,omitempty,string"` // ns of this renter's time: billed no earlier
	Until int64  `json:"until,omitempty,string"` // and no later
}

// Hearing is when a lease's record came on this renter's own clock, in
// nanoseconds, and before when the lease cannot have begun.
type Hearing struct {
	Boot       string
	Began, Now int64
}

// Bounds of what is kept of a channel whose leases are suspended, or whose hosts
// are rebooted, again and again. Each of its devices has a share of maxSpans.
const (
	maxSpans       = 1024
	maxDeviceSpans = 64
)

// Add returns spans with what a record bills. Stretches that follow each other are one. Of a
// lease in slots there are none: others are billed for the same GPUs at the same time.
func Add(spans []Span, rec metering.SignedRecord, h Hearing) []Span {
	spans = slices.Clone(spans)
	if rec.Evidence.Kind == metering.KindSlots {
		return spans
	}
	for _, d := range rec.Evidence.Devices {
		for _, next := range billedSpans(d, h, spans) {
			i := lastOf(spans, next)
			if i >= 0 && next.OnHost() && spans[i].To == next.From && spans[i].dense() && next.dense() {
				spans[i] = spans[i].with(next)
				continue
			}
			spans = append(spans, next)
		}
	}
	return bounded(spans, h.Boot)
}

// RealOnly is a record without its simulated GPUs, which say so in their names as
// well: each host has one of every name, and none that could be let twice.
func RealOnly(rec metering.SignedRecord) metering.SignedRecord {
	rec.Evidence.Devices = slices.DeleteFunc(slices.Clone(rec.Evidence.Devices), func(d metering.DeviceEvidence) bool {
		return d.Device.Simulated && strings.HasPrefix(d.Device.UUID, "SIM-")
	})
	return rec
}

// billedSpans is what a device's evidence bills. On our clock that is all of it,
// however often its host was rebooted meanwhile. Which boot's time was billed
// cannot be known then: the first has what it has room for, and so on.
func billedSpans(d metering.DeviceEvidence, h Hearing, before []Span) []Span {
	if d.Nanos.Allocated <= 0 {
		return nil
	}
	stretches := d.Stretches()
	last := stretches[len(stretches)-1]
	ran := d.Total - d.Nanos.Allocated
	all := Span{UUID: d.Device.UUID, Parent: d.Device.Parent, Billed: d.Nanos.Allocated, Ours: h.Boot, Since: h.Began + ran - ran/Slew, Until: h.Now}
	if len(stretches) == 1 {
		all.BootID, all.From, all.To = last.BootID, last.From, last.To
		return []Span{all}
	}
	spans, left := []Span{all}, d.Nanos.Allocated
	for i, s := range stretches {
		part := Span{UUID: all.UUID, Parent: all.Parent, BootID: s.BootID, From: s.From, To: s.To, Billed: min(left, max(0, s.To-s.From)), Since: all.Since, Until: all.Until}
		if i < len(stretches)-1 {
			part.BootID = bootAt(before, part)
		}
		if part.BootID != "" && part.Billed > 0 {
			spans = append(spans, part)
		}
		left -= part.Billed
	}
	return spans
}

// Slew is how much faster than ours an honest host's clock may run: one part in
// so many.
const Slew = 1000

// bootAt is the boot of a span that goes on where another one ended; empty where
// none did.
func bootAt(spans []Span, next Span) string {
	for _, s := range slices.Backward(spans) {
		if s.UUID == next.UUID && s.To == next.From {
			return s.BootID
		}
	}
	return ""
}

// lastOf is the index of the newest span of the same device and clocks, or -1.
func lastOf(spans []Span, s Span) int {
	i := len(spans) - 1
	for i >= 0 && spans[i].UUID != s.UUID {
		i--
	}
	if i < 0 || !spans[i].sameClocks(s) {
		return -1
	}
	return i
}

func (s Span) sameClocks(o Span) bool {
	return s.UUID == o.UUID && s.BootID == o.BootID && s.Ours == o.Ours
}

// dense reports whether no more than a hundredth was not billed.
func (s Span) dense() bool { return (s.To-s.From)-s.Billed <= (s.To-s.From)/100 }

// with is both as one, on the clocks that both lie on: what was billed lies
// somewhere in it.
func (s Span) with(o Span) Span {
	s.Parent = cmp.Or(s.Parent, o.Parent) // what older programs kept has none
	if s.BootID != o.BootID {
		s.BootID, s.From, s.To, o.From, o.To = "", 0, 0, 0, 0
	}
	if s.Ours != o.Ours {
		s.Ours = ""
	}
	s.From, s.To, s.Billed = min(s.From, o.From), max(s.To, o.To), s.Billed+o.Billed
	s.Since, s.Until = min(s.Since, o.Since), max(s.Until, o.Until)
	return s
}

// OnHost reports whether it is known where a span lies on its host's clock.
func (s Span) OnHost() bool { return s.To > s.From }

// unbilled is how much of a span's time on our clock was not billed, in ns.
func (s Span) unbilled() int64 { return s.Until - s.Since - s.Billed }

// bounded joins spans until each device has no more than its share. Only of more
// devices than there is room for at all is what was billed first forgotten.
func bounded(spans []Span, ours string) []Span {
	count := make(map[string]int)
	for _, s := range spans {
		count[s.UUID]++
	}
	share := min(maxDeviceSpans, max(1, maxSpans/max(1, len(count))))
	for uuid, n := range count {
		for ; n > share; n-- {
			spans = shorten(spans, uuid, ours)
		}
	}
	return spans[max(0, len(spans)-maxSpans):]
}

// shorten makes a device's spans one fewer. Those that lie on our clock are joined
// whatever their hosts' boots, so that nothing is forgotten of what was billed in
// all. The others, of boots of ours that are over or of a host's clock alone, have
// half of the room: two of one host's boot are joined, or the oldest is dropped.
func shorten(spans []Span, uuid, ours string) []Span {
	var on, off []int
	for i, s := range spans {
		switch {
		case s.UUID != uuid:
		case ours != "" && s.Ours == ours:
			on = append(on, i)
		default:
			off = append(off, i)
		}
	}
	i, j := nearest(spans, on)
	if j == 0 || len(off) > len(on) {
		i, j = ofOneBoot(spans, off)
	}
	if j == 0 {
		return slices.Delete(spans, off[0], off[0]+1)
	}
	spans[i] = spans[i].with(spans[j])
	return slices.Delete(spans, j, j+1)
}

// nearest are the two neighbours that tell the least more apart than joined, the
// oldest of those; zero where there are no two.
func nearest(spans []Span, on []int) (i, j int) {
	least := int64(math.MaxInt64)
	for k := 1; k < len(on); k++ {
		a, b := spans[on[k-1]], spans[on[k]]
		if lost := max(0, a.with(b).unbilled()-min(a.unbilled(), b.unbilled())); lost < least {
			i, j, least = on[k-1], on[k], lost
		}
	}
	return i, j
}

// ofOneBoot are the two oldest on the clock of one boot of a host; zero where
// there are no two.
func ofOneBoot(spans []Span, off []int) (i, j int) {
	for k, i := range off {
		for _, j := range off[k+1:] {
			if spans[i].BootID == spans[j].BootID && spans[i].BootID != "" {
				return i, j
			}
		}
	}
	return 0, 0
}

// clock is where a span lies on one clock; ok says whether it lies on the same
// one as another span.
type clock func(s, other Span) (from, to int64, ok bool)

func hostClock(s, o Span) (int64, int64, bool) {
	return s.From, s.To, s.BootID == o.BootID && s.BootID != ""
}

func ourClock(s, o Span) (int64, int64, bool) {
	return s.Since, s.Until, s.Ours == o.Ours && s.Ours != ""
}

// Stretch is a time on one clock.
type Stretch struct{ From, To, Billed int64 }

// rivals are the devices that cannot be let while fresh's is: itself, a MIG slice's whole GPU, and the slices of a whole one.
// Slices of one GPU can be let at once, so each rival is looked at by itself.
func rivals(spans []Span, fresh Span) []string {
	found := []string{fresh.UUID}
	for _, s := range spans {
		if (s.UUID == fresh.Parent || s.Parent == fresh.UUID) && !slices.Contains(found, s.UUID) {
			found = append(found, s.UUID)
		}
	}
	return found
}

// around is where the spans of fresh's device and a rival lie on the clock that fresh lies on.
func around(spans []Span, fresh Span, rival string, on clock) (all []Stretch) {
	for _, s := range spans {
		if from, to, ok := on(s, fresh); ok && (s.UUID == fresh.UUID || s.UUID == rival) {
			all = append(all, Stretch{from, to, s.Billed})
		}
	}
	return all
}

// Crowded finds a time on a clock, no later than begin and no earlier than end,
// in which more was billed than there was with slack: then some of it was billed
// twice, whatever the order in which records came and however much of their time
// was not billed.
func Crowded(all []Stretch, begin, end int64, slack func(length int64) int64) (time Stretch, found bool) {
	slices.SortFunc(all, func(a, b Stretch) int { return cmp.Compare(a.To, b.To) })
	for _, first := range all {
		if first.From > begin {
			continue
		}
		var billed int64
		for _, s := range all {
			if s.From < first.From {
				continue
			}
			billed += s.Billed
			if length := s.To - first.From; s.To >= end && billed > length+slack(length) {
				return Stretch{first.From, s.To, billed}, true
			}
		}
	}
	return Stretch{}, false
}

// Exactly is no slack.
func Exactly(int64) int64 { return 0 }

// Ledger is the GPU time of each payee that this renter was billed for, over
// all its rentals and its channels with x402 servers.
type Ledger struct {
	mu    sync.Mutex
	spans map[common.Address]map[common.Hash][]Span // by payee and channel
}

// Book notes what a channel is billed for, unless twice refuses it: of two records
// that come at one instant the later is held against the other. Then the record is
// written; where that fails, Keep takes up again what is on disk.
func (d *Ledger) Book(payee common.Address, id common.Hash, spans []Span, tolerance time.Duration) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.twice(payee, id, spans, tolerance); err != nil {
		return err
	}
	d.note(payee, id, spans)
	return nil
}

// Keep notes what a channel was billed for, as it is on disk.
func (d *Ledger) Keep(payee common.Address, id common.Hash, spans []Span) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.note(payee, id, spans)
}

// Spans returns what a channel was billed for.
func (d *Ledger) Spans(payee common.Address, id common.Hash) []Span {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.spans[payee][id])
}

// note is Keep for who holds mu.
func (d *Ledger) note(payee common.Address, id common.Hash, spans []Span) {
	if d.spans == nil {
		d.spans = make(map[common.Address]map[common.Hash][]Span)
	}
	if d.spans[payee] == nil {
		d.spans[payee] = make(map[common.Hash][]Span)
	}
	d.spans[payee][id] = spans
}

// twice refuses spans of a channel if a GPU is billed in them for time that is
// billed already: on the clock of its host exactly, and on ours, which no boot id
// changes, but for the tolerance. Whoever calls it holds mu.
func (d *Ledger) twice(payee common.Address, id common.Hash, spans []Span, tolerance time.Duration) error {
	all, known := slices.Clone(spans), slices.Clone(d.spans[payee][id])
	for other, theirs := range d.spans[payee] {
		if other != id {
			all = append(all, theirs...)
		}
	}
	for _, fresh := range spans {
		if i := slices.Index(known, fresh); i >= 0 {
			known = slices.Delete(known, i, i+1) // it stands for one: another lease's may equal it
			continue
		}
		for _, rival := range rivals(all, fresh) {
			if s, found := Crowded(around(all, fresh, rival, hostClock), fresh.From, fresh.To, Exactly); found {
				return fmt.Errorf("%w: %s for %d ns between %d and %d of boot %q, in channel %s and %s", ErrTwice, Named(fresh.UUID, rival), s.Billed, s.From, s.To, fresh.BootID, id, d.other(payee, id, rival))
			}
			slack := func(length int64) int64 { return int64(tolerance) + length/Slew }
			if s, found := Crowded(around(all, fresh, rival, ourClock), fresh.Since, fresh.Until, slack); found {
				return fmt.Errorf("%w: %s for %s in %s of our time, in channel %s and %s", ErrTwice, Named(fresh.UUID, rival), time.Duration(s.Billed), time.Duration(s.To-s.From), id, d.other(payee, id, rival))
			}
		}
	}
	return nil
}

// Named says which device it is, and the one that it cannot be let beside.
func Named(uuid, rival string) string {
	if uuid == rival {
		return uuid
	}
	return uuid + " and " + rival + ", which are one GPU and its MIG slice,"
}

// other names a channel that was billed for a device last.
func (d *Ledger) other(payee common.Address, id common.Hash, uuid string) string {
	name, newest := "itself", int64(0)
	for other, theirs := range d.spans[payee] {
		for _, s := range theirs {
			if other != id && s.UUID == uuid && (name == "itself" || s.Until > newest) {
				name, newest = other.String(), s.Until
			}
		}
	}
	return name
}

// Part is for our own clock, of that boot, when it has missed time: what was billed
// before lies on it no more, of these spans and of all that are known. On the clocks
// of their hosts they still do.
func (d *Ledger) Part(spans []Span, boot string) []Span {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, channels := range d.spans {
		for id, known := range channels {
			channels[id] = unclocked(known, boot)
		}
	}
	return unclocked(spans, boot)
}

func unclocked(spans []Span, boot string) []Span {
	spans = slices.Clone(spans)
	for i := range spans {
		if spans[i].Ours == boot {
			spans[i].Ours = ""
		}
	}
	return spans
}
