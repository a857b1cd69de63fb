package sharing

import (
	"context"
	"errors"
	"fmt"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering/sampling"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/placement"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Services are a provider's, by the class of their devices.
type Services map[string]*Service

// Sample has the devices of all be read.
func (all Services) Sample(sampler *sampling.Scheduler) error {
	for _, s := range all {
		if err := s.Sample(sampler); err != nil {
			return err
		}
	}
	return nil
}

// CanOpen refuses a lease under an offer to a payer that has as many as it may.
func (all Services) CanOpen(offer wire.SignedOffer, payer common.Address) error {
	s := all[offer.ClassID()]
	if offer.Share == nil || s == nil {
		return nil
	}
	return s.CanOpen(payer)
}

// Admit is Service.Admit of the service whose lease has the token.
func (all Services) Admit(token string) (*Turn, error) {
	err := error(Unknown.With("no lease that runs here has this token"))
	for _, s := range all {
		var t *Turn
		if t, err = s.Admit(token); !errors.Is(err, &Unknown) {
			return t, err
		}
	}
	return nil, err
}

// Allocator is a provider's allocator, beside which services are that no allocator is asked about.
type Allocator struct {
	placement.Allocator
	Services Services
}

// Allocate gives a lease of a class that is shared a token.
func (a Allocator) Allocate(ctx context.Context, req gpu.Request) (gpu.Allocation, error) {
	s := a.Services[req.Class]
	if s == nil {
		return a.Allocator.Allocate(ctx, req)
	}
	if req.GPUs != int(s.config.Share.GPUs) {
		return gpu.Allocation{}, wire.BadRequest.With("each lease here shares %d GPUs, and %d were asked for", s.config.Share.GPUs, req.GPUs)
	}
	return s.Place(req.LeaseID, req.Payer)
}

// Suspend does nothing to what is shared: a lease's requests are refused.
func (a Allocator) Suspend(ctx context.Context, of gpu.Allocation) error {
	if of.Shared {
		return nil
	}
	return a.Allocator.Suspend(ctx, of)
}

// Resume does nothing to what is shared.
func (a Allocator) Resume(ctx context.Context, of gpu.Allocation) error {
	if of.Shared {
		return nil
	}
	return a.Allocator.Resume(ctx, of)
}

// Release takes nothing back of what is shared.
func (a Allocator) Release(ctx context.Context, of gpu.Allocation) error {
	if !of.Shared {
		return a.Allocator.Release(ctx, of)
	}
	for _, s := range a.Services {
		s.Release(of.LeaseID)
	}
	return nil
}

// Adopt goes on with a lease of an earlier process where its service is still there.
func (a Allocator) Adopt(ctx context.Context, of gpu.Allocation) error {
	if !of.Shared {
		return a.Allocator.Adopt(ctx, of)
	}
	err := fmt.Errorf("GPUs %v are not shared here any more", of.Devices)
	for _, s := range a.Services {
		if err = s.Adopt(of); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%w: %w", placement.ErrNoAdopter, err)
}
