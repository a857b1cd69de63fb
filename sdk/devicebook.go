package sdk

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
)

// deviceBook keeps which devices are in leases, those of metered requests included: a device that is billed to one payer is
// handed to no other. That of gateways that share a database is a table there.
type deviceBook interface {
	// reserve keeps what choose picks, given what is held, for a lease.
	reserve(ctx context.Context, lease common.Hash, choose func(held map[string]common.Hash) ([]string, error)) ([]string, error)
	// keep holds devices for a lease that is about to begin, until it is freed; in a database no longer than ttl, as the
	// process may die. ErrNoCapacity if one is held, but by a lease that is one of its route's.
	keep(ctx context.Context, lease common.Hash, devices []string, route routeLeases, ttl time.Duration) error
	held(ctx context.Context) (map[string]common.Hash, error)
	free(ctx context.Context, lease common.Hash) error
}

// routeLeases reports whether a lease is a request's of one Metered route at this gateway. Its requests run one at a time, and
// those whose deposits are on their way keep the route's devices from all others, not from one another.
type routeLeases func(lease common.Hash) bool

// theseDevices picks devices by name, for deviceBook.reserve: ErrNoCapacity if a lease that is not the route's has one.
func theseDevices(devices []string, route routeLeases) func(held map[string]common.Hash) ([]string, error) {
	return func(held map[string]common.Hash) ([]string, error) {
		for _, device := range devices {
			if other, taken := held[device]; taken && !route(other) {
				return nil, fmt.Errorf("%w: device %s is in lease %s", ErrNoCapacity, device, other)
			}
		}
		return devices, nil
	}
}

// memoryBook is the book of one process. The zero value is one in which nothing is held.
type memoryBook struct {
	mu     sync.Mutex
	leases map[string]common.Hash   // by device
	kept   map[string][]common.Hash // by device: for leases that are about to begin, all of one route
}

var _ deviceBook = (*memoryBook)(nil)

func (b *memoryBook) reserve(_ context.Context, lease common.Hash, choose func(held map[string]common.Hash) ([]string, error)) ([]string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	devices, err := choose(b.all())
	if err != nil {
		return nil, err
	}
	if b.leases == nil {
		b.leases = make(map[string]common.Hash)
	}
	for _, device := range devices {
		b.leases[device] = lease
	}
	return devices, nil
}

func (b *memoryBook) keep(_ context.Context, lease common.Hash, devices []string, route routeLeases, _ time.Duration) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, err := theseDevices(devices, route)(b.all()); err != nil {
		return err
	}
	if b.kept == nil {
		b.kept = make(map[string][]common.Hash)
	}
	for _, device := range devices {
		b.kept[device] = append(b.kept[device], lease)
	}
	return nil
}

// all is what is held, and by whom; of several by one. The caller holds mu.
func (b *memoryBook) all() map[string]common.Hash {
	held := make(map[string]common.Hash, len(b.leases)+len(b.kept))
	for device, leases := range b.kept {
		held[device] = leases[0]
	}
	maps.Copy(held, b.leases)
	return held
}

func (b *memoryBook) held(context.Context) (map[string]common.Hash, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all(), nil
}

func (b *memoryBook) free(_ context.Context, lease common.Hash) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	is := func(holder common.Hash) bool { return holder == lease }
	maps.DeleteFunc(b.leases, func(_ string, holder common.Hash) bool { return is(holder) })
	for device, leases := range b.kept {
		if b.kept[device] = slices.DeleteFunc(leases, is); len(b.kept[device]) == 0 {
			delete(b.kept, device)
		}
	}
	return nil
}
