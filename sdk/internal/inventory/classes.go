package inventory

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/gpupay/gpupay/metering"
)

// Class is a kind of devices that has a price of its own, as an operator tells it from others.
type Class struct {
	ID          string // what renters ask for it by
	Model       string // what the driver's name of them contains, in whatever case
	MemoryBytes uint64 // to a sixteenth; 0: any
	MIG         bool   // slices of a GPU, and not whole ones
}

// names reports whether a device is one of the class.
func (c Class) names(d metering.Device) bool {
	far := max(c.MemoryBytes, d.MemoryBytes) - min(c.MemoryBytes, d.MemoryBytes)
	return c.MIG == d.MIG && (c.MemoryBytes == 0 || far <= c.MemoryBytes/16) && strings.Contains(strings.ToLower(d.Name), strings.ToLower(c.Model))
}

// Classes are those of a provider; none: all that it rents out is of one kind, and has one price.
type Classes []Class

// IDs are the names of the classes, and one empty name where there are none.
func (all Classes) IDs() []string {
	if len(all) == 0 {
		return []string{""}
	}
	var ids []string
	for _, c := range all {
		ids = append(ids, c.ID)
	}
	return ids
}

// Of is the class of a device: the empty one where there are none. It is false for a device of no class, or of two, which is not rented out:
// nobody said for which price.
func (all Classes) Of(d metering.Device) (id string, ok bool) {
	if len(all) == 0 {
		return "", true
	}
	if named := all.naming(d); len(named) == 1 {
		return named[0].ID, true
	}
	return "", false
}

// naming are the classes that name a device.
func (all Classes) naming(d metering.Device) Classes {
	return slices.DeleteFunc(slices.Clone(all), func(c Class) bool { return !c.names(d) })
}

// ambiguous refuses a device that two classes name.
func (all Classes) ambiguous(d metering.Device) error {
	if named := all.naming(d); len(named) > 1 {
		return fmt.Errorf("%s is a %s, which both class %s and class %s name: say Model more exactly, or MemoryBytes", d.UUID, d.Name, named[0].ID, named[1].ID)
	}
	return nil
}

// Check refuses devices that one price would sell though they are of several kinds: who pays for a whole GPU may get a slice. It also
// refuses one that two classes name.
func (all Classes) Check(devices []metering.Device) error {
	of := make(map[string][]metering.Device)
	for _, d := range devices {
		if err := all.ambiguous(d); err != nil {
			return err
		}
		if id, ok := all.Of(d); ok {
			of[id] = append(of[id], d)
		}
	}
	for _, id := range all.IDs() {
		if err := OfOneKind(of[id]); err != nil && id != "" {
			return fmt.Errorf("class %s: %w", id, err)
		} else if err != nil {
			return fmt.Errorf("%w, or give each kind a class with a price", err)
		}
	}
	return nil
}

// Kinds is what a host rents out: of each class devices that are of one kind with the first of the class. The zero value has no
// classes.
type Kinds struct {
	Classes Classes
	Log     *slog.Logger // says once of a device that comes later, and that Check would have refused, that it is not rented out; nil: nobody hears of it

	mu    sync.Mutex
	first map[string]metering.Device // of each class
	said  map[string]bool            // by device
}

// Of is the class of a device, false for one that is not rented out.
func (k *Kinds) Of(d metering.Device) (id string, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if id, ok = k.Classes.Of(d); !ok {
		k.leave(d, k.Classes.ambiguous(d))
		return "", false
	}
	first, known := k.first[id]
	switch {
	case known:
		err := OfOneKind([]metering.Device{first, d})
		k.leave(d, err)
		return id, err == nil
	case k.first == nil:
		k.first = make(map[string]metering.Device)
	}
	k.first[id] = d
	return id, true
}

// leave says once that a device is not rented out, where there is a reason to say. The caller holds mu.
func (k *Kinds) leave(d metering.Device, why error) {
	if why == nil || k.Log == nil || k.said[d.UUID] {
		return
	}
	if k.said == nil {
		k.said = make(map[string]bool)
	}
	k.said[d.UUID] = true
	k.Log.Warn("a GPU is not rented out, and the next start would be refused", "gpu", d.UUID, "error", why)
}

// Sells reports whether a device is rented out.
func (k *Kinds) Sells(d metering.Device) bool {
	_, ok := k.Of(d)
	return ok
}

// Those are the devices of a list of which is says so.
func Those(devices []metering.Device, is func(metering.Device) bool) []metering.Device {
	return slices.DeleteFunc(slices.Clone(devices), func(d metering.Device) bool { return !is(d) })
}

// Both are the devices of a list that are in the other one, too.
func Both(devices, others []string) []string { return Without(devices, Without(devices, others)) }
