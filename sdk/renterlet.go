package sdk

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
)

// span is time of one device that was billed: Billed nanoseconds of it lie
// between From and To on the clock of the device's host, and between Since and
// Until on this renter's own.
type span struct {
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

// hearing is when a lease's record came on this renter's own clock, in
// nanoseconds, and before when the lease cannot have begun.
type hearing struct {
	boot       string
	began, now int64
}

// maxSpans bounds what is kept of a channel whose leases are suspended, or whose
// hosts are rebooted, again and again.
const maxSpans = 256

// spansWith adds what a record bills. Stretches that follow each other are one.
func spansWith(spans []span, rec metering.SignedRecord, h hearing) []span {
	spans = slices.Clone(spans)
	for _, d := range rec.Evidence.Devices {
		for _, next := range billedSpans(d, h, spans) {
			i := lastOf(spans, next)
			if i >= 0 && spans[i].To == next.From && spans[i].dense() && next.dense() {
				spans[i] = spans[i].with(next)
				continue
			}
			spans = append(spans, next)
		}
	}
	for len(spans) > maxSpans {
		spans = shorten(spans)
	}
	return spans
}

// realOnly is a record without its simulated GPUs, which say so in their names as
// well: each host has one of every name, and none that could be let twice.
func realOnly(rec metering.SignedRecord) metering.SignedRecord {
	rec.Evidence.Devices = slices.DeleteFunc(slices.Clone(rec.Evidence.Devices), func(d metering.DeviceEvidence) bool {
		return d.Device.Simulated && strings.HasPrefix(d.Device.UUID, "SIM-")
	})
	return rec
}

// billedSpans is what a device's evidence bills, for each boot of its host. Where
// it tells of several, each has at least what cannot have been in the others.
func billedSpans(d metering.DeviceEvidence, h hearing, before []span) []span {
	stretches := d.Stretches()
	var room int64
	for _, s := range stretches {
		room += max(0, s.To-s.From)
	}
	ran := d.Total - d.Nanos.Allocated
	var spans []span
	for i, s := range stretches {
		length := max(0, s.To-s.From)
		next := span{
			UUID: d.Device.UUID, Parent: d.Device.Parent, BootID: s.BootID, From: s.From, To: s.To, Billed: min(length, d.Nanos.Allocated-(room-length)),
			Ours: h.boot, Since: h.began + ran - ran/slew, Until: h.now,
		}
		if i < len(stretches)-1 {
			next.BootID = bootOf(before, next.UUID)
		}
		if next.Billed > 0 {
			spans = append(spans, next)
		}
	}
	return spans
}

// slew is how much faster than ours an honest host's clock may run: one part in
// so many.
const slew = 1000

// bootOf is the boot that a device was billed in last.
func bootOf(spans []span, uuid string) string {
	for _, s := range slices.Backward(spans) {
		if s.UUID == uuid {
			return s.BootID
		}
	}
	return ""
}

// lastOf is the index of the newest span of the same device and clocks, or -1.
func lastOf(spans []span, s span) int {
	i := len(spans) - 1
	for i >= 0 && spans[i].UUID != s.UUID {
		i--
	}
	if i < 0 || !spans[i].sameClocks(s) {
		return -1
	}
	return i
}

func (s span) sameClocks(o span) bool {
	return s.UUID == o.UUID && s.BootID == o.BootID && s.Ours == o.Ours
}

// dense reports whether no more than a hundredth was not billed.
func (s span) dense() bool { return (s.To-s.From)-s.Billed <= (s.To-s.From)/100 }

// with is both as one: what was billed lies somewhere in it.
func (s span) with(o span) span {
	s.Parent = cmp.Or(s.Parent, o.Parent) // what older programs kept has none
	s.From, s.To, s.Billed = min(s.From, o.From), max(s.To, o.To), s.Billed+o.Billed
	s.Since, s.Until = min(s.Since, o.Since), max(s.Until, o.Until)
	return s
}

// shorten joins the two oldest spans of one device and clock: less is known of
// where they were billed, and nothing is forgotten. Only where there are no two,
// which takes a boot for each, is the oldest dropped.
func shorten(spans []span) []span {
	for i, s := range spans {
		for j := i + 1; j < len(spans); j++ {
			if s.sameClocks(spans[j]) {
				spans[i] = s.with(spans[j])
				return slices.Delete(spans, j, j+1)
			}
		}
	}
	return spans[1:]
}

// clock is where a span lies on one clock; ok says whether it lies on the same
// one as another span.
type clock func(s, other span) (from, to int64, ok bool)

func hostClock(s, o span) (int64, int64, bool) {
	return s.From, s.To, s.BootID == o.BootID && s.BootID != ""
}

func ourClock(s, o span) (int64, int64, bool) {
	return s.Since, s.Until, s.Ours == o.Ours && s.Ours != ""
}

// stretch is a time on one clock.
type stretch struct{ from, to, billed int64 }

// rivals are the devices that cannot be let while fresh's is: itself, a MIG slice's whole GPU, and the slices of a whole one.
// Slices of one GPU can be let at once, so each rival is looked at by itself.
func rivals(spans []span, fresh span) []string {
	found := []string{fresh.UUID}
	for _, s := range spans {
		if (s.UUID == fresh.Parent || s.Parent == fresh.UUID) && !slices.Contains(found, s.UUID) {
			found = append(found, s.UUID)
		}
	}
	return found
}

// around is where the spans of fresh's device and a rival lie on the clock that fresh lies on.
func around(spans []span, fresh span, rival string, on clock) (all []stretch) {
	for _, s := range spans {
		if from, to, ok := on(s, fresh); ok && (s.UUID == fresh.UUID || s.UUID == rival) {
			all = append(all, stretch{from, to, s.Billed})
		}
	}
	return all
}

// crowded finds a time on a clock, no later than begin and no earlier than end,
// in which more was billed than there was with slack: then some of it was billed
// twice, whatever the order in which records came and however much of their time
// was not billed.
func crowded(all []stretch, begin, end int64, slack func(length int64) int64) (time stretch, found bool) {
	slices.SortFunc(all, func(a, b stretch) int { return cmp.Compare(a.to, b.to) })
	for _, first := range all {
		if first.from > begin {
			continue
		}
		var billed int64
		for _, s := range all {
			if s.from < first.from {
				continue
			}
			billed += s.billed
			if length := s.to - first.from; s.to >= end && billed > length+slack(length) {
				return stretch{first.from, s.to, billed}, true
			}
		}
	}
	return stretch{}, false
}

func exactly(int64) int64 { return 0 }

// letDevices is the GPU time of each payee that this renter was billed for, over
// all its rentals and its channels with x402 servers.
type letDevices struct {
	mu    sync.Mutex
	spans map[common.Address]map[common.Hash][]span // by payee and channel
}

// keep notes what a channel was billed for.
func (d *letDevices) keep(payee common.Address, id common.Hash, spans []span) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.spans == nil {
		d.spans = make(map[common.Address]map[common.Hash][]span)
	}
	if d.spans[payee] == nil {
		d.spans[payee] = make(map[common.Hash][]span)
	}
	d.spans[payee][id] = spans
}

// twice refuses spans of a channel if a GPU is billed in them for time that is
// billed already: on the clock of its host exactly, and on ours, which no boot id
// changes, but for the tolerance.
func (d *letDevices) twice(payee common.Address, id common.Hash, spans []span, tolerance time.Duration) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	all, known := slices.Clone(spans), d.spans[payee][id]
	for other, theirs := range d.spans[payee] {
		if other != id {
			all = append(all, theirs...)
		}
	}
	for _, fresh := range spans {
		if slices.Contains(known, fresh) {
			continue
		}
		for _, rival := range rivals(all, fresh) {
			if s, found := crowded(around(all, fresh, rival, hostClock), fresh.From, fresh.To, exactly); found {
				return fmt.Errorf("%w: %s for %d ns between %d and %d of boot %q, in channel %s and %s", ErrLetTwice, named(fresh.UUID, rival), s.billed, s.from, s.to, fresh.BootID, id, d.other(payee, id, rival))
			}
			slack := func(length int64) int64 { return int64(tolerance) + length/slew }
			if s, found := crowded(around(all, fresh, rival, ourClock), fresh.Since, fresh.Until, slack); found {
				return fmt.Errorf("%w: %s for %s in %s of our time, in channel %s and %s", ErrLetTwice, named(fresh.UUID, rival), time.Duration(s.billed), time.Duration(s.to-s.from), id, d.other(payee, id, rival))
			}
		}
	}
	return nil
}

// named is a device, and the one that it cannot be let beside.
func named(uuid, rival string) string {
	if uuid == rival {
		return uuid
	}
	return uuid + " and " + rival + ", which are one GPU and its MIG slice,"
}

// other names a channel that was billed for a device last.
func (d *letDevices) other(payee common.Address, id common.Hash, uuid string) string {
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

// recall takes up what is on disk, of rentals and of x402.
func (d *letDevices) recall(ctx context.Context, s rentalStore) error {
	rows, err := s.list(ctx, `ORDER BY updated_at`)
	if err != nil {
		return err
	}
	for _, row := range rows {
		d.keep(row.Terms.Payee, row.Terms.ID(), row.Spans)
	}
	all, err := slates{s}.list(ctx)
	for _, s := range all {
		d.keep(s.Payee, s.ID, s.Spans)
	}
	return err
}
