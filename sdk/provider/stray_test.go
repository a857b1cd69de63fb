package provider

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// forgetful is an allocator that does not know who has a device, and does as it is told.
type forgetful struct {
	*gpu.HostAllocator
	mu       sync.Mutex
	released []gpu.Allocation
	before   func(gpu.Allocation) // it takes something back
}

func (f *forgetful) Adopt(context.Context, gpu.Allocation) error { return nil }

func (f *forgetful) Release(ctx context.Context, a gpu.Allocation) error {
	if f.before != nil {
		f.before(a)
	}
	f.mu.Lock()
	f.released = append(f.released, a)
	f.mu.Unlock()
	return f.HostAllocator.Release(ctx, a)
}

// stray leaves on disk a lease that could not be begun.
func (t *tab) stray(id byte, devices ...string) {
	t.Helper()
	a := gpu.Allocation{LeaseID: common.Hash{id}, Devices: devices}
	row := leasestore.Row{ID: a.LeaseID.Hex(), Channel: common.Hash{id, 1}.Hex(), Offer: t.row().Offer, GPUs: len(devices), OwedBefore: "0", State: wire.StateAllocating, StartedAt: int64(id)}
	err := row.Allocate(&a)
	if err == nil {
		err = t.provider.store.Leases.Insert(t.Context(), row)
	}
	if err == nil {
		err = t.provider.store.Leases.SetState(t.Context(), a.LeaseID, 0, leasestore.Active, "", 0)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (t *tab) ended(id byte) {
	t.Helper()
	eventually(t.T, "the stray has ended", func() bool {
		row, err := t.provider.store.Leases.ByID(t.Context(), common.Hash{id}.Hex())
		return err == nil && row.State == wire.StateEnded && row.Held == 0
	})
}

// TestStrayTakesNothingFromWhoRuns: a lease that could not be begun, and is on disk all the same, is ended; what it was given and another lease has
// stays with that one, which runs on, and the rest is taken back.
func TestStrayTakesNothingFromWhoRuns(t *testing.T) {
	f := &forgetful{HostAllocator: hostGPUs(t, 3)}
	r := newRig(t, generousCredit, func(c *Config) {
		c.Source, c.Allocator, c.Commands.Timeout = testclock.GPUs(3), f, 300*time.Millisecond
	})
	lease := r.open(1, 300_000, "")
	lease.record()
	has, other := lease.lease.Devices[0], "SIM-GPU-2"
	lease.stray(7, has)
	lease.stray(8, other, has)
	lease.ended(7)
	lease.ended(8)
	f.mu.Lock()
	if len(f.released) != 1 || f.released[0].LeaseID != (common.Hash{8}) || !slices.Equal(f.released[0].Devices, []string{other}) {
		t.Errorf("the devices of %v were taken back, lease %s runs on %s", f.released, lease.lease.LeaseID, has)
	}
	f.mu.Unlock()
	lease.record()
	lease.pay(owedIn(lease.release()))
}

// TestStrayTakesNothingFromWhoBegins: a lease that begins while strays are ended, and something of an earlier one is slow, keeps what it was given.
func TestStrayTakesNothingFromWhoBegins(t *testing.T) {
	slow, begun, once := make(chan struct{}), make(chan struct{}), sync.Once{}
	f := &forgetful{HostAllocator: hostGPUs(t, 3), before: func(a gpu.Allocation) {
		if a.LeaseID == (common.Hash{7}) {
			once.Do(func() { close(slow) })
			<-begun
		}
	}}
	r := newRig(t, generousCredit, func(c *Config) { c.Source, c.Allocator, c.Commands.Timeout = testclock.GPUs(3), f, time.Second })
	first := r.open(1, 300_000, "")
	first.record()
	first.stray(7, "SIM-GPU-2")
	first.stray(8, "SIM-GPU-0", "SIM-GPU-1") // of which the first has one
	<-slow
	lease := r.open(2, 300_000, "")
	lease.record()
	close(begun)
	first.ended(7)
	first.ended(8)
	f.mu.Lock()
	for _, a := range f.released {
		if !slices.Equal(a.Devices, []string{"SIM-GPU-2"}) {
			t.Errorf("devices %v were taken back, and leases run on %v and %v", a.Devices, first.lease.Devices, lease.lease.Devices)
		}
	}
	f.mu.Unlock()
	lease.record()
}

// slowHands take a while to take devices back, and count the calls, and how many of them there are for one lease at once.
type slowHands struct {
	*gpu.HostAllocator
	take time.Duration

	mu        sync.Mutex
	now, most int
	calls     []string
}

func (s *slowHands) count(command string, by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now += by; by > 0 {
		s.most, s.calls = max(s.most, s.now), append(s.calls, command)
	}
}

func (s *slowHands) Suspend(ctx context.Context, a gpu.Allocation) error {
	s.count("suspend", 1)
	defer s.count("suspend", -1)
	time.Sleep(s.take)
	return s.HostAllocator.Suspend(ctx, a)
}

func (s *slowHands) Release(ctx context.Context, a gpu.Allocation) error {
	s.count("release", 1)
	defer s.count("release", -1)
	time.Sleep(s.take)
	return s.HostAllocator.Release(ctx, a)
}

// TestNodeThatForgotTakesBackOnce: a node that ends a lease of which its spool has forgotten records takes the devices back once, however slow its
// command is, and whoever else looks for leases that do not run meanwhile: else one call runs on when the next renter has them.
func TestNodeThatForgotTakesBackOnce(t *testing.T) {
	o := newOutpost(t)
	o.stop()
	host, err := gpu.NewHostAllocator(t.Context(), o.config.Source)
	if err != nil {
		t.Fatal(err)
	}
	hands := &slowHands{HostAllocator: host, take: 950 * time.Millisecond}
	o.config.Log, o.config.Allocator, o.config.CommandTimeout = slog.New(slog.DiscardHandler), hands, time.Second // so often strays are looked for
	o.start()
	r := newRig(t, quiet, o.link, generousCredit)
	lease := r.open(1, 500_000, "")
	lease.record()
	r.shut()
	ahead := []byte(`{"accepted":"0","deposit":"500000","after":1000000}`)
	for range 2 { // a gateway asks again
		if resp := o.knock("POST", "/leases/"+lease.lease.LeaseID.Hex()+"/sync", ahead); resp.StatusCode != http.StatusConflict {
			t.Error(resp.Status)
		}
	}
	row := o.wait(lease.lease.LeaseID, leasestore.Ended)
	eventually(t, "its devices are free", func() bool { return host.Free() == 2 })
	time.Sleep(hands.take) // a second call would have ended by then
	hands.mu.Lock()
	defer hands.mu.Unlock()
	if len(hands.calls) != 1 || hands.most != 1 || row.Held != 0 || row.Reason != leasestore.ErrRolledBack.Error() {
		t.Errorf("%v, %d at once; held %d, ended because %q", hands.calls, hands.most, row.Held, row.Reason)
	}
}
