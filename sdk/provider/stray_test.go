package provider

import (
	"context"
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
