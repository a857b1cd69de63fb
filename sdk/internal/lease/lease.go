// Package lease runs leases: it meters a lease's devices or has them metered elsewhere (Engine), states what they cost in signed
// records, holds the lease to what is paid (Credit), and has its devices suspended, resumed and taken back (placement.Placer). It knows
// neither nodes nor gateways nor x402: who runs which lease, and how it is paid, is told to it.
package lease

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sampling"
	"github.com/gpupay/gpupay/metering/usage"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/placement"
	"github.com/gpupay/gpupay/sdk/internal/sharing"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Lease is one running rental: it meters its devices, states what they cost in signed records, and stops service when the renter's vouchers
// fall behind by the credit. One goroutine at a time (work) changes its state, and there is none while there is nothing to do; the HTTP
// handlers tell it things and read snapshots.
type Lease struct {
	core
	Balance    balance
	health     health
	Records    records
	Guard      guard
	Suspension suspension

	Guarded atomic.Bool // the time in which it was ours is up, and its credit is watched over
	Ending  atomic.Bool // somebody has asked it to end
	unsure  bool        // an earlier process ran it, and may have suspended its devices without writing that down

	sampled    *sampling.Task
	looked     <-chan struct{} // closed when the devices that it shares were read since it joined
	opened     chan struct{}   // closed when its devices were looked at first, of a lease that begins here and lasts for no request
	nextRecord *time.Timer
	mu         sync.Mutex  // guards again
	again      *time.Timer // begins sampling that ended anew
}

// core is what all parts of a lease know. Each part knows of the others only what New gives it.
type core struct {
	Spec
	Status  status
	Inbox   inbox
	Meter   sharing.Meter  // nil where a node meters the lease
	own     *usage.Meter   // Meter, where the lease has its devices for itself
	slots   *sharing.Lease // Meter, where it shares them
	Devices placement.Custody
	Fence   placement.Fence
}

// used is device time, nanoseconds: what was metered, and what was not because the lease was let go while its renter had the devices.
func (c *core) used() uint64 {
	return uint64(c.Meter.Allocated()) + uint64(len(c.Allocation.Devices))*uint64(c.Devices.Unmetered())
}

// New puts a lease together, which does not run yet.
func New(spec Spec, view View) *Lease {
	l := &Lease{core: core{Spec: spec, Status: status{view: view}}}
	l.Done = make(chan struct{})
	l.Inbox.Spec, l.Inbox.work = &l.Spec, l.work
	l.Devices.Placer, l.Devices.Clock = spec.Deps.Placer, spec.Deps.Clock
	l.Fence.Leases, l.Fence.Allocation, l.Fence.Timeout = spec.Deps.Store.Leases, spec.Allocation, spec.Deps.Timing.CallTimeout
	l.Balance.core, l.health.core, l.Suspension.core = &l.core, &l.core, &l.core
	l.Records.core, l.Records.balance = &l.core, &l.Balance
	l.Guard.core, l.Guard.balance, l.Guard.health, l.Guard.records = &l.core, &l.Balance, &l.health, &l.Records
	return l
}

// Past is a lease of which only its records are shown: nothing runs it here.
func Past(spec Spec, view View) *Lease {
	l := New(spec, view)
	close(l.Done)
	return l
}

// Relinquish has the lease let go of everything at once: another gateway runs it.
func (l *Lease) Relinquish() {
	l.Fence.Lost.Store(true)
	l.Records.cancelWait()
	l.Inbox.Wake()
}

// Abort has the lease end without another signature.
func (l *Lease) Abort() {
	l.Fence.Aborted.Store(true)
	l.Inbox.Wake()
}

// run meters from now on until the lease ends. The end of life ends the lease's
// own work only after the last record is on disk, so it must outlive requests.
func (l *Lease) run(life context.Context, done func()) {
	if !l.MetersHere() {
		go func() {
			l.close(life, l.Remote.Follow(life))
			done()
		}()
		return
	}
	l.Inbox.launch(life, done)
}

// work does what there is to do.
func (l *Lease) work() {
	for {
		mail, ok := l.Inbox.Take()
		if !ok {
			return
		}
		req := l.do(l.life, mail)
		if req == nil {
			continue
		}
		l.close(l.life, *req)
		l.Inbox.done()
		return // and is working for ever: nothing is done after the end
	}
}

// do is one look at everything. It returns why the lease is over, if it is.
func (l *Lease) do(ctx context.Context, mail Mail) *Stop {
	switch {
	case mail.Stop != nil:
		return mail.Stop
	case ctx.Err() != nil:
		return &Stop{Reason: "the provider stops", Keep: true}
	}
	_ = l.Records.SaveState(ctx) // logged and tried again
	if l.Status.State() == leasestore.Suspended && (l.Records.draft != nil || l.Records.Unstored != nil) && l.Records.Make(ctx, false) != nil {
		l.Records.writeLater() // what no record says cannot be paid
	}
	if mail.begin {
		l.begin(ctx)
		_ = l.Records.complete(ctx) // what an earlier process left behind; logged and tried again
	}
	if mail.again {
		l.sampled = l.Deps.sampling.Attend(l.own, 0, l)
	}
	if mail.due {
		l.nextRecord.Reset(l.Deps.Timing.RecordEvery)
	}
	if mail.cut || mail.due && l.tells() {
		_ = l.Records.Make(ctx, false) // logged and tried again; the credit bounds what is served meanwhile
	}
	switch last, _ := l.Records.recorder.Last(); {
	case l.Fence.Lost.Load():
		return &Stop{Reason: "another gateway runs it"}
	case l.Fence.Aborted.Load():
		return &Stop{Reason: l.Fence.Why()}
	case last.Final: // it was drafted by an earlier process
		return &Stop{Reason: "its final record was written"}
	}
	if l.unsure {
		if req := l.handOver(ctx); req != nil {
			return req
		}
	}
	if l.Credit.quantumDone(&l.Balance) {
		_ = l.Records.Make(ctx, false) // logged and tried again; what is reserved bounds what is served meanwhile
	}
	return l.enforce(ctx)
}

// begin has the devices read and records made. They keep the grid on which the
// lease began: leases that are taken up together do not all record at once.
func (l *Lease) begin(ctx context.Context) {
	if l.slots == nil {
		l.sampled = l.sample(ctx)
		l.health.watchLife(l.Guard.armBackstop)
	}
	if l.opened != nil {
		if l.sampled != nil { // only of one request it may be nil, and that has nobody who waits for it to open
			l.looked = l.sampled.Looked()
		}
		go l.open(l.looked)
	}
	if l.Credit.Postpaid() {
		every := l.Deps.Timing.RecordEvery
		past := max(time.Since(time.Unix(0, l.startedAt)), 0) % every
		l.nextRecord = time.AfterFunc(every-past, func() { l.Inbox.post(func(m *Mail) { m.due = true }) })
	}
}

// close ends what the lease does and finishes it.
func (l *Lease) close(ctx context.Context, req Stop) {
	l.mu.Lock()
	again := l.again
	l.mu.Unlock()
	for _, t := range []*time.Timer{l.nextRecord, l.Suspension.timer, again, l.Records.rewrite} {
		if t != nil {
			t.Stop()
		}
	}
	l.health.liveness.Stop()
	l.endSampling(req)
	if req.Keep { // all of the process do so at once
		l.Deps.leaving <- struct{}{}
		defer func() { <-l.Deps.leaving }()
	}
	l.finish(ctx, req)
	if !req.Keep { // the next process begins it anew
		l.leave()
	}
	close(l.Done)
	l.health.liveness.Stop() // a look that was under way has set it again
}

// sample has the devices read from now on, whatever state they are in. Of a lease that lasts for one request they are read before the
// request is served, and the request waits for that: nil if nothing of it could be metered.
func (l *Lease) sample(ctx context.Context) *sampling.Task {
	if l.Read == nil {
		return l.Deps.sampling.Attend(l.own, 0, l)
	}
	defer close(l.Read)
	sampled, err := l.Deps.sampling.AddRead(ctx, l.own, 0, l)
	if err != nil {
		l.Deps.Log.Error("a request is not served: its GPUs cannot be metered", "lease", l.ID, "error", err)
	}
	return sampled
}

// open lets the renter have its devices when they were looked at.
func (l *Lease) open(looked <-chan struct{}) {
	select {
	case <-looked:
	case <-l.Done:
	}
	close(l.opened)
}

// endSampling reads no more. The devices of a lease that was asked to end are read a last time, for the time up to that: or leases shorter
// than a tick would be free, however many. What a channel has paid for in windows is not: see prepaid.
func (l *Lease) endSampling(req Stop) {
	if l.slots != nil {
		l.endRequests(req)
	}
	if l.sampled == nil {
		return
	}
	if req.At != nil {
		l.sampled.Finish(*req.At)
	}
	l.sampled.Stop()
}

// Sampled stops the bill at the reading that uses up the credit. It is not left
// to the lease's goroutine, which may be waiting for a disk or a command.
func (l *Lease) Sampled(r metering.Reading, in usage.Interval) {
	l.Balance.account.Tally(&l.Balance)
	l.health.devices.Saw(r, in, l.Deps.Clock)
	if l.health.watchdog.Saw(r, in, l.Deps.Clock) {
		l.Inbox.Wake()
		l.Guard.armBackstop()
	}
	v := l.Status.Look()
	switch active := v.State == leasestore.Active; {
	case active && l.Balance.exhausted(&v):
		l.Meter.Pause()
		l.Inbox.Wake()
		l.Guard.armBackstop()
	case active:
		l.Credit.sampled(&l.Balance, &v)
	}
}

// sampleAgain is how long after sampling ended it is begun anew.
const sampleAgain = time.Second

// SamplingEnded says that no device of the lease is read any more: the source has
// no more readings. It is asked again, and the lease is not served meanwhile.
func (l *Lease) SamplingEnded(err error) {
	if l.life.Err() != nil {
		return
	}
	if !l.health.watchdog.Expire() {
		l.Deps.Log.Error("metering stopped: the lease is suspended until it goes on", "lease", l.ID, "error", err)
	}
	l.mu.Lock()
	l.again = time.AfterFunc(sampleAgain, func() { l.Inbox.post(func(m *Mail) { m.again = true }) })
	l.mu.Unlock()
	l.Inbox.Wake()
	l.Guard.armBackstop()
}

// Measurable waits until a request's GPUs were read first, so that all of its time is charged, and refuses one that could not be charged at all.
func (l *Lease) Measurable() error {
	select {
	case <-l.Read:
	case <-l.Done:
	}
	if !l.health.watchdog.Healthy() || l.health.devices.Rest() {
		return wire.Unavailable.With("the GPUs of this request cannot be metered now: nothing was charged, try again later")
	}
	return nil
}

// Prepay has a new lease run on what is reserved for it, base units, in records of a quantum of device nanoseconds.
func (l *Lease) Prepay(quantum uint64, reserved uint256.Int) {
	l.MaxDebt.Clear()
	l.Credit = Prepaid(quantum)
	l.Status.Update(func(v *View) { v.Reserved = reserved })
}
