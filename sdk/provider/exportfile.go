package provider

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
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
	if id == (common.Hash{}) {
		if id, err = onlyChannel(ctx, db); err != nil {
			return nil, fmt.Errorf("database %s: %w", db.Path(), err)
		}
	}
	b, err := leasestore.Export(ctx, db, txs, channelOf(ctx, db, id))
	if errors.Is(err, channel.ErrUnknown) {
		return nil, fmt.Errorf("database %s knows no channel or lease %s: %w", db.Path(), id, channel.ErrUnknown)
	}
	return b, err
}

// maxNamed bounds the channels that an error names.
const maxNamed = 20

// onlyChannel is the channel that an export is of where nobody names one.
func onlyChannel(ctx context.Context, db *store.DB) (common.Hash, error) {
	all, err := db.Payee().List(ctx)
	switch {
	case err != nil:
		return common.Hash{}, err
	case len(all) == 0:
		return common.Hash{}, fmt.Errorf("%w: it knows no channel", channel.ErrUnknown)
	case len(all) == 1:
		return all[0].ID, nil
	}
	var ids []common.Hash
	for _, s := range all[:min(len(all), maxNamed)] {
		ids = append(ids, s.ID)
	}
	return common.Hash{}, fmt.Errorf("it knows %d channels; name one of them: %s", len(all), ids)
}

// channelOf is the channel of a lease, or what it was given where there is no such lease.
func channelOf(ctx context.Context, db *store.DB, id common.Hash) common.Hash {
	var found string
	if db.View().GetContext(ctx, &found, db.View().Rebind(`SELECT channel FROM leases WHERE id = ?`), id.Hex()) != nil {
		return id
	}
	return common.HexToHash(found)
}
