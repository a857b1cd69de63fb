package provider

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Class is a kind of GPUs that has a price of its own. Its GPUs are of one model and of one memory, to a sixteenth: a renter that asks
// for the class gets those, and checks that it is billed for no others.
type Class struct {
	// ID is what renters ask for it by, such as "h100": 1 to 63 of a-z, 0-9 and -.
	ID string
	// Model is what the driver's name of its GPUs contains, in whatever case, such as "H100 80GB HBM3"; ID if empty. A GPU that two
	// classes name is refused, or not rented out where it comes later; one that none names is not rented out.
	Model string
	// MemoryBytes tells GPUs of one name apart; any if zero.
	MemoryBytes uint64
	// MIG has the class be of slices of a GPU, and not of whole ones.
	MIG bool
	// PricePerGPUHour is in units of the token; Config.PricePerGPUHour if empty.
	PricePerGPUHour string
	// Share has leases share all of its GPUs, by slots.
	Share Share
}

// classes are those of a configuration, none where it names none.
func (c Config) classes() (all inventory.Classes) {
	for _, class := range c.Classes {
		all = append(all, inventory.Class{ID: class.ID, Model: cmp.Or(class.Model, class.ID), MemoryBytes: class.MemoryBytes, MIG: class.MIG})
	}
	return all
}

// checkClasses refuses classes that renters could not tell apart.
func (c Config) checkClasses() error {
	for i, class := range c.Classes {
		if err := wire.CheckClassID(class.ID); err != nil {
			return fmt.Errorf("provider: Classes: %w", err)
		}
		if slices.ContainsFunc(c.Classes[:i], func(other Class) bool { return other.ID == class.ID }) {
			return fmt.Errorf("provider: Classes: there are two of the name %s", class.ID)
		}
	}
	return nil
}

// priceOf is the price of a class, as the configuration says it.
func (c Config) priceOf(id string) string {
	for _, class := range c.Classes {
		if class.ID == id {
			return cmp.Or(class.PricePerGPUHour, c.PricePerGPUHour)
		}
	}
	return c.PricePerGPUHour
}
