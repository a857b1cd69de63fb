package metering

import (
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// now reads the clocks close together. Boottime is monotonic time and an offset
// that grows while the host sleeps; only the offset takes a call into the
// kernel, so it is read at most once in offsetAge.
func now() Instant {
	wall := time.Now()
	mono := origin.mono + int64(wall.Sub(origin.wall))
	if mono >= origin.due.Load() {
		origin.offset.Store(sleepOffset())
		origin.due.Store(mono + int64(offsetAge))
	}
	return Instant{Boot: mono + origin.offset.Load(), Mono: mono, Wall: wall.UnixNano()}
}

// offsetAge is how long after a host woke a reading may still not say so. The
// time of the sleep is billed to nobody either way: monotonic time stands still.
const offsetAge = 5 * time.Millisecond

// origin is a moment on two clocks: Go's, which is read without a call into the
// kernel, counts monotonic time from it.
var origin = func() *struct {
	wall        time.Time
	mono        int64
	offset, due atomic.Int64
} {
	o := &struct {
		wall        time.Time
		mono        int64
		offset, due atomic.Int64
	}{}
	for try := 0; ; try++ {
		before := read(unix.CLOCK_MONOTONIC)
		o.wall = time.Now()
		o.mono = read(unix.CLOCK_MONOTONIC)
		if o.mono-before < int64(100*time.Microsecond) || try == 64 {
			return o
		}
	}
}()

// sleepOffset is how much boottime is ahead of monotonic time. A thread that is
// put aside between two of the reads would look like a short suspend, so it
// reads again.
func sleepOffset() int64 {
	for try := 0; ; try++ {
		before := read(unix.CLOCK_MONOTONIC)
		boot := read(unix.CLOCK_BOOTTIME)
		mono := read(unix.CLOCK_MONOTONIC)
		if mono-before < int64(time.Millisecond) || try == 8 {
			return boot - mono
		}
	}
}

func read(id int32) int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		panic("metering: this kernel lacks a clock that billing needs: " + err.Error())
	}
	return ts.Nano()
}

var bootID = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
})
