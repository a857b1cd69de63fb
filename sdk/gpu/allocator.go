// Package gpu puts GPUs into renters' hands and takes them back. Allocator is what a
// provider implements over whatever it rents out; HostAllocator is a ready one for
// this host's GPUs.
package gpu

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/internal/inventory"
)

// ErrNoCapacity is returned by an Allocator that has no free devices.
var ErrNoCapacity = inventory.ErrNoCapacity

// ErrHeld is among the errors of an Allocate that failed and could not take back what it had begun: Release is called for the lease
// until it succeeds.
var ErrHeld = errors.New("what was begun could not be taken back yet")

// Allocator puts devices into a renter's hands and takes them back. The
// provider implements it over whatever it rents out: containers, virtual
// machines, bare hosts. HostAllocator is a ready one for this host's GPUs.
//
// Calls for one lease never overlap. An error of Suspend ends the lease: a
// lease that cannot be suspended would run on unpaid.
type Allocator interface {
	// Allocate returns when the devices are ready in the renter's hands:
	// metering starts then. ErrNoCapacity if there are not enough.
	Allocate(ctx context.Context, req Request) (Allocation, error)
	// Suspend stops the renter's use of the devices and keeps its state.
	Suspend(ctx context.Context, a Allocation) error
	// Resume undoes Suspend. A process that goes on with a lease of an earlier one
	// calls it first, since that may have suspended it: where it refuses what is not
	// suspended, Suspend is called and Resume again.
	Resume(ctx context.Context, a Allocation) error
	// Release takes the devices back for good. It is called for every
	// allocation, also for one whose Allocate was cut off by a crash (then
	// Devices may be empty), and may be called twice.
	Release(ctx context.Context, a Allocation) error
}

// Adopter is implemented by an Allocator whose allocations outlive the
// provider's process. Without it, leases of an earlier run are ended when the
// provider starts.
type Adopter interface {
	// Adopt takes up an allocation that an earlier process made.
	Adopt(ctx context.Context, a Allocation) error
}

// Capacity is implemented by an Allocator that knows how many devices are
// free, so that a renter is turned away before its money moves.
type Capacity interface {
	Free() int
}

// ErrDead is what a Liveness says of an allocation that does not run any more.
var ErrDead = errors.New("it is not alive")

// Liveness is implemented by an Allocator that can tell whether what it allocated
// still runs. A lease that is not alive is suspended and not billed; it goes on when
// it is alive again, and ends after SuspendTimeout. Then Suspend may fail, and
// Resume must succeed on what is not suspended.
type Liveness interface {
	// Alive returns nil for what is alive, suspended or not, and ErrDead for what is
	// not. Any other error says that nobody knows, and changes nothing. It may be
	// called while another call for the lease is under way.
	Alive(ctx context.Context, a Allocation) error
}

// Request says what a lease needs.
type Request struct {
	LeaseID common.Hash
	Payer   common.Address
	GPUs    int   // how many, at least 1
	Term    int64 // fencing token of the call, as Allocation has it

	// Class is the kind of devices that the lease pays for, and Devices are those of it: what is given of others is taken back, and
	// the lease does not begin. Empty where all that the provider rents out are of one kind.
	Class   string
	Devices []string

	// Routed are the devices of this provider's Metered routes. A route answers 503 for as long as a lease has one of its
	// devices: where others are free a lease is given those.
	Routed []string
}

// Allocation is what a lease was given.
type Allocation struct {
	LeaseID common.Hash     `json:"leaseId"`
	Devices []string        `json:"devices"`          // UUIDs, as the metering source names them
	Access  json.RawMessage `json:"access"`           // how to reach them: any JSON, handed to the renter as it is
	Node    string          `json:"node,omitempty"`   // that meters them, as the gateway notes it: an Allocator leaves it empty
	Shared  bool            `json:"shared,omitempty"` // other leases have them too, by slots, as the provider notes it: an Allocator is not asked
	Term    int64           `json:"-"`                // fencing token of the call, where gateways share a database: it grows with each owner of the lease
}
