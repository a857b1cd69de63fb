//go:build linux && cgo

package nvml_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/nvml"
	"github.com/gpupay/gpupay/metering/sampling"
	"github.com/gpupay/gpupay/metering/usage"
)

// BenchmarkTick is what the meter adds to a driver's calls: a tick of eight GPUs, through go-nvml and cgo, of a library with
// NVML's ABI that answers at once, out of its own memory. A real driver's calls take microseconds to milliseconds each, most
// of it waiting. us-cpu/tick is time of the process's processors, garbage collection and goroutine switches included.
func BenchmarkTick(b *testing.B) {
	clock := &running{now: metering.System.Now()}
	src, err := nvml.Open(nvml.Options{Library: build(b, b.TempDir(), "instant", "-O2", "-DINSTANT"), Clock: clock})
	if err != nil {
		b.Fatal(err) // a process can load one library only: on a machine with GPUs run this benchmark by itself
	}
	b.Cleanup(func() { src.Close() })
	var devices []string
	for _, d := range hostDevices(b, src) {
		devices = append(devices, d.UUID)
	}
	b.Run("read", func(b *testing.B) { // by the Source
		measure(b, func(ticks int) { look(b, src, devices, clock, ticks, nil) })
	})
	b.Run("count", func(b *testing.B) { // by the Meter, too
		measure(b, func(ticks int) { look(b, src, devices, clock, ticks, meterOf(b, devices)) })
	})
	b.Run("sample", func(b *testing.B) { // whole: the Sampler, the Source and the Meter
		measure(b, func(ticks int) { sample(b, src, devices, clock, ticks) })
	})
}

// measure has b.N ticks done, of leases that are no longer than ten minutes: what a meter keeps is for a record.
func measure(b *testing.B, do func(ticks int)) {
	const most = 600
	b.ReportAllocs()
	begun := processorTime(b)
	for n := b.N; n > 0; n -= most {
		do(min(n, most))
	}
	b.ReportMetric(float64((processorTime(b)-begun).Nanoseconds())/1e3/float64(b.N), "us-cpu/tick")
}

func meterOf(b *testing.B, devices []string) *usage.Meter {
	m, err := usage.NewMeter(usage.Config{Devices: devices, Keep: -1})
	if err != nil {
		b.Fatal(err)
	}
	return m
}

// look reads every device once a tick, into the meter if there is one.
func look(b *testing.B, src *nvml.Source, devices []string, clock *running, ticks int, m *usage.Meter) {
	for range ticks {
		clock.After(metering.DefaultTick)
		for _, uuid := range devices {
			r, err := src.Read(b.Context(), uuid)
			if err == nil && m != nil {
				_, err = m.Observe(r)
			}
			if err != nil || r.Health != metering.Healthy || len(r.Has.Missing()) > 0 {
				b.Fatalf("%s is %s, without %s: %v", uuid, r.Health, r.Has.Missing(), err)
			}
		}
	}
}

// sample runs a Sampler, and holds what was billed against the time that passed.
func sample(b *testing.B, src *nvml.Source, devices []string, clock *running, ticks int) {
	ctx, stop := context.WithCancel(b.Context())
	defer stop()
	m := meterOf(b, devices)
	var reads atomic.Int64
	s := &sampling.Loop{Source: src, Meter: m, Clock: clock, Observed: func(metering.Reading, usage.Interval) {
		if reads.Add(1) == int64((ticks+1)*len(devices)) { // the first tick bills nothing
			stop()
		}
	}}
	if err := s.Run(ctx); err != nil {
		b.Fatal(err)
	}
	if billed, least := m.Totals().Allocated, int64(ticks*len(devices))*int64(metering.DefaultTick); billed < least {
		b.Fatalf("billed %d ns of %d", billed, least)
	}
}

// running is a clock that whoever waits by it moves on, so that nobody is woken but the Sampler. A look at it reads the
// host's clocks too: they are a part of what a tick costs.
type running struct {
	mu  sync.Mutex
	now metering.Instant
}

func (c *running) BootID() string { return metering.System.BootID() }

func (c *running) Now() metering.Instant {
	metering.System.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *running) After(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	passed := int64(max(d, 0))
	c.now.Boot, c.now.Mono, c.now.Wall = c.now.Boot+passed, c.now.Mono+passed, c.now.Wall+passed
	fired := make(chan time.Time, 1)
	fired <- time.Time{}
	return fired
}
