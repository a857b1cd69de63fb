package sdk

import (
	"context"
	"fmt"
	"maps"
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
	// process may die. ErrNoCapacity if one is held.
	keep(ctx context.Context, lease common.Hash, devices []string, ttl time.Duration) error
	held(ctx context.Context) (map[string]common.Hash, error)
	free(ctx context.Context, lease common.Hash) error
}

// theseDevices picks devices by name, for deviceBook.reserve: ErrNoCapacity if another lease has one.
func theseDevices(lease common.Hash, devices []string) func(held map[string]common.Hash) ([]string, error) {
	return func(held map[string]common.Hash) ([]string, error) {
		for _, device := range devices {
			if other, taken := held[device]; taken && other != lease {
				return nil, fmt.Errorf("%w: device %s is in lease %s", ErrNoCapacity, device, other)
			}
		}
		return devices, nil
	}
}

// memoryBook is the book of one process. The zero value is one in which nothing is held.
type memoryBook struct {
	mu     sync.Mutex
	leases map[string]common.Hash // by device
}

var _ deviceBook = (*memoryBook)(nil)

func (b *memoryBook) reserve(_ context.Context, lease common.Hash, choose func(held map[string]common.Hash) ([]string, error)) ([]string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	devices, err := choose(b.leases)
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

func (b *memoryBook) keep(ctx context.Context, lease common.Hash, devices []string, _ time.Duration) error {
	_, err := b.reserve(ctx, lease, theseDevices(lease, devices))
	return err
}

func (b *memoryBook) held(context.Context) (map[string]common.Hash, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.leases), nil
}

func (b *memoryBook) free(_ context.Context, lease common.Hash) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.DeleteFunc(b.leases, func(_ string, holder common.Hash) bool { return holder == lease })
	return nil
}
