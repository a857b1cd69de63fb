package leasestore

import (
	"context"
	"fmt"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
)

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

// ChannelOf is the channel of a lease, the only channel of a database where the id is zero, and the id itself where there is no such lease.
func ChannelOf(ctx context.Context, db *store.DB, id common.Hash) (common.Hash, error) {
	if id == (common.Hash{}) {
		return onlyChannel(ctx, db)
	}
	var found string
	if db.View().GetContext(ctx, &found, db.View().Rebind(`SELECT channel FROM leases WHERE id = ?`), id.Hex()) != nil {
		return id, nil
	}
	return common.HexToHash(found), nil
}
