//go:build linux && cgo

package metercost

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/bench"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/nvml"
)

// measured is all that was.
type measured struct {
	ticks []bench.Series // in the order of the contenders
	calls bench.Table
	hours []hourly // none if the settings allow only the least work
}

// The contenders of a tick, from the bottom up.
const (
	inC = iota
	throughGo
	readings
	hashed
	counted
	sampled
	recorded
	onHost
	onSlowHost
)

var contenderNames = [...]string{
	"the calls, from C alone",
	"the calls, through go-nvml",
	"readings of the Source",
	"a sample of each reading, encoded and hashed",
	"readings, counted by the Meter",
	"**a tick**: the Sampler, the Source and the Meter",
	"a tick that the benchmark waits for, with its share of a record every 5",
	"a tick by the host's clock, 50 a second",
	"the same, where a wait for XIDs takes its whole millisecond",
}

// fresh is after how many ticks a contender begins a lease anew: what it keeps is for a record that does not come.
const fresh = 600

func measure(ctx context.Context, set bench.Settings) (r bench.Report, err error) {
	dir, err := os.MkdirTemp(set.Scratch, "meter-")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	lib, err := build(ctx, dir)
	if err != nil {
		return r, err
	}
	defer lib.close()
	b := &bed{lib: lib, clock: newClock()}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.open(ctx); err != nil {
		return r, err
	}
	m, err := b.measure(ctx, set)
	if err != nil {
		return r, err
	}
	return m.page(), nil
}

func (b *bed) measure(ctx context.Context, set bench.Settings) (m measured, err error) {
	if m.ticks, err = bench.Interleave(ctx, set, b.contenders()); err != nil {
		return m, err
	}
	if m.calls, err = b.handles.eachCall(ctx, set, b.lib); err != nil {
		return m, err
	}
	if set.Span >= time.Millisecond { // less is asked for where nobody looks at the figures
		m.hours, err = b.day(ctx, set)
	}
	return m, err
}

// bed is what the contenders stand on.
type bed struct {
	lib     *library
	clock   *clock
	source  *nvml.Source // stamps by clock
	host    *nvml.Source // stamps by the host's
	devices []string
	handles *handles

	sleepers int // goroutines of a Sampler that sleep from tick to tick
}

func (b *bed) open(ctx context.Context) (err error) {
	if b.source, err = nvml.Open(nvml.Options{Library: b.lib.path, Clock: b.clock}); err != nil {
		return err
	}
	if b.host, err = nvml.Open(nvml.Options{Library: b.lib.path}); err != nil {
		return err
	}
	devices, err := b.source.Devices(ctx)
	if err != nil {
		return err
	}
	for _, d := range devices {
		b.devices = append(b.devices, d.UUID)
	}
	if b.handles, err = open(b.lib, b.devices); err != nil {
		return err
	}
	l, err := newLease(b.clock, b.source, b.devices)
	if err == nil {
		b.sleepers, err = l.sleepers(ctx)
	}
	return err
}

func (b *bed) close() (err error) {
	for _, s := range []*nvml.Source{b.source, b.host} {
		if s != nil {
			err = errors.Join(err, s.Close())
		}
	}
	return err
}

func (b *bed) contenders() []bench.Contender {
	runs := [...]func(context.Context, int) error{
		inC:       func(_ context.Context, n int) error { b.lib.every(n); return nil },
		throughGo: func(_ context.Context, n int) error { return b.handles.every(n) },
		readings:  b.leases(func(ctx context.Context, l *lease, _ int) error { return l.look(ctx, false) }),
		hashed:    b.hash,
		counted:   b.leases(func(ctx context.Context, l *lease, _ int) error { return l.look(ctx, true) }),
		sampled:   b.running,
		recorded: b.leases(b.sampling(func(ctx context.Context, l *lease, i int) error {
			return errors.Join(l.pass(), l.recordAt(ctx, i))
		})),
		onHost: hosted(b.host, b.devices, 20*time.Millisecond),
		onSlowHost: func(ctx context.Context, n int) error {
			b.lib.idle(1000)
			defer b.lib.idle(0)
			return hosted(b.host, b.devices, 20*time.Millisecond)(ctx, n)
		},
	}
	var out []bench.Contender
	for i, run := range runs {
		out = append(out, contender(contenderNames[i], run))
	}
	return out
}

// hash does what a record's evidence takes of n ticks, whenever the Meter does it: the leaves of its tree.
func (b *bed) hash(ctx context.Context, n int) error {
	var samples []metering.Reading
	for _, uuid := range b.devices {
		r, err := b.source.Read(ctx, uuid)
		if err != nil {
			return err
		}
		samples = append(samples, r)
	}
	for range n {
		for _, r := range samples {
			crypto.Keccak256Hash([]byte{0}, r.Encode())
		}
	}
	return nil
}

// leases does n ticks in leases of no more than fresh.
func (b *bed) leases(one func(ctx context.Context, l *lease, i int) error) func(context.Context, int) error {
	return func(ctx context.Context, n int) error {
		for ; n > 0; n -= fresh {
			l, err := newLease(b.clock, b.source, b.devices)
			if err != nil {
				return err
			}
			for i := range min(n, fresh) {
				if err := one(ctx, l, i); err != nil {
					return err
				}
			}
			if err := l.end(); err != nil {
				return err
			}
		}
		return nil
	}
}

// running has leases sampled by a clock that runs on by itself: nobody is woken for a tick but the Sampler.
func (b *bed) running(ctx context.Context, n int) error {
	for ; n > 0; n -= fresh {
		l, err := newLease(b.clock, b.source, b.devices)
		if err == nil {
			err = l.run(ctx, min(n, fresh))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sampling starts a lease's Sampler before its first tick.
func (b *bed) sampling(one func(ctx context.Context, l *lease, i int) error) func(context.Context, *lease, int) error {
	return func(ctx context.Context, l *lease, i int) error {
		if i == 0 {
			if err := l.sample(ctx, b.sleepers); err != nil {
				return err
			}
		}
		return one(ctx, l, i)
	}
}

func (b *bed) day(ctx context.Context, set bench.Settings) ([]hourly, error) {
	l, err := newLease(b.clock, b.source, b.devices)
	if err != nil {
		return nil, err
	}
	if err := l.sample(ctx, b.sleepers); err != nil {
		return nil, err
	}
	all, err := l.day(ctx, set)
	return all, errors.Join(err, l.end())
}
