package metering

import "time"

// Instant is one moment on three clocks, in nanoseconds. Only Mono is billed.
// Boot counts the time a host slept as well, so Boot minus Mono jumps at a
// suspend. Wall is evidence for people.
type Instant struct {
	Boot int64 `json:"boot,string"` // CLOCK_BOOTTIME
	Mono int64 `json:"mono,string"` // CLOCK_MONOTONIC
	Wall int64 `json:"wall,string"` // since 1970
}

// Clock is the time a source stamps with and a sampler waits by. Tests give
// their own; see the Clock of package sim.
type Clock interface {
	Now() Instant
	After(d time.Duration) <-chan time.Time
	// BootID names the boot that Mono and Boot count from. It is empty where
	// the system has none.
	BootID() string
}

// System is the clock of this host.
var System Clock = system{}

type system struct{}

func (system) Now() Instant                           { return now() }
func (system) After(d time.Duration) <-chan time.Time { return time.After(d) }
func (system) BootID() string                         { return bootID() }
