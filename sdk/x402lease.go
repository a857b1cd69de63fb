package sdk

import (
	"context"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
)

// A lease of a channel of x402 is paid in advance: it may use what requests have
// reserved, and its records are cut by what was metered and not by the clock.
// Between two requests nothing is charged, so what the client believes to have
// been charged stays right.

// filled reports whether a window was metered since the last record.
func (l *lease) filled() bool {
	return uint64(l.meter.Allocated()) >= l.look().nanos+l.window
}

// cutWindow states a window that was metered.
func (l *lease) cutWindow(ctx context.Context) {
	if l.window > 0 && l.state() == leasestore.Active && l.filled() {
		_ = l.record(ctx, false) // logged and tried again; what is reserved bounds what is served meanwhile
	}
}

// cutNow asks for a record of what was metered, a window or not.
func (l *lease) cutNow() { l.tell(func(m *leaseMail) { m.cut = true }) }

// room reports whether what is reserved pays for another window.
func (l *lease) room(v leaseView) bool {
	owed, err := l.owedAt(v.nanos + l.window)
	return err == nil && !owed.Gt(&v.reserved)
}

// sample has the devices read from now on, whatever state they are in. Of a lease
// that lasts for one request they are read before the request is served, and the
// request waits for that: nil if nothing of it could be metered.
func (l *lease) sample(ctx context.Context) *metering.Sampled {
	if l.read == nil {
		return l.deps.sampling.Attend(l.meter, 0, l)
	}
	defer close(l.read)
	sampled, err := l.deps.sampling.AddRead(ctx, l.meter, 0, l)
	if err != nil {
		l.deps.log.Error("a request is not served: its GPUs cannot be metered", "lease", l.id, "error", err)
	}
	return sampled
}

// open lets the renter have its devices when they were looked at.
func (l *lease) open(looked <-chan struct{}) {
	select {
	case <-looked:
	case <-l.done:
	}
	close(l.opened)
}

// endSampling reads no more. The devices of a lease that was asked to end are read
// a last time, for the time up to that: or leases shorter than a tick would be free,
// however many. What a channel has paid for in windows is not: see cutWindow.
func (l *lease) endSampling(req stopRequest) {
	if l.sampled == nil {
		return
	}
	if req.at != nil {
		l.sampled.Finish(*req.at)
	}
	l.sampled.Stop()
}
