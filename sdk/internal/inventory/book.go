// Package inventory knows of a provider's GPUs which are held by which lease, and which of them work.
package inventory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
)

// ErrNoCapacity is that there are fewer free devices than are wanted.
var ErrNoCapacity = errors.New("no free GPU")

// ErrTaken is a device that was given back since: to give it back once more would
// take it from the next renter.
var ErrTaken = errors.New("its device is in a later lease")

// Keeper is an allocator that says in which book its devices are: gpu.HostAllocator, also where it is embedded.
type Keeper interface{ Inventory() Inventory }

// Inventory is what of an allocator's devices concerns others than itself.
type Inventory interface {
	Book() Book              // of the devices that are rented out here
	Share(Book)              // has several processes rent out the same devices, each to one lease
	Devices() []string       // all of the host, those included that are away
	Remember([]string)       // takes devices for the host's, whether it lists them or not: a lease that ran here has them
	Quarantine() *Quarantine // of devices that are not handed out meanwhile
	Sell(*Kinds)             // says which devices are rented out
	Free(of []string) int    // how many of some devices are in no lease, and work
}

// Book keeps which devices are in leases, those of metered requests included: a device that is billed to one payer is
// handed to no other. That of gateways that share a database is a table there.
type Book interface {
	// Reserve keeps what choose picks, given what is held, for a lease.
	Reserve(ctx context.Context, lease common.Hash, choose func(held map[string]common.Hash) ([]string, error)) ([]string, error)
	// Keep holds devices for a lease that is about to begin, until it is freed; in a database no longer than ttl, as the
	// process may die. ErrNoCapacity if one is held, but by a lease that is one of its route's.
	Keep(ctx context.Context, lease common.Hash, devices []string, route Route, ttl time.Duration) error
	// Held is which lease each device is held by, where it is.
	Held(ctx context.Context) (map[string]common.Hash, error)
	// Free ends what is held by a lease.
	Free(ctx context.Context, lease common.Hash) error
}

// Route reports whether a lease is a request's of one Metered route at this gateway. Its requests run one at a time, and
// those whose deposits are on their way keep the route's devices from all others, not from one another.
type Route func(lease common.Hash) bool

// These picks devices by name, for Book.Reserve: ErrNoCapacity if a lease that is not the route's has one.
func These(devices []string, route Route) func(held map[string]common.Hash) ([]string, error) {
	return func(held map[string]common.Hash) ([]string, error) {
		for _, device := range devices {
			if other, taken := held[device]; taken && !route(other) {
				return nil, fmt.Errorf("%w: device %s is in lease %s", ErrNoCapacity, device, other)
			}
		}
		return devices, nil
	}
}

// Memory is the book of one process. The zero value is one in which nothing is held.
type Memory struct {
	mu     sync.Mutex
	leases map[string]common.Hash   // by device
	kept   map[string][]common.Hash // by device: for leases that are about to begin, all of one route
}

var _ Book = (*Memory)(nil)

// Reserve keeps what choose picks.
func (b *Memory) Reserve(_ context.Context, lease common.Hash, choose func(held map[string]common.Hash) ([]string, error)) ([]string, error) {
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

// Keep holds devices until they are freed: they end with the process.
func (b *Memory) Keep(_ context.Context, lease common.Hash, devices []string, route Route, _ time.Duration) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, err := These(devices, route)(b.all()); err != nil {
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
func (b *Memory) all() map[string]common.Hash {
	held := make(map[string]common.Hash, len(b.leases)+len(b.kept))
	for device, leases := range b.kept {
		held[device] = leases[0]
	}
	maps.Copy(held, b.leases)
	return held
}

// Held is what is held, of several leases by one.
func (b *Memory) Held(context.Context) (map[string]common.Hash, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all(), nil
}

// Free ends what is held by a lease.
func (b *Memory) Free(_ context.Context, lease common.Hash) error {
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

// Without are the devices that are not among others.
func Without(devices, others []string) []string {
	return slices.DeleteFunc(slices.Clone(devices), func(uuid string) bool { return slices.Contains(others, uuid) })
}

// Unheld are the devices that are in no lease.
func Unheld(held map[string]common.Hash, devices []string) []string {
	return slices.DeleteFunc(slices.Clone(devices), func(uuid string) bool { _, taken := held[uuid]; return taken })
}
