package lease

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
func (l *Lease) probe() {
	if l.Deps.Liveness == nil || l.Read != nil { // what lasts for one request was given to nobody
		return
	}
	l.liveness.next.Store(time.AfterFunc(l.Deps.Timing.AliveEvery, func() {
		select {
		case <-l.Done: // what it was allocated is another's
			return
		default:
		}
		select {
		case l.Deps.probing <- struct{}{}:
		case <-l.Done:
			return
		case <-l.life.Done():
			return
		}
		ctx, cancel := context.WithTimeout(l.life, l.Deps.Timing.CallTimeout)
		err := l.Deps.Liveness(ctx, l.Allocation)
		cancel()
		<-l.Deps.probing
		l.felt(err)
		l.probe()
	}))
}

// felt takes what the allocator says. The bill stops at once, not when the lease's
// goroutine has time.
func (l *Lease) felt(err error) {
	switch {
	case err == nil:
		l.liveness.unknown = false
		if l.liveness.dead.Swap(false) {
			l.Wake()
		}
	case errors.Is(err, gpu.ErrDead):
		if !l.liveness.dead.Swap(true) {
			l.Meter.Pause()
			l.Deps.Log.Warn("lease is not alive: it is suspended and not billed", "lease", l.ID, "error", err)
			l.Wake()
		}
	case !l.liveness.unknown && l.life.Err() == nil:
		l.liveness.unknown = true
		l.Deps.Log.Warn("nobody knows whether a lease is alive", "lease", l.ID, "error", err)
	}
}

// Unmetered counts the leases that nobody can meter now.
func Unmetered(leases []*Lease) int {
	n := 0
	for _, l := range leases {
		if l.watchdog.Expired() {
			n++
		}
	}
	return n
}
