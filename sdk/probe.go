package sdk

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/gpupay/gpupay/sdk/gpu"
)

// probes is how many allocations of a provider are asked at once whether they are
// alive.
const probes = 16

// probe is what the allocator said last of whether a lease is alive.
type probe struct {
	dead    atomic.Bool
	unknown bool // it could not say, which was logged; for who asks
	next    atomic.Pointer[time.Timer]
}

// stop lets go of a lease that has ended: the timer would keep it in memory.
func (p *probe) stop() {
	if next := p.next.Load(); next != nil {
		next.Stop()
	}
}

// probe asks the allocator again and again whether what it allocated is alive,
// until the lease ends. It does not wait for the lease's goroutine, nor that for it:
// a command that hangs holds up no suspension.
func (l *lease) probe() {
	if l.deps.liveness == nil || l.read != nil { // what lasts for one request was given to nobody
		return
	}
	l.liveness.next.Store(time.AfterFunc(l.deps.timing.aliveEvery, func() {
		select {
		case <-l.done: // what it was allocated is another's
			return
		default:
		}
		select {
		case l.deps.probing <- struct{}{}:
		case <-l.done:
			return
		case <-l.life.Done():
			return
		}
		ctx, cancel := context.WithTimeout(l.life, l.deps.timing.callTimeout)
		err := l.deps.liveness(ctx, l.allocation)
		cancel()
		<-l.deps.probing
		l.felt(err)
		l.probe()
	}))
}

// felt takes what the allocator says. The bill stops at once, not when the lease's
// goroutine has time.
func (l *lease) felt(err error) {
	switch {
	case err == nil:
		l.liveness.unknown = false
		if l.liveness.dead.Swap(false) {
			l.Wake()
		}
	case errors.Is(err, gpu.ErrDead):
		if !l.liveness.dead.Swap(true) {
			l.meter.Pause()
			l.deps.log.Warn("lease is not alive: it is suspended and not billed", "lease", l.id, "error", err)
			l.Wake()
		}
	case !l.liveness.unknown && l.life.Err() == nil:
		l.liveness.unknown = true
		l.deps.log.Warn("nobody knows whether a lease is alive", "lease", l.id, "error", err)
	}
}
