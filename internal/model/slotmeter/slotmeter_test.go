package slotmeter

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"
	"pgregory.net/rapid"

	"github.com/gpupay/gpupay/internal/eip712"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/slots"
	"github.com/gpupay/gpupay/metering/usage"
	"github.com/gpupay/gpupay/metering/verify"
)

const (
	tick   = 1000 // ns
	maxGap = 3 * tick
	credit = tick // ns of one GPU
)

type key struct{ *ecdsa.PrivateKey }

func (k key) Address() common.Address { return crypto.PubkeyToAddress(k.PublicKey) }

func (k key) Sign(_ context.Context, digest common.Hash) ([]byte, error) {
	return eip712.Sign(digest, k.PrivateKey)
}

var meterKey = key{crypto.ToECDSAUnsafe(common.LeftPadBytes([]byte{7}, 32))}

// look is a reading, as the definition sees it.
type look struct {
	at         int64
	healthy    bool
	generation uint64
}

// request is one that was accepted, by what the caller of the meter knows.
type request struct {
	taken, given int64 // stamps that the meter was given
	failed       bool
	ended        bool
}

// renter is a lease and what both of its sides have on disk.
type renter struct {
	terms    metering.Lease
	recorder *usage.Recorder
	state    slots.State // durable, with the records
	records  []metering.SignedRecord
	books    slots.Books
	requests map[uint64]*request // of this process
	nextID   uint64
	owed     int64 // as it was said last, of this process
	paid     int64 // ns of one GPU
	began    int   // readings of each device that were made before the lease began in this process
	over     bool
}

// market is a service, its renters and its devices.
type market struct {
	*rapid.T
	share   metering.Share
	devices []string
	meter   *slots.Meter
	renters []*renter
	now     int64
	boot    int
	gens    map[string]uint64
	looks   map[string][]look // of this process
	running int
	started int64 // of this process
	wall    int64 // that passed in processes before
}

func newMarket(t *rapid.T) *market {
	gpus := rapid.IntRange(1, 3).Draw(t, "gpus")
	count := rapid.OneOf(rapid.IntRange(1, 5), rapid.IntRange(1, 1000)).Draw(t, "slots")
	m := &market{T: t, share: metering.Share{GPUs: uint32(gpus), Slots: uint32(count)}, gens: make(map[string]uint64), now: 1}
	for i := range gpus {
		m.devices = append(m.devices, fmt.Sprintf("GPU-%d", i))
	}
	for i := range rapid.IntRange(1, 3).Draw(t, "renters") {
		l := metering.Lease{
			ID: common.BytesToHash([]byte{1, byte(i)}), ChainID: 31337, Price: metering.Price{Amount: *uint256.NewInt(999_999_937), Unit: metering.Second},
			Devices: m.devices, Share: m.share,
		}
		recorder, err := usage.NewRecorder(l, meterKey, nil)
		m.ok(err)
		m.renters = append(m.renters, &renter{terms: l, recorder: recorder, books: slots.Books{Own: make(map[uint64]slots.Own)}, nextID: 1})
	}
	m.process()
	return m
}

func (m *market) ok(err error) {
	m.Helper()
	if err != nil {
		m.Fatal(err)
	}
}

// process starts a meter from what is on disk.
func (m *market) process() {
	var err error
	m.meter, err = slots.New(slots.Config{Share: m.share, Devices: m.devices, Tick: tick, MaxGap: maxGap})
	m.ok(err)
	for _, d := range m.devices {
		m.ok(m.meter.Describe("model", metering.Device{UUID: d, Name: "GPU", BootID: fmt.Sprint(m.boot)}))
	}
	m.looks, m.running, m.started = make(map[string][]look), 0, m.now
	for _, r := range m.renters {
		if r.over {
			continue
		}
		m.ok(m.meter.Begin(r.terms.ID, r.state))
		r.requests, r.owed, r.began, r.nextID = make(map[uint64]*request), r.state.Total, 0, r.state.Highest+1
	}
}

// Pass lets time go by.
func (m *market) Pass(*rapid.T) { m.now += rapid.Int64Range(1, tick).Draw(m.T, "ns") }

// Read reads some devices, in one order or another.
func (m *market) Read(*rapid.T) {
	for _, d := range rapid.Permutation(m.devices).Draw(m.T, "devices") {
		m.now += rapid.Int64Range(1, tick/4).Draw(m.T, "ns")
		m.read(d, rapid.SampledFrom([]string{"", "", "", "", "", "", "lost", "stalled", "xid", "driver", "other", "unread"}).Draw(m.T, "fault"))
	}
}

func (m *market) read(d, fault string) {
	r := metering.Reading{
		At: metering.Instant{Mono: m.now, Boot: m.now, Wall: m.now}, BootID: fmt.Sprint(m.boot), Device: d, Seen: d, Health: metering.Healthy,
	}
	switch fault {
	case "unread":
		return
	case "lost":
		r.Health, r.Seen = metering.Lost, ""
	case "stalled":
		r.Health, r.Seen = metering.Stalled, ""
	case "xid":
		r.XIDs = []metering.XID{metering.NewXID(79, m.now)}
	case "driver":
		m.gens[d]++
	case "other":
		r.Seen = "GPU-x"
	}
	r.Generation = m.gens[d]
	m.ok(m.meter.Observe(r))
	m.looks[d] = append(m.looks[d], look{m.now, r.Health == metering.Healthy && r.Seen == d && len(r.XIDs) == 0, r.Generation})
}

// stamp is a clock that was read a little ago.
func (m *market) stamp() int64 {
	return max(m.started, m.now-rapid.Int64Range(0, 50).Draw(m.T, "late"))
}

// Take has a request accepted, or refused when no slot is free.
func (m *market) Take(*rapid.T) {
	r := m.renter()
	if r == nil {
		return
	}
	id, at := r.nextID+rapid.Uint64Range(0, 2).Draw(m.T, "skip"), m.stamp()
	err := m.meter.Take(r.terms.ID, id, at)
	if full := m.running == int(m.share.Slots); full || err != nil {
		if !full || !errors.Is(err, slots.ErrBusy) {
			m.Fatalf("%d of %d slots are taken: %v", m.running, m.share.Slots, err)
		}
		return
	}
	if err := m.meter.Take(r.terms.ID, id, at); !errors.Is(err, slots.ErrID) && !errors.Is(err, slots.ErrBusy) {
		m.Fatalf("request %d is accepted twice: %v", id, err)
	}
	m.running++
	r.nextID, r.requests[id] = id+1, &request{taken: at}
}

// Give ends a request in one way or another.
func (m *market) Give(*rapid.T) {
	r := m.renter()
	if r == nil {
		return
	}
	var ids []uint64
	for id, q := range r.requests {
		if !q.ended {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return
	}
	slices.Sort(ids)
	m.give(r, rapid.SampledFrom(ids).Draw(m.T, "id"), m.outcome())
}

func (m *market) outcome() metering.Outcome {
	return rapid.SampledFrom([]metering.Outcome{metering.RequestDone, metering.RequestDone, metering.RequestAborted, metering.RequestFailed}).Draw(m.T, "outcome")
}

// Many requests are served one after the other, more than a record lists.
func (m *market) Many(*rapid.T) {
	r := m.renter()
	if r == nil || m.running == int(m.share.Slots) {
		return
	}
	for range rapid.IntRange(metering.MaxRequests, 2*metering.MaxRequests).Draw(m.T, "requests") {
		id := r.nextID
		m.ok(m.meter.Take(r.terms.ID, id, m.now))
		m.running++
		r.nextID, r.requests[id] = id+1, &request{taken: m.now}
		m.now += 20
		m.give(r, id, metering.RequestDone)
	}
}

// Credit ends what runs of a lease once more than its credit is due. That is its renter's doing: it is billed like any other request.
func (m *market) Credit(*rapid.T) {
	r := m.renter()
	if r == nil {
		return
	}
	due, err := m.meter.Due(r.terms.ID, m.now)
	m.ok(err)
	if due-r.paid < credit {
		return
	}
	for id := uint64(0); id <= r.nextID; id++ {
		if q := r.requests[id]; q != nil && !q.ended {
			m.give(r, id, metering.RequestLimit)
		}
	}
}

func (m *market) give(r *renter, id uint64, outcome metering.Outcome) {
	q := r.requests[id]
	q.ended, q.given, q.failed = true, m.stamp(), outcome == metering.RequestFailed
	m.ok(m.meter.Give(r.terms.ID, id, q.given, outcome))
	m.running--
	own := slots.Own{From: q.taken - rapid.Int64Range(0, 99).Draw(m.T, "sent before"), Failed: q.failed}
	own.To = max(own.From, q.given+rapid.Int64Range(0, 99).Draw(m.T, "heard after"))
	own.From, own.To = own.From+1e6, own.To+1e6 // on another clock
	r.books.Own[id] = own
}

// renter is one whose lease is not over; nil: there is none.
func (m *market) renter() *renter {
	var left []*renter
	for _, r := range m.renters {
		if !r.over {
			left = append(left, r)
		}
	}
	if len(left) == 0 {
		return nil
	}
	return left[rapid.IntRange(0, len(left)-1).Draw(m.T, "renter")]
}

// Cut signs the next record.
func (m *market) Cut(*rapid.T) {
	if r := m.renter(); r != nil {
		m.cut(r, false)
	}
}

func (m *market) cut(r *renter, final bool) {
	e, err := m.meter.Cut(r.terms.ID, final)
	m.ok(err)
	if rapid.IntRange(0, 9).Draw(m.T, "killed") == 0 && !final {
		m.Restart(m.T) // before it is on disk
		return
	}
	m.ok(e.Validate())
	var parsed metering.Evidence
	if err := json.Unmarshal(e.Encode(), &parsed); err != nil || parsed.Hash() != e.Hash() {
		m.Fatalf("%s does not parse: %v", e.Encode(), err)
	}
	for _, q := range e.Slots.Requests {
		m.measured(r, q)
	}
	record, err := r.recorder.Next(context.Background(), e, final)
	m.ok(err)
	r.state, err = m.meter.Save(r.terms.ID)
	m.ok(err)
	r.records = append(r.records, record)
	r.books, err = r.books.Check(e, slots.Limits{Slack: 1, Tolerance: 1})
	m.ok(err)
	r.paid, r.over = e.Total, final
	old := rapid.Int64Range(m.now-10*tick, m.now).Draw(m.T, "folded until") + 1e6
	r.books = r.books.Fold(func(_ uint64, own slots.Own) bool { return own.To < old })
}

// measured counts what a request is billed by the definition: the time between its ends in which each device stands between two
// healthy readings. The meter may count less of it by what its stamps were late.
func (m *market) measured(r *renter, q metering.Request) {
	own := r.requests[q.ID]
	switch {
	case own == nil || !own.ended:
		m.Fatalf("request %d is billed, and did not end", q.ID)
	case q.From < own.taken || q.From > own.taken+50 && q.From > own.given || q.To != max(own.given, q.From):
		m.Fatalf("request %d ran from %d to %d, and it is billed from %d to %d", q.ID, own.taken, own.given, q.From, q.To)
	case own.failed != (q.Outcome == metering.RequestFailed):
		m.Fatalf("request %d ended %s", q.ID, q.Outcome)
	}
	want := int64(0)
	if !own.failed {
		want = m.healthy(r.began, q.From, q.To)
	}
	if q.Nanos != want {
		m.Fatalf("request %d from %d to %d is billed %d ns, by the definition %d; %v", q.ID, q.From, q.To, q.Nanos, want, m.looks)
	}
}

// healthy is the time in which every device stands between two healthy readings of those that a lease saw.
func (m *market) healthy(began int, from, to int64) int64 {
	all := [][2]int64{{from, to}}
	for _, d := range m.devices {
		looks := m.looks[d]
		looks = looks[min(began, len(looks)):]
		var next [][2]int64
		for i := 1; i < len(looks); i++ {
			a, b := looks[i-1], looks[i]
			if !a.healthy || !b.healthy || b.at-a.at > maxGap || a.generation != b.generation {
				continue
			}
			for _, s := range all {
				if lo, hi := max(s[0], a.at), min(s[1], b.at); lo < hi {
					next = append(next, [2]int64{lo, hi})
				}
			}
		}
		all = next
	}
	var sum int64
	for _, s := range all {
		sum += s[1] - s[0]
	}
	return sum
}

// Restart kills the process. The host may be rebooted meanwhile.
func (m *market) Restart(*rapid.T) {
	m.wall += m.now - m.started
	m.now += rapid.Int64Range(1, 3*tick).Draw(m.T, "away")
	if rapid.Bool().Draw(m.T, "reboot") {
		m.boot++
		m.now = rapid.Int64Range(1, 5*tick).Draw(m.T, "since the boot")
	}
	m.process()
}

// Check is after each step: asking changes nothing, nothing owed is taken back, and all renters together owe no more than the time
// that passed costs, nor does any of them owe more than what is due.
func (m *market) Check(*rapid.T) {
	var all uint64
	for _, r := range m.renters {
		total := r.state.Total
		if !r.over {
			due, err := m.meter.Due(r.terms.ID, m.now)
			m.ok(err)
			for range 3 {
				owed, err := m.meter.Owed(r.terms.ID)
				m.ok(err)
				if owed < r.owed || owed > due {
					m.Fatalf("lease %s owes %d after %d, and %d is due", r.terms.ID, owed, r.owed, due)
				}
				r.owed, total = owed, owed
			}
			if running, ended, err := m.meter.Unsettled(r.terms.ID); err != nil || running+ended == 0 && due != r.owed {
				m.Fatalf("lease %s owes %d, nothing of it runs or waits, and %d is due: %v", r.terms.ID, r.owed, due, err)
			}
		}
		all += uint64(total)
	}
	wall := uint64(m.wall+m.now-m.started) * uint64(m.share.GPUs)
	if all > wall {
		m.Fatalf("all leases together owe %d ns, %d passed on %d GPUs", all, wall, m.share.GPUs)
	}
	if m.meter.Busy() != m.running {
		m.Fatalf("%d slots are taken, %d requests run", m.meter.Busy(), m.running)
	}
}

// end settles everything: then all bills in money are within wall time x price, and no two records contradict each other.
func (m *market) end() {
	for _, r := range m.renters {
		if r.over {
			continue
		}
		for id := uint64(0); id <= r.nextID; id++ {
			if q := r.requests[id]; q != nil && !q.ended {
				m.give(r, id, m.outcome())
			}
		}
		m.cut(r, true)
	}
	m.Check(m.T)
	var signed []metering.SignedRecord
	var bills uint256.Int
	for _, r := range m.renters {
		signed = append(signed, r.records...)
		if n := len(r.records); n > 0 {
			bills.Add(&bills, &r.records[n-1].Owed)
		}
	}
	most, err := m.renters[0].terms.Price.Charge(uint64(m.wall+m.now-m.started) * uint64(m.share.GPUs))
	m.ok(err)
	if bills.Gt(&most) {
		m.Fatalf("all bills come to %s, the time costs %s", bills.Dec(), most.Dec())
	}
	m.ok(slots.Contradiction(metering.Domain(31337, common.Address{}), meterKey.Address(), signed...))
	for _, r := range m.renters {
		m.checked(r)
	}
}

// clock allows any time: the books hold requests to the renter's own.
type clock struct{}

func (clock) Now() metering.Instant { return metering.Instant{} }
func (clock) BootID() string        { return "renter" }

func (clock) After(time.Duration) <-chan time.Time { return nil }

// checked has the renter's checker accept each record.
func (m *market) checked(r *renter) {
	check, err := verify.New(verify.Config{Lease: r.terms, Key: meterKey.Address(), Tolerance: time.Hour, Clock: clock{}})
	m.ok(err)
	skip := rapid.IntRange(0, len(r.records)).Draw(m.T, "not shown")
	books := slots.Books{Own: make(map[uint64]slots.Own)}
	for i, record := range r.records {
		before := check.State()
		m.ok(check.Check(record))
		if i != skip || i+1 == len(r.records) {
			continue
		}
		books.Total, books.Rest = int64(before.Nanos), before.Rest
		for _, q := range r.records[i+1].Evidence.Slots.Requests {
			books.Own[q.ID] = slots.Own{From: q.From, To: q.To}
		}
		books.Folded = slots.Folded{Requests: math.MaxUint32, Nanos: math.MaxInt32}
		nothing := record.Nanos == before.Nanos && record.Evidence.Rest() == before.Rest
		_, err := before.Skip(r.records[i+1])
		_, found := books.Check(r.records[i+1].Evidence, slots.Limits{})
		if (err == nil) != nothing || (found == nil) != nothing {
			m.Fatalf("record %d, which bills from %d to %d ns, is not shown: %v, %v", i+1, before.Nanos, record.Nanos, err, found)
		}
	}
}

// TestSlots: whatever renters, devices and processes do.
func TestSlots(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := newMarket(rt)
		actions := map[string]func(*rapid.T){
			"": m.Check, "pass": m.Pass, "read": m.Read, "read2": m.Read, "read3": m.Read, "take": m.Take, "take2": m.Take, "give": m.Give, "cut": m.Cut,
			"many": m.Many, "credit": m.Credit,
		}
		if rapid.Bool().Draw(rt, "restarts") {
			actions["restart"] = m.Restart
		}
		rt.Repeat(actions)
		m.end()
	})
}

// TestBillOfPieces: however time is cut into pieces, what they are billed together is rounded down once.
func TestBillOfPieces(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		share := metering.Share{GPUs: uint32(rapid.IntRange(1, metering.MaxGPUs).Draw(rt, "gpus")), Slots: uint32(rapid.IntRange(1, metering.MaxSlots).Draw(rt, "slots"))}
		var slotNanos, billed int64
		var rest uint32
		for _, piece := range rapid.SliceOf(rapid.Int64Range(0, 1e15)).Draw(rt, "pieces") {
			nanos, left, err := share.Bill(piece, rest)
			if err != nil {
				rt.Fatal(err)
			}
			slotNanos, billed, rest = slotNanos+piece, billed+nanos, left
			whole := new(uint256.Int).Mul(uint256.NewInt(uint64(slotNanos)), uint256.NewInt(uint64(share.GPUs)))
			want := new(uint256.Int).Div(whole, uint256.NewInt(uint64(share.Slots)))
			if want.Uint64() != uint64(billed) {
				rt.Fatalf("%d ns in slots are billed %d, floor is %s", slotNanos, billed, want.Dec())
			}
		}
	})
}
