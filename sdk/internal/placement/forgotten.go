package placement

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/keyed"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Forgotten are leases that have devices of this host, and that the database does not know any more: it was lost, or restored from
// before them.
type Forgotten struct {
	Placer  Placer
	Store   leasestore.Store
	Busy    *keyed.Mutex                                // leases that begin, end or are taken over here
	Runs    func(lease common.Hash) bool                // in this process
	Release func(context.Context, gpu.Allocation) error // takes devices back
	Within  time.Duration                               // how long Release may take
	Log     *slog.Logger
}

// TakeBack takes their devices back, before another lease gets them. Where that fails they stay taken, and the next try is the next
// start's, or of gateways the next sweep's.
func (f Forgotten) TakeBack(ctx context.Context) error {
	var h hands
	switch p := f.Placer.(type) {
	case noted:
		h = p.hands
	case fenced:
		h = p.hands
	default:
		return nil
	}
	all, err := h.marks.InHands(ctx, h.database)
	for id, devices := range all {
		row, failed := f.Store.Leases.ByID(ctx, id.Hex())
		switch {
		case errors.Is(failed, sql.ErrNoRows):
			failed = f.takeBack(ctx, h, gpu.Allocation{LeaseID: id, Devices: devices})
		case failed == nil && row.State == wire.StateEnded && row.Held == 0:
			failed = h.marks.TakenBack(ctx, id)
		}
		if failed != nil {
			err = errors.Join(err, fmt.Errorf("devices of lease %s, which is forgotten: %w", id, failed))
		}
	}
	return err
}

func (f Forgotten) takeBack(ctx context.Context, h hands, a gpu.Allocation) error {
	done, ok, err := f.claim(ctx, a.LeaseID)
	if !ok {
		return err
	}
	defer done()
	if handed, err := h.marks.Handed(ctx, a.LeaseID); err != nil || !handed { // somebody has taken it back meanwhile
		return err
	}
	err = h.Adopt(ctx, a) // so that they are taken until they are back
	if errors.Is(err, inventory.ErrTaken) {
		return h.marks.TakenBack(ctx, a.LeaseID) // by a later lease: they were taken back
	}
	err = f.Release(ctx, a)
	f.Log.Error("the database has forgotten a lease, as where it was lost or is from a backup: its devices are taken back", "lease", a.LeaseID, "devices", a.Devices, "error", err)
	return nil
}

// claim has nobody else take back what a lease has until done. It is not ok where the lease runs here, begins or ends, or where another
// gateway of the host takes it back.
func (f Forgotten) claim(ctx context.Context, id common.Hash) (done func(), ok bool, err error) {
	unlock, free := f.Busy.TryLock(id)
	if !free {
		return nil, false, nil
	}
	if f.Runs(id) {
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
