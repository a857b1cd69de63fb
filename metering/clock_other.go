//go:build !linux

package metering

import "time"

var started = time.Now()

// now counts from the start of the process, on Go's monotonic clock. It cannot
// see a suspend: metering a real GPU is for Linux; checking records is for all.
func now() Instant {
	mono := int64(time.Since(started))
	return Instant{Boot: mono, Mono: mono, Wall: time.Now().UnixNano()}
}

func bootID() string { return "" }
