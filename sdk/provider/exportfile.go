package provider

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/x402server"
)

// ErrOtherDatabase says that a database is of another kind of program.
var ErrOtherDatabase = database.ErrOther

// ExportFile returns what a provider's database kept about a channel, or about the channel of a lease; with the zero id about its
// only channel. The program that owns the database may run meanwhile.
func ExportFile(ctx context.Context, path string, id common.Hash) (*audit.Bundle, error) {
	db, err := database.Read(ctx, path, map[string]fs.FS{"provider": leasestore.Migrations, "x402": x402server.Migrations})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	txs, err := chain.OpenStore(ctx, db)
	if err != nil {
		return nil, err
	}
	of, err := leasestore.ChannelOf(ctx, db, id)
	if err != nil {
		return nil, fmt.Errorf("database %s: %w", db.Path(), err)
	}
	b, err := leasestore.Export(ctx, db, txs, of)
	if errors.Is(err, channel.ErrUnknown) {
		return nil, fmt.Errorf("database %s knows no channel or lease %s: %w", db.Path(), id, channel.ErrUnknown)
	}
	return b, err
}

// Export returns what this provider kept about a channel.
func (p *Server) Export(ctx context.Context, channelID common.Hash) (*audit.Bundle, error) {
	return leasestore.Export(ctx, p.db, p.sender.Store, channelID)
}
