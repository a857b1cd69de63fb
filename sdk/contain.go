package sdk

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/placement"
	"github.com/gpupay/gpupay/sdk/internal/run"
	"github.com/gpupay/gpupay/sdk/settle"
)

// contain is deferred around the operator's own code: its panic becomes the error of
// the lease that it was about, and does not end the others with the process.
func contain(log *slog.Logger, what string, err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("%s panicked: %v", what, r)
		log.Error("the operator's code panicked", "what", what, "panic", r, "stack", string(debug.Stack()))
	}
}

// tameAllocator is an operator's Allocator whose panics are errors.
type tameAllocator struct {
	gpu.Allocator
	log *slog.Logger
}

// Allocate releases what a panic left half allocated.
func (t tameAllocator) Allocate(ctx context.Context, req gpu.Request) (gpu.Allocation, error) {
	returned, after := false, run.After(ctx)
	a, err := func() (a gpu.Allocation, err error) {
		defer contain(t.log, "Allocator.Allocate", &err)
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

func (t tameAllocator) Suspend(ctx context.Context, a gpu.Allocation) (err error) {
	defer contain(t.log, "Allocator.Suspend", &err)
	return t.Allocator.Suspend(ctx, a)
}

func (t tameAllocator) Resume(ctx context.Context, a gpu.Allocation) (err error) {
	defer contain(t.log, "Allocator.Resume", &err)
	return t.Allocator.Resume(ctx, a)
}

func (t tameAllocator) Release(ctx context.Context, a gpu.Allocation) (err error) {
	defer contain(t.log, "Allocator.Release", &err)
	return t.Allocator.Release(ctx, a)
}

func (t tameAllocator) Adopt(ctx context.Context, a gpu.Allocation) (err error) {
	defer contain(t.log, "Allocator.Adopt", &err)
	adopter, ok := t.Allocator.(gpu.Adopter)
	if !ok {
		return placement.ErrNoAdopter
	}
	return adopter.Adopt(ctx, a)
}

// Remember is for a host's own allocator; others know by themselves what is theirs.
func (t tameAllocator) Remember(devices []string) {
	if host, ok := t.Allocator.(inventory.Keeper); ok {
		host.Inventory().Remember(devices)
	}
}

// liveness is what an allocator says of what it allocated; nil if it does not say.
func liveness(log *slog.Logger, a gpu.Allocator) func(context.Context, gpu.Allocation) error {
	live, ok := a.(gpu.Liveness)
	if !ok {
		return nil
	}
	return func(ctx context.Context, a gpu.Allocation) (err error) {
		defer contain(log, "Allocator.Alive", &err)
		return live.Alive(ctx, a)
	}
}

// free is how many devices an allocator has left; ok is false if it does not say.
func free(log *slog.Logger, a gpu.Allocator) (n int, ok bool, err error) {
	defer contain(log, "Allocator.Free", &err)
	c, ok := a.(gpu.Capacity)
	if !ok {
		return 0, false, nil
	}
	return c.Free(), true, nil
}

// tame is an operator's Source whose panics are errors of the device.
func tame(log *slog.Logger, s metering.Source) metering.Source {
	if s == nil {
		return nil
	}
	t := tameSource{s, log}
	if d, ok := s.(metering.Describer); ok {
		return tameDescriber{t, d}
	}
	return t
}

type tameSource struct {
	metering.Source
	log *slog.Logger
}

func (t tameSource) Devices(ctx context.Context) (all []metering.Device, err error) {
	defer contain(t.log, "Source.Devices", &err)
	return t.Source.Devices(ctx)
}

func (t tameSource) Read(ctx context.Context, uuid string) (r metering.Reading, err error) {
	defer contain(t.log, "Source.Read", &err)
	return t.Source.Read(ctx, uuid)
}

type tameDescriber struct {
	tameSource
	describer metering.Describer
}

func (t tameDescriber) Describe(ctx context.Context, uuid string) (d metering.Device, err error) {
	defer contain(t.log, "Source.Describe", &err)
	return t.describer.Describe(ctx, uuid)
}

// settled tells the operator of a settlement. It is on the chain and in the books
// whatever that does.
func (p *Provider) settled(s settle.Settlement) {
	var err error // logged
	defer contain(p.config.Log, "ProviderConfig.OnSettled", &err)
	if p.config.OnSettled != nil {
		p.config.OnSettled(s)
	}
}
