// Package loopback measures payments that renters make over HTTP: a gateway in a process of its own, an sdk.Provider behind
// an HTTP server, and the renters in this one.
package loopback

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/gpupay/gpupay/bench"
	"github.com/gpupay/gpupay/bench/gateway"
)

// Section measures requests beside the duplex stream. The zero value is what the page shows.
type Section struct{ counts []int }

// Name is the section's name.
func (Section) Name() string { return "loopback" }

const (
	byRequest = "a request a voucher, HTTP/1 and JSON"
	byOne     = "stream, one in flight"
	byEight   = "stream, 8 in flight"
	flight    = 8
	aim       = 5
	aimedFrom = 64 // renters
)

const about = "Payments as renters make them: the gateway is an `sdk.Provider` behind an HTTP server in a process of its own, with a lease that runs " +
	"and is metered each second for every renter, and a SQLite store with `synchronous=FULL`; the renters are another process, on the same cores. " +
	"Vouchers are signed before the clock runs. A request waits for the answer to the one before; in the stream as many are on their way as the " +
	"row says, those that can go at once go in one message, and a payment counts when its receipt is back. Each renter has a connection of its own."

const nearTheLimit = "The profile is `performance/loopback-stream.pprof`. Of eight vouchers one is verified and stored: what is left of them is to recover that " +
	"one's signer, the store's part of a sync, and a read and a write in the kernel. The first is libsecp256k1's, the last the operating system's; " +
	"only more vouchers for each of them would make a payment cheaper."

// Measure pays one gateway by requests and another through streams, in turn.
func (s Section) Measure(ctx context.Context, set bench.Settings) (bench.Report, error) {
	r := bench.Report{Title: "Payments over loopback", About: []string{about}}
	dir, err := os.MkdirTemp(set.Scratch, "loopback-")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	if s.counts == nil {
		s.counts = []int{16, 64, 1024}
	}
	var points []measured
	for _, renters := range s.counts {
		text := fmt.Sprintf("%d renters: the stream with %d in flight takes at least %dx the payments of requests", renters, flight, aim)
		if renters > set.Most {
			r.Aims = append(r.Aims, bench.Aim{Text: text, Result: bench.NotMeasured})
			continue
		}
		set.Log("loopback: %d renters", renters)
		m, err := measure(ctx, set, filepath.Join(dir, fmt.Sprint(renters)), renters)
		if err != nil {
			return r, fmt.Errorf("%d renters: %w", renters, err)
		}
		points = append(points, m)
		r.Tables = append(r.Tables, m.table())
		if renters >= aimedFrom {
			ratio := bench.Ratio(m.series[2], m.series[0])
			r.Aims = append(r.Aims, bench.Judge(text, ratio.Median >= aim, ratio.Times()))
		}
	}
	if len(points) == 0 {
		return r, nil
	}
	most := points[len(points)-1]
	r.Tables, r.Files = append(r.Tables, most.parts), append(r.Files, most.profile)
	r.Plots, r.Notes = append(r.Plots, plot(points)), append(r.Notes, nearTheLimit)
	return r, nil
}

func plot(points []measured) bench.Plot {
	p := bench.Plot{Name: "payments", Title: "Payments over loopback", X: "renters", Y: "payments a second"}
	for i, s := range points[0].series {
		line := bench.Line{Name: s.Name}
		for _, m := range points {
			line.Points = append(line.Points, bench.Point{X: float64(len(m.crowds[0].renters)), Y: m.series[i].Rate()})
		}
		p.Lines = append(p.Lines, line)
	}
	return p
}

// measured is what was found with so many renters.
type measured struct {
	crowds  []*crowd
	series  []bench.Series
	parts   bench.Table
	profile bench.File
}

// measure has all ways side by side, and then watches a gateway that is paid through streams.
func measure(ctx context.Context, set bench.Settings, dir string, renters int) (m measured, err error) {
	crowds, done, err := open(ctx, dir, renters)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, done()) }()
	m.crowds = crowds
	if m.series, err = bench.Interleave(ctx, set, contenders(ctx, crowds)); err != nil {
		return m, err
	}
	watched := *crowds[2] // what is noted while it is watched is of no round
	watched.renters = nil
	for _, r := range crowds[2].renters {
		again := *r
		again.waits = nil
		watched.renters = append(watched.renters, &again)
	}
	m.parts, m.profile, err = profiled(ctx, &watched, m.series[2].Rate().Median)
	return m, err
}

// open starts a gateway for each way of paying, so that what one left to do is not the other's, and attaches the renters.
func open(ctx context.Context, dir string, renters int) (crowds []*crowd, done func() error, err error) {
	var ends []func() error
	done = func() error {
		var err error
		for _, end := range slices.Backward(ends) {
			err = errors.Join(err, end())
		}
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, done())
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	program, err := gateway.Build(ctx, dir)
	if err != nil {
		return nil, nil, err
	}
	w, err := gateway.NewWorld(ctx, renters)
	if err != nil {
		return nil, nil, err
	}
	ends = append(ends, w.Close)
	for i, name := range []string{byRequest, byOne, byEight} {
		g, err := w.Start(ctx, program, gateway.Options{RPC: w.Chain.URL, Token: w.Chain.Token,
			Database: filepath.Join(dir, fmt.Sprint(i)+".db"), Leases: renters, Tick: time.Second, Period: 5 * time.Second})
		if err != nil {
			return nil, nil, err
		}
		ends = append(ends, g.Kill)
		c, err := newCrowd(ctx, name, g, w, renters)
		if err != nil {
			return nil, nil, err
		}
		ends = append(ends, func() error { return c.each(c.way.detach) })
		crowds = append(crowds, c)
	}
	return crowds, done, nil
}

// newCrowd attaches the renters of one way to its gateway.
func newCrowd(ctx context.Context, name string, g *gateway.Process, w *gateway.World, renters int) (*crowd, error) {
	c := &crowd{name: name, gateway: g}
	var err error
	switch name {
	case byRequest:
		c.way, err = newLockstep(ctx, g, renters)
	case byOne:
		c.way = &streamed{g, 1}
	case byEight:
		c.way = &streamed{g, flight}
	}
	if err != nil {
		return nil, err
	}
	for n := range renters {
		c.renters = append(c.renters, &renter{number: n, world: w})
	}
	return c, c.each(func(r *renter) error { return c.way.attach(ctx, r) })
}

func contenders(ctx context.Context, crowds []*crowd) []bench.Contender {
	var all []bench.Contender
	for _, c := range crowds {
		rounds := 0
		all = append(all, bench.Contender{Name: c.name, Step: len(c.renters) * flight, Prepare: func(n int) error {
			if rounds++; rounds <= 3 { // two rounds that do not count, and the first that does
				c.forget()
			}
			return c.prepare(ctx, n)
		}, Run: c.run})
	}
	return all
}

func (m measured) table() bench.Table {
	t := bench.Table{Title: fmt.Sprintf("%s renters:", bench.Count(len(m.crowds[0].renters))),
		Head: []string{"", "payments a second", "of the first", "waits, median", "waits, 99 %", "gateway's cores busy", "of a payment"}}
	for i, c := range m.crowds {
		waits := c.waits()
		slices.Sort(waits)
		t.Rows = append(t.Rows, []string{c.name, m.series[i].Rate().String() + "/s", bench.Ratio(m.series[i], m.series[0]).Times(),
			millis(waits, 50), millis(waits, 99),
			bench.Number(float64(c.work.processor) / float64(c.work.wall)),
			bench.Number(float64(c.work.processor.Microseconds())/float64(c.work.payments)) + " us"})
	}
	return t
}

// millis is a percentile of sorted waits.
func millis(sorted []time.Duration, percent int) string {
	if len(sorted) == 0 {
		return "-"
	}
	return bench.Number(float64(sorted[(len(sorted)-1)*percent/100].Microseconds())/1000) + " ms"
}
