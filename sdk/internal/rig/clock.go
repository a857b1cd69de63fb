package rig

import (
	"context"
	"sync"
	"time"

	"github.com/gpupay/gpupay/metering"
)

// FlawedClock is the clock of a host that is rebooted with its wall clock behind, or stopped for a while, as a virtual machine is.
type FlawedClock struct {
	metering.Clock
	mu     sync.Mutex
	boot   string
	lost   int64 // ns that its clocks missed
	behind int64 // ns of the wall clock beside the time that is
}

// NewFlawedClock is another clock until something happens to it.
func NewFlawedClock(of metering.Clock) *FlawedClock { return &FlawedClock{Clock: of, boot: "first"} }

// BootID is of metering.Clock.
func (f *FlawedClock) BootID() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.boot
}

// Now is of metering.Clock.
func (f *FlawedClock) Now() metering.Instant {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := f.Clock.Now()
	at.Boot, at.Mono, at.Wall = at.Boot-f.lost, at.Mono-f.lost, at.Wall-f.behind
	return at
}

// Stand has the host have been stopped since then, and its wall clock set.
func (f *FlawedClock) Stand(since metering.Instant) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lost += f.Clock.Now().Boot - since.Boot
}

// Reboot reboots the host, whose wall clock is an hour behind then.
func (f *FlawedClock) Reboot() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.boot, f.lost, f.behind = f.boot+"'", f.Clock.Now().Boot-int64(time.Second), int64(time.Hour)
}

// Earnest says of simulated GPUs that they are real.
type Earnest struct{ metering.Source }

// Devices is of metering.Source.
func (e Earnest) Devices(ctx context.Context) ([]metering.Device, error) {
	devices, err := e.Source.Devices(ctx)
	for i := range devices {
		devices[i].Simulated = false
	}
	return devices, err
}

// Read is of metering.Source.
func (e Earnest) Read(ctx context.Context, uuid string) (metering.Reading, error) {
	r, err := e.Source.Read(ctx, uuid)
	r.Simulated = false
	return r, err
}
