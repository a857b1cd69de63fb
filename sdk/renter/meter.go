package renter

import (
	"context"
	"errors"
	"fmt"

	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// sameMeter holds what a stream says of a lease that we know against the meter that was bound to it: it has one for its
// whole life. Two that the payee signed are kept as a proof. A lease that has ended may be shown without any.
func (l *checks) sameMeter(ctx context.Context, lease wire.Lease, document []byte) error {
	if lease.Binding == nil || lease.Binding.Same(l.row.Binding) {
		return nil
	}
	cause := fmt.Errorf("lease %s: %w: it is shown with another meter than before", l.row.Lease, wire.ErrMeter)
	if l.row.Binding == nil {
		return l.dispute(ctx, cause, document)
	}
	p, err := audit.NewBindingEquivocation(l.row.Offer, *l.row.Binding, *lease.Binding)
	if err != nil {
		return l.dispute(ctx, cause, document)
	}
	kept := l.r.store.KeepProof(context.WithoutCancel(ctx), p, l.id, l.r.w.Now().UnixMilli())
	return errors.Join(l.dispute(ctx, fmt.Errorf("%w: %w", cause, wallet.ErrBoundTwice), document), kept)
}
