package wallet

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
)

// ReadFile opens a payer's database to read from it. The program that owns it may run meanwhile; nothing is migrated.
func ReadFile(ctx context.Context, path string) (Store, error) {
	db, err := database.Read(ctx, path, map[string]fs.FS{"renter": Migrations})
	return Store{DB: db}, err
}

// Books are what a payer's database keeps about the channels of one scheme.
type Books struct {
	Records string // the table of its usage records
	// Newest is the channel that an export is of where nobody names one, zero: none is of this scheme.
	Newest func(ctx context.Context, channels []channel.PayerState) (common.Hash, error)
	// Export makes the bundle of a channel; its error is channel.ErrUnknown for that of another scheme.
	Export func(ctx context.Context, db *store.DB, txs *chain.Store, id common.Hash) (*audit.Bundle, error)
}

// ExportFile returns what a payer's database kept about a channel, or about the channel of a lease; with the zero id about the
// newest one.
func ExportFile(ctx context.Context, path string, id common.Hash, books func(Store) Books) (*audit.Bundle, error) {
	s, err := ReadFile(ctx, path)
	if err != nil {
		return nil, err
	}
	defer s.DB.Close()
	txs, err := chain.OpenStore(ctx, s.DB)
	if err != nil {
		return nil, err
	}
	of := books(s)
	if id == (common.Hash{}) {
		id, err = s.newest(ctx, of)
	} else {
		id = s.channelOf(ctx, of, id)
	}
	if err != nil {
		return nil, fmt.Errorf("database %s: %w", s.DB.Path(), err)
	}
	b, err := of.Export(ctx, s.DB, txs, id)
	if errors.Is(err, channel.ErrUnknown) {
		return nil, fmt.Errorf("database %s knows no channel or lease %s: %w", s.DB.Path(), id, channel.ErrUnknown)
	}
	return b, err
}

func (s Store) newest(ctx context.Context, of Books) (newest common.Hash, err error) {
	channels, err := s.DB.Payer().List(ctx)
	if err == nil && len(channels) > 0 {
		newest, err = of.Newest(ctx, channels)
	}
	if err == nil && newest == (common.Hash{}) {
		err = fmt.Errorf("%w: it knows no channel", channel.ErrUnknown)
	}
	return newest, err
}

// channelOf is the channel of a lease, or what it was given where no record is of such a lease.
func (s Store) channelOf(ctx context.Context, of Books, id common.Hash) common.Hash {
	var found string
	db := s.DB.View()
	if db.GetContext(ctx, &found, db.Rebind(`SELECT channel FROM `+of.Records+` WHERE lease = ? LIMIT 1`), id.Hex()) != nil {
		return id
	}
	return common.HexToHash(found)
}
