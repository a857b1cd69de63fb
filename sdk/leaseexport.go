package sdk

import (
	"context"
	"fmt"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Export returns what this provider kept about a channel.
func (p *Provider) Export(ctx context.Context, channelID common.Hash) (*audit.Bundle, error) {
	return exportPayee(ctx, p.db, p.sender.Store, channelID)
}

func exportPayee(ctx context.Context, db *store.DB, txs *chain.Store, id common.Hash) (*audit.Bundle, error) {
	s, err := db.Payee().Load(ctx, id)
	if err != nil {
		return nil, err
	}
	b, err := audit.New(ctx, txs, audit.KeptByPayee, s.Terms)
	if err != nil {
		return nil, err
	}
	b.Deposit, b.Settled = wire.NewAmount(s.Deposit), wire.NewAmount(s.Settled)
	if len(s.Signature) > 0 {
		b.Vouchers = append(b.Vouchers, audit.Voucher{Cumulative: wire.NewAmount(s.Accepted), Signature: s.Signature})
	}
	leases := leaseStore{db: db}
	rows, err := leases.ofChannel(ctx, id)
	if err != nil {
		return nil, err
	}
	for _, row := range rows {
		lease, err := leases.export(ctx, row)
		if err != nil {
			return nil, fmt.Errorf("lease %s: %w", row.ID, err)
		}
		b.Leases = append(b.Leases, lease)
	}
	b.Evidence, err = leases.shown(ctx, id)
	return b, err
}

// ofChannel returns the leases of a channel in the order in which they began.
func (s leaseStore) ofChannel(ctx context.Context, channelID common.Hash) ([]leaseRow, error) {
	var rows []leaseRow
	db := s.db.View()
	err := db.SelectContext(ctx, &rows, db.Rebind(`SELECT `+leaseColumns+` FROM leases WHERE channel = ? ORDER BY started_at, id`), channelID.Hex())
	if err != nil {
		return nil, fmt.Errorf("leases of channel %s: %w", channelID, err)
	}
	return rows, nil
}

func (s leaseStore) export(ctx context.Context, row leaseRow) (audit.Lease, error) {
	id := common.HexToHash(row.ID)
	offer, err := s.offer(ctx, common.HexToHash(row.Offer))
	if err != nil {
		return audit.Lease{}, err
	}
	a, err := row.allocation()
	if err != nil {
		return audit.Lease{}, err
	}
	before, err := channel.ParseAmount(row.OwedBefore)
	if err != nil {
		return audit.Lease{}, err
	}
	binding, err := row.binding()
	if err != nil {
		return audit.Lease{}, err
	}
	lease := audit.Lease{ID: id, Offer: offer.Document, Devices: a.Devices, OwedBefore: wire.NewAmount(before), Binding: binding}
	const page = 1000
	for after := uint64(0); ; {
		records, err := s.records(ctx, id, after, page)
		if err != nil {
			return lease, err
		}
		lease.Records = append(lease.Records, records...)
		if len(records) < page {
			return lease, nil
		}
		after = records[page-1].Sequence
	}
}
