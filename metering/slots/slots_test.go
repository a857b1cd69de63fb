package slots_test

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/eip712"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/slots"
	"github.com/gpupay/gpupay/metering/usage"
)

const (
	gpu    = "GPU-a"
	second = "GPU-b"
	ms     = int64(1e6)
)

var lease, other = common.HexToHash("0x11"), common.HexToHash("0x12")

// service is a meter and the readings of its devices.
type service struct {
	t       testing.TB
	meter   *slots.Meter
	devices []string
}

func newService(t testing.TB, count uint32, devices ...string) *service {
	t.Helper()
	m, err := slots.New(slots.Config{Share: metering.Share{GPUs: uint32(len(devices)), Slots: count}, Devices: devices})
	if err != nil {
		t.Fatal(err)
	}
	s := &service{t: t, meter: m, devices: devices}
	s.begin(lease)
	s.begin(other)
	return s
}

func (s *service) begin(id common.Hash) {
	s.t.Helper()
	s.ok(s.meter.Begin(id, slots.State{}))
}

func (s *service) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *service) refuses(err, want error) {
	s.t.Helper()
	if !errors.Is(err, want) {
		s.t.Errorf("got %v, want %v", err, want)
	}
}

// read has every device read at a moment, in ms; those named lost are not healthy.
func (s *service) read(at int64, lost ...string) {
	s.t.Helper()
	for _, d := range s.devices {
		s.ok(s.meter.Observe(reading(d, at, slices.Contains(lost, d))))
	}
}

func reading(device string, at int64, lost bool) metering.Reading {
	r := metering.Reading{
		At: metering.Instant{Mono: at * ms, Boot: at * ms, Wall: at * ms}, BootID: "boot", Device: device, Seen: device,
		Driver: "1", Generation: 1, Health: metering.Healthy,
	}
	if lost {
		r.Health, r.Seen = metering.Lost, ""
	}
	return r
}

func (s *service) take(id common.Hash, request uint64, at int64) {
	s.t.Helper()
	s.ok(s.meter.Take(id, request, at*ms))
}

func (s *service) give(id common.Hash, request uint64, at int64, outcome metering.Outcome) {
	s.t.Helper()
	s.ok(s.meter.Give(id, request, at*ms, outcome))
}

func (s *service) owes(id common.Hash, nanos int64) {
	s.t.Helper()
	got, err := s.meter.Owed(id)
	s.ok(err)
	if got != nanos {
		s.t.Errorf("lease %s owes %d ns, want %d", id.TerminalString(), got, nanos)
	}
}

func (s *service) cut(id common.Hash, final bool) metering.Evidence {
	s.t.Helper()
	e, err := s.meter.Cut(id, final)
	s.ok(err)
	if err := e.Validate(); err != nil {
		s.t.Fatalf("%v\n%s", err, e.Encode())
	}
	return e
}

// TestRules has a line for each rule with what it bills of one request that holds one of four slots from 1,500 ms to 4,500 ms,
// in ms of slot time.
func TestRules(t *testing.T) {
	tests := []struct {
		name    string
		outcome metering.Outcome
		read    func(s *service)
		want    int64
	}{
		{"healthy throughout", metering.RequestDone, func(s *service) { s.every(1000, 5000) }, 3000},
		{"aborted by its client", metering.RequestAborted, func(s *service) { s.every(1000, 5000) }, 3000},
		{"failed", metering.RequestFailed, func(s *service) { s.every(1000, 5000) }, 0},
		{"ended at the credit", metering.Outcome("limit"), func(s *service) { s.every(1000, 5000) }, 3000},
		{"its last reading is not there yet", metering.RequestDone, func(s *service) { s.every(1000, 4000) }, 0},
		{"nothing was read before 3 s", metering.RequestDone, func(s *service) { s.every(3000, 5000) }, 1500},
		{"lost at 3 s", metering.RequestDone, func(s *service) {
			s.every(1000, 2000)
			s.read(3000, gpu)
			s.every(4000, 5000)
		}, 500 + 500},
		{"lost from 2 s on", metering.RequestDone, func(s *service) {
			s.read(1000)
			for at := int64(2000); at <= 5000; at += 1000 {
				s.read(at, gpu)
			}
		}, 0},
		{"a gap over MaxGap", metering.RequestDone, func(s *service) {
			s.read(1000)
			s.read(4200)
			s.read(5000)
		}, 300},
		{"a reading that comes late, with bad news", metering.RequestDone, func(s *service) {
			s.every(1000, 3000)
			late := reading(gpu, 2500, false)
			late.XIDs = []metering.XID{metering.NewXID(79, 2500*ms)}
			s.ok(s.meter.Observe(late))
			s.every(4000, 5000)
		}, 1500 + 500},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newService(t, 4, gpu)
			s.take(lease, 1, 1500)
			tt.read(s)
			s.owes(lease, 0) // whatever happens to it, it runs
			s.give(lease, 1, 4500, tt.outcome)
			s.owes(lease, tt.want*ms/4)
			e := s.cut(lease, false)
			if e.Slots.SlotNanos != tt.want*ms || e.Total != tt.want*ms/4 {
				t.Errorf("%d ns in slots and %d in all are in its evidence", e.Slots.SlotNanos, e.Total)
			}
		})
	}
}

// every has the devices read each second.
func (s *service) every(from, to int64) {
	s.t.Helper()
	for at := from; at <= to; at += 1000 {
		s.read(at)
	}
}

// TestTwoDevices: time is billed in which both were healthy, by the stamps of each.
func TestTwoDevices(t *testing.T) {
	s := newService(t, 3, gpu, second)
	s.take(lease, 7, 0)
	for at := int64(1000); at <= 9000; at += 1000 {
		s.ok(s.meter.Observe(reading(gpu, at, at == 4000)))
		s.ok(s.meter.Observe(reading(second, at+300, at == 6000)))
	}
	s.give(lease, 7, 8500, metering.RequestDone)
	// GPU-a was healthy from 1 s to 3 s and from 5 s to 9 s, GPU-b from 1.3 s to 5.3 s and from 7.3 s to 9.3 s.
	s.owes(lease, (1700+300+1200)*ms*2/3)
}

// TestWaitsForEveryDevice: a request is billed when all of its devices were read after it, and once.
func TestWaitsForEveryDevice(t *testing.T) {
	s := newService(t, 2, gpu, second)
	s.read(1000)
	s.take(lease, 1, 1000)
	s.give(lease, 1, 1800, metering.RequestDone)
	s.ok(s.meter.Observe(reading(gpu, 2000, false)))
	s.owes(lease, 0)
	if due, err := s.meter.Due(lease, 9e9); err != nil || due != 800*ms {
		t.Errorf("%d ns are due, %v", due, err)
	}
	s.ok(s.meter.Observe(reading(second, 2000, false)))
	for range 3 {
		s.owes(lease, 800*ms)
		s.read(3000)
	}
}

// TestSlots: one more request than there are slots is refused, whichever lease sends it, and a refusal uses up no id.
func TestSlots(t *testing.T) {
	s := newService(t, 2, gpu)
	s.take(lease, 1, 1000)
	s.take(other, 1, 1000)
	for _, id := range []common.Hash{lease, other} {
		s.refuses(s.meter.Take(id, 2, 1100*ms), slots.ErrBusy)
	}
	if s.meter.Busy() != 2 {
		t.Errorf("%d slots are taken", s.meter.Busy())
	}
	s.give(other, 1, 1200, metering.RequestFailed)
	s.take(lease, 2, 1200)
	s.refuses(s.meter.Take(other, 2, 1300*ms), slots.ErrBusy)
}

// TestWhoComesAfterAnEnd holds no slot before it, whatever its clock said while it waited: at no moment more are billed than there are.
func TestWhoComesAfterAnEnd(t *testing.T) {
	s := newService(t, 1, gpu)
	s.every(1000, 2000)
	s.take(lease, 1, 1000)
	s.give(lease, 1, 1500, metering.RequestDone)
	s.take(other, 1, 1400)
	s.give(other, 1, 1900, metering.RequestDone)
	s.owes(lease, 500*ms)
	s.owes(other, 400*ms)
}

// TestIDs: each id is taken once in a lease, ended or not, and those of two leases have nothing to do with each other.
func TestIDs(t *testing.T) {
	s := newService(t, 1000, gpu)
	for _, id := range []uint64{5, 3, 4096, 10_000, 9_999, 5_905} {
		s.take(lease, id, 1)
		s.take(other, id, 1)
	}
	s.give(lease, 9_999, 2, metering.RequestDone)
	for _, id := range []uint64{0, 5, 3, 4096, 10_000, 9_999, 5_905, 5_904, 4} {
		s.refuses(s.meter.Take(lease, id, 3), slots.ErrID)
	}
	if next, err := s.meter.NextID(lease); err != nil || next != 10_001 {
		t.Errorf("the next id is %d, %v", next, err)
	}
	s.take(lease, 10_001, 3)
	s.refuses(s.meter.Give(lease, 77, 3, metering.RequestDone), slots.ErrRequest)
	s.refuses(s.meter.Give(lease, 9_999, 3, metering.RequestDone), slots.ErrRequest)
	s.refuses(s.meter.Give(lease, 10_001, 3, "paid"), slots.ErrRequest)
	s.refuses(s.meter.Take(common.Hash{}, 1, 3), slots.ErrLease)
	s.take(lease, 1<<64-1, 3)
	_, err := s.meter.NextID(lease)
	s.refuses(err, slots.ErrID)
}

// TestRestart: a lease goes on with what stood in its last record. Requests that ran, or were not in it, are billed nothing, nor
// is the time in between; ids of before are not taken again.
func TestRestart(t *testing.T) {
	s := newService(t, 7, gpu)
	s.every(1000, 3000)
	s.take(lease, 4, 1000)
	s.take(lease, 9, 1000)
	s.give(lease, 4, 2000, metering.RequestDone)
	e := s.cut(lease, false)
	if e.Slots.Rest == 0 {
		t.Fatal("nothing is carried over")
	}
	state, err := s.meter.Save(lease)
	s.ok(err)
	s.give(lease, 9, 3000, metering.RequestDone) // in no record

	again := &service{t: t, devices: []string{gpu}}
	again.meter, err = slots.New(slots.Config{Share: metering.Share{GPUs: 1, Slots: 7}, Devices: again.devices})
	s.ok(err)
	s.ok(again.meter.Begin(lease, state))
	again.owes(lease, 1000*ms/7)
	again.refuses(again.meter.Take(lease, 9, 3500*ms), slots.ErrID)
	again.take(lease, 10, 3500)
	again.every(4000, 6000)
	again.give(lease, 10, 5000, metering.RequestDone)
	again.owes(lease, 2000*ms/7) // both together are rounded down once
	next := again.cut(lease, false)
	if next.Slots.Carried != e.Slots.Rest || next.Total-next.Nanos != e.Total {
		t.Errorf("%+v does not go on where %+v ended", next.Slots, e.Slots)
	}
	again.refuses(again.meter.Observe(metering.Reading{Device: gpu, BootID: "next"}), slots.ErrBoot)
}

// TestFinalCut settles what has ended by the readings that there are; no request begins after it, and none runs.
func TestFinalCut(t *testing.T) {
	s := newService(t, 1, gpu)
	s.every(1000, 2000)
	s.take(lease, 1, 1000)
	_, err := s.meter.Cut(lease, true)
	s.refuses(err, slots.ErrRunning)
	s.refuses(s.meter.Forget(lease), slots.ErrRunning)
	s.give(lease, 1, 2500, metering.RequestDone)
	if e := s.cut(lease, true); e.Total != 1000*ms || e.Slots.Requests[0].To != 2500*ms {
		t.Errorf("%+v", e.Slots)
	}
	s.refuses(s.meter.Take(lease, 2, 3000*ms), usage.ErrFinal)
	s.ok(s.meter.Forget(lease))
	s.refuses(s.meter.Forget(lease), slots.ErrLease)
}

// TestFinalCutThatOverflows bills each request once, however often it is asked for.
func TestFinalCutThatOverflows(t *testing.T) {
	s := newService(t, 2, gpu)
	saved, id := math.MaxInt64-500*ms, common.Hash{3}
	s.ok(s.meter.Begin(id, slots.State{Total: saved}))
	s.every(1000, 2000)
	s.take(id, 1, 1700)
	s.take(id, 2, 1200)
	s.give(id, 1, 2300, metering.RequestDone)
	s.give(id, 2, 2400, metering.RequestDone) // 400 ms, and there is room for 350
	for range 3 {
		_, _ = s.meter.Cut(id, true)
		s.owes(id, saved+150*ms)
	}
}

// TestStateOfAFinalCut: a lease that is over takes no request after a restart, and one of other slots is not gone on with.
func TestStateOfAFinalCut(t *testing.T) {
	s := newService(t, 2, gpu)
	s.every(1000, 2000)
	s.take(lease, 1, 1000)
	s.give(lease, 1, 2500, metering.RequestDone)
	s.refuses(s.meter.Forget(lease), slots.ErrRunning) // it waits for readings
	s.cut(lease, true)
	state, err := s.meter.Save(lease)
	s.ok(err)
	s.ok(s.meter.Forget(lease))
	s.ok(s.meter.Begin(lease, state))
	s.refuses(s.meter.Take(lease, 2, 3000*ms), usage.ErrFinal)
	other, err := slots.New(slots.Config{Share: metering.Share{GPUs: 1, Slots: 3}, Devices: s.devices})
	s.ok(err)
	s.refuses(other.Begin(lease, state), usage.ErrReading)
}

// TestStampFromTheFuture: one bad stamp has nobody else served for nothing.
func TestStampFromTheFuture(t *testing.T) {
	s := newService(t, 2, gpu)
	s.every(1000, 2000)
	s.refuses(s.meter.Take(lease, 1, 1<<62), usage.ErrReading)
	s.take(lease, 2, 1500)
	s.give(lease, 2, 1<<62/ms, metering.RequestDone)
	s.every(3000, 100_000)
	s.owes(lease, (62_000-1500)*ms/2)
	s.take(other, 1, 90_000)
	s.give(other, 1, 99_000, metering.RequestDone)
	s.owes(other, 9000*ms/2)
}

// TestHealthElsewhere: healthy time in which nothing ran pays for none in which a device was away.
func TestHealthElsewhere(t *testing.T) {
	tests := []struct {
		name    string
		devices []string
		read    func(s *service)
		request metering.Request
		says    string
	}{
		{"a hole of ten minutes after an idle hour", []string{gpu}, func(s *service) { s.read(4200_000) },
			metering.Request{From: 3600e9, Nanos: 600e9, To: 4200e9}, "600000000000 too many"},
		{"a hole of each device, one after the other", []string{gpu, second}, func(s *service) {
			for at := int64(3601_000); at <= 3620_000; at += 1000 {
				lost := gpu
				if at > 3610_000 {
					lost = second
				}
				s.read(at, lost)
			}
		}, metering.Request{From: 3600e9, Nanos: 10e9, To: 3620e9}, "outside of the holes of its devices there are 0"},
		{"more holes than are listed", []string{gpu}, func(s *service) {
			for at := int64(3600_000); at <= 4000_000; {
				at += 4000
				s.read(at)
				at += 100
				s.read(at)
			}
		}, metering.Request{From: 3800e9, Nanos: 100e9, To: 4000e9}, "was healthy for"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newService(t, 4, tt.devices...)
			s.every(0, 3600_000)
			s.cut(lease, false)
			tt.read(s)
			e := s.cut(lease, false)
			r := tt.request
			r.ID, r.Outcome = 1, metering.RequestDone
			e = lie(e, func(s *metering.SlotEvidence) { s.Requests = []metering.Request{r} })
			if err := e.Validate(); err != nil {
				t.Fatalf("it is found without a look at the readings: %v", err)
			}
			books := slots.Books{Own: map[uint64]slots.Own{1: {From: r.From, To: r.To}}}
			if _, err := books.Check(e, slots.Limits{}); !errors.Is(err, metering.ErrEvidence) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestTotalsOfManyDevices: devices that are not billed by their own time may have run for long.
func TestTotalsOfManyDevices(t *testing.T) {
	s := newService(t, 4, gpu, second)
	s.every(1000, 5000)
	e := s.cut(lease, false)
	for i := range e.Devices {
		e.Devices[i].Total += math.MaxInt64 / 2
	}
	s.ok(e.Validate())
}

// TestMoreThanAreListed: what bills is listed before what does not, all of it counts, and one cut has no effect on the next.
func TestMoreThanAreListed(t *testing.T) {
	s := newService(t, 100, gpu)
	s.every(1000, 5000)
	for id := uint64(1); id <= 90; id++ {
		s.take(lease, id, 1000)
	}
	for id := uint64(1); id <= 90; id++ {
		outcome := metering.RequestDone
		if id <= 50 {
			outcome = metering.RequestFailed
		}
		s.give(lease, id, 2000, outcome)
	}
	e := s.cut(lease, false)
	listed := 0
	for _, r := range e.Slots.Requests {
		if r.Nanos > 0 {
			listed++
		}
	}
	if listed != 40 || e.Slots.More != 26 || e.Slots.MoreNanos != 0 || e.Slots.SlotNanos != 40_000*ms {
		t.Errorf("%d of 40 that bill are listed, %d more with %d ns", listed, e.Slots.More, e.Slots.MoreNanos)
	}
	if e := s.cut(lease, false); e.Nanos != 0 || len(e.Slots.Requests) != 0 || e.Slots.More != 0 || e.Total != 400*ms {
		t.Errorf("%+v", e)
	}
}

// TestManyGaps: a request that outlives more gaps than are remembered is billed for what was healthy, and one whose end is reported
// from before what is remembered is billed nothing.
func TestManyGaps(t *testing.T) {
	s := newService(t, 2, gpu)
	s.read(0)
	s.take(lease, 1, 0)
	s.take(lease, 2, 0)
	at := int64(0)
	for range 200 {
		s.read(at + 1000)
		at += 5000
		s.read(at)
	}
	s.give(lease, 2, 900, metering.RequestDone)
	s.take(other, 1, 100)
	s.give(other, 1, 900, metering.RequestDone)
	s.owes(lease, 0)
	s.owes(other, 0)
	s.give(lease, 1, at, metering.RequestDone)
	s.owes(lease, 200_000*ms/2)
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []slots.Config{
		{},
		{Share: metering.Share{GPUs: 1}, Devices: []string{gpu}},
		{Share: metering.Share{GPUs: 1, Slots: metering.MaxSlots + 1}, Devices: []string{gpu}},
		{Share: metering.Share{GPUs: 2, Slots: 4}, Devices: []string{gpu}},
		{Share: metering.Share{GPUs: 2, Slots: 4}, Devices: []string{gpu, gpu}},
		{Share: metering.Share{GPUs: 1, Slots: 4}, Devices: []string{""}},
	} {
		if _, err := slots.New(c); err == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
	s := newService(t, 3, gpu)
	s.refuses(s.meter.Begin(lease, slots.State{}), slots.ErrLease)
	s.refuses(s.meter.Begin(common.Hash{1}, slots.State{Rest: 3}), usage.ErrReading)
	s.refuses(s.meter.Observe(reading(second, 1, false)), metering.ErrDevice)
	s.refuses(s.meter.Describe("sim", metering.Device{UUID: second}), metering.ErrDevice)
	s.refuses(s.meter.Take(lease, 1, -1), usage.ErrReading)
}

type key struct{ *ecdsa.PrivateKey }

func (k key) Address() common.Address { return crypto.PubkeyToAddress(k.PublicKey) }

func (k key) Sign(_ context.Context, digest common.Hash) ([]byte, error) {
	return eip712.Sign(digest, k.PrivateKey)
}

var meterKey = key{crypto.ToECDSAUnsafe(common.LeftPadBytes([]byte{7}, 32))}

func (s *service) terms(id common.Hash, count uint32) metering.Lease {
	return metering.Lease{
		ID: id, ChainID: 31337, Escrow: common.HexToAddress("0x44"), Price: metering.Price{Amount: *uint256.NewInt(555), Unit: metering.Second},
		Devices: s.devices, Share: metering.Share{GPUs: uint32(len(s.devices)), Slots: count},
	}
}

// records cuts a lease into signed records, one for each step.
func (s *service) records(id common.Hash, count uint32, steps ...func()) []metering.SignedRecord {
	s.t.Helper()
	recorder, err := usage.NewRecorder(s.terms(id, count), meterKey, nil)
	s.ok(err)
	var all []metering.SignedRecord
	for _, step := range steps {
		step()
		record, err := recorder.Next(context.Background(), s.cut(id, false), false)
		s.ok(err)
		all = append(all, record)
	}
	return all
}

// TestManyAtOnce: requests, readings and cuts from many goroutines are each counted once.
func TestManyAtOnce(t *testing.T) {
	s := newService(t, 8, gpu)
	s.read(0)
	var clock, served atomic.Int64
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 50 {
				id, err := s.meter.NextID(lease)
				if err == nil {
					err = s.meter.Take(lease, id, clock.Add(1)*ms)
				}
				if errors.Is(err, slots.ErrID) { // somebody else was faster
					continue
				}
				if err == nil {
					err = s.meter.Give(lease, id, clock.Add(1)*ms, metering.RequestDone)
				}
				if err != nil {
					t.Error(err)
					return
				}
				served.Add(1)
			}
		})
	}
	requests := make(map[uint64]bool)
	for range 20 {
		s.read(clock.Add(1))
		for _, r := range s.cut(lease, false).Slots.Requests {
			requests[r.ID] = true
		}
	}
	all.Wait()
	s.read(clock.Add(1))
	e := s.cut(lease, true)
	if s.meter.Busy() != 0 || e.Slots.More == 0 && len(requests)+len(e.Slots.Requests) > int(served.Load()) {
		t.Errorf("%d slots are taken, %d of %d requests are in records", s.meter.Busy(), len(requests)+len(e.Slots.Requests), served.Load())
	}
	if most := clock.Load() * ms; e.Total > most {
		t.Errorf("%d ns are billed, %d passed", e.Total, most)
	}
}
