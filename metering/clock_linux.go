package metering

import (
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// now reads the three clocks close together. A thread that is put aside
// between two of the reads would look like a short suspend, so it reads again.
func now() Instant {
	for try := 0; ; try++ {
		before := read(unix.CLOCK_MONOTONIC)
		boot := read(unix.CLOCK_BOOTTIME)
		mono := read(unix.CLOCK_MONOTONIC)
		if mono-before < int64(time.Millisecond) || try == 8 {
			return Instant{Boot: boot, Mono: mono, Wall: time.Now().UnixNano()}
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
