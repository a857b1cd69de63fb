package leases

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/gpupay/gpupay/bench"
	"github.com/gpupay/gpupay/bench/gateway"
)

// Section measures a gateway with many leases. The zero value is what the page shows.
type Section struct {
	counts  []int         // of leases, rising; the last is measured for four times as long
	streams int           // the count that is measured with a live stream for each lease, too
	tick    time.Duration // a second
	period  time.Duration // a minute
	span    time.Duration // that one count is measured for; from the settings
}

// Name is the section's name.
func (Section) Name() string { return "leases" }

func (s Section) withDefaults(set bench.Settings) Section {
	if s.counts != nil {
		return s
	}
	s = Section{streams: 10_000, tick: time.Second, period: time.Minute}
	for _, n := range []int{1_000, 3_000, 10_000, 30_000, 100_000} {
		if n <= 100*set.Most { // a thousand of the other sections' channels, a hundred thousand leases
			s.counts = append(s.counts, n)
		}
	}
	s.span = min(max(200*set.Span, time.Second), 15*time.Second)
	return s
}

// point is what was measured of a gateway with so many leases.
type point struct {
	leases  int
	streams kind
	took    time.Duration // to take the leases up
	period  time.Duration // between two vouchers, and two records, of a lease
	span    time.Duration
	memory  bench.Spread // bytes resident
	cores   float64      // kept busy
	waits   []time.Duration
	lag     gateway.LagReport
	records int // that were written meanwhile
}

// Measure runs a gateway for each count, one after the other.
func (s Section) Measure(ctx context.Context, set bench.Settings) (r bench.Report, err error) {
	s = s.withDefaults(set)
	if len(s.counts) == 0 {
		return bench.Report{}, errors.New("-channels leaves no lease to measure")
	}
	dir, err := os.MkdirTemp(set.Scratch, "leases-")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	program, err := gateway.Build(ctx, dir)
	if err != nil {
		return r, err
	}
	w, err := gateway.NewWorld(ctx, s.counts[len(s.counts)-1])
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	var points []point
	for _, n := range s.counts {
		kinds := []kind{apart}
		if n == s.streams {
			kinds = []kind{apart, events, duplex}
		}
		for _, k := range kinds {
			p, err := s.point(ctx, set, w, program, filepath.Join(dir, fmt.Sprint(n, k)), n, k)
			if err != nil {
				return r, fmt.Errorf("%d leases: %w", n, err)
			}
			points = append(points, p)
		}
	}
	return s.report(points), nil
}

// point measures a new gateway with n leases.
func (s Section) point(ctx context.Context, set bench.Settings, w *gateway.World, program, dir string, n int, k kind) (p point, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return p, err
	}
	defer os.RemoveAll(dir)
	o := gateway.Options{RPC: w.Chain.URL, Token: w.Chain.Token, Database: filepath.Join(dir, "provider.db"), Leases: n, Tick: s.tick, Period: s.period}
	g, err := w.Start(ctx, program, o)
	if err != nil {
		return p, err
	}
	defer func() {
		err = errors.Join(err, g.Kill())
		if err != nil {
			err = fmt.Errorf("%w; the gateway logged: %s", err, g.Said())
		}
	}()
	set.Log("leases: %d, taken up in %s, at %s", n, g.Took.Round(time.Millisecond), g.URL)
	payers, err := newPayers(ctx, w, g, o)
	if err != nil {
		return p, err
	}
	if k != apart {
		var stop func() error
		if stop, err = payers.watch(ctx, k); err != nil {
			return p, err
		}
		defer func() { err = errors.Join(err, stop()) }()
	}
	span := s.span
	if n == s.counts[len(s.counts)-1] {
		span *= 4
	}
	p, err = s.watch(ctx, g, payers, span)
	p.streams = k
	return p, err
}

// watch has the payers pay for a third of the span that does not count, and then for the span.
func (s Section) watch(ctx context.Context, g *gateway.Process, a *payers, span time.Duration) (point, error) {
	p := point{leases: a.o.Leases, took: g.Took, period: a.o.Period}
	warm, err := a.sign(ctx, span/3)
	if err != nil {
		return p, err
	}
	counted, err := a.sign(ctx, span)
	if err != nil {
		return p, err
	}
	if _, err := a.send(ctx, warm); err != nil {
		return p, err
	}
	return p, p.measure(ctx, g, func() (err error) {
		p.waits, err = a.send(ctx, counted)
		return err
	})
}

// measure looks at the gateway while something is done.
func (p *point) measure(ctx context.Context, g *gateway.Process, do func() error) error {
	before, err := g.Records(ctx)
	if err != nil {
		return err
	}
	if _, err := g.Lag(ctx); err != nil { // from here on
		return err
	}
	processor, err := g.Processor()
	if err != nil {
		return err
	}
	begun := time.Now()
	done := make(chan error, 1)
	go func() { done <- do() }()
	if err := p.sample(g, done); err != nil {
		return err
	}
	p.span = time.Since(begun)
	after, err := g.Processor()
	if err != nil {
		return err
	}
	p.cores = float64(after-processor) / float64(p.span)
	if p.lag, err = g.Lag(ctx); err != nil {
		return err
	}
	now, err := g.Records(ctx)
	p.records = now - before
	return err
}

// sample looks at the memory until done.
func (p *point) sample(g *gateway.Process, done <-chan error) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	var seen []float64
	for {
		bytes, err := g.Memory()
		if err != nil {
			return err
		}
		seen = append(seen, bytes)
		select {
		case err := <-done:
			p.memory = bench.SpreadOf(seen)
			return err
		case <-tick.C:
		}
	}
}
