package sharing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/slots"
	"github.com/gpupay/gpupay/metering/usage"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/wire"
)

// payer owes what its lease is billed, and may owe as much as it likes.
type payer struct{ poor bool }

func (p *payer) Affords(context.Context) error {
	if p.poor {
		return errors.New("poor")
	}
	return nil
}
func (p *payer) Covers() bool { return !p.poor }
func (p *payer) Observed()    {}

// world is a service on simulated GPUs, read once a second of a simulated clock, and what each of its leases knows.
type world struct {
	*testing.T
	random   *rand.Rand
	clock    *sim.Clock
	source   *sim.Source
	service  *Service
	readings readings
	share    metering.Share
	leases   []*tenant
	only     int   // leases that lasted for one request
	once     int64 // billed to leases that lasted for one request
}

// tenant is a lease, and its renter's books.
type tenant struct {
	lease   *Lease
	placed  gpu.Allocation
	token   string
	books   slots.Books
	running map[uint64]*Request
	next    uint64
	billed  int64
	failed  map[uint64]bool
}

func (w *world) start() {
	var err error
	var devices []string
	for i := range w.share.GPUs {
		devices = append(devices, sim.UUID(int(i)))
	}
	if w.service, err = New(Config{Share: w.share, Devices: devices, Tick: time.Second, MaxGap: 3 * time.Second, Clock: w.clock, Limits: Limits{Leases: 9, Rate: 1e9, Wait: time.Nanosecond},
		Log: slog.New(slog.DiscardHandler)}); err != nil {
		w.Fatal(err)
	}
	meter, err := usage.NewMeter(usage.Config{Devices: devices, Tick: time.Second, MaxGap: 3 * time.Second, Keep: -1})
	if err != nil {
		w.Fatal(err)
	}
	w.readings = readings{meter, w.service}
	w.pass(time.Second)
}

// pass lets time pass, and has the GPUs read at the end of it.
func (w *world) pass(d time.Duration) {
	w.clock.Advance(d)
	for _, device := range w.service.config.Devices {
		r, err := w.source.Read(w.Context(), device)
		if err != nil {
			w.Fatal(err)
		}
		in, err := w.readings.Observe(r)
		if err != nil {
			w.Fatal(err)
		}
		w.service.Sampled(r, in)
	}
}

func (w *world) join(t *tenant, saved []byte) {
	var err error
	if t.lease, err = w.service.NewLease(t.placed.LeaseID, common.Address{}, 0, t.placed.Access, saved); err != nil {
		w.Fatal(err)
	}
	if _, err = t.lease.Join(&payer{}); err != nil {
		w.Fatal(err)
	}
}

// cut makes a record, which the renter checks.
func (w *world) cut(t *tenant, final bool) {
	e, err := t.lease.Cut(final)
	if err != nil {
		w.Fatal(err)
	}
	for id := range t.running {
		own := t.books.Own[id]
		own.To = w.clock.Now().Mono
		t.books.Own[id] = own
	}
	for _, r := range e.Slots.Requests {
		if t.failed[r.ID] && r.Nanos > 0 {
			w.Errorf("request %d failed and is billed %d ns", r.ID, r.Nanos)
		}
	}
	if t.books, err = t.books.Check(e, slots.Limits{}); err != nil {
		w.Fatalf("an honest record: %v", err)
	}
	t.billed = e.Total
}

// TestBillsNeverExceedTheGPUs: whatever requests come and however they end, with restarts in the middle and slots that do not divide a
// second: all leases together are billed no more than the GPUs' time, each renter's own books agree, and what fails costs nothing.
func TestBillsNeverExceedTheGPUs(t *testing.T) {
	var billed int64
	for seed := range uint64(300) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { billed += billsAtMost(t, rand.New(rand.NewPCG(seed, 0))) })
	}
	if billed < int64(5*time.Minute) {
		t.Errorf("%s are billed in all", time.Duration(billed))
	}
}

// billsAtMost is one history, and what is billed in it.
func billsAtMost(t *testing.T, random *rand.Rand) (billed int64) {
	w := &world{T: t, random: random, clock: sim.NewClock(), share: metering.Share{GPUs: 1 + random.Uint32N(2), Slots: 1 + random.Uint32N(7)}}
	w.source = sim.New(int(w.share.GPUs), sim.Options{Clock: w.clock})
	w.start()
	began := w.clock.Now().Mono
	for i := range 3 {
		placed, err := w.service.Place(common.Hash{byte(i + 1)}, common.Address{})
		if err != nil {
			t.Fatal(err)
		}
		l := &tenant{placed: placed, books: slots.Books{Own: make(map[uint64]slots.Own)}, running: make(map[uint64]*Request), failed: make(map[uint64]bool)}
		l.token = tokenOf(t, placed)
		w.join(l, nil)
		w.leases = append(w.leases, l)
	}
	w.pass(time.Second)
	for range 10 + random.IntN(70) {
		w.step(w.leases[random.IntN(len(w.leases))])
	}
	for _, l := range w.leases {
		for id := range l.running {
			w.end(l, id, metering.RequestDone)
		}
	}
	w.pass(time.Second)
	for _, l := range w.leases {
		w.cut(l, true)
		billed += l.billed
	}
	billed += w.once
	if most := (w.clock.Now().Mono - began) * int64(w.share.GPUs); billed > most {
		t.Errorf("%d ns are billed, and the GPUs ran for %d", billed, most)
	}
	return billed
}

func (w *world) step(l *tenant) {
	switch w.random.IntN(10) {
	case 0, 1, 2: // a request
		l.next++
		r, err := take(w.Context(), w.service, l.token, l.next)
		if err != nil {
			return
		}
		l.running[l.next], l.books.Own[l.next] = r, slots.Own{From: w.clock.Now().Mono}
	case 3, 4: // its end
		for id := range l.running {
			w.end(l, id, []metering.Outcome{metering.RequestDone, metering.RequestAborted, metering.RequestFailed}[w.random.IntN(3)])
			break
		}
	case 5:
		w.cut(l, false)
	case 6: // the process is killed, and goes on from the last records
		for _, l := range w.leases {
			saved, err := l.lease.Save()
			if err != nil {
				w.Fatal(err)
			}
			for id := range l.running {
				w.note(l, id, true)
			}
			defer w.join(l, saved)
		}
		w.start()
	case 7:
		w.oneRequest()
	default:
		w.pass(time.Duration(1 + w.random.Int64N(int64(2*time.Second))))
	}
}

// oneRequest is a lease of a request that is paid by itself: it takes its slot beside those of the others.
func (w *world) oneRequest() {
	w.only++
	placed, err := w.service.Place(common.Hash{0xff, byte(w.only)}, common.Address{1})
	if err != nil {
		w.Fatal(err)
	}
	t := &tenant{placed: placed, books: slots.Books{Own: make(map[uint64]slots.Own)}, running: make(map[uint64]*Request), failed: make(map[uint64]bool)}
	w.join(t, nil)
	w.pass(time.Second)
	if r, err := t.lease.Take(w.Context()); err == nil {
		t.running[r.ID], t.books.Own[r.ID] = r, slots.Own{From: w.clock.Now().Mono}
		w.pass(time.Duration(w.random.Int64N(int64(3 * time.Second))))
		w.end(t, r.ID, []metering.Outcome{metering.RequestDone, metering.RequestLimit, metering.RequestFailed}[w.random.IntN(3)])
	}
	w.pass(time.Second)
	w.cut(t, true)
	w.once += t.billed
	t.lease.Leave()
}

func (w *world) end(l *tenant, id uint64, outcome metering.Outcome) {
	l.running[id].End(outcome, time.Now())
	w.note(l, id, outcome == metering.RequestFailed)
}

// note is what a renter knows of a request that is over.
func (w *world) note(l *tenant, id uint64, failed bool) {
	own := l.books.Own[id]
	own.To, own.Failed = w.clock.Now().Mono, failed
	l.books.Own[id] = own
	if failed {
		l.failed[id] = true
	}
	delete(l.running, id)
}

// tokenOf is the token that a lease was given.
func tokenOf(t *testing.T, a gpu.Allocation) string {
	var access wire.SharedAccess
	if err := json.Unmarshal(a.Access, &access); err != nil {
		t.Fatal(err)
	}
	return access.Token
}

// TestRefusals: a token that is nobody's, a lease that may owe no more, slots that are all taken, and a number that was used.
func TestRefusals(t *testing.T) {
	w := &world{T: t, clock: sim.NewClock(), share: metering.Share{GPUs: 1, Slots: 1}}
	w.source = sim.New(1, sim.Options{Clock: w.clock})
	w.start()
	placed, err := w.service.Place(common.Hash{1}, common.Address{})
	if err != nil {
		t.Fatal(err)
	}
	lease, err := w.service.NewLease(placed.LeaseID, common.Address{}, 0, placed.Access, nil)
	if err != nil {
		t.Fatal(err)
	}
	owner := &payer{}
	if _, err := lease.Join(owner); err != nil {
		t.Fatal(err)
	}
	token := tokenOf(t, placed)
	if _, err := take(t.Context(), w.service, token+"0", 1); !errors.Is(err, &Unknown) {
		t.Errorf("another token: %v", err)
	}
	owner.poor = true
	if _, err := take(t.Context(), w.service, token, 1); err == nil {
		t.Error("who may owe no more is served")
	}
	owner.poor = false
	r, err := take(t.Context(), w.service, token, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := take(t.Context(), w.service, token, 2); err == nil {
		t.Error("two requests in one slot")
	}
	r.End(metering.RequestDone, time.Now())
	if _, err := take(t.Context(), w.service, token, 1); err == nil {
		t.Error("one number for two requests")
	}
	lease.Close(ErrReleased, 0)
	w.pass(time.Second)
	if _, err := lease.Cut(true); err != nil {
		t.Fatal(err)
	}
	lease.Leave()
	if _, err := take(t.Context(), w.service, token, 3); !errors.Is(err, &Unknown) {
		t.Errorf("of a lease that has ended: %v", err)
	}
	if len(w.service.leases) != 0 {
		t.Error("a lease that has ended stays in the service")
	}
	next, err := w.service.NewLease(placed.LeaseID, common.Address{}, 0, placed.Access, nil)
	if err == nil {
		_, err = next.Join(owner)
	}
	if err != nil {
		t.Fatal(err)
	}
	lease.Leave() // late, of the one before
	if r, err = take(t.Context(), w.service, token, 4); err != nil {
		t.Fatalf("the lease that is there now: %v", err)
	}
	r.End(metering.RequestDone, time.Now())
}

// take is a request that is read at once.
func take(ctx context.Context, s *Service, token string, id uint64) (*Request, error) {
	turn, err := s.Admit(token)
	if err != nil {
		return nil, err
	}
	return turn.Take(ctx, id)
}
