package placement

import (
	"context"
	"errors"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Placer puts leases onto devices and takes them back: local by the operator's gpu.Allocator, nodes at the hosts that meter them.
// Of its methods those of gpu.Allocator and gpu.Adopter mean what they mean there.
type Placer interface {
	// place returns what a lease was given, and whose key signs its records where a node meters it.
	Place(ctx context.Context, req Request) (a gpu.Allocation, meter common.Address, err error)
	Suspend(ctx context.Context, a gpu.Allocation) error
	Resume(ctx context.Context, a gpu.Allocation) error
	Release(ctx context.Context, a gpu.Allocation) error
	// Adopt is ErrNoAdopter where no allocation outlives the process.
	Adopt(ctx context.Context, a gpu.Allocation) error
}

// Request is what a lease needs: what an allocator is told, and what a node must know to meter it.
type Request struct {
	gpu.Request
	Channel channel.State
	Offer   wire.SignedOffer
}

// ErrNoAdopter is a lease whose devices nobody can go on with.
var ErrNoAdopter = errors.New("the allocator cannot adopt it")

// Local is the placer of a host: leases are metered by this process.
type Local struct{ Allocator }

// Allocator is an operator's, wrapped so that it can always be asked to adopt.
type Allocator interface {
	gpu.Allocator
	gpu.Adopter
}

var _ Placer = Local{}

func (l Local) Place(ctx context.Context, req Request) (gpu.Allocation, common.Address, error) {
	a, err := l.Allocate(ctx, req.Request)
	return a, common.Address{}, err
}

// RequestAccess is the access document of such a lease.
const RequestAccess = `{"metered":true}`

func ForOneRequest(a gpu.Allocation) bool { return string(a.Access) == RequestAccess }
