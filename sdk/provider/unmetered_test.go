package provider

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/gpu"
	leasing "github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// sickHost is a host of simulated GPUs some of which are away: neither listed nor
// read. Its listing can fail as a whole.
type sickHost struct {
	*sim.Source
	mu     sync.Mutex
	away   []string
	broken error
	unread []string // listed, and not read
	ended  bool
	read   []string // what was read
}

func (h *sickHost) set(broken error, away ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.broken, h.away = broken, away
}

// fail has devices be listed that cannot be read.
func (h *sickHost) fail(unread ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.unread = unread
}

func (h *sickHost) state() ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.away, h.broken
}

func (h *sickHost) Devices(ctx context.Context) ([]metering.Device, error) {
	away, broken := h.state()
	if broken != nil {
		return nil, broken
	}
	all, err := h.Source.Devices(ctx)
	return slices.DeleteFunc(all, func(d metering.Device) bool { return slices.Contains(away, d.UUID) }), err
}

func (h *sickHost) Describe(ctx context.Context, uuid string) (metering.Device, error) {
	all, err := h.Devices(ctx)
	for _, d := range all {
		if d.UUID == uuid {
			return d, nil
		}
	}
	return metering.Device{}, errors.Join(err, fmt.Errorf("%w: %s", metering.ErrDevice, uuid))
}

func (h *sickHost) Read(ctx context.Context, uuid string) (metering.Reading, error) {
	h.mu.Lock()
	away, broken, ended := slices.Concat(h.away, h.unread), h.broken, h.ended
	h.mu.Unlock()
	switch {
	case ended:
		return metering.Reading{}, metering.ErrEnd
	case broken != nil:
		return metering.Reading{}, broken
	case slices.Contains(away, uuid):
		return metering.Reading{}, fmt.Errorf("%w: %s", metering.ErrDevice, uuid)
	}
	r, err := h.Source.Read(ctx, uuid)
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Contains(h.read, uuid) {
		h.read = append(h.read, uuid)
	}
	return r, err
}

// wasRead reports whether a device was read once: its lease's time counts from then.
func (h *sickHost) wasRead(uuid string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Contains(h.read, uuid)
}

// ward is a provider with two GPUs on a clock that the test moves.
type ward struct {
	*rig
	clock *sim.Clock
	host  *sickHost
}

func newWard(t *testing.T, change ...func(*Config)) *ward {
	t.Helper()
	w := &ward{clock: sim.NewClock()}
	w.host = &sickHost{Source: sim.New(2, sim.Options{Clock: w.clock})}
	w.rig = newRig(t, append([]func(*Config){func(c *Config) {
		c.Source, c.Metering.Clock, c.Allocator = w.host, w.clock, hostGPUs(t, 2) // which hands out what is away, too
		c.Metering.Tick, c.Metering.RecordEvery, c.Metering.MaxGap, c.Terms.Credit = time.Second, time.Second, 3*time.Second, time.Minute
	}}, change...)...)
	return w
}

// step moves the clock second by second, each when the second before was read.
func (w *ward) step(seconds int) {
	w.Helper()
	asleep := func() bool { return w.clock.Waiting() > 0 }
	waitFor(w.T, asleep)
	for range seconds {
		w.clock.Advance(time.Second)
		waitFor(w.T, asleep)
	}
}

func (w *ward) in(t *tab, state leasestore.State) {
	w.Helper()
	waitFor(w.T, func() bool { return w.provider.Service(t.terms.ID()) == string(state) })
}

// times are the nanoseconds of each GPU in a lease's records, by UUID.
func (w *ward) times(t *tab) map[string]metering.Nanos {
	w.Helper()
	records, err := w.provider.store.Records.After(w.Context(), t.lease.LeaseID, 0, 1000)
	if err != nil {
		w.Fatal(err)
	}
	sums := make(map[string]metering.Nanos)
	for _, rec := range records {
		for _, d := range rec.Evidence.Devices {
			n := sums[d.Device.UUID]
			n.Allocated += d.Nanos.Allocated
			n.Down += d.Nanos.Down
			n.Gap += d.Nanos.Gap
			n.Paused += d.Nanos.Paused
			n.Active += d.Nanos.Active
			sums[d.Device.UUID] = n
		}
	}
	return sums
}

func (w *ward) want(t *tab, first, second metering.Nanos) {
	w.Helper()
	got := w.times(t)
	if got[sim.UUID(0)] != first || got[sim.UUID(1)] != second {
		w.Errorf("got %+v and %+v, want %+v and %+v", got[sim.UUID(0)], got[sim.UUID(1)], first, second)
	}
}

func (w *ward) metric(name string) string {
	w.Helper()
	rec := httptest.NewRecorder()
	w.provider.Metrics().ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	for line := range strings.Lines(rec.Body.String()) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	w.Fatalf("there is no %s in %s", name, rec.Body)
	return ""
}

func busy(nanos int64) metering.Nanos { return metering.Nanos{Allocated: nanos, Active: nanos} }

// TestMeteringBeginsLate: of two GPUs one is away when a lease begins: the other is
// billed from the first second, and it from when it is there.
func TestMeteringBeginsLate(t *testing.T) {
	w := newWard(t)
	w.host.set(nil, sim.UUID(1))
	lease := w.open(1, 500_000, "?gpus=2")
	w.step(3)
	w.host.set(nil)
	w.step(7)
	lease.release()
	w.want(lease, busy(10e9), metering.Nanos{Allocated: 6e9, Active: 6e9, Down: 4e9})
	if got := w.metric("gpupay_unmetered_leases"); got != "0" {
		t.Errorf("%s leases are unmetered", got)
	}
}

// TestUnmeteredLeaseIsSuspended: a lease none of whose GPUs can be metered is not
// served for longer than MaxGap, says so, and goes on by itself.
func TestUnmeteredLeaseIsSuspended(t *testing.T) {
	t.Parallel()
	for name, sick := range map[string]func(*sickHost){
		"both away":       func(h *sickHost) { h.set(nil, sim.UUID(0), sim.UUID(1)) },
		"listing failing": func(h *sickHost) { h.set(errors.New("driver and library differ")) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWard(t)
			sick(w.host)
			lease := w.open(1, 500_000, "?gpus=2")
			w.step(3) // failed at 0, 1, 2 and 3
			if s := lease.status(leasestore.Suspended); s.Reason != leasing.ReasonUnmetered {
				t.Fatalf("suspended because %q", s.Reason)
			}
			if v := w.provider.leases.Running(lease.terms.ID()).Status.Look(); v.Need != 0 {
				t.Error("a voucher is asked for")
			}
			if got := w.metric("gpupay_unmetered_leases"); got != "1" {
				t.Errorf("%s leases are unmetered", got)
			}
			w.step(2)
			w.host.set(nil, sim.UUID(1)) // one is enough
			w.step(2)                    // 7: two readings that would bill
			w.in(lease, leasestore.Active)
			w.step(4) // the first interval after the pause belongs to it
			lease.release()
			got := w.times(lease)
			second := got[sim.UUID(1)] // its reading at 7 may come before or after the lease goes on
			w.want(lease, metering.Nanos{Allocated: 3e9, Active: 3e9, Down: 3e9, Paused: 5e9}, metering.Nanos{Down: 11e9 - second.Paused, Paused: second.Paused})
		})
	}
}

// TestSamplingThatEndedBeginsAnew: a source that has no more readings for a while,
// as one that is opened again has, costs the provider no more than that while.
func TestSamplingThatEndedBeginsAnew(t *testing.T) {
	w := newWard(t)
	end := func(on bool) { w.host.mu.Lock(); defer w.host.mu.Unlock(); w.host.ended = on }
	lease := w.open(1, 500_000, "")
	w.step(2)
	end(true)
	w.clock.Advance(time.Second)
	w.in(lease, leasestore.Suspended)
	end(false)
	w.in(lease, leasestore.Active) // read again a second later by everybody's clock, at 3
	w.step(3)
	lease.release()
	w.want(lease, metering.Nanos{Allocated: 4e9, Active: 4e9, Paused: 2e9}, metering.Nanos{})
}

// TestUnmeteredLeaseEnds: nobody keeps a GPU that cannot be billed for ever.
func TestUnmeteredLeaseEnds(t *testing.T) {
	w := newWard(t, func(c *Config) { c.Terms.SuspendTimeout = 300 * time.Millisecond })
	w.host.set(nil, sim.UUID(0))
	lease := w.open(1, 500_000, "")
	w.step(3)
	if s := lease.status(leasestore.Ended); !strings.HasPrefix(s.Reason, leasing.ReasonUnmetered+" for") {
		t.Errorf("ended because %q", s.Reason)
	}
	w.want(lease, metering.Nanos{Down: 3e9}, metering.Nanos{})
}

// TestUnmeteredRestart: a lease that was suspended since nothing could meter it is
// not served by the next process before that can.
func TestUnmeteredRestart(t *testing.T) {
	w := newWard(t, func(c *Config) { c.Allocator = hostGPUs(t, 2) })
	lease := w.open(1, 500_000, "")
	w.step(2)
	w.host.set(nil, sim.UUID(0))
	w.step(4)
	w.in(lease, leasestore.Suspended)
	w.restart()
	w.step(1)
	if got := w.provider.Service(lease.terms.ID()); got != wire.StateSuspended {
		t.Errorf("it is %s", got)
	}
	w.host.set(nil)
	w.step(2)
	w.in(lease, leasestore.Active)
}

// TestUnbilledLeaseIsSuspended: every reading is healthy, and no two bill: the lease is served for no longer than MaxGap and a reading,
// its GPU is in quarantine, and it goes on when two readings bill. Where this happens once, it is not suspended.
func TestUnbilledLeaseIsSuspended(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]sim.Fault{
		"xid 119":            {Kind: sim.XID, Code: 119},
		"driver loaded anew": {Kind: sim.Reload},
		"host sleeps":        {Kind: sim.Suspend, For: 200 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWard(t)
			inject := func(second int) {
				f.At = time.Duration(second) * time.Second
				w.host.Inject(f)
			}
			lease := w.open(1, 500_000, "")
			inject(3)
			for second := 10; second <= 30; second++ {
				inject(second)
			}
			w.step(9)
			if got := w.provider.Service(lease.terms.ID()); got != wire.StateActive {
				t.Errorf("after one fault it is %s", got)
			}
			w.step(5) // 14: none billed since 9, and the first that did not was at 10
			if s := lease.status(leasestore.Suspended); s.Reason != leasing.ReasonUnmetered {
				t.Errorf("suspended because %q", s.Reason)
			}
			if _, h := w.health(); !slices.Equal(h.Quarantined, []string{sim.UUID(0)}) || h.Unmetered != 1 {
				t.Errorf("%+v", h)
			}
			w.step(16)
			w.in(lease, leasestore.Suspended)
			w.step(3)
			w.in(lease, leasestore.Active)
			w.step(3)
			lease.release()
			if n := w.times(lease)[sim.UUID(0)]; n.Gap+n.Down > 7e9 || n.Paused < 15e9 || n.Allocated < 8e9 {
				t.Errorf("%+v", n)
			}
			if _, h := w.health(); len(h.Quarantined) != 0 {
				t.Errorf("%s are in quarantine", h.Quarantined)
			}
		})
	}
}

// TestFlappingLeaseEnds: a lease that can be metered for a moment now and then is not kept for longer than SuspendTimeout, all its
// suspensions together.
func TestFlappingLeaseEnds(t *testing.T) {
	w := newWard(t, func(c *Config) { c.Terms.SuspendTimeout = 4 * time.Second })
	lease := w.open(1, 500_000, "")
	w.step(2)
	over := func() bool { return w.provider.leases.Running(lease.terms.ID()) == nil }
	until := func(state leasestore.State) { // or its end
		for tries := 0; tries < 120 && !over() && w.provider.Service(lease.terms.ID()) != string(state); tries++ {
			w.clock.Advance(time.Second)
			waitFor(t, func() bool { return over() || w.clock.Waiting() > 0 })
			time.Sleep(5 * time.Millisecond) // its goroutine suspends and resumes it
		}
	}
	for range 6 {
		w.host.set(nil, sim.UUID(0))
		until(leasestore.Suspended)
		time.Sleep(time.Second)
		w.host.set(nil)
		until(leasestore.Active)
	}
	if s := lease.status(leasestore.Ended); !strings.HasPrefix(s.Reason, leasing.ReasonUnmetered+" for") {
		t.Errorf("ended because %q", s.Reason)
	}
}

// TestUnmeteredRequestIsRefused: a request whose GPUs cannot be metered is not
// served for nothing, and one of the GPU beside them is, whoever hands out GPUs.
func TestUnmeteredRequestIsRefused(t *testing.T) {
	t.Parallel()
	for name, allocator := range map[string]gpu.Allocator{"of the host": nil, "of the operator": struct{ gpu.Allocator }{hostGPUs(t, 2)}} {
		t.Run(name, func(t *testing.T) { unmeteredRequest(t, allocator) })
	}
}

func unmeteredRequest(t *testing.T, allocator gpu.Allocator) {
	host := &sickHost{Source: testclock.GPUs(2)}
	r := newPayRig(t, func(c *Config) { c.Source, c.Allocator = host, allocator })
	mux := http.NewServeMux()
	mux.Handle("/", r.provider)
	ran := make(map[string]int)
	for _, uuid := range []string{sim.UUID(0), sim.UUID(1)} {
		handler, err := r.provider.Metered(Route{Devices: []string{uuid}, MaxTime: time.Second}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			ran[uuid]++
			_, _ = io.WriteString(w, "done")
		}))
		if err != nil {
			t.Fatal(err)
		}
		mux.Handle("/"+uuid, handler)
	}
	r.server.Close()
	r.server = httptest.NewServer(mux)
	for _, sick := range []func(){
		func() { host.set(nil, sim.UUID(0)) },
		func() { host.Inject(sim.Fault{Kind: sim.Lost, Device: 0, For: time.Hour}) },
	} {
		sick()
		b := r.buyer("/" + sim.UUID(0))
		resp := b.pay(b.depositing(b.next(), 100_000))
		if p := wire.ParseProblem(resp); !errors.Is(p, &wire.Unavailable) || ran[sim.UUID(0)] != 0 {
			t.Errorf("answered %v, the handler ran %d times", p, ran[sim.UUID(0)])
		}
		if kept := b.kept(); !kept.Spent.IsZero() {
			t.Errorf("charged %s", kept.Spent.Dec())
		}
	}
	r.provider.leases.Offered.Sick.Fails(sim.UUID(1)) // a request before could not be billed for it
	b := r.buyer("/" + sim.UUID(1))
	if resp := b.pay(b.depositing(b.next(), 100_000)); resp.StatusCode != http.StatusServiceUnavailable || ran[sim.UUID(1)] != 0 {
		t.Errorf("a GPU that rests: %s", resp.Status)
	}
	r.provider.leases.Offered.Sick.Heals(sim.UUID(1))
	b = r.buyer("/" + sim.UUID(1))
	if resp := b.pay(b.depositing(b.next(), 100_000)); resp.StatusCode != http.StatusOK || ran[sim.UUID(1)] != 1 {
		t.Errorf("the GPU beside it: %s", resp.Status)
	}
}
