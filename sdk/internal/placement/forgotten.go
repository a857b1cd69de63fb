package placement

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"golang.org/x/time/rate"

	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/highwater"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/keyed"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// handsOf is the placer of this host's devices; false where they are others'.
func handsOf(p Placer) (hands, bool) {
	switch p := p.(type) {
	case hands:
		return p, true
	case fenced:
		return p.hands, true
	}
	return hands{}, false
}

// forgotten are the leases that have devices of this host, and that the database does not know, or knows to have ended without any: of those
// that are asked for.
func (h hands) forgotten(ctx context.Context, asked func(common.Hash, highwater.InHand) bool) (map[common.Hash]highwater.InHand, error) {
	all, err := h.marks.InHands(ctx, h.database)
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(all, func(id common.Hash, in highwater.InHand) bool { return !asked(id, in) })
	known, err := h.leases.Glimpses(ctx, slices.Collect(maps.Keys(all)))
	if err != nil {
		return nil, err
	}
	for id, row := range known {
		if row.State == wire.StateEnded && row.Held == 0 {
			named, failed := h.endedByName(ctx, id)
			if failed == nil && !named {
				continue
			}
			if err = errors.Join(err, failed); named {
				err = errors.Join(err, h.marks.TakenBack(ctx, id))
			}
		}
		delete(all, id)
	}
	return all, err
}

// endedByName reports whether a lease that ended had its devices in its row, from which they were taken back. One from a backup of when it
// was allocated had not: a gateway of another host, which does not know them either, may have ended it.
func (h hands) endedByName(ctx context.Context, id common.Hash) (bool, error) {
	row, err := h.leases.ByID(ctx, id.Hex())
	if err != nil {
		return false, err
	}
	a, err := row.Allocated()
	return len(a.Devices) > 0, err
}

// refuse is gpu.ErrNoCapacity where a device that an allocator chose is still another lease's, which the database has forgotten.
func (h hands) refuse(ctx context.Context, a gpu.Allocation) error {
	had := func(id common.Hash, in highwater.InHand) bool { return id != a.LeaseID && in.Has(a.Devices) }
	others, err := h.forgotten(ctx, had)
	for id := range others {
		h.log.Warn("no lease begins on devices that another one still has, which the database has forgotten", "lease", a.LeaseID, "devices", a.Devices, "other", id)
		return fmt.Errorf("%w: another renter's is taken back first", gpu.ErrNoCapacity)
	}
	if err != nil {
		return err
	}
	return h.refuseElsewhere(ctx, a.LeaseID, a.Devices)
}

// refuseElsewhere is gpu.ErrNoCapacity where a lease of another database than a lease's has one of its devices.
func (h hands) refuseElsewhere(ctx context.Context, lease common.Hash, devices []string) error {
	all, err := h.marks.Elsewhere(ctx, h.database)
	for _, other := range all {
		if other.Lease != lease && other.Has(devices) {
			h.log.Warn("no lease begins on devices that one of another database has, by the file that both have: see \"Two databases, one host\" in docs/operations.md",
				"lease", lease, "devices", devices, "other", other.Lease, "database", other.Address)
			return fmt.Errorf("%w: a lease of another database has it", gpu.ErrNoCapacity)
		}
	}
	return err
}

// letAgain reports whether a lease that the database knows has got a device of a forgotten one after that one: it had given it back.
func (h hands) letAgain(ctx context.Context, a gpu.Allocation) (bool, error) {
	all, err := h.marks.InHands(ctx, h.database)
	if err != nil {
		return false, err
	}
	since := all[a.LeaseID].Placed
	maps.DeleteFunc(all, func(_ common.Hash, in highwater.InHand) bool { return in.Placed <= since || !in.Has(a.Devices) })
	known, err := h.leases.Glimpses(ctx, slices.Collect(maps.Keys(all)))
	return len(known) > 0, err
}

// Reclaim takes back the devices of a lease that the database has forgotten, which are in no other lease before they are back. That the
// database has them in another one, as it is from a backup, says nothing: that one had given them back before this one got them. It is
// inventory.ErrTaken, and nothing is done, where the other one got them later, or somebody took them back before.
func Reclaim(ctx context.Context, p Placer, a gpu.Allocation) error {
	return reclaim(ctx, p, a, p.Adopt(ctx, a))
}

// reclaim is Reclaim of a lease by what the allocator said of it.
func reclaim(ctx context.Context, p Placer, a gpu.Allocation, adopted error) error {
	if errors.Is(adopted, inventory.ErrTaken) {
		h, ok := handsOf(p)
		if !ok {
			return adopted
		}
		if over, err := h.over(ctx, a); over || err != nil {
			return errors.Join(adopted, err)
		}
	}
	h, ok := handsOf(p)
	if err := p.Release(ctx, a); err != nil || !ok {
		return err
	}
	// The gateway that ran the lease may be cut off from the database, and that may be back one day: nobody does anything to the next renter's.
	return h.marks.Reclaim(context.WithoutCancel(ctx), a.LeaseID)
}

// over reports whether the devices of a forgotten lease, which are in another one, were taken back from it: who did that has let them since,
// or is about to.
func (h hands) over(ctx context.Context, a gpu.Allocation) (bool, error) {
	handed, err := h.marks.Handed(ctx, a.LeaseID)
	if err != nil || !handed {
		return true, err
	}
	later, err := h.letAgain(ctx, a)
	if err == nil && later {
		err = h.marks.TakenBack(ctx, a.LeaseID)
	}
	return later, err
}

// Forgotten are leases that have devices of this host, and that the database does not know any more: it was lost, or restored from
// before them.
type Forgotten struct {
	Placer  Placer
	Store   leasestore.Store
	Busy    *keyed.Mutex                     // leases that begin, end or are taken over here
	Running func() map[common.Hash]bool      // in this process
	Go      func(func(context.Context)) bool // does work until the process stops
	Within  time.Duration                    // how long it may take to take devices back
	Tenure  func() context.Context           // ends when others may do so; nil: there are none
	Log     *slog.Logger

	Pace rate.Sometimes // of Before

	told  sync.Map // leases of which the allocator knows
	aside sync.Map // leases of other databases for which it keeps devices
}

// TakeBack takes their devices back, all at once: one whose command hangs holds up no other. Where that fails they go into no other lease,
// and it is to be tried again.
func (f *Forgotten) TakeBack(ctx context.Context) error {
	_, err := f.each(ctx, func(a gpu.Allocation) error {
		call, cancel := context.WithTimeout(ctx, f.Within)
		defer cancel()
		if f.Tenure != nil {
			defer context.AfterFunc(f.Tenure(), cancel)()
		}
		err := reclaim(call, f.Placer, a, f.tell(call, a))
		if err == nil {
			f.told.Delete(a.LeaseID)
		}
		f.Log.Error("the database has forgotten a lease, as where it was lost or is from a backup: its devices are taken back", "lease", a.LeaseID, "devices", a.Devices, "error", err)
		return nil
	})
	return err
}

// Before has no lease begin on their devices, as where the database fell back while this process runs, and has them taken back, for
// which who wants a lease waits for a while.
func (f *Forgotten) Before(ctx context.Context) error {
	if err := f.setAside(ctx); err != nil {
		return err
	}
	found, err := f.each(ctx, func(a gpu.Allocation) error {
		_ = f.tell(ctx, a) // where it does not know of it: see Devices
		return nil
	})
	if err != nil || !found {
		return err
	}
	f.Pace.Do(func() {
		done := make(chan struct{})
		begun := f.Go(func(ctx context.Context) {
			defer close(done)
			if err := f.TakeBack(ctx); err != nil && ctx.Err() == nil {
				f.Log.Error("devices of forgotten leases", "error", err)
			}
		})
		if !begun {
			return
		}
		select {
		case <-done:
		case <-time.After(f.Within / 4):
		}
	})
	return nil
}

// setAside has the allocator know which devices leases of other databases have, by the file that all of them have: it has no part in these
// leases, and nothing is run on their devices.
func (f *Forgotten) setAside(ctx context.Context) error {
	h, ok := handsOf(f.Placer)
	if !ok {
		return nil
	}
	all, err := h.marks.Elsewhere(ctx, h.database)
	if err != nil {
		return err
	}
	there := make(map[common.Hash]bool)
	for _, other := range all {
		there[other.Lease] = true
		some, failed := h.SetAside(ctx, other.Lease, other.Devices)
		if _, known := f.aside.LoadOrStore(other.Lease, true); some && !known {
			f.Log.Warn("a lease of another database has devices of this host, by the file that both have: they are in no lease of this one meanwhile, see \"Two databases, one host\" in docs/operations.md",
				"lease", other.Lease, "devices", other.Devices, "database", other.Address)
		}
		err = errors.Join(err, failed)
	}
	f.aside.Range(func(id, _ any) bool {
		if lease := id.(common.Hash); !there[lease] {
			_, failed := h.SetAside(ctx, lease, nil)
			f.aside.Delete(lease)
			err = errors.Join(err, failed)
		}
		return true
	})
	return err
}

// tell has the allocator know of a lease: it chooses no device of it from now on. Where another lease has one it is inventory.ErrTaken, and
// the others are this one's all the same.
func (f *Forgotten) tell(ctx context.Context, a gpu.Allocation) error {
	err := f.Placer.Adopt(ctx, a)
	known := err == nil
	if h, ok := handsOf(f.Placer); ok && errors.Is(err, inventory.ErrTaken) {
		rest := h.adoptRest(ctx, a)
		known, err = rest == nil, errors.Join(err, rest)
	}
	if known {
		f.told.Store(a.LeaseID, true)
	}
	return err
}

// adoptRest has the allocator know of those devices of a forgotten lease that no other one has: by that one alone they would be free.
func (h hands) adoptRest(ctx context.Context, a gpu.Allocation) error {
	over, err := h.over(ctx, a)
	if over {
		return err
	}
	for _, device := range a.Devices {
		one := h.Local.Adopt(ctx, gpu.Allocation{LeaseID: a.LeaseID, Devices: []string{device}, Term: a.Term})
		if !errors.Is(one, inventory.ErrTaken) {
			err = errors.Join(err, one)
		}
	}
	return err
}

// Devices are those of the forgotten leases, and of other databases' leases: where the allocator's book does not name them they are not free
// all the same. An allocator that does not know of their leases may choose those that are untold.
func (f *Forgotten) Devices(ctx context.Context) (devices, untold []string, err error) {
	h, all, err := f.all(ctx)
	for id, in := range all {
		devices = append(devices, in.Devices...)
		if _, told := f.told.Load(id); !told {
			untold = append(untold, in.Devices...)
		}
	}
	if err != nil || h.marks == nil {
		return devices, untold, err
	}
	elsewhere, err := h.marks.Elsewhere(ctx, h.database)
	for _, other := range elsewhere {
		devices, untold = append(devices, other.Devices...), append(untold, other.Devices...)
	}
	return devices, untold, err
}

// StillHave is how many forgotten leases still have their devices, as what takes them back fails: they are lost to the operator meanwhile.
func (f *Forgotten) StillHave(ctx context.Context) (int, error) {
	_, all, err := f.all(ctx)
	return len(all), err
}

// Vacant is gpu.ErrNoCapacity where a forgotten lease has one of some devices still, as it could not be taken back.
func (f *Forgotten) Vacant(ctx context.Context, devices []string) error {
	if err := f.Before(ctx); err != nil {
		return err
	}
	h, all, err := f.all(ctx)
	if err != nil || h.marks == nil {
		return err
	}
	for id, in := range all {
		if in.Has(devices) {
			return fmt.Errorf("%w: lease %s, which the database has forgotten, has one of devices %v until it is taken back", gpu.ErrNoCapacity, id, devices)
		}
	}
	return h.refuseElsewhere(ctx, common.Hash{}, devices)
}

func (f *Forgotten) all(ctx context.Context) (hands, map[common.Hash]highwater.InHand, error) {
	h, ok := handsOf(f.Placer)
	if !ok {
		return hands{}, nil, nil
	}
	running := f.Running()
	all, err := h.forgotten(ctx, func(id common.Hash, _ highwater.InHand) bool { return !running[id] })
	return h, all, err
}

// each does something with each, of which nobody does anything else meanwhile, and reports whether there are any.
func (f *Forgotten) each(ctx context.Context, do func(gpu.Allocation) error) (bool, error) {
	h, all, err := f.all(ctx)
	var wait sync.WaitGroup
	failed := make(chan error, len(all))
	for id, in := range all {
		wait.Go(func() {
			if err := f.alone(ctx, h, gpu.Allocation{LeaseID: id, Devices: in.Devices}, do); err != nil {
				failed <- fmt.Errorf("devices of lease %s, which is forgotten: %w", id, err)
			}
		})
	}
	wait.Wait()
	close(failed)
	for one := range failed {
		err = errors.Join(err, one)
	}
	return len(all) > 0, err
}

func (f *Forgotten) alone(ctx context.Context, h hands, a gpu.Allocation, do func(gpu.Allocation) error) error {
	done, ok, err := f.claim(ctx, a.LeaseID)
	if !ok {
		return err
	}
	defer done()
	if handed, err := h.marks.Handed(ctx, a.LeaseID); err != nil || !handed { // somebody has taken it back meanwhile
		return err
	}
	return do(a)
}

// claim has nobody else take back what a lease has until done. It is not ok where the lease runs here, begins or ends, or where another
// gateway of the host takes it back.
func (f *Forgotten) claim(ctx context.Context, id common.Hash) (done func(), ok bool, err error) {
	unlock, free := f.Busy.TryLock(id)
	if !free {
		return nil, false, nil
	}
	if f.Running()[id] {
		unlock()
		return nil, false, nil
	}
	if !f.Store.DB.Shared() {
		return unlock, true, nil
	}
	name, owner := "forgotten "+id.Hex(), leasestore.NewName()
	if ok, err = f.Store.Locks.Try(ctx, name, owner, 2*f.Within); !ok {
		unlock()
		return nil, false, err
	}
	return func() {
		defer unlock()
		if err := f.Store.Locks.Drop(context.WithoutCancel(ctx), name, owner); err != nil {
			f.Log.Warn("another gateway waits for a while before it takes back what this one could not", "lease", id, "error", err)
		}
	}, true, nil
}
