package provider

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/settle"
)

// panicky is an allocator and a source whose operations panic when told to.
type panicky struct {
	*gpu.HostAllocator
	metering.Source
	mu  sync.Mutex
	bad map[string]bool
}

func (p *panicky) set(op string, on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bad[op] = on
}

func (p *panicky) try(op string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bad[op] {
		panic(op + " on purpose")
	}
}

type panickyAllocator struct{ *panicky }

func (p panickyAllocator) Allocate(ctx context.Context, req gpu.Request) (gpu.Allocation, error) {
	a, err := p.HostAllocator.Allocate(ctx, req)
	p.try("Allocate")
	return a, err
}
func (p panickyAllocator) Suspend(context.Context, gpu.Allocation) error {
	p.try("Suspend")
	return nil
}
func (p panickyAllocator) Resume(context.Context, gpu.Allocation) error { p.try("Resume"); return nil }
func (p panickyAllocator) Release(ctx context.Context, a gpu.Allocation) error {
	p.try("Release")
	return p.HostAllocator.Release(ctx, a)
}
func (p panickyAllocator) Adopt(ctx context.Context, a gpu.Allocation) error {
	p.try("Adopt")
	return p.HostAllocator.Adopt(ctx, a)
}
func (p panickyAllocator) Free() int { return p.HostAllocator.Free() }

type panickySource struct{ *panicky }

func (p panickySource) Name() string { return p.Source.Name() }
func (p panickySource) Devices(ctx context.Context) ([]metering.Device, error) {
	return p.Source.Devices(ctx)
}
func (p panickySource) Close() error { return p.Source.Close() }
func (p panickySource) Read(ctx context.Context, uuid string) (metering.Reading, error) {
	if uuid == "SIM-GPU-1" { // of the lease that begins second
		p.try("Read")
	}
	return p.Source.Read(ctx, uuid)
}

// TestOperatorsCodePanics: a panic in the operator's allocator, source or OnSettled is logged with where it came from,
// costs the lease that it was about, and no other.
func TestOperatorsCodePanics(t *testing.T) {
	p := &panicky{HostAllocator: hostGPUs(t, 2), Source: testclock.GPUs(2), bad: map[string]bool{}}
	var told atomic.Int64
	var said bytes.Buffer
	var saying sync.Mutex
	r := newRig(t, func(c *Config) {
		c.Allocator, c.Source = panickyAllocator{p}, panickySource{p}
		c.Terms.Credit = 6 * time.Second // of two leases
		c.OnSettled = func(settle.Settlement) { told.Add(1); panic("OnSettled on purpose") }
		c.Log = slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) {
			saying.Lock()
			defer saying.Unlock()
			return said.Write(b)
		}), nil))
	})
	p.set("Allocate", true)
	if resp := r.do("GET", "", r.openCredential(r.payer, r.terms(r.payer.Address(), 1), 100_000, 0)); resp.StatusCode != http.StatusInternalServerError {
		t.Errorf("an allocation that panics: %s", resp.Status)
	}
	if free := p.Free(); free != 2 {
		t.Errorf("%d devices are free after it", free)
	}
	p.set("Allocate", false)
	healthy := r.open(3, 200_000, "")
	healthy.pay(50_000) // is not suspended
	sick := r.open(2, 200_000, "")
	sick.pay(5_000)
	sick.record()
	p.set("Read", true)
	logged := func(what string) bool {
		saying.Lock()
		defer saying.Unlock()
		return strings.Contains(said.String(), what+" on purpose") && strings.Contains(said.String(), "contain_test.go")
	}
	waitFor(t, func() bool { return logged("Read") })
	for before := healthy.record().Nanos; healthy.record().Nanos < before+uint64(300*time.Millisecond); {
	}
	p.set("Read", false)
	for first := sick.record().Nanos; sick.record().Nanos <= first; { // it is read again
	}
	if err := r.provider.Settle(t.Context()); err != nil || told.Load() != 1 {
		t.Errorf("settled with %v, told %d times", err, told.Load())
	}
	p.set("Suspend", true)
	if s := sick.status(leasestore.Ended); !strings.Contains(s.Reason, "suspended") {
		t.Errorf("it ended because %q", s.Reason)
	}
	p.set("Suspend", false)
	p.set("Release", true)
	if final := healthy.release(); !final.Final {
		t.Errorf("%+v is not final", final.Record)
	}
	p.set("Release", false)
	for _, what := range []string{"Allocate", "Read", "OnSettled", "Suspend", "Release"} {
		if !logged(what) {
			t.Errorf("nothing is logged of %s, or not where", what)
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
