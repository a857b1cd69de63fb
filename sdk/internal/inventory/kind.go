package inventory

import "github.com/gpupay/gpupay/metering"

// Alike reports whether one price sells both devices: they are of one model, both whole GPUs or both slices, and of one memory, to a
// sixteenth of the first's, which is what drivers keep for themselves.
func Alike(a, b metering.Device) bool {
	return a.Name == b.Name && a.MIG == b.MIG && max(a.MemoryBytes, b.MemoryBytes)-min(a.MemoryBytes, b.MemoryBytes) <= a.MemoryBytes/16
}
