package billed

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
)

const second = int64(time.Second)

// letHost is a host with one GPU that runs at its own speed and is rebooted now and then.
type letHost struct {
	boots []int64 // true time at which each began
	fast  int64   // parts in ten thousand
	named bool    // whether its system names its boots
}

func (h letHost) boot(at int64) int {
	n, _ := slices.BinarySearch(h.boots, at+1)
	return n - 1
}

func (h letHost) mono(at int64) int64 {
	since := at - h.boots[h.boot(at)]
	return since + since*h.fast/10_000
}

func (h letHost) name(at int64) string {
	if !h.named {
		return ""
	}
	return "boot-" + strconv.Itoa(h.boot(at))
}

// letRecord is one record on its way to the renter, on a clock that runs true.
type letRecord struct {
	channel byte
	began   int64 // the lease was asked for
	at      int64 // it arrives
	metering.DeviceEvidence
}

// record is of the time from one true moment to another, over a reboot or not. total is billed before it.
func (h letHost) record(from, to, billed, total int64) metering.DeviceEvidence {
	d := metering.DeviceEvidence{Device: metering.Device{UUID: "GPU-1", BootID: h.name(to)}, From: metering.Instant{Mono: h.mono(from)}, To: metering.Instant{Mono: h.mono(to)}}
	if h.boot(from) != h.boot(to) { // the first reading after it is the beginning
		first := h.mono(max(from, h.boots[h.boot(to)]))
		d.Gaps = []metering.Hole{{From: d.From.Mono, Reason: metering.ReasonReboot, To: first}}
		d.From.Mono = first
	}
	d.Nanos.Allocated = min(billed, d.To.Mono-d.From.Mono)
	d.Total = total + d.Nanos.Allocated
	return d
}

// letLease is what a lease bills that is asked for at began and ends at end. Its records come promptly or late, in order.
func (h letHost) lease(random *rand.Rand, channel byte, began, end int64, lazy bool) (records []letRecord) {
	var total, heard int64
	late := func() int64 {
		if lazy && random.IntN(10) == 0 {
			return random.Int64N(600 * second)
		}
		return random.Int64N(second / 100)
	}
	for at := began + late()%second; at < end; {
		to := min(end, at+second/2+random.Int64N(second))
		billed := to - at + (to-at)*h.fast/10_000
		if lazy {
			billed = []int64{0, billed, billed, billed, random.Int64N(billed + 1)}[random.IntN(5)]
		}
		d := h.record(at, to, billed, total)
		total, heard = d.Total, max(heard, to+late())
		records = append(records, letRecord{channel, began, heard, d})
		at = to
	}
	return records
}

// billed gives a ledger all records in the order in which they arrive, and returns what it says to the first that it refuses.
func billed(records []letRecord) error {
	slices.SortStableFunc(records, func(a, b letRecord) int { return cmp.Compare(a.at, b.at) })
	var let Ledger
	spans := make(map[common.Hash][]Span)
	for _, r := range records {
		id := common.Hash{r.channel}
		rec := metering.SignedRecord{Evidence: metering.Evidence{Devices: []metering.DeviceEvidence{r.DeviceEvidence}}}
		spans[id] = Add(spans[id], rec, Hearing{Boot: "ours", Began: r.began, Now: r.at})
		if err := let.twice(common.Address{1}, id, spans[id], 2*time.Second); err != nil {
			return err
		}
		let.Keep(common.Address{1}, id, spans[id])
	}
	return nil
}

func newLetHost(random *rand.Rand, until int64) letHost {
	h := letHost{boots: []int64{-random.Int64N(1000 * second)}, fast: random.Int64N(9) - 4, named: random.IntN(4) > 0}
	for at := h.boots[0]; at < until; {
		at += 20*second + random.Int64N(300*second)
		h.boots = append(h.boots, at)
	}
	return h
}

// TestHonestSpansNeverOverlap: one GPU goes from lease to lease, in sessions and over x402, each of them suspended now and
// then, over reboots, and however late the records come: nothing is taken to be billed twice.
func TestHonestSpansNeverOverlap(t *testing.T) {
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 1))
		host := newLetHost(random, 1000*second)
		var records []letRecord
		var heard [4]int64 // a channel has one lease after the other
		for at := int64(0); at < 600*second; {
			end := at + random.Int64N(120*second)
			channel := byte(random.IntN(4))
			lease := host.lease(random, channel, at, end, true)
			for i := range lease {
				lease[i].at = max(lease[i].at, heard[channel])
				heard[channel] = lease[i].at
			}
			records = append(records, lease...)
			at = end + random.Int64N(10)
		}
		if err := billed(records); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// TestBilledTwiceIsFound: a GPU that is billed in two leases at once is found out, in whichever channels they are, and
// whatever the boots are called; so is a lease whose host's clock is set back.
func TestBilledTwiceIsFound(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 2))
		host := newLetHost(random, 1000*second)
		began := random.Int64N(100 * second)
		records := host.lease(random, 1, began, began+30*second, false)
		other := host
		other.boots = slices.Clone(host.boots)
		mode := random.IntN(3)
		switch mode {
		case 0: // the same clock
		case 1: // as if in another boot at each time
			for i := range other.boots {
				other.boots[i] -= random.Int64N(10_000 * second)
			}
			slices.Sort(other.boots)
			other.boots = append([]int64{other.boots[0] - 500*second}, other.boots...)
		case 2:
			other.named = !host.named
		}
		again := began + random.Int64N(20*second)
		records = append(records, other.lease(random, byte(1+random.IntN(2)), again, again+8*second, random.IntN(2) == 0 && mode == 0 && host.named)...)
		if err := billed(records); err != nil && !errors.Is(err, ErrTwice) || err == nil && doubly(records) > 3*second {
			t.Errorf("seed %d: %v, with %s billed twice", seed, err, time.Duration(doubly(records)))
		}
	}
}

// doubly is what the second of two leases bills.
func doubly(records []letRecord) (sum int64) {
	first := records[0].began
	for _, r := range records {
		if r.began != first {
			sum += r.Nanos.Allocated
		}
	}
	return sum
}

// TestClockSetBackInALease: what a lease bills on a clock that was set back, under whatever name, is not billed again.
func TestClockSetBackInALease(t *testing.T) {
	device := func(boot string, from, to int64, gaps ...metering.Hole) metering.DeviceEvidence {
		return metering.DeviceEvidence{
			Device: metering.Device{UUID: "GPU-1", BootID: boot}, From: metering.Instant{Mono: from * second}, To: metering.Instant{Mono: to * second},
			Nanos: metering.Nanos{Allocated: (to - from) * second}, Gaps: gaps,
		}
	}
	reboot := func(from, to int64) metering.Hole {
		return metering.Hole{From: from * second, Reason: metering.ReasonReboot, To: to * second}
	}
	over := func(boot string, from, end, then int64) metering.DeviceEvidence { // all of it is billed
		d := device(boot, from, then, reboot(end, 0))
		d.Nanos.Allocated = (end - from + then) * second
		return d
	}
	for _, row := range []struct {
		name    string
		records []metering.DeviceEvidence
		twice   bool
	}{
		{"goes on", []metering.DeviceEvidence{device("a", 0, 10), device("a", 10, 20)}, false},
		{"is rebooted", []metering.DeviceEvidence{device("a", 0, 10), device("b", 3, 9, reboot(10, 3))}, false},
		{"is set back", []metering.DeviceEvidence{device("a", 0, 10), device("a", 5, 15)}, true},
		{"is set back behind a reboot", []metering.DeviceEvidence{device("a", 0, 10), device("a", 3, 9, reboot(10, 3))}, true},
		{"comes back to a boot that is over", []metering.DeviceEvidence{device("a", 0, 10), device("b", 0, 5, reboot(10, 0)), device("a", 2, 9, reboot(5, 2))}, true},
		{"is rebooted again before it was billed", []metering.DeviceEvidence{device("a", 0, 100), over("c", 5, 15, 5)}, false},
		{"bills one moment before two reboots", []metering.DeviceEvidence{device("a", 0, 10), over("b", 10, 20, 5), over("c", 10, 20, 5)}, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			var let Ledger
			var spans []Span
			var err error
			for i, d := range row.records {
				spans = Add(spans, metering.SignedRecord{Evidence: metering.Evidence{Devices: []metering.DeviceEvidence{d}}}, Hearing{Now: int64(i)})
				err = errors.Join(err, let.twice(common.Address{}, common.Hash{}, spans, time.Second))
				let.Keep(common.Address{}, common.Hash{}, spans)
			}
			if errors.Is(err, ErrTwice) != row.twice {
				t.Errorf("%v, want found: %v", err, row.twice)
			}
		})
	}
}

// hide makes records bill as much as before, and hides where: behind new names of boots, and behind reboots with as much
// paused time.
func hide(random *rand.Rand, records []letRecord) []letRecord {
	style := random.IntN(4)
	var to int64
	for i := range records {
		d := &records[i].DeviceEvidence
		how := style
		if style == 3 {
			how = random.IntN(3)
		}
		d.Device.BootID = "forged-" + strconv.Itoa(random.Int())
		d.Gaps = nil
		billed := d.Nanos.Allocated
		switch how {
		case 0: // all of it in a boot of its own
			d.From.Mono, d.To.Mono = to, to+billed
		case 1: // half of the time before a reboot and after it is billed
			d.From.Mono, d.To.Mono = to, to+2*billed
			d.Gaps = []metering.Hole{{From: to + billed, Reason: metering.ReasonReboot, To: to + billed}}
		case 2: // after a reboot
			d.From.Mono, d.To.Mono = to, to+billed
			d.Gaps = []metering.Hole{{From: to + 5*second, Reason: metering.ReasonReboot, To: to}}
		}
		to = d.To.Mono
	}
	return records
}

// letAll is what became of the leases of several GPUs: each record is taken or ends its lease.
func letAll(t *testing.T, seed uint64, records []letRecord, honest map[string]bool) {
	slices.SortStableFunc(records, func(a, b letRecord) int { return cmp.Compare(a.at, b.at) })
	type lease struct {
		channel byte
		uuid    string
		began   int64
	}
	var let Ledger
	over, sums, began := make(map[lease]bool), make(map[string]int64), make(map[string]int64)
	spans := make(map[common.Hash][]Span)
	for _, r := range records {
		uuid, key := r.Device.UUID, lease{r.channel, r.Device.UUID, r.began}
		if over[key] {
			continue
		}
		id := common.Hash{r.channel}
		next := Add(spans[id], metering.SignedRecord{Evidence: metering.Evidence{Devices: []metering.DeviceEvidence{r.DeviceEvidence}}}, Hearing{Boot: "ours", Began: r.began, Now: r.at})
		if err := let.twice(common.Address{1}, id, next, 2*time.Second); err != nil {
			if over[key] = true; honest[uuid] {
				t.Fatalf("seed %d: honest %s: %v", seed, uuid, err)
			}
			continue
		}
		spans[id] = next
		let.Keep(common.Address{1}, id, next)
		if first, ok := began[uuid]; !ok || r.began < first {
			began[uuid] = r.began
		}
		sums[uuid] += r.Nanos.Allocated
		if passed := r.at - began[uuid]; sums[uuid] > passed+2*second+passed/Slew {
			t.Fatalf("seed %d: %s of %s are billed in %s", seed, time.Duration(sums[uuid]), uuid, time.Duration(passed))
		}
	}
	for id, all := range spans {
		if len(all) > maxSpans {
			t.Errorf("seed %d: %d spans in channel %s", seed, len(all), id)
		}
	}
}

// TestNoDeviceIsBilledForMoreThanPassed: of several GPUs some are let to one lease after the other and some to several at
// once, in channels that they share and over many short boots. However a forger hides what it bills, no GPU's billed time
// passes what there was on our clock and the tolerance, and nobody honest is accused of anything.
func TestNoDeviceIsBilledForMoreThanPassed(t *testing.T) {
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 3))
		var records []letRecord
		honest := make(map[string]bool)
		for gpu := range 1 + random.IntN(4) {
			uuid := "GPU-" + strconv.Itoa(gpu)
			host := letHost{boots: []int64{-random.Int64N(1000 * second)}, fast: random.Int64N(9) - 4, named: random.IntN(4) > 0}
			for at := int64(0); at < 300*second; at += second/2 + random.Int64N(8*second) {
				host.boots = append(host.boots, at)
			}
			var leases [][]letRecord
			if honest[uuid] = random.IntN(2) == 0; honest[uuid] {
				for at := int64(0); at < 150*second; {
					end := at + random.Int64N(60*second)
					leases = append(leases, host.lease(random, byte(random.IntN(4)), at, end, true))
					at = end + random.Int64N(10)
				}
			} else {
				for range 2 + random.IntN(2) {
					began := random.Int64N(5 * second)
					leases = append(leases, hide(random, host.lease(random, byte(random.IntN(4)), began, began+150*second, false)))
				}
			}
			for _, lease := range leases {
				for i := range lease {
					lease[i].Device.UUID = uuid
				}
				records = append(records, lease...)
			}
		}
		letAll(t, seed, records, honest)
	}
}

// TestManySpansAreShortened: what is kept of a channel is bounded, and what was billed is not forgotten for it, also where
// each of many GPUs has a boot for each record.
func TestManySpansAreShortened(t *testing.T) {
	for _, row := range []struct {
		gpus, boots int64
		h           Hearing
	}{
		{1, 1, Hearing{}}, {1, 1, Hearing{Boot: "ours"}}, {32, 1 << 40, Hearing{Boot: "ours"}}, {1, 1 << 40, Hearing{Boot: "ours"}}, {maxSpans, 1 << 40, Hearing{Boot: "ours"}},
	} {
		records := min(5*maxDeviceSpans, 10*maxSpans/row.gpus)
		var spans []Span
		for i := range records { // half of each second is billed: none follows another
			var devices []metering.DeviceEvidence
			for gpu := range row.gpus {
				devices = append(devices, metering.DeviceEvidence{
					Device: metering.Device{UUID: fmt.Sprint("GPU-", gpu), BootID: fmt.Sprint("boot-", i%row.boots)}, From: metering.Instant{Mono: i * second}, To: metering.Instant{Mono: (i + 1) * second},
					Nanos: metering.Nanos{Allocated: second / 2}, Total: (i + 1) * second / 2,
				})
			}
			row.h.Now = (i + 1) * second
			spans = Add(spans, metering.SignedRecord{Evidence: metering.Evidence{Devices: devices}}, row.h)
		}
		sums := make(map[string]int64)
		for _, s := range spans {
			sums[s.UUID] += s.Billed
		}
		for gpu := range row.gpus {
			if sum := sums[fmt.Sprint("GPU-", gpu)]; len(spans) > maxSpans || sum != records*second/2 {
				t.Fatalf("%d GPUs, %d boots: %d spans, %s of GPU %d in %d records", row.gpus, row.boots, len(spans), time.Duration(sum), gpu, records)
			}
		}
	}
}

// TestIdleTimeIsNotJoined: of a device that stood still between two of a channel's leases it stays known that it did,
// however many boots were billed since: what another lease bills late of the same time is found.
func TestIdleTimeIsNotJoined(t *testing.T) {
	var records []letRecord
	random := rand.New(rand.NewPCG(1, 4))
	host := letHost{boots: []int64{0}, named: true}
	records = append(records, host.lease(random, 1, 0, 10*second, false)...)
	records = append(records, hide(random, host.lease(random, 1, 1000*second, 1200*second, false))...)
	late := hide(random, host.lease(random, 2, 1000*second, 1010*second, false))
	for i := range late {
		late[i].at = 1200*second + int64(i)
	}
	records = append(records, late...)
	if err := billed(records); !errors.Is(err, ErrTwice) {
		t.Errorf("%v, want ErrTwice", err)
	}
}

// TestSliceOfAGPUThatIsLet: a MIG slice and the whole GPU that it was cut from are not let at once, whatever the boots are
// called; slices of one GPU are, and a GPU that is cut, or whole again, goes on.
func TestSliceOfAGPUThatIsLet(t *testing.T) {
	type let struct {
		uuid, boot string
		from, to   int64
	}
	for _, row := range []struct {
		name  string
		lets  []let
		twice bool
	}{
		{"slices at once", []let{{"MIG-1", "a", 0, 10}, {"MIG-2", "a", 0, 10}, {"MIG-1", "a", 10, 20}, {"MIG-2", "a", 10, 20}}, false},
		{"cut", []let{{"GPU-1", "a", 0, 10}, {"MIG-1", "a", 10, 20}, {"MIG-2", "a", 10, 20}}, false},
		{"whole again", []let{{"MIG-1", "a", 0, 10}, {"MIG-2", "a", 0, 10}, {"GPU-1", "a", 10, 20}, {"MIG-1", "a", 20, 30}}, false},
		{"another GPU", []let{{"GPU-2", "a", 0, 10}, {"MIG-1", "a", 0, 10}}, false},
		{"whole beside a slice", []let{{"MIG-1", "a", 0, 10}, {"MIG-2", "a", 0, 10}, {"GPU-1", "a", 5, 15}}, true},
		{"slice beside the whole", []let{{"GPU-1", "a", 0, 20}, {"MIG-1", "a", 4, 8}}, true},
		{"under another boot", []let{{"GPU-1", "a", 0, 20}, {"MIG-1", "b", 4, 8}}, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			var ledger Ledger
			var err error
			spans := make(map[string][]Span)
			for _, l := range row.lets {
				d := metering.DeviceEvidence{
					Device: metering.Device{UUID: l.uuid, BootID: l.boot}, From: metering.Instant{Mono: l.from * second}, To: metering.Instant{Mono: l.to * second},
					Nanos: metering.Nanos{Allocated: (l.to - l.from) * second}, Total: (l.to - l.from) * second,
				}
				if strings.HasPrefix(l.uuid, "MIG") {
					d.Device.MIG, d.Device.Parent = true, "GPU-1"
				}
				id := common.BytesToHash([]byte(l.uuid))
				rec := metering.SignedRecord{Evidence: metering.Evidence{Devices: []metering.DeviceEvidence{d}}}
				spans[l.uuid] = Add(spans[l.uuid], rec, Hearing{Boot: "ours", Began: l.from * second, Now: l.to * second})
				err = errors.Join(err, ledger.twice(common.Address{}, id, spans[l.uuid], time.Second))
				ledger.Keep(common.Address{}, id, spans[l.uuid])
			}
			if errors.Is(err, ErrTwice) != row.twice {
				t.Errorf("%v, want found: %v", err, row.twice)
			}
		})
	}
}

// TestEqualSpansOfTwoLeases: a second lease of a channel that bills a GPU for exactly the same time is found, also where our
// clock tells the two records nothing apart.
func TestEqualSpansOfTwoLeases(t *testing.T) {
	once := metering.DeviceEvidence{
		Device: metering.Device{UUID: "GPU-1", BootID: "a"}, From: metering.Instant{Mono: 5 * second}, To: metering.Instant{Mono: 6 * second},
		Nanos: metering.Nanos{Allocated: second}, Total: second,
	}
	record := letRecord{1, 0, 10 * second, once}
	if err := billed([]letRecord{record}); err != nil {
		t.Error(err)
	}
	if err := billed([]letRecord{record, record}); !errors.Is(err, ErrTwice) {
		t.Errorf("billed twice: %v", err)
	}
}
