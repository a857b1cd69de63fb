package metering

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Sampler reads every device of one meter once a tick, as a [Sampling] does for
// many.
type Sampler struct {
	Source  Source
	Meter   *Meter
	Clock   Clock         // System if nil; the one the source stamps with
	Timeout time.Duration // after which a call counts as hung; the meter's MaxGap if zero

	// Observed, if set, is called after every reading, from several goroutines
	// at once: for logs and metrics.
	Observed func(Reading, Interval)
}

// Run describes the devices to the meter and then samples until ctx ends, or
// until the source has no more readings of any device. It returns nil when ctx
// ended. It does not wait for calls that hang: nothing can end those.
func (s *Sampler) Run(ctx context.Context) error {
	if s.Timeout < 0 {
		return fmt.Errorf("a device is given %s to answer", s.Timeout)
	}
	all := NewSampling(s.Source, s.Clock)
	defer all.Close()
	ended := make(chan error, 1)
	one, err := all.Add(ctx, s.Meter, s.Timeout, samplerListener{s, ended})
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

type samplerListener struct {
	*Sampler
	over chan<- error
}

func (l samplerListener) Sampled(r Reading, in Interval) {
	if l.Observed != nil {
		l.Observed(r, in)
	}
}

func (l samplerListener) SamplingEnded(err error) { l.over <- err }

// ErrEnd says that a source has no more readings of a device: a trace is over,
// or the source was closed.
var ErrEnd = errors.New("no more readings")
