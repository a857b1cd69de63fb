package provider

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// forgetful is an allocator that does not know who has a device, and does as it is told.
type forgetful struct {
	*gpu.HostAllocator
	mu       sync.Mutex
	released []common.Hash
}

func (f *forgetful) Adopt(context.Context, gpu.Allocation) error { return nil }

func (f *forgetful) Release(ctx context.Context, a gpu.Allocation) error {
	f.mu.Lock()
	f.released = append(f.released, a.LeaseID)
	f.mu.Unlock()
	return f.HostAllocator.Release(ctx, a)
}

// TestStrayTakesNothingFromWhoRuns: a lease that could not be begun, and is on disk all the same, is ended; what it was given and another lease has
// stays with that one, which runs on.
func TestStrayTakesNothingFromWhoRuns(t *testing.T) {
	f := &forgetful{HostAllocator: hostGPUs(t, 2)}
	r := newRig(t, generousCredit, func(c *Config) { c.Allocator, c.Commands.Timeout = f, 300*time.Millisecond })
	lease := r.open(1, 300_000, "")
	lease.record()
	stray, err := r.provider.store.Leases.ByID(t.Context(), lease.lease.LeaseID.Hex())
	if err != nil {
		t.Fatal(err)
	}
	other := common.Hash{7}
	a := gpu.Allocation{LeaseID: other, Devices: lease.lease.Devices}
	stray.ID, stray.StartedAt, stray.State = other.Hex(), stray.StartedAt-1, wire.StateAllocating
	stray.Channel = common.Hash{8}.Hex()
	if err = stray.Allocate(&a); err == nil {
		err = r.provider.store.Leases.Insert(t.Context(), stray)
	}
	if err == nil {
		err = r.provider.store.Leases.SetState(t.Context(), other, 0, leasestore.Active, "", 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has ended", func() bool {
		row, err := r.provider.store.Leases.ByID(t.Context(), other.Hex())
		return err == nil && row.State == wire.StateEnded && row.Held == 0
	})
	f.mu.Lock()
	if len(f.released) > 0 {
		t.Errorf("the devices of %v were taken back", f.released)
	}
	f.mu.Unlock()
	lease.record()
	lease.pay(owedIn(lease.release()))
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
