package inventory

import (
	"fmt"
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

// Of is the class of a device: the empty one where there are none. It is false for a device of no class, which is not rented out.
func (all Classes) Of(d metering.Device) (id string, ok bool) {
	if len(all) == 0 {
		return "", true
	}
	i := slices.IndexFunc(all, func(c Class) bool { return c.names(d) })
	if i < 0 {
		return "", false
	}
	return all[i].ID, true
}

// Check refuses devices that one price would sell though they are of several kinds: who pays for a whole GPU may get a slice. It also
// refuses one that two classes name.
func (all Classes) Check(devices []metering.Device) error {
	of := make(map[string][]metering.Device)
	for _, d := range devices {
		id, ok := all.Of(d)
		if i := slices.IndexFunc(all, func(c Class) bool { return c.ID != id && c.names(d) }); ok && i >= 0 {
			return fmt.Errorf("%s is a %s, which both class %s and class %s name: say Model more exactly, or MemoryBytes", d.UUID, d.Name, id, all[i].ID)
		}
		if ok {
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

	mu    sync.Mutex
	first map[string]metering.Device // of each class
}

// Of is the class of a device, false for one that is not rented out.
func (k *Kinds) Of(d metering.Device) (id string, ok bool) {
	if id, ok = k.Classes.Of(d); !ok {
		return "", false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	first, known := k.first[id]
	switch {
	case known:
		return id, Alike(first, d)
	case k.first == nil:
		k.first = make(map[string]metering.Device)
	}
	k.first[id] = d
	return id, true
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
