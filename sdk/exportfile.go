package sdk

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
	"github.com/gpupay/gpupay/sdk/wallet"
)

// ExportFile returns what a provider's or a renter's database kept about a
// channel, or about the channel of a lease; with the zero id about its only
// channel, or a renter's newest. The program that owns the database may run meanwhile.
func ExportFile(ctx context.Context, path string, id common.Hash) (*audit.Bundle, error) {
	db, err := database.Read(ctx, path, map[string]fs.FS{"provider": providerMigrations, "renter": wallet.Migrations, "x402": x402Migrations})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	txs, err := chain.OpenStore(ctx, db)
	if err != nil {
		return nil, err
	}
	if channelID, ok := channelOf(ctx, db, id); ok {
		id = channelID
	}
	if id == (common.Hash{}) {
		if id, err = unnamed(ctx, db); err != nil {
			return nil, fmt.Errorf("database %s: %w", db.Path(), err)
		}
	}
	b, err := exportPayee(ctx, db, txs, id)
	if errors.Is(err, channel.ErrUnknown) {
		b, err = exportPayer(ctx, db, txs, id)
	}
	if errors.Is(err, channel.ErrUnknown) {
		return nil, fmt.Errorf("database %s knows no channel or lease %s: %w", db.Path(), id, channel.ErrUnknown)
	}
	return b, err
}

// exportPayer is what a payer's database keeps about a channel, of whichever scheme.
func exportPayer(ctx context.Context, db *store.DB, txs *chain.Store, id common.Hash) (*audit.Bundle, error) {
	b, err := exportRental(ctx, db, txs, id)
	if errors.Is(err, channel.ErrUnknown) {
		return exportAccount(ctx, db, txs, id)
	}
	return b, err
}

// maxNamed bounds the channels that an error names.
const maxNamed = 20

// unnamed is the channel that an export is of where nobody names one: the only one, or a renter's newest.
func unnamed(ctx context.Context, db *store.DB) (common.Hash, error) {
	payee, err := db.Payee().List(ctx)
	payer, more := db.Payer().List(ctx)
	if err := errors.Join(err, more); err != nil {
		return common.Hash{}, err
	}
	switch {
	case len(payee)+len(payer) == 0:
		return common.Hash{}, fmt.Errorf("%w: it knows no channel", channel.ErrUnknown)
	case len(payee) == 0:
		return newestOf(ctx, rentalStore{wallet.Store{DB: db}}, payer)
	case len(payee)+len(payer) == 1:
		return payee[0].ID, nil
	}
	var ids []common.Hash
	for _, s := range payee[:min(len(payee), maxNamed)] {
		ids = append(ids, s.ID)
	}
	return common.Hash{}, fmt.Errorf("it knows %d channels; name one of them: %s", len(payee)+len(payer), ids)
}

// channelOf finds the channel of a lease in either side's tables; those of the
// other side do not exist.
func channelOf(ctx context.Context, db *store.DB, lease common.Hash) (common.Hash, bool) {
	for _, query := range []string{`SELECT channel FROM leases WHERE id = ?`, `SELECT channel FROM rental_records WHERE lease = ? LIMIT 1`,
		`SELECT channel FROM x402_records WHERE lease = ? LIMIT 1`} {
		var id string
		if db.View().GetContext(ctx, &id, db.View().Rebind(query), lease.Hex()) == nil {
			return common.HexToHash(id), true
		}
	}
	return common.Hash{}, false
}
