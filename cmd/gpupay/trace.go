package main

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	urfave "github.com/urfave/cli/v3"

	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/trace"
)

// tracing meters the GPUs of this host for a while and writes what it read to a trace.
type tracing struct {
	flags      *cli.Flags
	gpu        string
	span, tick time.Duration
	out, note  string
}

const traceMore = `What it read can be metered again on any other host. UUIDs and boot ids are hashed with a random salt that is thrown away.

   gpupay trace --for 60s --out h100.jsonl --note "one H100, idle, driver 570"`

func newTrace(app *cli.App) *tracing {
	t := &tracing{flags: app.Flags("trace", "trace")}
	f := t.flags
	f.Text(&t.gpu, "gpu", "nvml", "nvml: this host's GPUs and MIG slices; sim or sim:N: simulated GPUs")
	f.Actions("What is recorded")
	f.Duration(&t.span, "for", time.Minute, "how long to record")
	f.Duration(&t.tick, "tick", metering.DefaultTick, "how often to read each device")
	f.Text(&t.out, "out", "", "the trace to write, a `file` (required)")
	f.Text(&t.note, "note", "", "what is recorded, for people: hardware, driver, load (required)")
	return t
}

func (t *tracing) command() *urfave.Command {
	return t.flags.Command("record what the GPUs of this host say", traceMore, func(ctx context.Context, _ []string) error { return t.run(ctx, os.Stdout) })
}

func (t *tracing) run(ctx context.Context, said io.Writer) error {
	if t.out == "" || t.note == "" {
		return cli.Usage(errors.New("--out and --note are required: a trace that does not say what it is is no evidence"))
	}
	source, err := cli.Source(t.gpu)
	if err != nil {
		return err
	}
	defer source.Close()
	file, err := os.Create(t.out)
	if err != nil {
		return err
	}
	defer file.Close()
	return errors.Join(trace.RecordFor(ctx, source, t.span, t.tick, t.note, file, said), file.Sync())
}
