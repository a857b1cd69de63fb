// Command leases measures gateways with up to 100,000 leases: each is one process, whose memory, processors and lateness are
// read from outside. It prints lines in the form of go test -bench.
//
//	go run ./leases [-leases 1000,3000,10000,30000,100000] [-streams 10000] [-span 12s]
//
// Leases are of one simulated device each, which is read each second; each has a usage record a minute, signed and on disk
// (SQLite, synchronous=FULL), and a voucher a minute, both spread evenly over the minute. The payers and the chain are in this
// process and do not count, though they share the cores. What an allocator's commands, real devices and settlements cost is
// not in it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gpupay/gpupay/bench/gateway"
)

func main() {
	gateway.Main()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "leases:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	list := flag.String("leases", "1000,3000,10000,30000,100000", "how many, rising, separated by commas; the last is measured for four times as long")
	s := series{out: os.Stdout, tick: time.Second, period: time.Minute}
	flag.IntVar(&s.streams, "streams", 10_000, "with how many to measure what a live stream for each costs, too")
	flag.DurationVar(&s.span, "span", 12*time.Second, "how long to measure")
	flag.StringVar(&s.scratch, "scratch", ".", "a directory on the disk that is measured; in /tmp it would be memory on many machines")
	flag.Parse()
	for _, text := range strings.Split(*list, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return fmt.Errorf("-leases %s: %q is no number of leases", *list, text)
		}
		s.counts = append(s.counts, n)
	}
	return s.measure(ctx)
}

// series is what is to be measured.
type series struct {
	out          io.Writer
	scratch      string
	counts       []int // of leases, rising
	streams      int   // the count that is measured with a live stream for each lease, too
	tick, period time.Duration
	span         time.Duration
}

// measure runs a gateway for each count, one after the other.
func (s series) measure(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(s.scratch, ".bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	w, err := gateway.NewWorld(ctx, s.counts[len(s.counts)-1])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	for i, n := range s.counts {
		kinds, span := []kind{apart}, s.span
		if n == s.streams {
			kinds = []kind{apart, events, duplex}
		}
		if i == len(s.counts)-1 {
			span *= 4
		}
		for _, k := range kinds {
			o := gateway.Options{RPC: w.Chain.URL, Token: w.Chain.Token, Database: filepath.Join(dir, fmt.Sprint(n, k)), Leases: n, Tick: s.tick, Period: s.period}
			if err := s.point(ctx, w, o, k, span); err != nil {
				return fmt.Errorf("%d leases, %s: %w", n, k, err)
			}
		}
	}
	return nil
}

// point measures a new gateway.
func (s series) point(ctx context.Context, w *gateway.World, o gateway.Options, k kind, span time.Duration) (err error) {
	g, err := w.Start(ctx, o)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, g.Kill()); err != nil {
			err = fmt.Errorf("%w; the gateway logged: %s", err, g.Said())
		}
	}()
	payers, err := newPayers(ctx, w, g, o)
	if err != nil {
		return err
	}
	if k != apart {
		stop, err := payers.watch(ctx, k)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, stop()) }()
	}
	for _, one := range []time.Duration{span / 3, span} { // the first does not count
		due, err := payers.sign(ctx, one)
		if err != nil {
			return err
		}
		p, err := look(ctx, g, func() ([]time.Duration, error) { return payers.send(ctx, due) })
		if err != nil {
			return err
		}
		if one == span {
			p.took = g.Took
			fmt.Fprintf(s.out, "BenchmarkLeases/stream=%s/leases=%d\t1\t%s\n", k, o.Leases, p)
		}
	}
	return nil
}

// point is what was seen of a gateway.
type point struct {
	took    time.Duration // to take the leases up
	span    time.Duration
	memory  []float64       // MiB resident, in order
	busy    time.Duration   // of its processors
	waits   []time.Duration // of vouchers, from when they were due to their receipts, in order
	lag     gateway.LagReport
	records int // that were written meanwhile
}

// String has each figure before its unit.
func (p point) String() string {
	var b strings.Builder
	for _, figure := range []struct {
		value float64
		unit  string
	}{
		{p.memory[len(p.memory)/2], "MiB-resident"}, {p.memory[len(p.memory)-1], "MiB-resident-most"},
		{p.busy.Seconds() / p.span.Seconds(), "cores-busy"},
		{float64(len(p.waits)) / p.span.Seconds(), "vouchers/s"}, {float64(p.records) / p.span.Seconds(), "records/s"},
		{millis(p.waits[len(p.waits)/2]), "ms-voucher-p50"}, {millis(p.waits[(len(p.waits)-1)*99/100]), "ms-voucher-p99"},
		{millis(p.lag.P50), "ms-tick-late-p50"}, {millis(p.lag.P99), "ms-tick-late-p99"}, {millis(p.lag.Longest), "ms-between-readings-most"},
		{float64(p.lag.Over), "readings-later-than-MaxGap"}, {float64(p.lag.Readings), "readings"}, {millis(p.took), "ms-taken-up"},
	} {
		fmt.Fprintf(&b, "%.4g %s\t", figure.value, figure.unit)
	}
	return strings.TrimSuffix(b.String(), "\t")
}

func millis(d time.Duration) float64 { return 1e3 * d.Seconds() }

// look looks at a gateway while vouchers are sent.
func look(ctx context.Context, g *gateway.Process, send func() ([]time.Duration, error)) (p point, err error) {
	before, err := g.Records(ctx)
	if err != nil {
		return p, err
	}
	if _, err := g.Lag(ctx); err != nil { // from here on
		return p, err
	}
	used, err := g.Processor()
	if err != nil {
		return p, err
	}
	begun := time.Now()
	done := make(chan error, 1)
	go func() {
		var err error
		p.waits, err = send()
		done <- err
	}()
	if p.memory, err = sample(g, done); err != nil {
		return p, err
	}
	p.span = time.Since(begun)
	after, err := g.Processor()
	if err != nil {
		return p, err
	}
	p.busy = after - used
	if p.lag, err = g.Lag(ctx); err != nil {
		return p, err
	}
	now, err := g.Records(ctx)
	p.records = now - before
	return p, err
}

// sample looks at the memory until done.
func sample(g *gateway.Process, done <-chan error) (mib []float64, err error) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		bytes, err := g.Memory()
		if err != nil {
			return nil, err
		}
		mib = append(mib, bytes/(1<<20))
		select {
		case err := <-done:
			slices.Sort(mib)
			return mib, err
		case <-tick.C:
		}
	}
}
