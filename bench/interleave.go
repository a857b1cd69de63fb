package bench

import (
	"context"
	"fmt"
	"runtime"
	"syscall"
	"time"
)

// A Contender does the work that is measured.
type Contender struct {
	Name string
	Step int // work comes in multiples of this
	// Prepare makes n pieces of work ready; it is not timed.
	Prepare func(n int) error
	// Run does the n pieces that were prepared and returns when all of them count.
	Run func(ctx context.Context, n int) error
	// Elsewhere is what other processes have used up to now that work for it; nil:
	// there are none.
	Elsewhere func() Usage
}

// Usage is what a process has used since it began.
type Usage struct {
	Allocs, Bytes uint64 // heap objects, and their bytes
	Processor     time.Duration
}

// Used returns what this process has used, in the kernel too.
func Used() Usage {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return Usage{m.Mallocs, m.TotalAlloc, ProcessorTime()}
}

// used is all that a contender has used up to now.
func (c Contender) used() Usage {
	u := Used()
	if c.Elsewhere != nil {
		e := c.Elsewhere()
		u = Usage{u.Allocs + e.Allocs, u.Bytes + e.Bytes, u.Processor + e.Processor}
	}
	return u
}

// Series is what one contender did, round by round.
type Series struct {
	Name   string
	Rates  []float64 // pieces a second
	Times  []float64 // seconds of processors a piece, round by round
	Allocs float64   // heap objects a piece, over all rounds, of the whole process and of those elsewhere
	Bytes  float64   // heap bytes a piece
	Busy   float64   // processors that it kept busy
}

// Rate returns the spread of the rates.
func (s Series) Rate() Spread { return SpreadOf(s.Rates) }

// Interleave measures contenders side by side. Two runs that do not count warm each one up and find how much work fills
// the span; that stays fixed.
func Interleave(ctx context.Context, s Settings, contenders []Contender) ([]Series, error) {
	work := make([]int, len(contenders))
	runs := make([]tally, len(contenders))
	for i, c := range contenders {
		work[i] = c.Step
		for _, part := range []time.Duration{4, 1} {
			var warm tally
			if err := warm.run(ctx, c, work[i]); err != nil {
				return nil, err
			}
			work[i] = c.fill(warm, s.Span/part)
		}
	}
	for round := range s.Rounds {
		for turn := range contenders {
			i := (round + turn) % len(contenders)
			if err := runs[i].run(ctx, contenders[i], work[i]); err != nil {
				return nil, err
			}
		}
	}
	series := make([]Series, len(contenders))
	for i, c := range contenders {
		series[i] = runs[i].series(c.Name)
	}
	return series, nil
}

// fill returns how much work takes about span.
func (c Contender) fill(warm tally, span time.Duration) int {
	n := int(float64(span) / float64(warm.wall) * float64(warm.work))
	return max(n-n%c.Step, c.Step)
}

// tally adds up the rounds of one contender.
type tally struct {
	rates, times    []float64
	work            int
	wall, processor time.Duration
	allocs, bytes   uint64
}

func (t *tally) run(ctx context.Context, c Contender, n int) error {
	if err := c.Prepare(n); err != nil {
		return fmt.Errorf("%s: %w", c.Name, err)
	}
	runtime.GC() // the garbage of the one before is not this one's
	before, begun := c.used(), time.Now()
	if err := c.Run(ctx, n); err != nil {
		return fmt.Errorf("%s: %w", c.Name, err)
	}
	wall, after := time.Since(begun), c.used()
	used := after.Processor - before.Processor
	t.rates = append(t.rates, float64(n)/wall.Seconds())
	t.times = append(t.times, used.Seconds()/float64(n))
	t.work += n
	t.wall += wall
	t.processor += used
	t.allocs += after.Allocs - before.Allocs
	t.bytes += after.Bytes - before.Bytes
	return nil
}

func (t *tally) series(name string) Series {
	n := float64(t.work)
	return Series{Name: name, Rates: t.rates, Times: t.times, Allocs: float64(t.allocs) / n, Bytes: float64(t.bytes) / n,
		Busy: float64(t.processor) / float64(t.wall)}
}

// ProcessorTime is what this process has used, in the kernel too.
func ProcessorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
