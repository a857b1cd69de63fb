package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// machine says what was measured on. The figures of a disk are the first thing to compare.
func machine(scratch string) string {
	s := fmt.Sprintf("%d cores (%s), %s, %s", runtime.GOMAXPROCS(0), processor(), runtime.Version(), runtime.GOOS)
	if sync, err := syncTime(scratch); err == nil {
		s += fmt.Sprintf("; a write of 4 KiB and its fsync take %s", sync.Round(time.Microsecond))
	}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		s += fmt.Sprintf("; load average before the run %s, of other programs", strings.Fields(string(load))[0])
	}
	return s
}

func processor() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(info)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// syncTime is the median of what the disk takes to keep a small append.
func syncTime(dir string) (time.Duration, error) {
	f, err := os.OpenFile(filepath.Join(dir, "sync"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	block := make([]byte, 4096)
	var times []float64
	for range 64 {
		begun := time.Now()
		if _, err := f.WriteAt(block, 0); err != nil { // in place, as in a log that was written before
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		times = append(times, float64(time.Since(begun)))
	}
	return time.Duration(SpreadOf(times).Median), nil
}
