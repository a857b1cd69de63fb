package x402scheme

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/placement"
	"github.com/gpupay/gpupay/sdk/internal/reserve"
	"github.com/gpupay/gpupay/sdk/internal/serve"
)

// Named are the devices of leases that last for one metered request. They are used by the handler and given to nobody, so
// that no command of an allocator is run for them; but they are in its book, where it has one.
type Named struct {
	byLease sync.Map         // *meteredRoute
	Own     inventory.Memory // where the allocator has no book, and no database is shared

	mu     sync.Mutex
	routed []string // those of any route

	turn sync.Mutex // held while the book is looked at and written for requests, so that what a route has does not change in between
}

func (n *Named) put(lease common.Hash, m *meteredRoute) { n.byLease.Store(lease, m) }

func (n *Named) drop(lease common.Hash) { n.byLease.Delete(lease) }

// of is the route whose request a lease is; nil if it is none's.
func (n *Named) of(lease common.Hash) *meteredRoute {
	m, _ := n.byLease.Load(lease)
	route, _ := m.(*meteredRoute)
	return route
}

// route notes devices that a route asks for, and returns those of all routes.
func (n *Named) route(devices ...string) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.routed = append(n.routed, inventory.Without(devices, n.routed)...)
	return slices.Clone(n.routed)
}

// leases are those of a route: what runs for its requests, and what is kept for those whose deposits are on their way.
func (m *meteredRoute) leases(lease common.Hash) bool { return m.d.Named.of(lease) == m }

// vacant is ErrNoCapacity where a device is in a lease that is not the route's, or would be missing to those whose deposits are
// on their way.
func (d *metered) vacant(ctx context.Context, id common.Hash, m *meteredRoute) error {
	held, err := d.Devices().Held(ctx)
	if err == nil {
		_, err = inventory.These(m.Devices, m.leases)(held)
	}
	if err == nil {
		err = d.Leases.CheckFree(ctx, m.Devices, m.leases)
	}
	if n := d.rented(inventory.Unheld(held, m.Devices)); err == nil && n > 0 {
		err = d.GPUs.Room(ctx, m.Class, id, n, 0)
	}
	return err
}

// rented is how many of a route's devices the allocator hands out as well.
func (d *metered) rented(devices []string) int {
	a, ok := d.Allocator.(inventory.Keeper)
	if !ok {
		return 0
	}
	return len(devices) - len(inventory.Without(devices, a.Inventory().Devices()))
}

// keepDevices keeps a metered request's devices while its deposit is on its way, and until its turn at the route comes: from all but
// the route's other requests, which run meanwhile. That nobody else's deposit is counted on them is asked first, and as many are
// kept until they are in the book.
func (d *metered) keepDevices(ctx context.Context, r *Request) error {
	if r.lease != (common.Hash{}) {
		return nil
	}
	d.Named.turn.Lock()
	defer d.Named.turn.Unlock()
	m, lease := r.metered, reserve.NewLease()
	if err := d.Leases.CheckFree(ctx, m.Devices, m.leases); err != nil {
		return err
	}
	held, err := d.Devices().Held(ctx)
	if err != nil {
		return err
	}
	if n := d.rented(inventory.Unheld(held, m.Devices)); n > 0 {
		seat, err := d.GPUs.Reserve(ctx, m.Class, r.ID, n, 0)
		if err != nil {
			return err
		}
		defer seat.Release()
		lease = seat.Lease
	}
	d.Named.put(lease, m)
	if err := d.keepOn(ctx, m, lease); err != nil {
		d.Named.drop(lease)
		return err
	}
	r.lease = lease
	return nil
}

// keepFor is how long devices are kept in a database for a request whose process may have died.
func (d *metered) keepFor() time.Duration {
	return d.OpenTimeout + d.CallTimeout + serve.BodyTimeout
}

// keepOn keeps a route's devices for a lease, once more where they were.
func (d *metered) keepOn(ctx context.Context, m *meteredRoute, lease common.Hash) error {
	return d.Devices().Keep(ctx, lease, m.Devices, m.leases, d.keepFor())
}

// letGo frees what was kept for a request whose lease did not begin.
func (d *metered) letGo(ctx context.Context, r *Request) {
	if r.lease == (common.Hash{}) {
		return
	}
	d.Named.turn.Lock()
	defer d.Named.turn.Unlock()
	defer d.Named.drop(r.lease)
	if err := d.Devices().Free(ctx, r.lease); err != nil {
		d.Log.Warn("devices were not given back: that ends by itself", "channel", r.ID, "error", err)
	}
}

// NamedAllocator is a provider's allocator that runs nothing for named devices, and keeps them from others.
type NamedAllocator struct {
	placement.Allocator
	Named *Named
	Book  func() inventory.Book
}

// Allocate gives a metered request the devices of its route, and any other lease what the allocator does, those of no route first.
func (n NamedAllocator) Allocate(ctx context.Context, req gpu.Request) (gpu.Allocation, error) {
	if m := n.Named.of(req.LeaseID); m != nil {
		n.Named.turn.Lock()
		defer n.Named.turn.Unlock()
		_, err := n.Book().Reserve(ctx, req.LeaseID, inventory.These(m.Devices, m.leases))
		return gpu.Allocation{LeaseID: req.LeaseID, Devices: slices.Clone(m.Devices), Access: json.RawMessage(placement.RequestAccess)}, err
	}
	req.Routed = n.Named.route()
	return n.Allocator.Allocate(ctx, req)
}

// Suspend is nothing for named devices: the request ends.
func (n NamedAllocator) Suspend(ctx context.Context, a gpu.Allocation) error {
	if placement.ForOneRequest(a) {
		return nil
	}
	return n.Allocator.Suspend(ctx, a)
}

// Resume is nothing for named devices.
func (n NamedAllocator) Resume(ctx context.Context, a gpu.Allocation) error {
	if placement.ForOneRequest(a) {
		return nil
	}
	return n.Allocator.Resume(ctx, a)
}

// Release takes devices back.
func (n NamedAllocator) Release(ctx context.Context, a gpu.Allocation) error {
	if placement.ForOneRequest(a) {
		n.Named.turn.Lock()
		defer n.Named.turn.Unlock()
		return n.Book().Free(ctx, a.LeaseID)
	}
	return n.Allocator.Release(ctx, a)
}

// Adopt takes up what an earlier process ran: of named devices there is nothing to take up.
func (n NamedAllocator) Adopt(ctx context.Context, a gpu.Allocation) error {
	if placement.ForOneRequest(a) {
		return nil
	}
	return n.Allocator.Adopt(ctx, a)
}
