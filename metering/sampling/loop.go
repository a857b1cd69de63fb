package sampling

import (
	"context"
	"fmt"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/usage"
)

// Loop reads every device of one meter once a tick, as a [Scheduler] does for
// many.
type Loop struct {
	Source  metering.Source
	Meter   *usage.Meter
	Clock   metering.Clock // System if nil; the one the source stamps with
	Timeout time.Duration  // after which a call counts as hung; the meter's MaxGap if zero

	// Observed, if set, is called after every reading, from several goroutines
	// at once: for logs and metrics.
	Observed func(metering.Reading, usage.Interval)
}

// Run describes the devices to the meter and then samples until ctx ends, or
// until the source has no more readings of any device. It returns nil when ctx
// ended. It does not wait for calls that hang: nothing can end those.
func (s *Loop) Run(ctx context.Context) error {
	if s.Timeout < 0 {
		return fmt.Errorf("a device is given %s to answer", s.Timeout)
	}
	all := New(s.Source, s.Clock)
	defer all.Close()
	ended := make(chan error, 1)
	one, err := all.Add(ctx, s.Meter, s.Timeout, loopListener{s, ended})
	if err != nil {
		return err
	}
	defer one.Stop()
	select {
	case <-ctx.Done():
		return nil
	case err := <-ended:
		return err
	}
}

type loopListener struct {
	*Loop
	over chan<- error
}

func (l loopListener) Sampled(r metering.Reading, in usage.Interval) {
	if l.Observed != nil {
		l.Observed(r, in)
	}
}

func (l loopListener) SamplingEnded(err error) { l.over <- err }
