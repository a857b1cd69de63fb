package trace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sampling"
	"github.com/gpupay/gpupay/metering/usage"
)

// RecordFor meters all devices of a source for a while, writes what it read to trace, and to said what of it would have been
// billed, a line for each device. note says what is recorded, for people: hardware, driver, load.
func RecordFor(ctx context.Context, source metering.Source, span, tick time.Duration, note string, trace, said io.Writer) error {
	recorder, err := Record(ctx, source, trace, note, nil)
	if err != nil {
		return err
	}
	return errors.Join(meter(ctx, recorder, span, tick, said), recorder.Err())
}

// meter samples all devices and says what it would have billed.
func meter(ctx context.Context, source metering.Source, span, tick time.Duration, said io.Writer) error {
	devices, err := source.Devices(ctx)
	if err != nil {
		return err
	}
	config := usage.Config{Tick: tick, MaxGap: 3 * tick}
	for _, d := range devices {
		config.Devices = append(config.Devices, d.UUID)
	}
	m, err := usage.NewMeter(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, span)
	defer cancel()
	if err := (&sampling.Loop{Source: source, Meter: m}).Run(ctx); err != nil {
		return err
	}
	for _, d := range m.Cut().Devices {
		n := d.Nanos
		fmt.Fprintf(said, "%s: %d samples; ns allocated %d, gap %d, down %d, throttled %d, active %d; %d mJ; not reported: %v\n",
			d.Device.Name, d.Samples, n.Allocated, n.Gap, n.Down, n.Throttled, n.Active, d.Energy, d.Missing)
	}
	return nil
}
