package renter

import (
	"context"
	"errors"
	"fmt"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Bounds of what a provider says about a lease; all of it goes to disk.
const (
	maxSecret = 256
	maxAccess = 64 << 10
)

// fitting holds a lease to them, and takes out of the way to the GPUs what could
// steer a terminal: it is there to be shown.
func fitting(lease *wire.Lease) error {
	switch {
	case len(lease.Secret) > maxSecret || lease.Secret != peer.Printable(lease.Secret):
		return fmt.Errorf("%w: a lease's secret of %d bytes, at most %d printable ones are kept", peer.ErrProtocol, len(lease.Secret), maxSecret)
	case len(lease.Access) > maxAccess:
		return fmt.Errorf("%w: %d bytes on how to reach the GPUs, at most %d are kept", peer.ErrProtocol, len(lease.Access), maxAccess)
	}
	var err error
	if lease.Access, err = peer.PlainJSON(lease.Access); err != nil {
		return fmt.Errorf("%w: how to reach the GPUs: %w", peer.ErrProtocol, err)
	}
	return nil
}

// begin takes a lease up, or again.
func (l *leaseStream) begin(ctx context.Context, lease wire.Lease, document []byte) error {
	l.service = peer.Printable(lease.State)
	if lease.LeaseID == l.row.Lease && l.checker != nil {
		if err := l.sameMeter(ctx, lease, document); err != nil {
			return err
		}
		l.row.Access, l.row.Recalled = lease.Access, uint256.Int{} // nothing is forgotten that is after it
		if lease.Secret != "" {
			l.row.Secret = lease.Secret
		}
		return l.save(ctx)
	}
	if l.row.Lease != (common.Hash{}) {
		return l.another(ctx, lease, document)
	}
	if err := l.recall(lease.OfferHash); err != nil {
		return err
	}
	if err := l.catchUp(ctx, lease); err != nil {
		return err
	}
	err := l.judge(lease)
	if errors.Is(err, peer.ErrDemand) && (len(l.row.Past) > 0 || !l.row.Recalled.IsZero()) { // of what we may not have seen, or have forgotten
		return errors.Join(err, l.replaced(ctx, lease))
	}
	if err != nil {
		return l.dispute(ctx, err, document)
	}
	l.row.Lease, l.row.Secret, l.row.Devices, l.row.Access, l.row.Binding = lease.LeaseID, lease.Secret, lease.Devices, lease.Access, lease.Binding
	l.row.Carried, _ = l.row.knows(lease)
	l.row.OwedBefore = lease.OwedBefore.Int
	if err := l.startClock(); err != nil {
		return l.dispute(ctx, fmt.Errorf("%w: %w", peer.ErrProtocol, err), document)
	}
	l.hear()
	return l.save(ctx)
}

// judge holds a new lease against what was asked for.
func (l *checks) judge(lease wire.Lease) error {
	if lease.LeaseID == (common.Hash{}) {
		return fmt.Errorf("%w: a lease without an id", peer.ErrProtocol) // it would be begun anew, with its clock, each time
	}
	if lease.OfferHash != l.offer.Hash {
		return fmt.Errorf("%w: the lease is under offer %s, %s was agreed", peer.ErrOffer, lease.OfferHash, l.offer.Hash)
	}
	if _, err := l.offer.MeterOf(lease.LeaseID, l.id, lease.Binding); err != nil {
		return err
	}
	if len(lease.Devices) != l.row.GPUs {
		return fmt.Errorf("%w: %d in the lease, %d were rented", metering.ErrDevices, len(lease.Devices), l.row.GPUs)
	}
	for _, uuid := range lease.Devices {
		if uuid == "" || uuid != peer.Printable(uuid) {
			return fmt.Errorf("%w: a device is called %.60q", peer.ErrProtocol, uuid)
		}
	}
	if _, ok := l.row.knows(lease); !ok {
		return fmt.Errorf("%w: the lease begins with %s owed, the channel owes %s", peer.ErrDemand, lease.OwedBefore.Dec(), l.row.OwedBefore.Dec())
	}
	return nil
}

// startClock starts our own clock for the lease when it was first asked for,
// which is the one bound on its beginning that cannot be wrong: it was not there
// before, and its first byte may be late or come with a second answer. What a
// provider could gain by it, the credit bounds.
func (l *checks) startClock() error {
	state := metering.CheckerState{BootID: l.row.AskedBoot, Owed: l.row.OwedBefore, Start: *l.row.Asked}
	if err := l.resumeChecker(state); err != nil {
		return err
	}
	state = l.checker.State()
	l.row.Checker = &state
	return nil
}

// replaced is a lease that we did not ask for: ours ended while we were away,
// and attaching began another. Nobody uses it, so it is given back at once, and
// nothing is paid of it: any payee can say so, and what an honest one loses by
// it is a moment, or less than its credit where this database is from a backup.
func (l *leaseStream) replaced(ctx context.Context, lease wire.Lease) error {
	l.row.Secret = lease.Secret
	l.row.Ended = "the provider ended the lease while nobody was attached, or names another that nobody here asked for, which is not paid"
	err := errors.Join(l.stopClock(ctx), l.save(ctx))
	if _, failed := l.release(ctx); failed != nil {
		boundlog.Warn(l.r.w.Log, "a lease that nobody asked for could not be given back: close the rental", l.id, failed)
	}
	return err
}
