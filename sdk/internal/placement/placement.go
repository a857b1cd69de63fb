// Package placement puts leases onto a host's devices and takes them back by the operator's allocator, and remembers outside the database
// who has which devices and whose commands ran.
package placement

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/highwater"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/run"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Placer puts leases onto devices and takes them back: Local by the operator's gpu.Allocator, or at the hosts that meter them.
// Of its methods those of gpu.Allocator and gpu.Adopter mean what they mean there.
type Placer interface {
	// Place returns what a lease was given, and whose key signs its records where a node meters it.
	Place(ctx context.Context, req Request) (a gpu.Allocation, meter common.Address, err error)
	Suspend(ctx context.Context, a gpu.Allocation) error
	Resume(ctx context.Context, a gpu.Allocation) error
	Release(ctx context.Context, a gpu.Allocation) error
	// Adopt is ErrNoAdopter where no allocation outlives the process.
	Adopt(ctx context.Context, a gpu.Allocation) error
}

// Request is what a lease needs: what an allocator is told, and what a node must know to meter it.
type Request struct {
	gpu.Request
	Channel channel.State
	Offer   wire.SignedOffer
}

// Allocator is an operator's, wrapped so that it can always be asked to adopt.
type Allocator interface {
	gpu.Allocator
	gpu.Adopter
	// Remember takes devices for this host's, whether it lists them now or not.
	Remember(devices []string)
	// SetAside has devices of this host that a lease of another database has be in no new one, and reports whether there are some. Without
	// devices it ends that.
	SetAside(ctx context.Context, lease common.Hash, devices []string) (some bool, err error)
}

// Local is the placer of a host: leases are metered by this process.
type Local struct{ Allocator }

// ErrNoAdopter is a lease whose devices nobody can go on with.
var ErrNoAdopter = errors.New("the allocator cannot adopt it")

var _ Placer = Local{}

// Place has the allocator choose.
func (l Local) Place(ctx context.Context, req Request) (gpu.Allocation, common.Address, error) {
	a, err := l.Allocate(ctx, req.Request)
	return a, common.Address{}, err
}

// Fits refuses what an allocator gave that is not what was asked for. Of what a node gave remote.Nodes knows the class.
func Fits(a gpu.Allocation, req gpu.Request) error {
	if len(a.Devices) != req.GPUs {
		return fmt.Errorf("allocator gave %d devices to lease %s, %d were asked for", len(a.Devices), req.LeaseID, req.GPUs)
	}
	if others := inventory.Without(a.Devices, req.Devices); req.Class != "" && a.Node == "" && len(others) > 0 {
		return fmt.Errorf("allocator gave device %s to lease %s, which is not of class %s, and the lease pays for that", others[0], req.LeaseID, req.Class)
	}
	return nil
}

// RequestAccess is the access document of a lease that lasts for one request, and whose devices are given to nobody.
const RequestAccess = `{"metered":true}`

// ForOneRequest reports whether an allocation is such a lease's.
func ForOneRequest(a gpu.Allocation) bool { return string(a.Access) == RequestAccess }

// inNoHands reports whether nobody has the devices of an allocation for itself: no command is run for it.
func inNoHands(a gpu.Allocation) bool { return ForOneRequest(a) || a.Shared }

// hands is a local placer and what remembers outside the database, in the high-water mark, which devices are in renters' hands: a
// database that is lost, or restored from before a lease, would hand them to the next renter while the last one still has them.
type hands struct {
	Local
	marks    *highwater.Marks
	leases   leasestore.Leases
	database string // whose leases they are: a name that was drawn once and is in the database, wherever that is restored to
	log      *slog.Logger
}

// Guard has the devices of this host be remembered outside the database, whose address names it in files from before it had a name of its
// own, and over a server's also whose commands ran on this host. Placers of other hosts' devices are as they were.
func Guard(ctx context.Context, p Placer, marks *highwater.Marks, store leasestore.Store, address string, log *slog.Logger) (Placer, error) {
	l, ok := p.(Local)
	if !ok {
		return p, nil
	}
	name, err := store.Secrets.Get(ctx, "database")
	if err != nil {
		return nil, err
	}
	h := hands{l, marks, store.Leases, hex.EncodeToString(name), log}
	if store.DB.Shared() {
		return fenced{h}, marks.Own(ctx, h.database, store.DB.Path(), store.DB.Formerly())
	}
	path, err := filepath.Abs(address)
	if err != nil {
		return nil, err
	}
	before := path // as an older program wrote it, which followed no links
	if file, err := filepath.EvalSymlinks(path); err == nil {
		path = file
	}
	return h, marks.Own(ctx, h.database, path, before)
}

// Place gives nothing to a renter that could not be remembered, or that another one still has whose lease the database has forgotten.
func (h hands) Place(ctx context.Context, req Request) (gpu.Allocation, common.Address, error) {
	after := run.After(ctx)
	a, meter, err := h.Local.Place(ctx, req)
	if err != nil {
		return a, meter, err
	}
	a.LeaseID = cmp.Or(a.LeaseID, req.LeaseID)
	if err = h.refuse(ctx, a); err == nil && !inNoHands(a) { // nobody has the devices of one request
		if err = h.marks.Hand(ctx, h.database, a.LeaseID, a.Devices, true); err != nil {
			err = errors.Join(Unmarked(), err)
		}
	}
	if err == nil {
		return a, meter, nil
	}
	undo, cancel := after()
	defer cancel()
	if held := h.Local.Release(undo, a); held != nil {
		err = fmt.Errorf("%w, and %w: %w", err, gpu.ErrHeld, held)
	}
	return gpu.Allocation{}, meter, err
}

// Adopt remembers what an older program allocated, too.
func (h hands) Adopt(ctx context.Context, a gpu.Allocation) error {
	if err := h.Local.Adopt(ctx, a); err != nil || inNoHands(a) {
		return err
	}
	err := within(context.WithoutCancel(ctx), func(ctx context.Context) error { return h.marks.Hand(ctx, h.database, a.LeaseID, a.Devices, false) })
	if err != nil {
		h.log.Warn("should the database be lost, nobody knows who has the devices of a lease", "lease", a.LeaseID, "error", err)
	}
	return nil
}

// Release takes devices back, and those also whose names the database does not have, as it is from a backup of when they were being
// allocated: the command has to be told which they are, or it takes back nothing and the next renter gets them.
func (h hands) Release(ctx context.Context, a gpu.Allocation) error {
	if len(a.Devices) == 0 && !inNoHands(a) {
		named, err := h.named(ctx, a)
		if err != nil {
			return err
		}
		if len(named.Devices) > 0 {
			return Reclaim(ctx, h, named)
		}
	}
	if err := h.Local.Release(ctx, a); err != nil || inNoHands(a) {
		return err
	}
	err := within(context.WithoutCancel(ctx), func(ctx context.Context) error { return h.marks.TakenBack(ctx, a.LeaseID) })
	if err != nil { // the next start finds the lease ended
		h.log.Error("that devices were taken back could not be written down", "lease", a.LeaseID, "error", err)
	}
	return nil
}

// named is a lease with the devices that it has by the file.
func (h hands) named(ctx context.Context, a gpu.Allocation) (gpu.Allocation, error) {
	all := make(chan map[common.Hash]highwater.InHand, 1)
	err := within(ctx, func(ctx context.Context) error {
		in, err := h.marks.InHands(ctx, h.database)
		all <- in
		return err
	})
	if err == nil {
		a.Devices = (<-all)[a.LeaseID].Devices
	}
	return a, err
}

// ErrNotHere is a lease whose devices are on another host.
var ErrNotHere = errors.New("its devices cannot be taken up here")

// ErrReclaimed is a lease whose devices were taken back as the database had forgotten it, and that it knows again: it goes on nowhere.
var ErrReclaimed = errors.New("its devices were taken back while the database did not know it")

// goesOn is ErrReclaimed for a lease that does not. Where the file does not say so, or fails, it goes on.
func goesOn(ctx context.Context, p Placer, a gpu.Allocation) error {
	h, ok := handsOf(p)
	if !ok {
		return nil
	}
	over := make(chan bool, 1)
	err := within(ctx, func(ctx context.Context) error {
		ran, err := h.marks.Ran(ctx, a.LeaseID, highwater.Reclaimed)
		over <- ran
		return err
	})
	if err != nil {
		h.log.Warn("whether a lease was taken back on this host is not known: it goes on", "lease", a.LeaseID, "error", err)
		return nil
	}
	if <-over {
		return ErrReclaimed
	}
	return nil
}

// Locate looks for the devices of a lease that no process runs, and has the allocator know them: ErrNotHere, ErrNoAdopter, ErrReclaimed, or
// inventory.ErrTaken where they are in another lease, such as one of those that are known to be later. It is nil where they are here,
// or none were allocated yet.
func Locate(ctx context.Context, p Placer, row leasestore.Row, later []leasestore.Row) error {
	a, err := row.Allocated()
	if err != nil || len(a.Devices) == 0 {
		return err
	}
	if leasestore.LetAgain(a, later) {
		return inventory.ErrTaken
	}
	if err = p.Adopt(ctx, a); err == nil {
		err = goesOn(ctx, p, a)
	}
	if err == nil || errors.Is(err, ErrReclaimed) || errors.Is(err, ErrNoAdopter) || errors.Is(err, inventory.ErrTaken) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrNotHere, err)
}

// Unmarked refuses what would be signed for while the file cannot be written that has to know it first. What it is about the file the
// log and Health say.
func Unmarked() *wire.Problem {
	return wire.Unavailable.With("this gateway cannot write down what it signs, and so it begins no lease: try another gateway, or later; its operator finds the reason in its health")
}

// fenced is the local placer of a gateway that shares its database. The gateways of a host share a file, too (highwater), which has the
// newest term of each lease whose command ran here: one that is cut off from the database does nothing to devices of which another
// gateway of its host runs the lease by now. Where the file fails commands run as they would without it.
type fenced struct{ hands }

// Adopt takes devices of a lease that ran here for this host's, also while they are lost, or not listed yet. The gateways of another host
// leave them alone: else nobody would suspend them.
func (f fenced) Adopt(ctx context.Context, a gpu.Allocation) error {
	ran := make(chan bool, 1)
	err := within(ctx, func(ctx context.Context) error {
		here, err := f.marks.Handed(ctx, a.LeaseID)
		ran <- here
		return err
	})
	if err != nil {
		f.log.Warn("whether a lease ran on this host is not known: its devices are looked for", "lease", a.LeaseID, "error", err)
	} else if <-ran {
		f.Remember(a.Devices)
	}
	return f.hands.Adopt(ctx, a)
}

// Place has the file know the term, too: devices that are taken back without the database are so in no lower one.
func (f fenced) Place(ctx context.Context, req Request) (gpu.Allocation, common.Address, error) {
	a, meter, err := f.hands.Place(ctx, req)
	if err == nil && !ForOneRequest(a) {
		if failed := f.enter(ctx, gpu.Allocation{LeaseID: a.LeaseID, Term: req.Term}, time.Time{}); failed != nil {
			f.log.Warn("a lease begins in a term of which the file of this host does not hear", "lease", a.LeaseID, "error", failed)
		}
	}
	return a, meter, err
}

func (f fenced) Suspend(ctx context.Context, a gpu.Allocation) error {
	return f.run(ctx, a, time.Time{}, f.Local.Suspend)
}

func (f fenced) Resume(ctx context.Context, a gpu.Allocation) error {
	return f.run(ctx, a, time.Time{}, f.Local.Resume)
}

// Release is done once more where the database knows a lease again whose devices were taken back: its book has them.
func (f fenced) Release(ctx context.Context, a gpu.Allocation) error {
	err := f.run(ctx, a, time.Time{}, f.hands.Release)
	if errors.Is(err, ErrReclaimed) {
		return f.hands.Release(ctx, a)
	}
	return err
}

// SuspendLate suspends devices of a lease that this gateway has let go: whoever takes it over waits until that is done, or a renter who
// pays would be left with devices that were suspended after they had been resumed.
func SuspendLate(ctx context.Context, p Placer, a gpu.Allocation) error {
	f, ok := p.(fenced)
	until, bound := ctx.Deadline()
	if !ok || !bound {
		return p.Suspend(ctx, a)
	}
	defer func() {
		err := within(context.WithoutCancel(ctx), func(ctx context.Context) error { return f.marks.Leave(ctx, a.LeaseID, a.Term) })
		if err != nil {
			f.log.Warn("who takes a lease over waits longer than it has to", "lease", a.LeaseID, "error", err)
		}
	}()
	return f.run(ctx, a, until, f.Local.Suspend)
}

// run runs a command unless it is of an earlier term than one that ran on this host: then it is leasestore.ErrNotOwner.
func (f fenced) run(ctx context.Context, a gpu.Allocation, late time.Time, do func(context.Context, gpu.Allocation) error) error {
	err := f.enter(ctx, a, late)
	if errors.Is(err, highwater.ErrNewerTerm) {
		a.Term, err = f.older(ctx, a)
	}
	if errors.Is(err, leasestore.ErrNotOwner) {
		return err
	}
	if err != nil {
		f.log.Warn("a command on a lease's devices is run though the gateways of this host cannot hear of it", "lease", a.LeaseID, "error", err)
	}
	return do(ctx, a)
}

// enter writes the term down, and waits for who let go of the lease to be done with it: not for so long that the command has no time left.
func (f fenced) enter(ctx context.Context, a gpu.Allocation, late time.Time) error {
	patience, cancel := context.WithCancel(ctx)
	if end, ok := ctx.Deadline(); ok {
		patience, cancel = context.WithDeadline(ctx, time.Now().Add(time.Until(end)/2))
	}
	defer cancel()
	for {
		err := within(patience, func(ctx context.Context) error { return f.marks.Enter(ctx, a.LeaseID, a.Term, late) })
		if !errors.Is(err, highwater.ErrLate) || chain.Pause(patience, 20*time.Millisecond) != nil {
			return err
		}
	}
}

// older is asked where the file has a later term than a command, and says in which it is to run: it is leasestore.ErrNotOwner, unless the
// database has forgotten the lease and its devices are still to be taken back. Where the database says that the lower term is the lease's, as
// after a restore, a term above the file's begins, and whoever runs the lease next does so in that: a command on devices that several hosts
// reach does nothing in a lower one than it has seen, and that would pass for done.
func (f fenced) older(ctx context.Context, a gpu.Allocation) (int64, error) {
	ask, cancel := context.WithTimeout(ctx, leasestore.OwnerTimeout)
	defer cancel()
	ran, unread := f.marks.Term(ask, a.LeaseID)
	term, err := f.leases.Term(ask, a.LeaseID)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		if handed, failed := f.marks.Handed(ask, a.LeaseID); failed != nil || handed {
			return max(ran, a.Term), nil
		}
	case err != nil || term != a.Term:
	case ran == highwater.Reclaimed:
		err = ErrReclaimed
	default:
		if err = unread; err == nil {
			err = f.leases.RaiseTerm(ask, a.LeaseID, term, ran+1)
		}
	}
	return a.Term, fmt.Errorf("lease %s, term %d: %w", a.LeaseID, a.Term, errors.Join(leasestore.ErrNotOwner, highwater.ErrNewerTerm, err))
}

// within waits no longer for a file than for a database that says whose a lease is: a suspension needs no disk.
func within(ctx context.Context, write func(context.Context) error) error {
	done := make(chan error, 1)
	go func() { done <- write(ctx) }()
	select {
	case err := <-done:
		return err
	case <-time.After(leasestore.OwnerTimeout):
		return fmt.Errorf("the file could not be written for %s", leasestore.OwnerTimeout)
	}
}
