package sdk

import (
	"context"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
)

// ofOneKind refuses devices of several kinds: an offer has one price for any of
// them, so that who pays for a whole GPU may get a slice.
func ofOneKind(devices []metering.Device) error {
	for i := range devices {
		a, b := devices[0], devices[i]
		if a.Simulated != b.Simulated {
			return fmt.Errorf("one of %s and %s is simulated and the other is not, and an offer has one price for both: rent out devices of one kind", a.UUID, b.UUID)
		}
		if !inventory.Alike(a, b) {
			return fmt.Errorf("%s is a %s with %d bytes and %s is a %s with %d bytes, and an offer has one price for both: rent out devices of one kind",
				a.UUID, a.Name, a.MemoryBytes, b.UUID, b.Name, b.MemoryBytes)
		}
	}
	return nil
}

// Bounds of the list that a node gives of its devices: what it says becomes a signed offer, rows and log lines.
const (
	maxListed     = 1024
	maxListedText = 128 // bytes
)

// listable refuses a list of devices that no honest node gives.
func listable(devices []metering.Device) error {
	if len(devices) > maxListed {
		return fmt.Errorf("it lists %d devices, at most %d are one host's", len(devices), maxListed)
	}
	seen := make(map[string]bool, len(devices))
	for i, d := range devices {
		for _, text := range []string{d.UUID, d.Name, d.Parent} {
			if len(text) > maxListedText || strings.ContainsFunc(text, unicode.IsControl) || !utf8.ValidString(text) {
				return fmt.Errorf("device %d of its list has a name that is not printable text of at most %d bytes", i, maxListedText)
			}
		}
		if d.UUID == "" || seen[d.UUID] {
			return fmt.Errorf("it lists device %q twice, or without a UUID", d.UUID)
		}
		seen[d.UUID] = true
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
