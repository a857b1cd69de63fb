package sdk

import (
	"context"
	"fmt"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
)

// ofOneKind refuses devices of several kinds: an offer has one price for any of
// them, so that who pays for a whole GPU may get a slice.
func ofOneKind(devices []metering.Device) error {
	for i := range devices {
		a, b := devices[0], devices[i]
		if !inventory.Alike(a, b) {
			return fmt.Errorf("%s is a %s with %d bytes and %s is a %s with %d bytes, and an offer has one price for both: rent out devices of one kind",
				a.UUID, a.Name, a.MemoryBytes, b.UUID, b.Name, b.MemoryBytes)
		}
	}
	return nil
}

// listOfOneKind is what a source lists now, which is ofOneKind.
func listOfOneKind(ctx context.Context, source metering.Source) ([]metering.Device, error) {
	devices, err := source.Devices(ctx)
	if err != nil {
		return nil, err
	}
	return devices, ofOneKind(devices)
}
