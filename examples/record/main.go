// Record meters the GPUs of this host for a while and writes what it read to a
// trace, which can be metered again on any other host.
//
//	go run ./examples/record --for 60s --out h100.jsonl --note "one H100, idle, driver 570"
//
// UUIDs and boot ids are hashed with a random salt that is thrown away.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/nvml"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/trace"
)

type options struct {
	gpu  string
	span time.Duration
	tick time.Duration
	out  string
	note string
}

func main() {
	cli.Main(func(ctx context.Context) error {
		o, err := parse(os.Args[1:])
		if err != nil {
			return err
		}
		return run(ctx, o, os.Stdout)
	})
}

func parse(args []string) (o options, err error) {
	flags := flag.NewFlagSet("record", flag.ContinueOnError)
	cli.About(flags, "meters the GPUs of this host for a while and writes what it read to a trace, which can be metered again on any other host.\n\n"+
		"UUIDs and boot ids in it are hashed with a random salt that is thrown away.\n")
	flags.StringVar(&o.gpu, "gpu", "nvml", "nvml: this host's GPUs and MIG slices; sim: one simulated GPU")
	flags.DurationVar(&o.span, "for", time.Minute, "how long to record")
	flags.DurationVar(&o.tick, "tick", metering.DefaultTick, "how often to read each device")
	flags.StringVar(&o.out, "out", "", "the trace to write (required)")
	flags.StringVar(&o.note, "note", "", "what is recorded, for people: hardware, driver, load (required)")
	return o, cli.Parse(flags, args)
}

func run(ctx context.Context, o options, stdout io.Writer) error {
	if o.out == "" || o.note == "" {
		return errors.New("--out and --note are required: a trace that does not say what it is is no evidence")
	}
	src, err := source(o.gpu)
	if err != nil {
		return err
	}
	defer src.Close()
	f, err := os.Create(o.out)
	if err != nil {
		return err
	}
	defer f.Close()
	rec, err := trace.Record(ctx, src, f, o.note, nil)
	if err != nil {
		return err
	}
	if err := meter(ctx, rec, o, stdout); err != nil {
		return err
	}
	return errors.Join(rec.Err(), f.Sync())
}

func source(name string) (metering.Source, error) {
	switch name {
	case "nvml":
		return nvml.Open(nvml.Options{})
	case "sim":
		return sim.New(1, sim.Options{}), nil
	}
	return nil, fmt.Errorf("--gpu is nvml or sim, not %q", name)
}

// meter samples all devices and says what it would have billed.
func meter(ctx context.Context, src metering.Source, o options, stdout io.Writer) error {
	devices, err := src.Devices(ctx)
	if err != nil {
		return err
	}
	config := metering.Config{Tick: o.tick, MaxGap: 3 * o.tick}
	for _, d := range devices {
		config.Devices = append(config.Devices, d.UUID)
	}
	m, err := metering.NewMeter(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.span)
	defer cancel()
	if err := (&metering.Sampler{Source: src, Meter: m}).Run(ctx); err != nil {
		return err
	}
	for _, d := range m.Cut().Devices {
		n := d.Nanos
		fmt.Fprintf(stdout, "%s: %d samples; ns allocated %d, gap %d, down %d, throttled %d, active %d; %d mJ; not reported: %v\n",
			d.Device.Name, d.Samples, n.Allocated, n.Gap, n.Down, n.Throttled, n.Active, d.Energy, d.Missing)
	}
	return nil
}
