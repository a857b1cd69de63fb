package metering

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/metering/internal/ident"
)

// Lease is what payee and payer agreed on before the first second. Both sides
// fill it in from the signed offer and the channel.
type Lease struct {
	ID         common.Hash
	ChannelID  common.Hash
	OfferHash  common.Hash
	ChainID    uint64
	Escrow     common.Address
	Price      Price       // of one device's time
	OwedBefore uint256.Int // what the channel owed when the lease began
	Devices    []string    // UUIDs

	// MaxGap is the longest unobserved interval that the offer lets the payee
	// bill. A checker refuses evidence metered with a longer one; zero allows any.
	MaxGap time.Duration
	// Tick is how often the offer says that each device is read; zero: any.
	Tick time.Duration
	// Models are the kinds of devices that the offer has, and Simulated says that it
	// has such as are none. A checker refuses time of others; of any if Models is empty.
	Models    []Model
	Simulated bool

	// Share is how leases share the devices. A checker takes time in its slots alone, or
	// none but of devices that the lease has for itself if it is zero.
	Share Share
}

// Validate refuses a lease without devices or with a price that is none.
func (l Lease) Validate() error {
	if err := ident.UUIDs(l.Devices); err != nil {
		return fmt.Errorf("lease %s: %w: %w", l.ID, ErrDevice, err)
	}
	if l.OwedBefore.Gt(maxAmount) {
		return fmt.Errorf("%w: lease %s begins with more owed than a channel can hold", ErrPrice, l.ID)
	}
	if l.Share.Shared() {
		if err := l.Share.Validate(); err != nil {
			return fmt.Errorf("lease %s: %w", l.ID, err)
		}
		if int(l.Share.GPUs) != len(l.Devices) {
			return fmt.Errorf("%w: lease %s has slots of %d GPUs, and %d devices", ErrDevice, l.ID, l.Share.GPUs, len(l.Devices))
		}
	}
	return l.Price.Validate()
}

// Owed is what the channel owes in all when the lease has used nanos.
func (l Lease) Owed(nanos uint64) (uint256.Int, error) {
	charge, err := l.Price.Charge(nanos)
	if err != nil {
		return uint256.Int{}, err
	}
	charge.Add(&charge, &l.OwedBefore)
	if charge.Gt(maxAmount) {
		return uint256.Int{}, fmt.Errorf("%w: lease %s owes more than a channel can hold", ErrPrice, l.ID)
	}
	return charge, nil
}

// Model is a kind of device.
type Model struct {
	Name        string
	MemoryBytes uint64 // to a sixteenth
	MIG         *bool  // whether it is a slice of a GPU; nil: it may be either
}

// Is reports whether a device is of the kind.
func (m Model) Is(d Device) bool {
	return ident.Printable(m.Name) == d.Name && ident.Alike(m.MemoryBytes, d.MemoryBytes) && (m.MIG == nil || *m.MIG == d.MIG)
}

// ErrModel is a device of a kind that a lease's offer does not have.
var ErrModel = errors.New("device is of another kind than the lease's offer has")

// Sells refuses a device that is of none of the Models: nobody pays for a record of it, and it shows that its payee broke the offer.
func (l Lease) Sells(d Device) error {
	if len(l.Models) == 0 || slices.ContainsFunc(l.Models, func(m Model) bool { return m.Is(d) }) {
		return nil
	}
	return fmt.Errorf("%w: %s is a %s, the offer has %v", ErrModel, d.UUID, Model{Name: d.Name, MemoryBytes: d.MemoryBytes, MIG: &d.MIG}, l.Models)
}

// String names the kind as it stands in a refusal.
func (m Model) String() string {
	text := fmt.Sprintf("%s with %d bytes", m.Name, m.MemoryBytes)
	if m.MIG != nil && *m.MIG {
		text += " as a slice"
	}
	return text
}

// Defaults of how often a device is read, and of the longest interval between two
// readings that is billed.
const (
	DefaultTick   = time.Second
	DefaultMaxGap = 3 * time.Second
)

// MinRecordEvery is the shortest time between records that an offer may name.
const MinRecordEvery = 50 * time.Millisecond
