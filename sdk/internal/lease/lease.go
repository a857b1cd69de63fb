// Package lease runs leases: it meters a lease's devices or has them metered elsewhere (Engine), states what they cost in signed
// records, holds the lease to what is paid (Credit), and has its devices suspended, resumed and taken back (placement.Placer). It knows
// neither nodes nor gateways nor x402: who runs which lease, and how it is paid, is told to it.
package lease

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/highwater"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/payercredit"
	"github.com/gpupay/gpupay/sdk/internal/placement"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Lease is one running rental: it meters its devices, states what they cost in
// signed records, and stops service when the renter's vouchers fall behind by
// the credit. One goroutine at a time (work) changes its state, and there is none
// while there is nothing to do; the HTTP handlers tell it things and read
// snapshots.
type Lease struct {
	ID         common.Hash
	Terms      channel.Terms
	Offer      *wire.SignedOffer
	Price      metering.Price
	MaxDebt    uint256.Int // base units owed and not vouchered, at most
	Allocation gpu.Allocation
	OwedBefore uint256.Int
	startedAt  int64           // unix nanoseconds
	Term       int64           // of our ownership, where gateways share the database
	tenure     context.Context // ends when others may run it; nil: nobody else does
	Mirror     bool            // another gateway runs it: this only shows its streams
	Credit     Credit
	Deps       Deps

	Remote       Engine // where a node meters it: then this has no meter and no recorder of its own
	Meter        *metering.Meter
	Binding      *wire.MeterBinding // whose key signs its records; nil: the one that its offer names
	sampled      *metering.Sampled
	watchdog     inventory.Watchdog // of its devices
	devices      *inventory.Watch   // of each of them; nil: of none
	liveness     probe              // of what was allocated
	Read         chan struct{}      // closed when its devices were read first, of a lease that lasts for one request
	opened       chan struct{}      // closed when they were looked at first, of any other that begins here
	again        *time.Timer        // begins sampling that ended anew
	recorder     *metering.Recorder
	draft        *leasestore.Pending    // measured, not yet signed: it is signed as it is, or never
	Unstored     *metering.SignedRecord // signed, not yet on disk: the store failed
	written      []writtenRecord        // the newest of those that are on disk, where others share the database
	unsaved      bool                   // its state is not on disk: the store failed
	unsure       bool                   // an earlier process ran it, and may have suspended its devices without writing that down
	returned     bool                   // its devices were taken back, and may be the next renter's
	rewrite      *time.Timer            // wants to try that again
	records      *time.Timer            // wants the next record
	suspendTimer *time.Timer            // ends it if it is still suspended then
	suspendedAt  time.Time              // of its suspension
	Earlier      time.Time              // when an earlier process suspended it; zero if none did

	life   context.Context // it goes on in the next process when this ends
	wait   *sync.WaitGroup // for it to have ended
	Notify chan struct{}   // there is mail, for the goroutine that a lease on a node has
	Done   chan struct{}   // closed when the lease has ended or the provider stops

	Closing atomic.Pointer[func(*sqlx.Tx, metering.SignedRecord) error] // goes to disk with the final record

	Guarded   atomic.Bool // the time in which it was ours is up, and its credit is watched over
	Lost      atomic.Bool // another gateway has it, or may: nothing of it is touched here any more
	Elsewhere atomic.Bool // another gateway has it: the database says so, or the file that this host's gateways share
	aborted   atomic.Bool // more was signed of it than the database has: nothing is signed any more, and it ends
	Ending    atomic.Bool // somebody has asked it to end

	custody custody                            // of its devices
	hurried atomic.Pointer[context.CancelFunc] // ends its wait for the database: see inCredit

	Share   atomic.Pointer[uint256.Int] // base units of the credit that it has, where a node meters it; nil: not told
	account *payercredit.Account        // of its payer, whose debts share the credit; nil: it has the credit for itself

	mu      sync.Mutex
	inbox   Inbox
	working bool // its goroutine runs, or it is not launched yet, or has ended
	View    View
	changed chan struct{} // closed at the next change of view; nil: nobody waits for one
}

// Inbox is what a lease was told and has not looked at yet.
type Inbox struct {
	some  bool // look at the money, and at whether the lease is still ours
	begin bool
	again bool // sampling ended: begin it anew
	due   bool // a record, by the clock
	cut   bool // a record, of what was metered
	Stop  *Stop
}

// Deps is what every lease of a provider uses.
type Deps struct {
	Placer   placement.Placer
	Liveness func(context.Context, gpu.Allocation) error // of what it allocated; nil: it does not say
	probing  chan struct{}                               // bounds how many are asked at a time
	Source   metering.Source
	Clock    metering.Clock
	sampling *metering.Sampling      // of source, for all leases
	Sick     []*inventory.Quarantine // hear which devices cannot be read
	Store    leasestore.Store
	Row      uint256.Int           // base units of a channel that a settlement fetches at least
	Accounts *payercredit.Accounts // of payers; nil: each lease has a credit of its own
	Marks    *highwater.Marks      // outside the store: what was signed
	Metrics  Metrics
	Log      *slog.Logger
	Timing   Timing
	Ended    func(*Lease)
	Dropped  func(*Lease)           // it goes on elsewhere
	leaving  chan struct{}          // bounds how many write their last record at a time
	Tenure   func() context.Context // ends when others may run our leases; nil: nobody else does
}

// Timing is how often a lease looks at things.
type Timing struct {
	Tick           time.Duration
	RecordEvery    time.Duration
	SuspendTimeout time.Duration
	AliveEvery     time.Duration // between looks at whether what was allocated is alive
	CallTimeout    time.Duration // of an allocator's command and of a device's reading
	BeginTimeout   time.Duration // of all that is asked to begin a lease; CallTimeout if zero
}

// View is what a stream shows, replaced as a whole at every change.
type View struct {
	State    leasestore.State
	Reason   string
	Version  uint64 // counts changes of state and reason
	Sequence uint64 // of the newest record
	Owed     uint256.Int
	Nanos    uint64
	Accepted uint256.Int
	Deposit  uint256.Int

	Collectible uint256.Int // of Accepted: see payercredit.Collectible

	Reserved uint256.Int // what may be owed at most, of a lease that is paid in advance
	Need     uint64      // counts the times a voucher was asked for
	stalled  bool        // it ends, and this could not be written yet
	Stream   uint64      // the stream that may write: a newer one replaces it
}

// Ask notes whether a voucher is asked for when a lease comes into a state: not
// where it is suspended for what no voucher mends.
func (v *View) Ask(state leasestore.State, reason string) {
	switch {
	case state == leasestore.Active:
		v.Need = 0
	case state == leasestore.Suspended && reason != ReasonUnmetered && reason != ReasonDead:
		v.Need++
	}
}

// hear takes a voucher, if it is newer.
func (v *View) hear(s channel.State, row uint256.Int) {
	v.Accepted, v.Collectible = u256.Max(v.Accepted, s.Accepted), u256.Max(v.Collectible, payercredit.Collectible(s, row))
}

// Apply takes what the database says of a lease that another gateway runs.
func (v *View) Apply(row leasestore.Glimpse, s channel.State, last *metering.SignedRecord) {
	v.Deposit, v.Stream, v.Accepted = s.Deposit, max(v.Stream, uint64(row.Stream)), u256.Max(v.Accepted, s.Accepted)
	if last != nil && last.Sequence > v.Sequence {
		v.Sequence, v.Owed, v.Nanos = last.Sequence, last.Owed, last.Nanos
	}
	if state := leasestore.State(row.State); state != leasestore.Ending && (state != v.State || row.Reason != v.Reason) {
		v.Version++
		v.Ask(state, row.Reason)
		v.State, v.Reason = state, row.Reason
	}
}

// Stop asks the lease to end.
type Stop struct {
	Reason string
	Keep   bool              // the process stops and the lease goes on in the next one
	At     *metering.Instant // when it was asked for, or the request that it lasts for was over: it is billed up to then; nil: to its last reading
}

// Engine meters a lease that this process does not meter. It has each record checked and on disk (CommitRecord) before anybody
// sees it.
type Engine interface {
	// Follow passes on what is paid, and takes records, until the lease is over.
	Follow(ctx context.Context) Stop
	// Collect ends the lease where it is metered and takes its last records.
	Collect(ctx context.Context, req Stop) error
}

// MetersHere reports whether this process meters the lease.
func (l *Lease) MetersHere() bool { return l.Remote == nil }

// Begins is how long the beginning of a lease may take.
func (t Timing) Begins() time.Duration { return cmp.Or(t.BeginTimeout, t.CallTimeout) }

// Snapshot is the view, and what is closed when it changes.
func (l *Lease) Snapshot() (View, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.View, l.changed
}

// Look is the view.
func (l *Lease) Look() View {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.View
}

// Update changes the view.
func (l *Lease) Update(change func(*View)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.View)
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// Observe tells the lease what its channel holds now. A state that comes late
// takes no newer voucher back: a lease that is paid is never left suspended.
func (l *Lease) Observe(s channel.State) {
	l.Update(func(v *View) {
		v.Deposit = s.Deposit
		v.hear(s, l.Deps.Row)
	})
	l.account.Tally(l)
	l.Wake()
}

// Pays tells the lease of a voucher, the newest or an older one. What it says of
// the deposit is not taken: of two that came together, either may be told last.
func (l *Lease) Pays(s channel.State) {
	l.Update(func(v *View) { v.hear(s, l.Deps.Row) })
	l.account.Tally(l)
	l.Wake()
}

// Relinquish has the lease let go of everything at once: another gateway runs it.
func (l *Lease) Relinquish() {
	l.Lost.Store(true)
	l.rush()
	l.Wake()
}

// Abort has the lease end without another signature.
func (l *Lease) Abort() {
	l.aborted.Store(true)
	l.Wake()
}

// Wake has the lease look at its money now.
func (l *Lease) Wake() { l.post(func(*Inbox) {}) }

// post leaves something for the lease to do, and has it done.
func (l *Lease) post(change func(*Inbox)) {
	l.mu.Lock()
	change(&l.inbox)
	l.inbox.some = true
	start := !l.working && l.life != nil
	l.working = l.working || start
	l.mu.Unlock()
	if start {
		go l.work()
	}
	if l.Notify != nil {
		select {
		case l.Notify <- struct{}{}:
		default: // one is waiting already, and it will see this
		}
	}
}

// TakeInbox is what there is to do. Where there is nothing the goroutine ends.
func (l *Lease) TakeInbox() (Inbox, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	mail := l.inbox
	l.inbox = Inbox{}
	l.working = mail.some
	return mail, mail.some
}

// End asks the lease to end and waits until it has: nothing is billed after it
// returns, also where it says that the end could not be written yet. The first to
// ask gives the reason.
func (l *Lease) End(ctx context.Context, req Stop) error {
	if req.At == nil && l.Meter != nil && l.Credit.Postpaid() {
		now := l.Deps.Clock.Now()
		req.At = &now
	}
	l.post(func(m *Inbox) {
		if m.Stop == nil {
			m.Stop = &req
		}
	})
	for {
		v, changed := l.Snapshot()
		select {
		case <-l.Done:
			return nil
		default:
		}
		if v.stalled {
			return wire.Unavailable.With("lease %s ends, is billed no more, and this could not be written yet: try again", l.ID)
		}
		select {
		case <-l.Done:
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// run meters from now on until the lease ends. The end of life ends the lease's
// own work only after the last record is on disk, so it must outlive requests.
func (l *Lease) run(life context.Context, wait *sync.WaitGroup) {
	if !l.MetersHere() {
		go func() {
			l.close(life, l.Remote.Follow(life))
			wait.Done()
		}()
		return
	}
	l.mu.Lock()
	l.life, l.wait = life, wait
	l.mu.Unlock()
	l.post(func(m *Inbox) { m.begin = true })
}

// work does what there is to do.
func (l *Lease) work() {
	for {
		mail, ok := l.TakeInbox()
		if !ok {
			return
		}
		req := l.do(l.life, mail)
		if req == nil {
			continue
		}
		l.close(l.life, *req)
		l.wait.Done()
		return // and is working for ever: nothing is done after the end
	}
}

// do is one look at everything. It returns why the lease is over, if it is.
func (l *Lease) do(ctx context.Context, mail Inbox) *Stop {
	switch {
	case mail.Stop != nil:
		return mail.Stop
	case ctx.Err() != nil:
		return &Stop{Reason: "the provider stops", Keep: true}
	}
	_ = l.Save(ctx) // logged and tried again
	if l.State() == leasestore.Suspended && (l.draft != nil || l.Unstored != nil) && l.Record(ctx, false) != nil {
		l.writeLater() // what no record says cannot be paid
	}
	if mail.begin {
		l.begin(ctx)
		_ = l.complete(ctx) // what an earlier process left behind; logged and tried again
	}
	if mail.again {
		l.sampled = l.Deps.sampling.Attend(l.Meter, 0, l)
	}
	if mail.due {
		l.records.Reset(l.Deps.Timing.RecordEvery)
	}
	if mail.cut || mail.due && l.tells() {
		_ = l.Record(ctx, false) // logged and tried again; the credit bounds what is served meanwhile
	}
	switch last, _ := l.recorder.Last(); {
	case l.Lost.Load():
		return &Stop{Reason: "another gateway runs it"}
	case l.aborted.Load():
		return &Stop{Reason: leasestore.ErrRolledBack.Error()}
	case last.Final: // it was drafted by an earlier process
		return &Stop{Reason: "its final record was written"}
	}
	if l.unsure {
		if req := l.handOver(ctx); req != nil {
			return req
		}
	}
	if l.Credit.quantumDone(l) {
		_ = l.Record(ctx, false) // logged and tried again; what is reserved bounds what is served meanwhile
	}
	return l.enforce(ctx)
}

// begin has the devices read and records made. They keep the grid on which the
// lease began: leases that are taken up together do not all record at once.
func (l *Lease) begin(ctx context.Context) {
	l.sampled = l.sample(ctx)
	if l.opened != nil {
		go l.open(l.sampled.Looked())
	}
	l.probe()
	if l.Credit.Postpaid() {
		every := l.Deps.Timing.RecordEvery
		past := max(time.Since(time.Unix(0, l.startedAt)), 0) % every
		l.records = time.AfterFunc(every-past, func() { l.post(func(m *Inbox) { m.due = true }) })
	}
}

// close ends what the lease does and finishes it.
func (l *Lease) close(ctx context.Context, req Stop) {
	l.mu.Lock()
	again := l.again
	l.mu.Unlock()
	for _, t := range []*time.Timer{l.records, l.suspendTimer, again, l.rewrite} {
		if t != nil {
			t.Stop()
		}
	}
	l.liveness.stop()
	l.endSampling(req)
	if req.Keep { // all of the process do so at once
		l.Deps.leaving <- struct{}{}
		defer func() { <-l.Deps.leaving }()
	}
	l.finish(ctx, req)
	close(l.Done)
	l.liveness.stop() // a look that was under way has set it again
}

// State is the view's.
func (l *Lease) State() leasestore.State { return l.Look().State }

// Sampled stops the bill at the reading that uses up the credit. It is not left
// to the lease's goroutine, which may be waiting for a disk or a command.
func (l *Lease) Sampled(r metering.Reading, in metering.Interval) {
	l.account.Tally(l)
	l.devices.Saw(r, in, l.Deps.Clock)
	if l.watchdog.Saw(r, in, l.Deps.Clock) {
		l.Wake()
		l.hasten()
	}
	v := l.Look()
	switch active := v.State == leasestore.Active; {
	case active && l.exhausted(&v):
		l.Meter.Pause()
		l.Wake()
		l.hasten()
	case active:
		l.Credit.sampled(l, &v)
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
	if !l.watchdog.Expire() {
		l.Deps.Log.Error("metering stopped: the lease is suspended until it goes on", "lease", l.ID, "error", err)
	}
	l.mu.Lock()
	l.again = time.AfterFunc(sampleAgain, func() { l.post(func(m *Inbox) { m.again = true }) })
	l.mu.Unlock()
	l.Wake()
	l.hasten()
}

// Why a lease is suspended. They are on disk, and shown to the renter.
const (
	reasonUnpaid    = "a voucher is due"
	ReasonUnmetered = "its GPUs cannot be metered"
	ReasonDead      = "what it was given is not alive"
)

// hindrance is why a lease must not be served now, "" if nothing hinders it. One
// that was suspended unpaid needs more than another: see Credit.
func (l *Lease) hindrance(v *View) string {
	unpaid := l.exhausted(v)
	if v.State == leasestore.Suspended && v.Reason != ReasonUnmetered && v.Reason != ReasonDead {
		unpaid = !l.Credit.mayResume(l, *v)
	}
	switch {
	case unpaid:
		return reasonUnpaid
	case l.watchdog.Expired():
		return ReasonUnmetered
	case l.liveness.dead.Load():
		return ReasonDead
	}
	return ""
}

// tells reports whether records are due by the clock: also of a lease that is paid
// and cannot be metered, so that its renter hears of it.
func (l *Lease) tells() bool {
	v := l.Look()
	return v.State == leasestore.Active || v.State == leasestore.Suspended && (v.Reason == ReasonUnmetered || v.Reason == ReasonDead)
}

// enforce holds the lease to its credit: it suspends before the next reading
// could exceed it, resumes when vouchers have caught up, and gives up on a renter
// that stays away. A lease that nobody can meter is suspended alike. It returns why
// the lease is over, if it is.
func (l *Lease) enforce(ctx context.Context) *Stop {
	v := l.Look()
	why := l.hindrance(&v)
	switch v.State {
	case leasestore.Active:
		if why == "" && l.bills() { // a voucher may have come between the reading that stopped the bill and now
			l.Remind(v)
			return nil
		}
		if why == "" { // it was paid after its devices had been suspended: see holdBack
			defer l.Wake()
			why = reasonUnpaid
		}
		if err := l.suspend(ctx, why); err != nil {
			return l.failed(ctx, endedFor(why)+", and could not be suspended", err)
		}
		if l.startSuspendTimer(); why == ReasonUnmetered {
			l.startSuspendTimerAt(l.watchdog.Since())
		}
	case leasestore.Suspended:
		if why == "" && !l.Claims(true) { // another one that went on meanwhile took what was left
			why = v.Reason
		}
		if why == "" {
			if err := l.resume(ctx); err != nil {
				return l.failed(ctx, "could not be resumed", err)
			}
			if v.Reason == ReasonUnmetered {
				l.watchdog.Resumed(l.suspendedAt)
			}
			return nil
		}
		if why != v.Reason {
			if err := l.suspendFor(ctx, v.Reason, why); err != nil {
				return l.failed(ctx, endedFor(why)+", and could not be suspended", err)
			}
			l.startSuspendTimer()
		}
		if l.unwritten() { // it is our fault that nothing counts
			l.startSuspendTimer()
		}
		if l.suspendedAt.IsZero() { // suspended by an earlier process
			l.startSuspendTimerAt(suspendedSince(l.Earlier, time.Now(), l.Deps.Timing.SuspendTimeout))
		}
		if time.Since(l.suspendedAt) >= l.Deps.Timing.SuspendTimeout {
			return &Stop{Reason: fmt.Sprintf("%s for %s", endedFor(why), l.Deps.Timing.SuspendTimeout)}
		}
		l.hasten() // where its command failed
	}
	return nil
}

// failed is why a lease is over whose command failed: its own failure, unless the
// command was cut off since the process stops, or is another gateway's to give.
func (l *Lease) failed(ctx context.Context, reason string, err error) *Stop {
	if l.tenure != nil && l.tenure.Err() != nil {
		l.Lost.Store(true)
	}
	switch {
	case l.Lost.Load():
		return &Stop{Reason: "another gateway runs it"}
	case ctx.Err() != nil:
		return &Stop{Reason: "the provider stops", Keep: true}
	}
	l.Deps.Log.Error("a command on a lease's devices failed: it ends", "lease", l.ID, "reason", reason, "error", err)
	return &Stop{Reason: reason}
}

// suspendFor changes why a lease is suspended. What was dead may never have been,
// whatever its command said.
func (l *Lease) suspendFor(ctx context.Context, before, why string) error {
	if before == ReasonDead {
		l.custody.given.Store(true)
		return l.suspend(ctx, why)
	}
	l.Enter(ctx, leasestore.Suspended, why)
	return nil
}

// endedFor is what is said of a lease that ends because it was suspended.
func endedFor(why string) string {
	if why == reasonUnpaid {
		return "unpaid"
	}
	return why
}

// startSuspendTimer has the lease end if it is still suspended when the renter's time is up.
func (l *Lease) startSuspendTimer() { l.startSuspendTimerAt(time.Now()) }

func (l *Lease) startSuspendTimerAt(since time.Time) {
	l.suspendedAt = since
	left := l.Deps.Timing.SuspendTimeout - time.Since(since)
	if l.suspendTimer == nil {
		l.suspendTimer = time.AfterFunc(left, l.Wake)
		return
	}
	l.suspendTimer.Reset(left)
}

// suspendedSince is when a suspension began that an earlier process wrote down as
// of then: its time goes on, so that a provider that starts often keeps no GPU for
// who does not pay. A quarter of it is left whatever the clock says, since nobody
// could pay while no process was there.
func suspendedSince(then, now time.Time, timeout time.Duration) time.Time {
	if then.IsZero() || then.After(now) {
		return now
	}
	if latest := now.Add(-timeout * 3 / 4); then.Before(latest) {
		return latest
	}
	return then
}

// Limit is the most that may be owed, and never more than the deposit can pay.
func (l *Lease) Limit(v *View) uint256.Int {
	return l.limitOf(v, l.left())
}

func (l *Lease) limitOf(v *View, left uint256.Int) uint256.Int {
	return u256.Min(l.Credit.limit(v, left), v.Deposit)
}

// exhausted reports whether the next reading could take the debt over its
// limit. Two ticks are kept free, of these GPUs and of all that the payer's other
// leases have here: a reading may come late. One that comes later still, up to
// MaxGap, is billed, and is the provider's own risk.
func (l *Lease) exhausted(v *View) bool { return l.exceeds(l.Limit(v)) }

func (l *Lease) exceeds(limit uint256.Int) bool {
	owed, err := l.owedAt(l.used() + l.ahead())
	return err != nil || owed.Gt(&limit)
}

// ahead is the two ticks of each GPU that are kept free, nanoseconds.
func (l *Lease) ahead() uint64 {
	return uint64(len(l.Allocation.Devices)) * uint64(2*l.Deps.Timing.Tick)
}

func (l *Lease) owedAt(nanos uint64) (uint256.Int, error) {
	charge, err := l.Price.Charge(nanos)
	if err != nil {
		return uint256.Int{}, err
	}
	var owed uint256.Int
	owed.Add(&l.OwedBefore, &charge)
	return owed, nil
}

// wants reports whether it is time for a voucher: half of what may be used
// before the lease is suspended is, by it and the payer's other channels.
func (l *Lease) wants(v *View, debt uint256.Int) bool {
	ahead, err := l.Price.Charge(l.ahead())
	if err != nil || debt.IsZero() {
		return false
	}
	used, theirs := l.account.Others(l)
	credit := u256.SaturatingSub(l.MaxDebt, theirs)
	if share := l.Share.Load(); share != nil {
		credit, used = *share, uint256.Int{}
	}
	half := u256.SaturatingSub(credit, ahead)
	half.Rsh(&half, 1)
	used.Add(&used, &debt)
	return used.Gt(&half)
}

// Remind asks for a voucher once when it is time, so that a renter that pays on
// demand is never suspended.
func (l *Lease) Remind(v View) {
	var debt uint256.Int
	if v.Owed.Gt(&v.Accepted) {
		debt.Sub(&v.Owed, &v.Accepted)
	}
	wants := l.wants(&v, debt)
	if wants && v.Need == 0 {
		l.Update(func(v *View) { v.Need++ })
	}
	if !wants && v.Need != 0 {
		l.Update(func(v *View) { v.Need = 0 })
	}
}

// suspend stops the meter and the renter's use of its devices. It waits for no
// disk, and for a server no longer than inCredit: what cannot be written now is tried again.
func (l *Lease) suspend(ctx context.Context, why string) error {
	l.Meter.Pause() // before the command: a renter does not pay for a slow suspension
	if err := l.Record(ctx, false); l.Lost.Load() {
		return err // the lease is another gateway's, and so are its devices
	}
	if err := l.Command(ctx, l.takeIn); err != nil && (why != ReasonDead || l.Lost.Load()) { // perhaps nothing runs that would have to stop
		return err
	}
	l.Enter(ctx, leasestore.Suspended, why)
	l.hasten() // where its command failed
	return nil
}

// handOver has the devices of a lease that an earlier process ran in the renter's
// hands, before a second of them is billed: whoever suspended them may have died
// before the database took it. It returns why the lease is over, if they cannot be.
func (l *Lease) handOver(ctx context.Context) *Stop {
	err := l.Command(ctx, l.giveOut)
	if err != nil && !l.Lost.Load() && ctx.Err() == nil { // a command may refuse what is not suspended
		if err = l.Command(ctx, l.takeIn); err == nil {
			err = l.Command(ctx, l.giveOut)
		}
	}
	if err != nil || l.Lost.Load() || ctx.Err() != nil {
		return l.failed(ctx, "could not be resumed", err)
	}
	l.unsure = false
	return nil
}

func (l *Lease) resume(ctx context.Context) error {
	l.custody.giving.Store(true)
	defer l.custody.giving.Store(false)
	if err := l.Command(ctx, l.giveOut); err != nil {
		if ctx.Err() != nil && !l.Lost.Load() { // cut off, and perhaps done: the next process resumes what is active, before it is billed
			l.unsaved = true
			l.Show(leasestore.Active, "")
		}
		return err
	}
	l.goOn() // after the command: the renter has its devices again
	l.Enter(ctx, leasestore.Active, "")
	return nil
}

// Command has the allocator do something, in the term that is ours only: another
// gateway's devices are not touched, and what is under way when others may take
// the lease is cut off.
func (l *Lease) Command(ctx context.Context, do func(context.Context, gpu.Allocation) error) error {
	call, cancel := context.WithTimeout(ctx, l.Deps.Timing.CallTimeout)
	defer cancel()
	if l.tenure != nil {
		defer context.AfterFunc(l.tenure, cancel)()
		ask, done := context.WithTimeout(call, leasestore.OwnerTimeout)
		term, err := l.Deps.Store.Leases.Term(ask, l.ID)
		done()
		l.Elsewhere.CompareAndSwap(false, err == nil && term != l.Term)
		if l.Elsewhere.Load() || l.tenure.Err() != nil { // where it does not answer, our tenure says it
			l.Lost.Store(true)
			return fmt.Errorf("lease %s: %w", l.ID, leasestore.ErrNotOwner)
		}
	}
	err := do(call, l.Allocation)
	if errors.Is(err, leasestore.ErrNotOwner) {
		l.CheckOwnership(err)
	}
	return err
}

// inCredit bounds how long an active lease waits for the database by what is left of its credit: then it has to be suspended.
// What was not written is tried again. Who waits for nobody's service, or stops, waits for as long as the database does.
func (l *Lease) inCredit(ctx context.Context) (context.Context, context.CancelFunc) {
	if v := l.Look(); v.State != leasestore.Active || v.stalled || l.life == nil || l.life.Err() != nil {
		return ctx, func() {}
	}
	ctx, cancel := context.WithTimeout(ctx, max(l.lasts(), leasestore.OwnerTimeout))
	l.hurried.Store(&cancel)
	return ctx, cancel
}

// rush ends a wait for the database that inCredit bounds: the payer's other leases have used the credit meanwhile, or others may run
// this one.
func (l *Lease) rush() {
	if cancel := l.hurried.Load(); cancel != nil {
		(*cancel)()
	}
}

// goOn has the meter bill, unless the lease was found dead meanwhile.
func (l *Lease) goOn() {
	l.Meter.Resume()
	if l.liveness.dead.Load() {
		l.Meter.Pause()
	}
}

// Enter is a change of state, which is on disk as soon as it can be.
func (l *Lease) Enter(ctx context.Context, state leasestore.State, reason string) {
	l.Deps.Log.Info("lease "+string(state), "lease", l.ID, "channel", l.Terms.ID(), "reason", reason)
	l.Show(state, reason)
	l.unsaved = true
	_ = l.Save(ctx) // logged and tried again
}

// Show shows another state.
func (l *Lease) Show(state leasestore.State, reason string) {
	l.Update(func(v *View) {
		v.State, v.Reason = state, reason
		v.Version++
		v.Ask(state, reason)
	})
	l.Claims(state == leasestore.Active)
}

// retryWrite is how long a lease waits before it tries again to write its state.
const retryWrite = time.Second

// Save has the lease's state on disk.
func (l *Lease) Save(ctx context.Context) error {
	if !l.unsaved {
		return nil
	}
	v := l.Look()
	write, cancel := l.inCredit(ctx)
	err := l.Deps.Store.Leases.SetState(write, l.ID, l.Term, v.State, v.Reason, 0)
	cancel()
	if err == nil {
		l.unsaved = false
		return nil
	}
	l.CheckOwnership(err)
	if ctx.Err() == nil { // else it is written as the process stops
		l.Deps.Log.Error("the lease's state could not be stored: it is tried again", "lease", l.ID, "state", string(v.State), "error", err)
	}
	l.writeLater()
	return err
}

// writeLater has the lease try again what it could not write.
func (l *Lease) writeLater() {
	if l.rewrite == nil {
		l.rewrite = time.AfterFunc(retryWrite, l.Wake)
		return
	}
	l.rewrite.Reset(retryWrite)
}

// unwritten reports whether something of the lease is not on disk that should be.
func (l *Lease) unwritten() bool { return l.unsaved || l.draft != nil || l.Unstored != nil }

// Record cuts the meter and makes the next signed record durable before anyone
// sees it. What an earlier attempt left behind goes first: a second record of
// the same number would be a fork that the payee signed.
func (l *Lease) Record(ctx context.Context, final bool) error {
	if err := l.complete(ctx); err != nil {
		return err
	}
	if last, ok := l.recorder.Last(); ok && last.Final {
		return nil
	}
	draft, err := l.recorder.Draft(l.Meter.Cut(), final)
	if err != nil {
		l.Deps.Log.Error("usage record could not be made", "lease", l.ID, "error", err)
		return err
	}
	l.draft = &leasestore.Pending{Draft: draft, Meter: l.Meter.Save()}
	return l.complete(ctx)
}

// complete has what was measured on disk, then signed, then on disk as signed. It
// goes on wherever an earlier attempt stopped, in this process or another one.
func (l *Lease) complete(ctx context.Context) error {
	ctx, cancel := l.inCredit(ctx)
	defer cancel()
	if l.Unstored != nil {
		if err := l.CommitRecord(ctx); err != nil {
			return err
		}
	}
	if l.draft == nil {
		return nil
	}
	rec, err := l.sign(ctx, *l.draft)
	if err != nil {
		l.CheckOwnership(err)
		l.Deps.Log.Error("usage record could not be signed", "lease", l.ID, "sequence", l.draft.Record.Sequence, "error", err)
		return err
	}
	fault.Point(fault.RecordSigned)
	l.draft, l.Unstored = nil, &rec
	return l.CommitRecord(ctx)
}

// sign signs a draft that is in the database, in the term that is ours: whoever
// takes the lease over finds it there and signs the same. The mark outside the
// database says no if the database forgot what was signed.
func (l *Lease) sign(ctx context.Context, p leasestore.Pending) (metering.SignedRecord, error) {
	if l.aborted.Load() {
		return metering.SignedRecord{}, leasestore.ErrRolledBack
	}
	err := l.Deps.Store.Records.Reserve(ctx, l.Term, p)
	if errors.Is(err, leasestore.ErrRolledBack) && l.writeAgain(ctx) == nil {
		err = l.Deps.Store.Records.Reserve(ctx, l.Term, p)
	}
	if err != nil {
		return metering.SignedRecord{}, err
	}
	fault.Point(fault.RecordReserved)
	mark := highwater.Mark{Sequence: p.Record.Sequence, Digest: l.recorder.Digest(p.Record)}
	states := highwater.Total{Channel: p.Record.ChannelID, Owed: p.Record.Owed}
	if err := l.Deps.Marks.Raise(ctx, l.recorder.Signer(), l.ID, mark, states); err != nil {
		return metering.SignedRecord{}, err
	}
	fault.Point(fault.RecordMarked)
	return l.recorder.Sign(ctx, p.Draft)
}

// writtenRecord is a record that was on disk, and where the meter stood at it.
type writtenRecord struct {
	record metering.SignedRecord
	meter  metering.State
}

// maxWritten is how many of them a lease remembers: a server that is further behind
// has lost more than the lease can tell.
const maxWritten = 3

// writeAgain writes records down that the database has forgotten, as after a fail-over
// to a server that was a little behind: they are signed, and shown.
func (l *Lease) writeAgain(ctx context.Context) error {
	row, err := l.Deps.Store.Leases.ByID(ctx, l.ID.Hex())
	if err != nil {
		return err
	}
	missing := slices.DeleteFunc(slices.Clone(l.written), func(w writtenRecord) bool { return w.record.Sequence <= uint64(row.Sequence) })
	if len(missing) == 0 || missing[0].record.Sequence != uint64(row.Sequence)+1 {
		return leasestore.ErrRolledBack
	}
	books := l.Deps.Store.Records
	books.Late = true // of what was charged later, or settled, the charge stands
	for _, w := range missing {
		if err := books.Append(ctx, l.Term, w.record, w.meter, nil); err != nil {
			return err
		}
	}
	l.Deps.Log.Warn("the database had forgotten records, as after a fail-over to a server that was behind: they are written again", "lease", l.ID, "records", len(missing))
	return nil
}

// CommitRecord has the record that was signed on disk, and its charge, under the fencing token.
func (l *Lease) CommitRecord(ctx context.Context) error {
	rec, books, meter := *l.Unstored, l.Deps.Store.Records, metering.State{} // a node keeps that of what it meters
	if books.Late = !l.MetersHere(); !books.Late {
		meter = l.Meter.Save()
	}
	err := books.Append(ctx, l.Term, rec, meter, l.Closing.Load())
	if errors.Is(err, leasestore.ErrRolledBack) && !l.MetersHere() {
		l.Lost.Store(true) // it is taken up again as the database has it, and its node has the rest
	} else if errors.Is(err, leasestore.ErrRolledBack) && l.writeAgain(ctx) == nil {
		err = books.Append(ctx, l.Term, rec, meter, l.Closing.Load())
	}
	if err != nil {
		l.CheckOwnership(err)
		l.Deps.Log.Error("usage record could not be stored", "lease", l.ID, "sequence", rec.Sequence, "error", err)
		return err
	}
	fault.Point(fault.RecordStored)
	l.Unstored = nil
	if l.MetersHere() && l.Deps.Store.DB.Shared() {
		l.written = append(l.written[max(0, len(l.written)+1-maxWritten):], writtenRecord{rec, meter})
	}
	l.Deps.Metrics.recorded(rec)
	l.Update(func(v *View) { v.Sequence, v.Owed, v.Nanos = rec.Sequence, rec.Owed, rec.Nanos })
	return nil
}

// CheckOwnership hears that the lease is another gateway's now, or that the database is
// older than what was signed from it.
func (l *Lease) CheckOwnership(err error) {
	switch {
	case errors.Is(err, leasestore.ErrNotOwner):
		l.Elsewhere.Store(true)
		l.Lost.Store(true)
	case errors.Is(err, highwater.ErrBehind), errors.Is(err, leasestore.ErrRolledBack), errors.Is(err, channel.ErrLower):
		l.aborted.Store(true)
	}
}

// detach leaves the lease to who runs it. What was measured since the last record
// is not billed by anybody. One whose row is gone runs nowhere: nobody else would take
// its devices back.
func (l *Lease) detach() {
	if l.forgotten() {
		l.TakeBack()
	} else {
		l.Deps.Log.Warn("lease goes on at another gateway", "lease", l.ID, "channel", l.Terms.ID())
	}
	l.Update(func(v *View) { v.Version++; v.Reason = "another gateway runs it" })
	l.Deps.Dropped(l)
}

// forgotten reports that the lease's row is gone. A database that was not reached in
// time is not asked: see replicas.guardCredit.
func (l *Lease) forgotten() bool {
	if l.tenure != nil && l.tenure.Err() != nil {
		return false
	}
	ask, cancel := context.WithTimeout(context.Background(), leasestore.OwnerTimeout)
	defer cancel()
	_, err := l.Deps.Store.Leases.Term(ask, l.ID)
	return errors.Is(err, sql.ErrNoRows)
}

// TakeBack takes the devices of a lease back that the database has forgotten, as after
// a fail-over to a server that was behind, unless they are in another lease already.
func (l *Lease) TakeBack() {
	call, cancel := context.WithTimeout(context.Background(), l.Deps.Timing.CallTimeout)
	defer cancel()
	err := l.Deps.Placer.Adopt(call, l.Allocation)
	if !errors.Is(err, inventory.ErrTaken) {
		err = l.takeBackDevices(call, l.Allocation)
	} else {
		l.custody.given.Store(false) // they are the next renter's
	}
	l.Deps.Log.Error("the database has forgotten a lease, as after a fail-over to a server that was behind: its devices are taken back", "lease", l.ID, "channel", l.Terms.ID(), "devices", l.Allocation.Devices, "error", err)
}

// conclude has the last record on disk.
func (l *Lease) conclude(ctx context.Context, req Stop) error {
	if !l.MetersHere() {
		return l.Remote.Collect(ctx, req)
	}
	if l.State() == leasestore.Active {
		l.Meter.Pause()
	}
	return l.Record(ctx, !req.Keep)
}

// finish states the last record and takes the devices back. A lease that is
// kept goes on in the next process: its devices stay with the renter, and the
// time in between is not billed.
func (l *Lease) finish(life context.Context, req Stop) {
	ctx := context.WithoutCancel(life)
	var unwritten error
	if req.Keep && !l.Lost.Load() && !l.aborted.Load() {
		unwritten = errors.Join(l.Save(ctx), l.conclude(ctx, req)) // logged: the next process goes on from what is on disk
	}
	defer func() {
		if life.Err() != nil && (unwritten != nil || l.Lost.Load() || !req.Keep && l.State() != leasestore.Ended) {
			l.LeaveSuspended(ctx)
		}
	}()
	switch {
	case l.Lost.Load():
		l.detach()
	case req.Keep:
		l.Update(func(v *View) { v.Version++; v.Reason = req.Reason })
	default:
		l.expire(life, req)
	}
}

// expire ends the lease in two steps that are on disk: that it ends, with its last
// record, before its devices are taken back, and that it has ended, after. So
// whoever takes it up in between, after a crash or on a full disk, neither meters
// it without its devices nor leaves them with the renter.
func (l *Lease) expire(life context.Context, req Stop) {
	ctx, asked := context.WithoutCancel(life), time.Now()
	l.Ending.Store(true) // its devices are another lease's as soon as they are taken back
	if !l.until(life, func() error { return l.concluded(ctx, req, asked) }) {
		return
	}
	err := l.Command(ctx, l.takeBackDevices)
	if err != nil {
		l.Deps.Log.Error("the devices of a lease could not be taken back: they are suspended, and it is tried again", "lease", l.ID, "error", err)
		l.hold(ctx)
	}
	fault.Point(fault.LeaseReleased)
	l.returned = err == nil
	if !l.until(life, func() error { return l.Deps.Store.Leases.SetEnded(ctx, l.ID, l.Term, req.Reason, !l.returned) }) {
		return
	}
	l.Deps.Log.Info("lease ended", "lease", l.ID, "channel", l.Terms.ID(), "reason", req.Reason)
	l.Update(func(v *View) { v.State, v.Reason = leasestore.Ended, req.Reason; v.Version++ })
	l.Deps.Ended(l)
}

// hold suspends devices that could not be taken back: their renter's bill has ended.
func (l *Lease) hold(ctx context.Context) {
	if err := l.Command(ctx, l.takeIn); err != nil {
		l.CannotSuspend(err)
	}
}

// concluded has it on disk that the lease ends, and, where its node is still to say what it metered, until when that counts.
func (l *Lease) concluded(ctx context.Context, req Stop, asked time.Time) error {
	var err error
	if !l.aborted.Load() {
		err = l.conclude(ctx, req)
	}
	switch {
	case l.Lost.Load():
		return err
	case !l.aborted.Load() && (l.draft != nil || l.Unstored != nil):
		return err
	case err != nil: // nothing of it is left to write
		l.Deps.Log.Error("lease ends without a last record", "lease", l.ID, "error", err)
	case l.MetersHere() && !l.aborted.Load():
		return nil // it is there with the final record
	}
	return l.Deps.Store.Leases.SetState(ctx, l.ID, l.Term, leasestore.Ending, req.Reason, asked.Unix())
}

// until tries a write of the lease's end until it is on disk. It is false if that
// did not come about: the process stops first, or the lease is another gateway's.
// Meanwhile nobody has the use of the devices, and who asked for the end hears so.
func (l *Lease) until(life context.Context, write func() error) bool {
	var pace chain.Backoff
	for {
		err := write()
		l.CheckOwnership(err)
		switch {
		case l.Lost.Load():
			l.detach()
			return false
		case err == nil:
			return true
		}
		l.stall(context.WithoutCancel(life), err)
		if chain.Pause(life, pace.Next()) != nil {
			l.Update(func(v *View) { v.Version++; v.Reason = "the provider stops" })
			return false
		}
	}
}

// stall suspends what cannot be ended yet, however often that takes.
func (l *Lease) stall(ctx context.Context, err error) {
	v := l.Look()
	if !v.stalled {
		l.Deps.Log.Error("lease ends, and this cannot be written: it is tried again until it can", "lease", l.ID, "channel", l.Terms.ID(), "error", err)
		l.Update(func(v *View) { v.stalled = true })
	}
	if l.returned {
		return
	}
	if err := l.Command(ctx, l.takeIn); err != nil && !l.Lost.Load() {
		l.CannotSuspend(err)
	}
}

// Overspent reports whether a renter has devices that nobody meters and for which its payer has no credit left, or which it was not to
// have yet.
func (l *Lease) Overspent() bool {
	if !l.custody.given.Load() {
		return false
	}
	l.account.Tally(l)
	v := l.Look()
	return l.HalfResumed() || l.exhausted(&v)
}

// HalfResumed reports whether the command that resumed a lease was cut off: its renter may have the devices, and its state does not say so.
func (l *Lease) HalfResumed() bool {
	return l.State() == leasestore.Suspended && l.custody.given.Load()
}

// lasts is how long what may still be owed of a lease serves all of its devices.
func (l *Lease) lasts() time.Duration {
	v := l.Look()
	owed, err := l.owedAt(l.used())
	limit := l.Limit(&v)
	if err != nil || !limit.Gt(&owed) {
		return 0
	}
	var left uint256.Int
	left.Sub(&limit, &owed)
	const step, most = 100 * time.Millisecond, 24 * time.Hour
	n := sort.Search(int(most/step), func(n int) bool {
		cost, err := l.Price.Charge(uint64(len(l.Allocation.Devices)) * uint64(time.Duration(n)*step))
		return err != nil || cost.Gt(&left)
	})
	return time.Duration(max(n-1, 0)) * step
}

// Needs is what the renter must do before service goes on. Where the deposit is
// the limit, the amount named is over it: top up first.
func (l *Lease) Needs(v View) wire.NeedVoucher {
	required := v.Owed
	var next uint256.Int
	next.Add(&v.Owed, &l.MaxDebt)
	if v.State == leasestore.Suspended && next.Gt(&v.Deposit) {
		required = next
	}
	return wire.NeedVoucher{
		ChannelID:          l.Terms.ID(),
		RequiredCumulative: wire.NewAmount(required),
		AcceptedCumulative: wire.NewAmount(v.Accepted),
		Deposit:            wire.NewAmount(v.Deposit),
	}
}

// Measurable waits until a request's GPUs were read first, so that all of its time
// is charged, and refuses one that could not be charged at all.
func (l *Lease) Measurable() error {
	select {
	case <-l.Read:
	case <-l.Done:
	}
	if !l.watchdog.Healthy() || l.devices.Rest() {
		return wire.Unavailable.With("the GPUs of this request cannot be metered now: nothing was charged, try again later")
	}
	return nil
}

// WhileActive calls stop when the lease is not active any more.
func (l *Lease) WhileActive(ctx context.Context, stop func()) {
	for {
		v, changed := l.Snapshot()
		if v.State != leasestore.Active {
			stop()
			return
		}
		select {
		case <-changed:
		case <-l.Done: // lost to another gateway, which does not know of the handler
			stop()
			return
		case <-ctx.Done():
			return
		}
	}
}
