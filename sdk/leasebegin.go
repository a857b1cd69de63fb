package sdk

import (
	"context"

	"github.com/gpupay/gpupay/sdk/wire"
)

// outboxIsWhole refuses to begin anything while transactions of this key may still
// be mined that the outbox does not know: the database is from a backup, and a close
// or a refund may be among them. Once it knows all of them it always will, since it
// is written before anything is sent.
func (p *Provider) outboxIsWhole(ctx context.Context) error {
	if p.whole.Load() {
		return nil
	}
	unknown, err := p.sender.Unknown(ctx)
	if err != nil {
		return err
	}
	if unknown > 0 {
		return wire.Unavailable.With("%d transactions of this provider's key are on their way that its database does not know, as after a restore: nothing begins before they are mined or replaced", unknown)
	}
	p.whole.Store(true)
	return nil
}
