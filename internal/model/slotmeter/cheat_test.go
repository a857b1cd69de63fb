package slotmeter

import (
	"math/bits"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"pgregory.net/rapid"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/merkle"
	"github.com/gpupay/gpupay/metering/slots"
)

// window is what a cheat's record shows, in ns.
const window = 100_000

// cheat is a provider that signs what it likes, and its renter's requests as they were.
type cheat struct {
	*rapid.T
	share  metering.Share
	sent   map[uint64]slots.Own // by the host's clock, which is the renter's too
	took   int64                // of those that did not fail
	named  map[uint64]bool
	books  slots.Books
	shown  int64 // records that were accepted
	totals []int64
}

func newCheat(t *rapid.T, records int64) *cheat {
	c := &cheat{T: t, sent: make(map[uint64]slots.Own), named: make(map[uint64]bool), books: slots.Books{Own: make(map[uint64]slots.Own)}}
	c.share = metering.Share{GPUs: uint32(rapid.IntRange(1, 2).Draw(t, "gpus")), Slots: metering.MaxSlots}
	c.totals = make([]int64, c.share.GPUs)
	span := rapid.SampledFrom([]int64{window / 2, records * window}).Draw(t, "span")
	for id := range uint64(rapid.OneOf(rapid.IntRange(1, 5), rapid.IntRange(60, 140)).Draw(t, "requests")) {
		from := rapid.Int64Range(0, span).Draw(t, "from")
		own := slots.Own{From: from, To: from + rapid.Int64Range(0, window).Draw(t, "took"), Failed: rapid.IntRange(0, 9).Draw(t, "failed") == 0}
		c.sent[id+1], c.books.Own[id+1] = own, own
		if !own.Failed {
			c.took += own.To - own.From
		}
	}
	return c
}

// device is one device's part of a record, with holes.
func (c *cheat) device(i int) metering.DeviceEvidence {
	from, to := c.shown*window, (c.shown+1)*window
	d := metering.DeviceEvidence{
		Device: metering.Device{UUID: common.BytesToHash([]byte{byte(i + 1)}).Hex(), BootID: "boot"}, Samples: 2,
		From: metering.Instant{Mono: from}, To: metering.Instant{Mono: to},
	}
	for at := from; rapid.Bool().Draw(c.T, "hole"); {
		lo := rapid.Int64Range(at, to).Draw(c.T, "hole from")
		hi := rapid.Int64Range(lo, to).Draw(c.T, "hole to")
		d.Gaps = append(d.Gaps, metering.Hole{From: lo, Reason: metering.ReasonStalled, To: hi})
		d.Nanos.Gap += hi - lo
		at = hi
	}
	if n := len(d.Gaps); n > 0 && rapid.Bool().Draw(c.T, "not listed") {
		d.Gaps, d.MoreGaps = d.Gaps[:n-1], 1
	}
	d.Nanos.Allocated = window - d.Nanos.Gap
	d.Total = c.totals[i] + d.Nanos.Allocated
	return d
}

// lie is a record's evidence: requests with more than they took, at other times, again, in no list or in no record.
func (c *cheat) lie() metering.Evidence {
	e := metering.Evidence{Kind: metering.KindSlots, MaxGap: window, Source: "cheat", Samples: 2 * uint64(c.share.GPUs), Total: c.books.Total}
	for i := range int(c.share.GPUs) {
		e.Devices = append(e.Devices, c.device(i))
	}
	s := &metering.SlotEvidence{Carried: c.books.Rest, GPUs: c.share.GPUs, Slots: c.share.Slots}
	lies := rapid.SampledFrom([]string{"", "", "", "again", "moved", "unhealthy", "failed"}).Draw(c.T, "lies")
	lying := func(of string) bool { return lies == of && rapid.IntRange(0, 9).Draw(c.T, of) == 0 }
	list := rapid.SampledFrom([]int{metering.MaxRequests, metering.MaxRequests, rapid.IntRange(0, metering.MaxRequests).Draw(c.T, "listed")}).Draw(c.T, "list")
	var left, leftNanos int64
	var tree merkle.Tree
	for id := uint64(1); id <= uint64(len(c.sent)); id++ {
		own := c.sent[id]
		if c.named[id] && !lying("again") {
			continue
		}
		r := metering.Request{From: own.From, ID: id, Outcome: metering.RequestDone, To: own.To}
		if lying("moved") {
			r.From = max(0, r.From-rapid.Int64Range(0, window).Draw(c.T, "earlier"))
			r.To += rapid.Int64Range(0, window).Draw(c.T, "later")
		}
		r.Nanos = min(r.To-r.From, max(0, (c.shown+1)*window-r.From))
		if !lying("unhealthy") {
			r.Nanos = min(r.Nanos, c.healthy(e, r))
		}
		if r.Nanos == 0 && !own.Failed { // it is not over yet
			continue
		}
		if own.Failed && !lying("failed") {
			r.Nanos = 0
		}
		if len(s.Requests) >= list {
			left, leftNanos = left+1, leftNanos+r.Nanos
			continue
		}
		s.Requests = append(s.Requests, r)
		s.SlotNanos += r.Nanos
		tree.Add(r.Encode())
	}
	s.Root = tree.Root()
	if len(s.Requests) == metering.MaxRequests && left > 0 && rapid.Bool().Draw(c.T, "left out") {
		s.More, s.MoreNanos = uint64(left), leftNanos+rapid.SampledFrom([]int64{0, 0, tick, window}).Draw(c.T, "too much")
		s.SlotNanos += s.MoreNanos
	}
	if rapid.IntRange(0, 4).Draw(c.T, "a record is not shown") == 0 {
		e.Total += rapid.Int64Range(0, window/2).Draw(c.T, "hidden")
	}
	var err error
	if e.Nanos, s.Rest, err = c.share.Bill(s.SlotNanos, s.Carried); err != nil {
		c.Fatal(err)
	}
	e.Total += e.Nanos
	e.Slots = s
	return e
}

// healthy is what a record's devices let a request be billed at most: of each, the time up to the record before, and since then what was in no hole.
func (c *cheat) healthy(e metering.Evidence, r metering.Request) int64 {
	at, to := max(r.From, c.shown*window), min(r.To, (c.shown+1)*window)
	most := min(at, to) - r.From
	for ; at < to; at++ {
		next := to
		in := false
		for _, d := range e.Devices {
			for _, g := range d.Gaps {
				if in = in || g.From <= at && at < g.To; g.From > at {
					next = min(next, g.From)
				} else if g.To > at {
					next = min(next, g.To)
				}
			}
		}
		if !in {
			most += next - at
		}
		at = next - 1
	}
	return max(0, most)
}

// TestCheats: whatever a provider signs, what its renter accepts comes to no more than its requests took and one tolerance, and none of them is
// billed in a hole that its record shows.
func TestCheats(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const records = 3
		c := newCheat(rt, records)
		limits := slots.Limits{Slack: tick, Tolerance: 2 * tick}
		for range 3 * records {
			e := c.lie()
			next, err := c.books.Check(e, limits)
			if err != nil {
				continue // it is not paid, and tries another one
			}
			c.books = next
			for _, r := range e.Slots.Requests {
				c.named[r.ID] = true
				if most := c.healthy(e, r); r.Nanos > most {
					rt.Fatalf("request %d from %d to %d is billed %d ns, and %d lie in no hole of %+v", r.ID, r.From, r.To, r.Nanos, most, e.Devices)
				}
				for _, d := range e.Devices {
					if since := r.Nanos - max(0, d.From.Mono-r.From); since > d.Nanos.Allocated {
						rt.Fatalf("request %d is billed %d ns since the record before, and %s was healthy for %d", r.ID, since, d.Device.UUID, d.Nanos.Allocated)
					}
				}
			}
			for i, d := range e.Devices {
				c.totals[i] = d.Total
			}
			c.shown++
			high, billed := bits.Mul64(uint64(e.Total), uint64(c.share.Slots))
			if most := uint64(c.took+2*tick) * uint64(c.share.GPUs); high > 0 || billed > most {
				rt.Fatalf("%d ns are accepted, and the requests took %d: at most %d parts, not %d", e.Total, c.took, most, billed)
			}
			if c.shown == records {
				break
			}
		}
	})
}
