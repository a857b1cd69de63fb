// Package contain holds in the panics of the operator's own code: its allocator, its metering source, its callbacks. A panic becomes the
// error of what was asked, and does not end the leases of others with the process.
package contain

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/placement"
	"github.com/gpupay/gpupay/sdk/internal/run"
)

// Panic is deferred around the operator's own code: its panic becomes the error of
// the lease that it was about, and does not end the others with the process.
func Panic(log *slog.Logger, what string, err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("%s panicked: %v", what, r)
		log.Error("the operator's code panicked", "what", what, "panic", r, "stack", string(debug.Stack()))
	}
}

// Allocator is an operator's Allocator whose panics are errors.
type Allocator struct {
	gpu.Allocator
	Log *slog.Logger
}

// Allocate releases what a panic left half allocated.
func (t Allocator) Allocate(ctx context.Context, req gpu.Request) (gpu.Allocation, error) {
	returned, after := false, run.After(ctx)
	a, err := func() (a gpu.Allocation, err error) {
		defer Panic(t.Log, "Allocator.Allocate", &err)
		a, err = t.Allocator.Allocate(ctx, req)
		returned = true
		return a, err
	}()
	if !returned {
		undo, cancel := after()
		defer cancel()
		if held := t.Release(undo, gpu.Allocation{LeaseID: req.LeaseID}); held != nil {
			err = fmt.Errorf("%w, and %w: %w", err, gpu.ErrHeld, held)
		}
	}
	return a, err
}

func (t Allocator) Suspend(ctx context.Context, a gpu.Allocation) (err error) {
	defer Panic(t.Log, "Allocator.Suspend", &err)
	return t.Allocator.Suspend(ctx, a)
}

func (t Allocator) Resume(ctx context.Context, a gpu.Allocation) (err error) {
	defer Panic(t.Log, "Allocator.Resume", &err)
	return t.Allocator.Resume(ctx, a)
}

func (t Allocator) Release(ctx context.Context, a gpu.Allocation) (err error) {
	defer Panic(t.Log, "Allocator.Release", &err)
	return t.Allocator.Release(ctx, a)
}

func (t Allocator) Adopt(ctx context.Context, a gpu.Allocation) (err error) {
	defer Panic(t.Log, "Allocator.Adopt", &err)
	adopter, ok := t.Allocator.(gpu.Adopter)
	if !ok {
		return placement.ErrNoAdopter
	}
	return adopter.Adopt(ctx, a)
}

// Remember is for a host's own allocator; others know by themselves what is theirs.
func (t Allocator) Remember(devices []string) {
	if host, ok := t.Allocator.(inventory.Keeper); ok {
		host.Inventory().Remember(devices)
	}
}

// SetAside is for a host's own allocator, too: of another's each lease is refused that begins on such a device.
func (t Allocator) SetAside(ctx context.Context, lease common.Hash, devices []string) (bool, error) {
	host, ok := t.Allocator.(inventory.Keeper)
	if !ok {
		return false, nil
	}
	stock := host.Inventory()
	if len(devices) == 0 {
		return false, stock.Book().Free(ctx, lease)
	}
	here := inventory.Both(devices, stock.Devices())
	if len(here) == 0 {
		return false, nil
	}
	_, err := stock.Book().Reserve(ctx, lease, func(held map[string]common.Hash) ([]string, error) { return inventory.Unheld(held, here), nil })
	return true, err
}

// Liveness is what an allocator says of what it allocated; nil if it does not say.
func Liveness(log *slog.Logger, a gpu.Allocator) func(context.Context, gpu.Allocation) error {
	live, ok := a.(gpu.Liveness)
	if !ok {
		return nil
	}
	return func(ctx context.Context, a gpu.Allocation) (err error) {
		defer Panic(log, "Allocator.Alive", &err)
		return live.Alive(ctx, a)
	}
}

// Free is how many devices an allocator has left; ok is false if it does not say.
func Free(log *slog.Logger, a gpu.Allocator) (n int, ok bool, err error) {
	defer Panic(log, "Allocator.Free", &err)
	c, ok := a.(gpu.Capacity)
	if !ok {
		return 0, false, nil
	}
	return c.Free(), true, nil
}

// Source is an operator's Source whose panics are errors of the device.
func Source(log *slog.Logger, s metering.Source) metering.Source {
	if s == nil {
		return nil
	}
	t := source{s, log}
	if d, ok := s.(metering.Describer); ok {
		return describer{t, d}
	}
	return t
}

type source struct {
	metering.Source
	log *slog.Logger
}

func (t source) Devices(ctx context.Context) (all []metering.Device, err error) {
	defer Panic(t.log, "Source.Devices", &err)
	return t.Source.Devices(ctx)
}

func (t source) Read(ctx context.Context, uuid string) (r metering.Reading, err error) {
	defer Panic(t.log, "Source.Read", &err)
	return t.Source.Read(ctx, uuid)
}

type describer struct {
	source
	described metering.Describer
}

func (t describer) Describe(ctx context.Context, uuid string) (d metering.Device, err error) {
	defer Panic(t.log, "Source.Describe", &err)
	return t.described.Describe(ctx, uuid)
}
