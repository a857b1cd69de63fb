package inventory

import (
	"context"
	"fmt"

	"github.com/gpupay/gpupay/metering"
)

// Alike reports whether one price sells both devices: they are of one model, both whole GPUs or both slices, and of one memory, to a
// sixteenth of the first's, which is what drivers keep for themselves.
func Alike(a, b metering.Device) bool {
	return a.Name == b.Name && a.MIG == b.MIG && max(a.MemoryBytes, b.MemoryBytes)-min(a.MemoryBytes, b.MemoryBytes) <= a.MemoryBytes/16
}

// OfOneKind refuses devices of several kinds: an offer has one price for any of them, so that who pays for a whole GPU may get a
// slice.
func OfOneKind(devices []metering.Device) error {
	for i := range devices {
		a, b := devices[0], devices[i]
		if a.Simulated != b.Simulated {
			return fmt.Errorf("one of %s and %s is simulated and the other is not, and an offer has one price for both: rent out devices of one kind", a.UUID, b.UUID)
		}
		if !Alike(a, b) {
			return fmt.Errorf("%s is a %s with %d bytes and %s is a %s with %d bytes, and an offer has one price for both: rent out devices of one kind",
				a.UUID, a.Name, a.MemoryBytes, b.UUID, b.Name, b.MemoryBytes)
		}
	}
	return nil
}

// List is what a source lists now, which is OfOneKind.
func List(ctx context.Context, source metering.Source) ([]metering.Device, error) {
	devices, err := source.Devices(ctx)
	if err != nil {
		return nil, err
	}
	return devices, OfOneKind(devices)
}
