package inventory

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/gpupay/gpupay/metering"
)

// Offered is what is rented out where a source is: no node meters it.
type Offered struct {
	Devices []metering.Device // that the source listed at the start; none where it is not asked, or could not say
	Kinds   Kinds             // which of what it lists is rented out
	Sick    Quarantine        // of them, for who asks how they are
}

// List is what was listed at the start, and what was away then and came back since, as it was listed last, and as far as it is rented out.
func (o *Offered) List() []metering.Device { return Those(o.Sick.Listed(o.Devices), o.Kinds.Sells) }

// Of are the devices of a class.
func (o *Offered) Of(class string) []metering.Device {
	return Those(o.List(), func(d metering.Device) bool { id, ok := o.Kinds.Of(d); return ok && id == class })
}

// Are asks whether some devices are what they were sold as, those that were listed at the start: a driver may name them otherwise since.
func (o *Offered) Are(devices []string, sold func(metering.Device) error) error {
	for _, d := range o.Devices {
		if err := sold(d); err != nil && slices.Contains(devices, d.UUID) {
			return err
		}
	}
	return nil
}

// ClassOf is the class of some devices, all of which were listed at the start: whoever names them has one price for them.
func (o *Offered) ClassOf(devices []string) (class string, err error) {
	for i, uuid := range devices {
		at := slices.IndexFunc(o.Devices, func(d metering.Device) bool { return d.UUID == uuid })
		if at < 0 || slices.Contains(devices[:i], uuid) {
			return "", fmt.Errorf("no device %q is listed, or it is named twice", uuid)
		}
		id, sold := o.Kinds.Of(o.Devices[at])
		if i == 0 {
			class = id
		}
		if !sold || id != class {
			return "", fmt.Errorf("device %q is of class %q and others of the route are of %q, or it is of none: a route has one price", uuid, id, class)
		}
	}
	return class, nil
}

func (o *Offered) names() []string { return Names(o.List()) }

// Look looks at what is offered. Which leases have ended and hold GPUs still is not known here.
func (o *Offered) Look(ctx context.Context, source metering.Source) GPUs {
	fit, err := o.Sick.Fit(ctx, source, o.names)
	return GPUs{Quarantined: Without(o.names(), fit), Err: err}
}

// Quarantines hear which devices cannot be read: the one that is shown to the operator, and that of an allocator which has one.
func (o *Offered) Quarantines(allocator any) []*Quarantine {
	all := []*Quarantine{&o.Sick}
	if host, ok := allocator.(Keeper); ok {
		all = append(all, host.Inventory().Quarantine())
	}
	return all
}

// Names are the UUIDs of devices.
func Names(devices []metering.Device) []string {
	all := make([]string, len(devices))
	for i, d := range devices {
		all[i] = d.UUID
	}
	return all
}

// GPUs is which of the offered GPUs do not work, and why none does.
type GPUs struct {
	Quarantined []string
	Held        int // ended leases, and those that the database has forgotten, whose GPUs could not be taken back yet
	Err         error
}

// Degraded says so in words, with how many leases cannot be metered.
func (g GPUs) Degraded(unmetered int) string {
	return fmt.Sprintf("degraded: %d GPUs in quarantine, %d leases that cannot be metered, %d that have ended, or were forgotten, and whose GPUs could not be taken back", len(g.Quarantined), unmetered, g.Held)
}

// Restart reports whether nothing can be metered before the program is restarted.
func (g GPUs) Restart() bool { return errors.Is(g.Err, metering.ErrRestart) }
