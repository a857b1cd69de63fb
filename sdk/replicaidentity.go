package sdk

import (
	"context"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/internal/cluster"
)

// identify makes the database this provider's, or fails if it is another one's. The
// token may change, and the key to one that has the old one in PastKeys, while no
// gateway lives.
func (p *Provider) identify(ctx context.Context) error {
	if !p.db.Shared() {
		return nil
	}
	c := p.config
	mine := cluster.Identity{Chain: p.escrow.ChainID(), Escrow: c.Escrow.Hex(), Token: c.Token.Hex(), Payee: c.Key.Address().Hex(), Meter: c.MeterKey.Address().Hex()}
	past := func(payee string) bool {
		return channel.SignerOf(c.PastKeys, common.HexToAddress(payee)) != nil
	}
	if err := (cluster.Members{DB: p.db}).Identify(ctx, mine, past); err != nil {
		return fmt.Errorf("provider: %w", err)
	}
	return nil
}

// restamp is cluster.Restamp, and tells the operator of a clock that was set back.
func (p *Provider) restamp(ctx context.Context) error {
	behind, err := cluster.Restamp(ctx, p.db)
	if behind >= time.Second {
		p.config.Log.Warn("the database server's clock was set back: what gateways left that died ends later than usual", "by at least", behind)
	}
	return err
}
