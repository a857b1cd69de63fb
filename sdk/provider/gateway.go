package provider

import (
	"context"
	"fmt"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/cluster"
	"github.com/gpupay/gpupay/sdk/internal/gateways"
	"github.com/gpupay/gpupay/sdk/internal/lease"
)

// newGateway makes this provider one gateway among those of its database.
func (p *Server) newGateway() *gateways.Gateway {
	c := p.config
	return gateways.New(gateways.Config{
		DB: p.db, Payee: p.payee, Allocator: c.Allocator, Log: c.Log,
		Takeover: c.Takeover, Tick: c.Metering.Tick, CallTimeout: c.Commands.Timeout, SuspendTimeout: c.Terms.SuspendTimeout, Credit: c.Terms.Credit,
		Identify: func(ctx context.Context) error { return identify(ctx, p.db, p.escrow, c) }, Owing: p.debts.Owing,
		Takes:    p.takes,
		Notice:   func(ctx context.Context, l *lease.Lease) error { return p.schemes.Notice(ctx, l) },
		Endpoint: p.escrow.Backend(), Lead: fmt.Sprintf("settler %d %s %s", p.escrow.ChainID(), p.escrow.Address(), c.Key.Address()),
		Service: p.settlement.newService, AtWork: p.settlement.atWork.Store,
	}, p.directory)
}

// identify makes the database this provider's, or fails if it is another one's. The
// token may change, and the key to one that has the old one in PastKeys, while no
// gateway lives.
func identify(ctx context.Context, db *store.DB, escrow *chain.Escrow, c Config) error {
	if !db.Shared() {
		return nil
	}
	mine := cluster.Identity{Chain: escrow.ChainID(), Escrow: c.Escrow.Hex(), Token: c.Token.Hex(), Payee: c.Key.Address().Hex(), Meter: c.Metering.Key.Address().Hex()}
	past := func(payee string) bool {
		return channel.SignerOf(c.PastKeys, common.HexToAddress(payee)) != nil
	}
	if err := (cluster.Members{DB: db}).Identify(ctx, mine, past); err != nil {
		return fmt.Errorf("provider: %w", err)
	}
	return nil
}
