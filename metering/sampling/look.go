package sampling

import (
	"context"
	"time"

	"github.com/gpupay/gpupay/metering"
)

// AddRead is Add for what must be metered from this moment on, such as one
// request: it reads the devices itself, all at once, before it returns. Their
// readings bear one stamp, of after the last call. A device that does not answer
// within timeout bills nothing until one of its turns finds it healthy.
func (s *Scheduler) AddRead(ctx context.Context, m Meter, timeout time.Duration, to Listener) (*Task, error) {
	one, err := s.described(ctx, m, timeout, to)
	if err != nil {
		return nil, err
	}
	one.look(s.clock.Now)
	return one, nil
}

// Finish reads the devices once more, all at once, and stops. Nothing is billed
// after end, which has just passed: what reading takes is not, and a reading that a
// turn takes from now on counts as one of end. A device that does not answer in time bills
// nothing since its reading before.
func (o *Task) Finish(end metering.Instant) {
	o.mu.Lock()
	o.until = &end
	o.mu.Unlock()
	o.look(func() metering.Instant { return end })
	o.Stop()
}

// answer is what a call out of turn returned.
type answer struct {
	turn *turn
	r    metering.Reading
	err  error
}

// look reads all devices at once, out of turn, and stamps what they answer. It
// waits for calls that are under way already, and for none longer than timeout.
func (o *Task) look(stamp func() metering.Instant) {
	answers, calls, waits := o.call()
	given := o.s.clock.After(o.timeout)
	var got []answer
	inTime := true
	for inTime && len(got) < calls {
		select {
		case a := <-answers:
			got = append(got, a)
		case <-given:
			inTime = false
		}
	}
	at := stamp()
	for _, a := range got {
		a.r.At = at
		a.turn.finish(a.r, a.err)
	}
	for i := 0; inTime && i < len(waits); i++ {
		select {
		case <-waits[i]:
		case <-given:
			inTime = false
		}
	}
	o.giveUp(answers, calls-len(got))
}

// call begins a call of every device that has none under way; waits are closed
// when those that have one are done with it.
func (o *Task) call() (answers chan answer, calls int, waits []<-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	answers = make(chan answer, len(o.devices))
	for i := range o.devices {
		t := &o.devices[i]
		switch {
		case o.stopped || t.over || t.late: // what there is to observe of one that hangs was observed
		case t.pending:
			t.done = make(chan struct{})
			waits = append(waits, t.done)
		default:
			t.pending, t.looking = true, true
			calls++
			go func() {
				r, err := t.read()
				answers <- answer{t, r, err}
			}()
		}
	}
	return answers, calls, waits
}

// giveUp takes calls that did not come back in time for hung, and what they return
// later for what a call in turn returns late.
func (o *Task) giveUp(answers <-chan answer, left int) {
	if left == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	now := o.s.clock.Now().Mono
	for i := range o.devices {
		if t := &o.devices[i]; t.looking {
			t.looking, t.late = false, true
			t.observe(o.stalled(t.device))
			o.s.put(t, now+int64(o.timeout))
		}
	}
	go func() {
		for range left {
			a := <-answers
			a.turn.finish(a.r, a.err)
		}
	}()
}
