// Package metercost measures what the meter itself costs, apart from the driver: from the Sampler down to a C library with
// NVML's ABI that answers at once, beside the same calls made from C alone; and whether that grows over a day.
package metercost

import (
	"context"

	"github.com/gpupay/gpupay/bench"
)

// Section is the meter's part of the page.
type Section struct{}

// Name is the section's name.
func (Section) Name() string { return "meter" }

// Measure compiles the library, measures, and lets a day pass.
func (Section) Measure(ctx context.Context, s bench.Settings) (bench.Report, error) {
	return measure(ctx, s)
}

const (
	title    = "What the meter costs"
	aimTick  = "the meter's own cost a tick of 8 devices through the C library: at most 20 us of a processor"
	aimDay   = "no growth over 24 simulated hours: a tick of the last eight hours costs at most 1.1x one of the first eight"
	aimSpace = "the same: the heap grows by at most 1 MiB, and a record's evidence by at most 64 bytes"
)
