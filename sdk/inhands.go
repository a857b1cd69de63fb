package sdk

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/highwater"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/run"
	"github.com/gpupay/gpupay/sdk/wire"
)

// noted is a local placer that remembers outside the database, in the high-water mark, which devices are in renters' hands: a
// database that is lost, or restored from before a lease, would hand them to the next renter while the last one still has them.
type noted struct {
	local
	marks    *highwater.Marks
	database string // whose leases they are
	log      *slog.Logger
}

// note has the devices of this host be remembered outside a database that is a file. A server's is no host's, and keeps them by itself:
// there the file has whose commands ran on this host.
func (h *lessor) note(database string, log *slog.Logger) error {
	l, ok := h.deps.placer.(local)
	if !ok {
		return nil
	}
	if h.store.DB.Shared() {
		h.deps.placer = fenced{l, h.deps.marks, h.store, log}
		return nil
	}
	path, err := filepath.Abs(database)
	h.deps.placer = noted{l, h.deps.marks, path, log}
	return err
}

// place gives nothing to a renter that could not be remembered.
func (n noted) place(ctx context.Context, req placement) (gpu.Allocation, common.Address, error) {
	after := run.After(ctx)
	a, meter, err := n.local.place(ctx, req)
	if err != nil {
		return a, meter, err
	}
	a.LeaseID = cmp.Or(a.LeaseID, req.LeaseID)
	if err := n.marks.Hand(ctx, n.database, a.LeaseID, a.Devices); err != nil {
		undo, cancel := after()
		defer cancel()
		return gpu.Allocation{}, meter, errors.Join(errUnmarked(), err, n.local.Release(undo, a))
	}
	return a, meter, nil
}

// Adopt remembers what an older program allocated, too.
func (n noted) Adopt(ctx context.Context, a gpu.Allocation) error {
	if err := n.local.Adopt(ctx, a); err != nil {
		return err
	}
	return n.marks.Hand(ctx, n.database, a.LeaseID, a.Devices)
}

func (n noted) Release(ctx context.Context, a gpu.Allocation) error {
	if err := n.local.Release(ctx, a); err != nil {
		return err
	}
	if err := n.marks.TakenBack(context.WithoutCancel(ctx), n.database, a.LeaseID); err != nil { // the next start finds the lease ended
		n.log.Error("that devices were taken back could not be written down", "lease", a.LeaseID, "error", err)
	}
	return nil
}

// takeBackForgotten takes back the devices of leases that the database does not know any more, before another one gets them. Where
// that fails they stay taken, and the next start tries again.
func (h *lessor) takeBackForgotten(ctx context.Context) error {
	n, ok := h.deps.placer.(noted)
	if !ok {
		return nil
	}
	all, err := n.marks.InHands(ctx, n.database)
	if err != nil {
		return err
	}
	for id, devices := range all {
		row, err := h.store.Leases.ByID(ctx, id.Hex())
		switch {
		case errors.Is(err, sql.ErrNoRows):
			err = h.takeBack(ctx, n, gpu.Allocation{LeaseID: id, Devices: devices})
		case err == nil && row.State == wire.StateEnded && row.Held == 0:
			err = n.marks.TakenBack(ctx, n.database, id)
		}
		if err != nil {
			return fmt.Errorf("devices of lease %s, which is forgotten: %w", id, err)
		}
	}
	return nil
}

func (h *lessor) takeBack(ctx context.Context, n noted, a gpu.Allocation) error {
	err := n.local.Adopt(ctx, a) // so that they are taken until they are back
	if errors.Is(err, inventory.ErrTaken) {
		return n.marks.TakenBack(ctx, n.database, a.LeaseID) // by a later lease: they were taken back
	}
	err = h.release(ctx, a)
	h.deps.log.Error("the database has forgotten a lease, as where it was lost or is from a backup: its devices are taken back", "lease", a.LeaseID, "devices", a.Devices, "error", err)
	return nil
}
