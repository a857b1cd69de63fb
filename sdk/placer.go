package sdk

import (
	"context"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/wire"
)

// placer puts leases onto devices and takes them back: local by the operator's gpu.Allocator, nodes at the hosts that meter them.
// Of its methods those of gpu.Allocator and gpu.Adopter mean what they mean there.
type placer interface {
	// place returns what a lease was given, and whose key signs its records where a node meters it.
	place(ctx context.Context, req placement) (a gpu.Allocation, meter common.Address, err error)
	Suspend(ctx context.Context, a gpu.Allocation) error
	Resume(ctx context.Context, a gpu.Allocation) error
	Release(ctx context.Context, a gpu.Allocation) error
	// Adopt is errNoAdopter where no allocation outlives the process.
	Adopt(ctx context.Context, a gpu.Allocation) error
}

// placement is what a lease needs: what an allocator is told, and what a node must know to meter it.
type placement struct {
	gpu.Request
	channel channel.State
	offer   wire.SignedOffer
}

// local is the placer of a host: leases are metered by this process.
type local struct{ allocator }

// allocator is an operator's, wrapped so that it can always be asked to adopt.
type allocator interface {
	gpu.Allocator
	gpu.Adopter
}

var _ placer = local{}

func (l local) place(ctx context.Context, req placement) (gpu.Allocation, common.Address, error) {
	a, err := l.Allocate(ctx, req.Request)
	return a, common.Address{}, err
}
