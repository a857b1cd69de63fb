package sdk

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"slices"
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

// lease is one running rental: it meters its devices, states what they cost in
// signed records, and stops service when the renter's vouchers fall behind by
// the credit. One goroutine at a time (work) changes its state, and there is none
// while there is nothing to do; the HTTP handlers tell it things and read
// snapshots.
type lease struct {
	id         common.Hash
	terms      channel.Terms
	offer      *wire.SignedOffer
	price      metering.Price
	maxDebt    uint256.Int // base units owed and not vouchered, at most
	allocation gpu.Allocation
	owedBefore uint256.Int
	startedAt  int64           // unix nanoseconds
	term       int64           // of our ownership, where gateways share the database
	tenure     context.Context // ends when others may run it; nil: nobody else does
	mirror     bool            // another gateway runs it: this only shows its streams
	credit     leaseCredit
	deps       leaseDeps

	remote   leaseEngine // where a node meters it: then this has no meter and no recorder of its own
	meter    *metering.Meter
	binding  *wire.MeterBinding // whose key signs its records; nil: the one that its offer names
	sampled  *metering.Sampled
	watchdog watchdog      // of its devices
	each     []watchdog    // of each of them
	liveness probe         // of what was allocated
	read     chan struct{} // closed when its devices were read first, of a lease that lasts for one request
	opened   chan struct{} // closed when they were looked at first, of any other that begins here
	again    *time.Timer   // begins sampling that ended anew
	recorder *metering.Recorder
	draft    *leasestore.Pending    // measured, not yet signed: it is signed as it is, or never
	unstored *metering.SignedRecord // signed, not yet on disk: the store failed
	written  []writtenRecord        // the newest of those that are on disk, where others share the database
	unsaved  bool                   // its state is not on disk: the store failed
	unsure   bool                   // an earlier process ran it, and may have suspended its devices without writing that down
	returned bool                   // its devices were taken back, and may be the next renter's
	rewrite  *time.Timer            // wants to try that again
	records  *time.Timer            // wants the next record
	patience *time.Timer            // ends it if it is still suspended then
	since    time.Time              // of its suspension
	earlier  time.Time              // when an earlier process suspended it; zero if none did

	life context.Context // it goes on in the next process when this ends
	wait *sync.WaitGroup // for it to have ended
	poke chan struct{}   // there is mail, for the goroutine that a lease on a node has
	done chan struct{}   // closed when the lease has ended or the provider stops

	closing atomic.Pointer[func(*sqlx.Tx, metering.SignedRecord) error] // goes to disk with the final record

	guarded   atomic.Bool // the time in which it was ours is up, and its credit is watched over
	lost      atomic.Bool // another gateway has it, or may: nothing of it is touched here any more
	elsewhere atomic.Bool // another gateway has it: the database says so, or the file that this host's gateways share
	muted     atomic.Bool // more was signed of it than the database has: nothing is signed any more, and it ends
	ending    atomic.Bool // somebody has asked it to end

	custody custody                            // of its devices
	hurried atomic.Pointer[context.CancelFunc] // ends its wait for the database: see inCredit

	share   atomic.Pointer[uint256.Int] // base units of the credit that it has, where a node meters it; nil: not told
	account *payercredit.Account        // of its payer, whose debts share the credit; nil: it has the credit for itself

	mu      sync.Mutex
	mail    leaseMail
	working bool // its goroutine runs, or it is not launched yet, or has ended
	view    leaseView
	changed chan struct{} // closed at the next change of view; nil: nobody waits for one
}

// leaseMail is what a lease was told and has not looked at yet.
type leaseMail struct {
	any   bool // look at the money, and at whether the lease is still ours
	begin bool
	again bool // sampling ended: begin it anew
	due   bool // a record, by the clock
	cut   bool // a record, of what was metered
	stop  *stopRequest
}

// leaseEngine meters a lease that this process does not meter. It has each record checked and on disk (lease.keep) before anybody
// sees it.
type leaseEngine interface {
	// follow passes on what is paid, and takes records, until the lease is over.
	follow(ctx context.Context) stopRequest
	// collect ends the lease where it is metered and takes its last records.
	collect(ctx context.Context, req stopRequest) error
}

// metersHere reports whether this process meters the lease.
func (l *lease) metersHere() bool { return l.remote == nil }

// leaseDeps is what every lease of a provider uses.
type leaseDeps struct {
	placer   placement.Placer
	liveness func(context.Context, gpu.Allocation) error // of what it allocated; nil: it does not say
	probing  chan struct{}                               // bounds how many are asked at a time
	source   metering.Source
	clock    metering.Clock
	sampling *metering.Sampling      // of source, for all leases
	sick     []*inventory.Quarantine // hear which devices cannot be read
	store    leasestore.Store
	row      uint256.Int           // base units of a channel that a settlement fetches at least
	accounts *payercredit.Accounts // of payers; nil: each lease has a credit of its own
	marks    *highwater.Marks      // outside the store: what was signed
	metrics  leaseMetrics
	log      *slog.Logger
	timing   leaseTiming
	ended    func(*lease)
	dropped  func(*lease)           // it goes on elsewhere
	leaving  chan struct{}          // bounds how many write their last record at a time
	tenure   func() context.Context // ends when others may run our leases; nil: nobody else does
}

// leaseTiming is how often a lease looks at things.
type leaseTiming struct {
	tick           time.Duration
	recordEvery    time.Duration
	suspendTimeout time.Duration
	aliveEvery     time.Duration // between looks at whether what was allocated is alive
	callTimeout    time.Duration // of an allocator's command and of a device's reading
	beginTimeout   time.Duration // of all that is asked to begin a lease; callTimeout if zero
}

// begins is how long the beginning of a lease may take.
func (t leaseTiming) begins() time.Duration { return cmp.Or(t.beginTimeout, t.callTimeout) }

// leaseView is what a stream shows, replaced as a whole at every change.
type leaseView struct {
	state    leasestore.State
	reason   string
	version  uint64 // counts changes of state and reason
	sequence uint64 // of the newest record
	owed     uint256.Int
	nanos    uint64
	accepted uint256.Int
	deposit  uint256.Int

	collectible uint256.Int // of accepted: see collectible

	reserved uint256.Int // what may be owed at most, of a lease that is paid in advance
	need     uint64      // counts the times a voucher was asked for
	stalled  bool        // it ends, and this could not be written yet
	stream   uint64      // the stream that may write: a newer one replaces it
}

// ask notes whether a voucher is asked for when a lease comes into a state: not
// where it is suspended for what no voucher mends.
func (v *leaseView) ask(state leasestore.State, reason string) {
	switch {
	case state == leasestore.Active:
		v.need = 0
	case state == leasestore.Suspended && reason != reasonUnmetered && reason != reasonDead:
		v.need++
	}
}

// stopRequest asks the lease to end.
type stopRequest struct {
	reason string
	keep   bool              // the process stops and the lease goes on in the next one
	at     *metering.Instant // when it was asked for, or the request that it lasts for was over: it is billed up to then; nil: to its last reading
}

// snapshot is the view, and what is closed when it changes.
func (l *lease) snapshot() (leaseView, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.view, l.changed
}

func (l *lease) look() leaseView {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.view
}

func (l *lease) update(change func(*leaseView)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.view)
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// observe tells the lease what its channel holds now. A state that comes late
// takes no newer voucher back: a lease that is paid is never left suspended.
func (l *lease) observe(s channel.State) {
	l.update(func(v *leaseView) { v.deposit = s.Deposit })
	l.pays(s)
}

// pays tells the lease of a voucher, the newest or an older one. What it says of
// the deposit is not taken: of two that came together, either may be told last.
func (l *lease) pays(s channel.State) {
	l.update(func(v *leaseView) { v.hear(s, l.deps.row) })
	l.tally()
	l.Wake()
}

// hear takes a voucher, if it is newer.
func (v *leaseView) hear(s channel.State, row uint256.Int) {
	v.accepted, v.collectible = u256.Max(v.accepted, s.Accepted), u256.Max(v.collectible, payercredit.Collectible(s, row))
}

// lose has the lease let go of everything at once: another gateway runs it.
func (l *lease) lose() {
	l.lost.Store(true)
	l.rush()
	l.Wake()
}

// mute has the lease end without another signature.
func (l *lease) mute() {
	l.muted.Store(true)
	l.Wake()
}

// Wake has the lease look at its money now.
func (l *lease) Wake() { l.tell(func(*leaseMail) {}) }

// tell leaves something for the lease to do, and has it done.
func (l *lease) tell(change func(*leaseMail)) {
	l.mu.Lock()
	change(&l.mail)
	l.mail.any = true
	start := !l.working && l.life != nil
	l.working = l.working || start
	l.mu.Unlock()
	if start {
		go l.work()
	}
	if l.poke != nil {
		select {
		case l.poke <- struct{}{}:
		default: // one is waiting already, and it will see this
		}
	}
}

// mailed is what there is to do. Where there is nothing the goroutine ends.
func (l *lease) mailed() (leaseMail, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	mail := l.mail
	l.mail = leaseMail{}
	l.working = mail.any
	return mail, mail.any
}

// end asks the lease to end and waits until it has: nothing is billed after it
// returns, also where it says that the end could not be written yet. The first to
// ask gives the reason.
func (l *lease) end(ctx context.Context, req stopRequest) error {
	if req.at == nil && l.meter != nil && l.credit.postpaid() {
		now := l.deps.clock.Now()
		req.at = &now
	}
	l.tell(func(m *leaseMail) {
		if m.stop == nil {
			m.stop = &req
		}
	})
	for {
		v, changed := l.snapshot()
		select {
		case <-l.done:
			return nil
		default:
		}
		if v.stalled {
			return wire.Unavailable.With("lease %s ends, is billed no more, and this could not be written yet: try again", l.id)
		}
		select {
		case <-l.done:
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// run meters from now on until the lease ends. The end of life ends the lease's
// own work only after the last record is on disk, so it must outlive requests.
func (l *lease) run(life context.Context, wait *sync.WaitGroup) {
	if !l.metersHere() {
		go func() {
			l.close(life, l.remote.follow(life))
			wait.Done()
		}()
		return
	}
	l.mu.Lock()
	l.life, l.wait = life, wait
	l.mu.Unlock()
	l.tell(func(m *leaseMail) { m.begin = true })
}

// work does what there is to do.
func (l *lease) work() {
	for {
		mail, ok := l.mailed()
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
func (l *lease) do(ctx context.Context, mail leaseMail) *stopRequest {
	switch {
	case mail.stop != nil:
		return mail.stop
	case ctx.Err() != nil:
		return &stopRequest{reason: "the provider stops", keep: true}
	}
	_ = l.save(ctx) // logged and tried again
	if l.State() == leasestore.Suspended && (l.draft != nil || l.unstored != nil) && l.record(ctx, false) != nil {
		l.writeLater() // what no record says cannot be paid
	}
	if mail.begin {
		l.begin(ctx)
		_ = l.complete(ctx) // what an earlier process left behind; logged and tried again
	}
	if mail.again {
		l.sampled = l.deps.sampling.Attend(l.meter, 0, l)
	}
	if mail.due {
		l.records.Reset(l.deps.timing.recordEvery)
	}
	if mail.cut || mail.due && l.tells() {
		_ = l.record(ctx, false) // logged and tried again; the credit bounds what is served meanwhile
	}
	switch last, _ := l.recorder.Last(); {
	case l.lost.Load():
		return &stopRequest{reason: "another gateway runs it"}
	case l.muted.Load():
		return &stopRequest{reason: leasestore.ErrRolledBack.Error()}
	case last.Final: // it was drafted by an earlier process
		return &stopRequest{reason: "its final record was written"}
	}
	if l.unsure {
		if req := l.handOver(ctx); req != nil {
			return req
		}
	}
	if l.credit.quantumDone(l) {
		_ = l.record(ctx, false) // logged and tried again; what is reserved bounds what is served meanwhile
	}
	return l.enforce(ctx)
}

// begin has the devices read and records made. They keep the grid on which the
// lease began: leases that are taken up together do not all record at once.
func (l *lease) begin(ctx context.Context) {
	l.sampled = l.sample(ctx)
	if l.opened != nil {
		go l.open(l.sampled.Looked())
	}
	l.probe()
	if l.credit.postpaid() {
		every := l.deps.timing.recordEvery
		past := max(time.Since(time.Unix(0, l.startedAt)), 0) % every
		l.records = time.AfterFunc(every-past, func() { l.tell(func(m *leaseMail) { m.due = true }) })
	}
}

// close ends what the lease does and finishes it.
func (l *lease) close(ctx context.Context, req stopRequest) {
	l.mu.Lock()
	again := l.again
	l.mu.Unlock()
	for _, t := range []*time.Timer{l.records, l.patience, again, l.rewrite} {
		if t != nil {
			t.Stop()
		}
	}
	l.liveness.stop()
	l.endSampling(req)
	if req.keep { // all of the process do so at once
		l.deps.leaving <- struct{}{}
		defer func() { <-l.deps.leaving }()
	}
	l.finish(ctx, req)
	close(l.done)
	l.liveness.stop() // a look that was under way has set it again
}

func (l *lease) State() leasestore.State { return l.look().state }

// Sampled stops the bill at the reading that uses up the credit. It is not left
// to the lease's goroutine, which may be waiting for a disk or a command.
func (l *lease) Sampled(r metering.Reading, _ metering.Interval) {
	l.tally()
	l.watch(r)
	if l.watchdog.saw(r, l.deps.clock) {
		l.Wake()
		l.hasten()
	}
	v := l.look()
	switch active := v.state == leasestore.Active; {
	case active && l.exhausted(&v):
		l.meter.Pause()
		l.Wake()
		l.hasten()
	case active:
		l.credit.sampled(l, &v)
	}
}

// sampleAgain is how long after sampling ended it is begun anew.
const sampleAgain = time.Second

// SamplingEnded says that no device of the lease is read any more: the source has
// no more readings. It is asked again, and the lease is not served meanwhile.
func (l *lease) SamplingEnded(err error) {
	if l.life.Err() != nil {
		return
	}
	if !l.watchdog.starve() {
		l.deps.log.Error("metering stopped: the lease is suspended until it goes on", "lease", l.id, "error", err)
	}
	l.mu.Lock()
	l.again = time.AfterFunc(sampleAgain, func() { l.tell(func(m *leaseMail) { m.again = true }) })
	l.mu.Unlock()
	l.Wake()
	l.hasten()
}

// Why a lease is suspended. They are on disk, and shown to the renter.
const (
	reasonUnpaid    = "a voucher is due"
	reasonUnmetered = "its GPUs cannot be metered"
	reasonDead      = "what it was given is not alive"
)

// hindrance is why a lease must not be served now, "" if nothing hinders it. One
// that was suspended unpaid needs more than another: see mayResume.
func (l *lease) hindrance(v *leaseView) string {
	unpaid := l.exhausted(v)
	if v.state == leasestore.Suspended && v.reason != reasonUnmetered && v.reason != reasonDead {
		unpaid = !l.credit.mayResume(l, *v)
	}
	switch {
	case unpaid:
		return reasonUnpaid
	case l.watchdog.starved():
		return reasonUnmetered
	case l.liveness.dead.Load():
		return reasonDead
	}
	return ""
}

// tells reports whether records are due by the clock: also of a lease that is paid
// and cannot be metered, so that its renter hears of it.
func (l *lease) tells() bool {
	v := l.look()
	return v.state == leasestore.Active || v.state == leasestore.Suspended && (v.reason == reasonUnmetered || v.reason == reasonDead)
}

// enforce holds the lease to its credit: it suspends before the next reading
// could exceed it, resumes when vouchers have caught up, and gives up on a renter
// that stays away. A lease that nobody can meter is suspended alike. It returns why
// the lease is over, if it is.
func (l *lease) enforce(ctx context.Context) *stopRequest {
	v := l.look()
	why := l.hindrance(&v)
	switch v.state {
	case leasestore.Active:
		if why == "" && l.bills() { // a voucher may have come between the reading that stopped the bill and now
			l.remind(v)
			return nil
		}
		if why == "" { // it was paid after its devices had been suspended: see holdBack
			defer l.Wake()
			why = reasonUnpaid
		}
		if err := l.suspend(ctx, why); err != nil {
			return l.failed(ctx, endedFor(why)+", and could not be suspended", err)
		}
		l.bear()
	case leasestore.Suspended:
		if why == "" && !l.claims(true) { // another one that went on meanwhile took what was left
			why = v.reason
		}
		if why == "" {
			if err := l.resume(ctx); err != nil {
				return l.failed(ctx, "could not be resumed", err)
			}
			return nil
		}
		if why != v.reason {
			if err := l.suspendFor(ctx, v.reason, why); err != nil {
				return l.failed(ctx, endedFor(why)+", and could not be suspended", err)
			}
			l.bear()
		}
		if l.unwritten() { // it is our fault that nothing counts
			l.bear()
		}
		if l.since.IsZero() { // suspended by an earlier process
			l.bearSince(suspendedSince(l.earlier, time.Now(), l.deps.timing.suspendTimeout))
		}
		if time.Since(l.since) >= l.deps.timing.suspendTimeout {
			return &stopRequest{reason: fmt.Sprintf("%s for %s", endedFor(why), l.deps.timing.suspendTimeout)}
		}
	}
	return nil
}

// failed is why a lease is over whose command failed: its own failure, unless the
// command was cut off since the process stops, or is another gateway's to give.
func (l *lease) failed(ctx context.Context, reason string, err error) *stopRequest {
	if l.tenure != nil && l.tenure.Err() != nil {
		l.lost.Store(true)
	}
	switch {
	case l.lost.Load():
		return &stopRequest{reason: "another gateway runs it"}
	case ctx.Err() != nil:
		return &stopRequest{reason: "the provider stops", keep: true}
	}
	l.deps.log.Error("a command on a lease's devices failed: it ends", "lease", l.id, "reason", reason, "error", err)
	return &stopRequest{reason: reason}
}

// suspendFor changes why a lease is suspended. What was dead may never have been,
// whatever its command said.
func (l *lease) suspendFor(ctx context.Context, before, why string) error {
	if before == reasonDead {
		l.custody.given.Store(true)
		return l.suspend(ctx, why)
	}
	l.enter(ctx, leasestore.Suspended, why)
	return nil
}

// endedFor is what is said of a lease that ends because it was suspended.
func endedFor(why string) string {
	if why == reasonUnpaid {
		return "unpaid"
	}
	return why
}

// bear has the lease end if it is still suspended when the renter's time is up.
func (l *lease) bear() { l.bearSince(time.Now()) }

func (l *lease) bearSince(since time.Time) {
	l.since = since
	left := l.deps.timing.suspendTimeout - time.Since(since)
	if l.patience == nil {
		l.patience = time.AfterFunc(left, l.Wake)
		return
	}
	l.patience.Reset(left)
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

// limit is the most that may be owed, and never more than the deposit can pay.
func (l *lease) limit(v *leaseView) uint256.Int {
	return l.limitOf(v, l.left())
}

func (l *lease) limitOf(v *leaseView, left uint256.Int) uint256.Int {
	return u256.Min(l.credit.limit(v, left), v.deposit)
}

// exhausted reports whether the next reading could take the debt over its
// limit. Two ticks are kept free, of these GPUs and of all that the payer's other
// leases have here: a reading may come late. One that comes later still, up to
// MaxGap, is billed, and is the provider's own risk.
func (l *lease) exhausted(v *leaseView) bool { return l.exceeds(l.limit(v)) }

func (l *lease) exceeds(limit uint256.Int) bool {
	owed, err := l.owedAt(l.used() + l.ahead())
	return err != nil || owed.Gt(&limit)
}

// ahead is the two ticks of each GPU that are kept free, nanoseconds.
func (l *lease) ahead() uint64 {
	return uint64(len(l.allocation.Devices)) * uint64(2*l.deps.timing.tick)
}

func (l *lease) owedAt(nanos uint64) (uint256.Int, error) {
	charge, err := l.price.Charge(nanos)
	if err != nil {
		return uint256.Int{}, err
	}
	var owed uint256.Int
	owed.Add(&l.owedBefore, &charge)
	return owed, nil
}

// wants reports whether it is time for a voucher: half of what may be used
// before the lease is suspended is, by it and the payer's other channels.
func (l *lease) wants(v *leaseView, debt uint256.Int) bool {
	ahead, err := l.price.Charge(l.ahead())
	if err != nil || debt.IsZero() {
		return false
	}
	used, theirs := l.others()
	credit := u256.SaturatingSub(l.maxDebt, theirs)
	if share := l.share.Load(); share != nil {
		credit, used = *share, uint256.Int{}
	}
	half := u256.SaturatingSub(credit, ahead)
	half.Rsh(&half, 1)
	used.Add(&used, &debt)
	return used.Gt(&half)
}

// remind asks for a voucher once when it is time, so that a renter that pays on
// demand is never suspended.
func (l *lease) remind(v leaseView) {
	var debt uint256.Int
	if v.owed.Gt(&v.accepted) {
		debt.Sub(&v.owed, &v.accepted)
	}
	wants := l.wants(&v, debt)
	if wants && v.need == 0 {
		l.update(func(v *leaseView) { v.need++ })
	}
	if !wants && v.need != 0 {
		l.update(func(v *leaseView) { v.need = 0 })
	}
}

// suspend stops the meter and the renter's use of its devices. It waits for no
// disk, and for a server no longer than inCredit: what cannot be written now is tried again.
func (l *lease) suspend(ctx context.Context, why string) error {
	l.meter.Pause() // before the command: a renter does not pay for a slow suspension
	if err := l.record(ctx, false); l.lost.Load() {
		return err // the lease is another gateway's, and so are its devices
	}
	if err := l.command(ctx, l.takeIn); err != nil && (why != reasonDead || l.lost.Load()) { // nothing runs that would have to stop
		return err
	}
	l.enter(ctx, leasestore.Suspended, why)
	return nil
}

// handOver has the devices of a lease that an earlier process ran in the renter's
// hands, before a second of them is billed: whoever suspended them may have died
// before the database took it. It returns why the lease is over, if they cannot be.
func (l *lease) handOver(ctx context.Context) *stopRequest {
	err := l.command(ctx, l.giveOut)
	if err != nil && !l.lost.Load() && ctx.Err() == nil { // a command may refuse what is not suspended
		if err = l.command(ctx, l.takeIn); err == nil {
			err = l.command(ctx, l.giveOut)
		}
	}
	if err != nil || l.lost.Load() || ctx.Err() != nil {
		return l.failed(ctx, "could not be resumed", err)
	}
	l.unsure = false
	return nil
}

func (l *lease) resume(ctx context.Context) error {
	if err := l.command(ctx, l.giveOut); err != nil {
		if ctx.Err() != nil && !l.lost.Load() { // cut off, and perhaps done: the next process resumes what is active, before it is billed
			l.unsaved = true
			l.turn(leasestore.Active, "")
		}
		return err
	}
	l.goOn() // after the command: the renter has its devices again
	l.enter(ctx, leasestore.Active, "")
	return nil
}

// command has the allocator do something, in the term that is ours only: another
// gateway's devices are not touched, and what is under way when others may take
// the lease is cut off.
func (l *lease) command(ctx context.Context, do func(context.Context, gpu.Allocation) error) error {
	call, cancel := context.WithTimeout(ctx, l.deps.timing.callTimeout)
	defer cancel()
	if l.tenure != nil {
		defer context.AfterFunc(l.tenure, cancel)()
		ask, done := context.WithTimeout(call, leasestore.OwnerTimeout)
		term, err := l.deps.store.Leases.Term(ask, l.id)
		done()
		l.elsewhere.CompareAndSwap(false, err == nil && term != l.term)
		if l.elsewhere.Load() || l.tenure.Err() != nil { // where it does not answer, our tenure says it
			l.lost.Store(true)
			return fmt.Errorf("lease %s: %w", l.id, leasestore.ErrNotOwner)
		}
	}
	err := do(call, l.allocation)
	if errors.Is(err, leasestore.ErrNotOwner) {
		l.notice(err)
	}
	return err
}

// inCredit bounds how long an active lease waits for the database by what is left of its credit: then it has to be suspended.
// What was not written is tried again. Who waits for nobody's service, or stops, waits for as long as the database does.
func (l *lease) inCredit(ctx context.Context) (context.Context, context.CancelFunc) {
	if v := l.look(); v.state != leasestore.Active || v.stalled || l.life == nil || l.life.Err() != nil {
		return ctx, func() {}
	}
	ctx, cancel := context.WithTimeout(ctx, max(l.lasts(), leasestore.OwnerTimeout))
	l.hurried.Store(&cancel)
	return ctx, cancel
}

// rush ends a wait for the database that inCredit bounds: the payer's other leases have used the credit meanwhile, or others may run
// this one.
func (l *lease) rush() {
	if cancel := l.hurried.Load(); cancel != nil {
		(*cancel)()
	}
}

// goOn has the meter bill, unless the lease was found dead meanwhile.
func (l *lease) goOn() {
	l.meter.Resume()
	if l.liveness.dead.Load() {
		l.meter.Pause()
	}
}

// enter is a change of state, which is on disk as soon as it can be.
func (l *lease) enter(ctx context.Context, state leasestore.State, reason string) {
	l.deps.log.Info("lease "+string(state), "lease", l.id, "channel", l.terms.ID(), "reason", reason)
	l.turn(state, reason)
	l.unsaved = true
	_ = l.save(ctx) // logged and tried again
}

// turn shows another state.
func (l *lease) turn(state leasestore.State, reason string) {
	l.update(func(v *leaseView) {
		v.state, v.reason = state, reason
		v.version++
		v.ask(state, reason)
	})
	l.claims(state == leasestore.Active)
}

// retryWrite is how long a lease waits before it tries again to write its state.
const retryWrite = time.Second

// save has the lease's state on disk.
func (l *lease) save(ctx context.Context) error {
	if !l.unsaved {
		return nil
	}
	v := l.look()
	write, cancel := l.inCredit(ctx)
	err := l.deps.store.Leases.SetState(write, l.id, l.term, v.state, v.reason, 0)
	cancel()
	if err == nil {
		l.unsaved = false
		return nil
	}
	l.notice(err)
	if ctx.Err() == nil { // else it is written as the process stops
		l.deps.log.Error("the lease's state could not be stored: it is tried again", "lease", l.id, "state", string(v.state), "error", err)
	}
	l.writeLater()
	return err
}

// writeLater has the lease try again what it could not write.
func (l *lease) writeLater() {
	if l.rewrite == nil {
		l.rewrite = time.AfterFunc(retryWrite, l.Wake)
		return
	}
	l.rewrite.Reset(retryWrite)
}

// unwritten reports whether something of the lease is not on disk that should be.
func (l *lease) unwritten() bool { return l.unsaved || l.draft != nil || l.unstored != nil }

// record cuts the meter and makes the next signed record durable before anyone
// sees it. What an earlier attempt left behind goes first: a second record of
// the same number would be a fork that the payee signed.
func (l *lease) record(ctx context.Context, final bool) error {
	if err := l.complete(ctx); err != nil {
		return err
	}
	if last, ok := l.recorder.Last(); ok && last.Final {
		return nil
	}
	draft, err := l.recorder.Draft(l.meter.Cut(), final)
	if err != nil {
		l.deps.log.Error("usage record could not be made", "lease", l.id, "error", err)
		return err
	}
	l.draft = &leasestore.Pending{Draft: draft, Meter: l.meter.Save()}
	return l.complete(ctx)
}

// complete has what was measured on disk, then signed, then on disk as signed. It
// goes on wherever an earlier attempt stopped, in this process or another one.
func (l *lease) complete(ctx context.Context) error {
	ctx, cancel := l.inCredit(ctx)
	defer cancel()
	if l.unstored != nil {
		if err := l.keep(ctx); err != nil {
			return err
		}
	}
	if l.draft == nil {
		return nil
	}
	rec, err := l.sign(ctx, *l.draft)
	if err != nil {
		l.notice(err)
		l.deps.log.Error("usage record could not be signed", "lease", l.id, "sequence", l.draft.Record.Sequence, "error", err)
		return err
	}
	fault.Point(fault.RecordSigned)
	l.draft, l.unstored = nil, &rec
	return l.keep(ctx)
}

// sign signs a draft that is in the database, in the term that is ours: whoever
// takes the lease over finds it there and signs the same. The mark outside the
// database says no if the database forgot what was signed.
func (l *lease) sign(ctx context.Context, p leasestore.Pending) (metering.SignedRecord, error) {
	if l.muted.Load() {
		return metering.SignedRecord{}, leasestore.ErrRolledBack
	}
	err := l.deps.store.Records.Reserve(ctx, l.term, p)
	if errors.Is(err, leasestore.ErrRolledBack) && l.writeAgain(ctx) == nil {
		err = l.deps.store.Records.Reserve(ctx, l.term, p)
	}
	if err != nil {
		return metering.SignedRecord{}, err
	}
	fault.Point(fault.RecordReserved)
	mark := highwater.Mark{Sequence: p.Record.Sequence, Digest: l.recorder.Digest(p.Record)}
	states := highwater.Total{Channel: p.Record.ChannelID, Owed: p.Record.Owed}
	if err := l.deps.marks.Raise(ctx, l.recorder.Signer(), l.id, mark, states); err != nil {
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
func (l *lease) writeAgain(ctx context.Context) error {
	row, err := l.deps.store.Leases.ByID(ctx, l.id.Hex())
	if err != nil {
		return err
	}
	missing := slices.DeleteFunc(slices.Clone(l.written), func(w writtenRecord) bool { return w.record.Sequence <= uint64(row.Sequence) })
	if len(missing) == 0 || missing[0].record.Sequence != uint64(row.Sequence)+1 {
		return leasestore.ErrRolledBack
	}
	books := l.deps.store.Records
	books.Late = true // of what was charged later, or settled, the charge stands
	for _, w := range missing {
		if err := books.Append(ctx, l.term, w.record, w.meter, nil); err != nil {
			return err
		}
	}
	l.deps.log.Warn("the database had forgotten records, as after a fail-over to a server that was behind: they are written again", "lease", l.id, "records", len(missing))
	return nil
}

func (l *lease) keep(ctx context.Context) error {
	rec, books, meter := *l.unstored, l.deps.store.Records, l.metered()
	books.Late = !l.metersHere()
	err := books.Append(ctx, l.term, rec, meter, l.closing.Load())
	if errors.Is(err, leasestore.ErrRolledBack) && !l.metersHere() {
		l.lost.Store(true) // it is taken up again as the database has it, and its node has the rest
	} else if errors.Is(err, leasestore.ErrRolledBack) && l.writeAgain(ctx) == nil {
		err = books.Append(ctx, l.term, rec, meter, l.closing.Load())
	}
	if err != nil {
		l.notice(err)
		l.deps.log.Error("usage record could not be stored", "lease", l.id, "sequence", rec.Sequence, "error", err)
		return err
	}
	fault.Point(fault.RecordStored)
	l.unstored = nil
	if l.metersHere() && l.deps.store.DB.Shared() {
		l.written = append(l.written[max(0, len(l.written)+1-maxWritten):], writtenRecord{rec, meter})
	}
	l.deps.metrics.recorded(rec)
	l.update(func(v *leaseView) { v.sequence, v.owed, v.nanos = rec.Sequence, rec.Owed, rec.Nanos })
	return nil
}

// metered is where the meter stands at the newest record. A node keeps that of
// what it meters.
func (l *lease) metered() metering.State {
	if !l.metersHere() {
		return metering.State{}
	}
	return l.meter.Save()
}

// notice hears that the lease is another gateway's now, or that the database is
// older than what was signed from it.
func (l *lease) notice(err error) {
	switch {
	case errors.Is(err, leasestore.ErrNotOwner):
		l.elsewhere.Store(true)
		l.lost.Store(true)
	case errors.Is(err, highwater.ErrBehind), errors.Is(err, leasestore.ErrRolledBack), errors.Is(err, channel.ErrLower):
		l.muted.Store(true)
	}
}

// drop leaves the lease to who runs it. What was measured since the last record
// is not billed by anybody. One whose row is gone runs nowhere: nobody else would take
// its devices back.
func (l *lease) drop() {
	if l.forgotten() {
		l.takeBack()
	} else {
		l.deps.log.Warn("lease goes on at another gateway", "lease", l.id, "channel", l.terms.ID())
	}
	l.update(func(v *leaseView) { v.version++; v.reason = "another gateway runs it" })
	l.deps.dropped(l)
}

// forgotten reports that the lease's row is gone. A database that was not reached in
// time is not asked: see replicas.guardCredit.
func (l *lease) forgotten() bool {
	if l.tenure != nil && l.tenure.Err() != nil {
		return false
	}
	ask, cancel := context.WithTimeout(context.Background(), leasestore.OwnerTimeout)
	defer cancel()
	_, err := l.deps.store.Leases.Term(ask, l.id)
	return errors.Is(err, sql.ErrNoRows)
}

// takeBack takes the devices of a lease back that the database has forgotten, as after
// a fail-over to a server that was behind, unless they are in another lease already.
func (l *lease) takeBack() {
	call, cancel := context.WithTimeout(context.Background(), l.deps.timing.callTimeout)
	defer cancel()
	err := l.deps.placer.Adopt(call, l.allocation)
	if !errors.Is(err, inventory.ErrTaken) {
		err = l.takeBackDevices(call, l.allocation)
	} else {
		l.custody.given.Store(false) // they are the next renter's
	}
	l.deps.log.Error("the database has forgotten a lease, as after a fail-over to a server that was behind: its devices are taken back", "lease", l.id, "channel", l.terms.ID(), "devices", l.allocation.Devices, "error", err)
}

// conclude has the last record on disk.
func (l *lease) conclude(ctx context.Context, req stopRequest) error {
	if !l.metersHere() {
		return l.remote.collect(ctx, req)
	}
	if l.State() == leasestore.Active {
		l.meter.Pause()
	}
	return l.record(ctx, !req.keep)
}

// finish states the last record and takes the devices back. A lease that is
// kept goes on in the next process: its devices stay with the renter, and the
// time in between is not billed.
func (l *lease) finish(life context.Context, req stopRequest) {
	ctx := context.WithoutCancel(life)
	var unwritten error
	if req.keep && !l.lost.Load() && !l.muted.Load() {
		unwritten = errors.Join(l.save(ctx), l.conclude(ctx, req)) // logged: the next process goes on from what is on disk
	}
	defer func() {
		if life.Err() != nil && (unwritten != nil || l.lost.Load() || !req.keep && l.State() != leasestore.Ended) {
			l.leaveSuspended(ctx)
		}
	}()
	switch {
	case l.lost.Load():
		l.drop()
	case req.keep:
		l.update(func(v *leaseView) { v.version++; v.reason = req.reason })
	default:
		l.expire(life, req)
	}
}

// expire ends the lease in two steps that are on disk: that it ends, with its last
// record, before its devices are taken back, and that it has ended, after. So
// whoever takes it up in between, after a crash or on a full disk, neither meters
// it without its devices nor leaves them with the renter.
func (l *lease) expire(life context.Context, req stopRequest) {
	ctx, asked := context.WithoutCancel(life), time.Now()
	l.ending.Store(true) // its devices are another lease's as soon as they are taken back
	if !l.until(life, func() error { return l.concluded(ctx, req, asked) }) {
		return
	}
	err := l.command(ctx, l.takeBackDevices)
	if err != nil {
		l.deps.log.Error("the devices of a lease could not be taken back: they are suspended, and it is tried again", "lease", l.id, "error", err)
		l.hold(ctx)
	}
	fault.Point(fault.LeaseReleased)
	l.returned = err == nil
	if !l.until(life, func() error { return l.deps.store.Leases.SetEnded(ctx, l.id, l.term, req.reason, !l.returned) }) {
		return
	}
	l.deps.log.Info("lease ended", "lease", l.id, "channel", l.terms.ID(), "reason", req.reason)
	l.update(func(v *leaseView) { v.state, v.reason = leasestore.Ended, req.reason; v.version++ })
	l.deps.ended(l)
}

// hold suspends devices that could not be taken back: their renter's bill has ended.
func (l *lease) hold(ctx context.Context) {
	if err := l.command(ctx, l.takeIn); err != nil {
		l.cannotSuspend(err)
	}
}

// concluded has it on disk that the lease ends, and, where its node is still to say what it metered, until when that counts.
func (l *lease) concluded(ctx context.Context, req stopRequest, asked time.Time) error {
	var err error
	if !l.muted.Load() {
		err = l.conclude(ctx, req)
	}
	switch {
	case l.lost.Load():
		return err
	case !l.muted.Load() && (l.draft != nil || l.unstored != nil):
		return err
	case err != nil: // nothing of it is left to write
		l.deps.log.Error("lease ends without a last record", "lease", l.id, "error", err)
	case l.metersHere() && !l.muted.Load():
		return nil // it is there with the final record
	}
	return l.deps.store.Leases.SetState(ctx, l.id, l.term, leasestore.Ending, req.reason, asked.Unix())
}

// until tries a write of the lease's end until it is on disk. It is false if that
// did not come about: the process stops first, or the lease is another gateway's.
// Meanwhile nobody has the use of the devices, and who asked for the end hears so.
func (l *lease) until(life context.Context, write func() error) bool {
	var pace chain.Backoff
	for {
		err := write()
		l.notice(err)
		switch {
		case l.lost.Load():
			l.drop()
			return false
		case err == nil:
			return true
		}
		l.stall(context.WithoutCancel(life), err)
		if chain.Pause(life, pace.Next()) != nil {
			l.update(func(v *leaseView) { v.version++; v.reason = "the provider stops" })
			return false
		}
	}
}

// stall suspends what cannot be ended yet, however often that takes.
func (l *lease) stall(ctx context.Context, err error) {
	v := l.look()
	if !v.stalled {
		l.deps.log.Error("lease ends, and this cannot be written: it is tried again until it can", "lease", l.id, "channel", l.terms.ID(), "error", err)
		l.update(func(v *leaseView) { v.stalled = true })
	}
	if l.returned {
		return
	}
	if err := l.command(ctx, l.takeIn); err != nil && !l.lost.Load() {
		l.cannotSuspend(err)
	}
}
