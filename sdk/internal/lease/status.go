package lease

import (
	"context"
	"sync"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/payercredit"
)

// status is the view of a lease, for streams and for who runs it.
type status struct {
	mu      sync.Mutex
	view    View
	changed chan struct{} // closed at the next change of view; nil: nobody waits for one
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

// Ask notes whether a voucher is asked for when a lease comes into a state: not where it is suspended for what no voucher mends.
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

// Shows takes the newest record, if there is one.
func (v *View) Shows(last *metering.SignedRecord) {
	if last != nil {
		v.Sequence, v.Owed, v.Nanos = last.Sequence, last.Owed, last.Nanos
	}
}

// Apply takes what the database says of a lease that another gateway runs.
func (v *View) Apply(row leasestore.Glimpse, s channel.State, last *metering.SignedRecord) {
	v.Deposit, v.Stream, v.Accepted = s.Deposit, max(v.Stream, uint64(row.Stream)), u256.Max(v.Accepted, s.Accepted)
	if last != nil && last.Sequence > v.Sequence {
		v.Shows(last)
	}
	if state := leasestore.State(row.State); state != leasestore.Ending && (state != v.State || row.Reason != v.Reason) {
		v.Version++
		v.Ask(state, row.Reason)
		v.State, v.Reason = state, row.Reason
	}
}

// Snapshot is the view, and what is closed when it changes.
func (s *status) Snapshot() (View, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.view, s.changed
}

// Look is the view.
func (s *status) Look() View {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.view
}

// Update changes the view.
func (s *status) Update(change func(*View)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.view)
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// State is the view's.
func (s *status) State() leasestore.State { return s.Look().State }

// inbox is how a lease is told things, by whomever: its goroutine runs while there is something to do, and only then.
type inbox struct {
	*Spec
	work   func()        // the goroutine
	done   func()        // the lease has ended
	Notify chan struct{} // there is mail, for the goroutine that a lease on a node has

	mu      sync.Mutex // guards life too, until the lease is launched
	mail    Mail
	working bool // its goroutine runs, or has ended
}

// Mail is what a lease was told and has not looked at yet.
type Mail struct {
	some  bool // look at the money, and at whether the lease is still ours
	begin bool
	again bool // sampling ended: begin it anew
	due   bool // a record, by the clock
	cut   bool // a record, of what was metered
	Stop  *Stop
}

// Stop asks the lease to end.
type Stop struct {
	Reason string
	Keep   bool              // the process stops and the lease goes on in the next one
	At     *metering.Instant // when it was asked for, or the request that it lasts for was over: it is billed up to then; nil: to its last reading
}

// launch has the lease begin: what it was told before is done then.
func (i *inbox) launch(life context.Context, done func()) {
	i.mu.Lock()
	i.life, i.done = life, done
	i.mu.Unlock()
	i.post(func(m *Mail) { m.begin = true })
}

// Wake has the lease look at its money now.
func (i *inbox) Wake() { i.post(func(*Mail) {}) }

// CutNow asks for a record of what was metered, a quantum or not.
func (i *inbox) CutNow() { i.post(func(m *Mail) { m.cut = true }) }

// post leaves something for the lease to do, and has it done.
func (i *inbox) post(change func(*Mail)) {
	i.mu.Lock()
	change(&i.mail)
	i.mail.some = true
	start := !i.working && i.life != nil
	i.working = i.working || start
	i.mu.Unlock()
	if start {
		go i.work()
	}
	if i.Notify != nil {
		select {
		case i.Notify <- struct{}{}:
		default: // one is waiting already, and it will see this
		}
	}
}

// Take is what there is to do. Where there is nothing the goroutine ends.
func (i *inbox) Take() (Mail, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	mail := i.mail
	i.mail = Mail{}
	i.working = mail.some
	return mail, mail.some
}
