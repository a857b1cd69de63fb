package sdk

import (
	"context"
	"encoding/json"
	"slices"
	"sync"

	"github.com/ethereum/go-ethereum/common"
)

// namedDevices are the devices of leases that last for one metered request. They
// are used by the handler and given to nobody, so no allocator hears of them.
type namedDevices struct {
	mu      sync.Mutex
	byLease map[common.Hash][]string
}

func (n *namedDevices) put(lease common.Hash, devices []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.byLease == nil {
		n.byLease = make(map[common.Hash][]string)
	}
	n.byLease[lease] = slices.Clone(devices)
}

func (n *namedDevices) drop(lease common.Hash) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.byLease, lease)
}

func (n *namedDevices) of(lease common.Hash) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.byLease[lease]
}

// namedAccess is the access document of such a lease.
const namedAccess = `{"metered":true}`

func forOneRequest(a Allocation) bool { return string(a.Access) == namedAccess }

// namedAllocator is a provider's allocator that lets named devices be.
type namedAllocator struct {
	Allocator
	named *namedDevices
}

var _ Adopter = namedAllocator{}

func (n namedAllocator) Allocate(ctx context.Context, req AllocationRequest) (Allocation, error) {
	if devices := n.named.of(req.LeaseID); devices != nil {
		return Allocation{LeaseID: req.LeaseID, Devices: devices, Access: json.RawMessage(namedAccess)}, nil
	}
	return n.Allocator.Allocate(ctx, req)
}

func (n namedAllocator) Suspend(ctx context.Context, a Allocation) error {
	if forOneRequest(a) {
		return nil
	}
	return n.Allocator.Suspend(ctx, a)
}

func (n namedAllocator) Resume(ctx context.Context, a Allocation) error {
	if forOneRequest(a) {
		return nil
	}
	return n.Allocator.Resume(ctx, a)
}

func (n namedAllocator) Release(ctx context.Context, a Allocation) error {
	if forOneRequest(a) {
		return nil
	}
	return n.Allocator.Release(ctx, a)
}

func (n namedAllocator) Adopt(ctx context.Context, a Allocation) error {
	if forOneRequest(a) {
		return nil
	}
	adopter, ok := n.Allocator.(Adopter)
	if !ok {
		return errNoAdopter
	}
	return adopter.Adopt(ctx, a)
}
