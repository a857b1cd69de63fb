package sdk

import (
	"context"
	"errors"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
)

// takeBackHeld tries again to take back what could not be when its lease ended, each CallTimeout, until the process stops. Gateways
// that share a database do so when they sweep.
func (h *lessor) takeBackHeld() {
	if !h.begin() {
		return
	}
	go func() {
		defer h.wait.Done()
		for chain.Pause(h.life, h.deps.timing.callTimeout) == nil {
			if err := h.resolveHeld(h.life); err != nil && h.life.Err() == nil {
				h.deps.log.Error("devices of ended leases", "error", err)
			}
		}
	}()
}

func (h *lessor) resolveHeld(ctx context.Context) error {
	rows, err := h.heldHere(ctx)
	for _, row := range rows {
		unlock, free := h.busy.TryLock(common.HexToHash(row.ID))
		if !free {
			continue // it begins
		}
		if failed := h.resolve(ctx, row, h.locate(ctx, row, nil), ""); !errors.Is(failed, errHeld) { // which is logged
			err = errors.Join(err, failed)
		}
		unlock()
	}
	return err
}

// heldHere are the ended leases whose devices are to be taken back here, and not at a node.
func (h *lessor) heldHere(ctx context.Context) ([]leasestore.Row, error) {
	rows, err := h.store.Leases.StillHeld(ctx)
	var here []leasestore.Row
	for _, row := range rows {
		if !row.AtNode() {
			here = append(here, row)
		}
	}
	return here, err
}
