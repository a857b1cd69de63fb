package x402client

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Export returns what a wallet keeps about a channel with an x402 server.
func Export(ctx context.Context, w *wallet.Wallet, channelID common.Hash) (*audit.Bundle, error) {
	return exportAccount(ctx, w.DB, w.Sender.Store, channelID)
}

// ExportFile returns what a payer's database kept about a channel with an x402 server, or about the channel of a lease; with
// the zero id about the one that changed last. Its error is channel.ErrUnknown for one of a rental. The program that owns the
// database may run meanwhile.
func ExportFile(ctx context.Context, path string, id common.Hash) (*audit.Bundle, error) {
	return wallet.ExportFile(ctx, path, id, func(s wallet.Store) wallet.Books {
		return wallet.Books{Records: "x402_records", Newest: accounts{s}.newest, Export: exportAccount}
	})
}

// newest is the account whose channel changed last, zero if none of the channels is one.
func (s accounts) newest(ctx context.Context, channels []channel.PayerState) (newest common.Hash, err error) {
	var at time.Time
	for _, c := range channels {
		account, err := s.HasAccount(ctx, c.ID)
		if err != nil {
			return newest, err
		}
		if account && !c.UpdatedAt.Before(at) {
			newest, at = c.ID, c.UpdatedAt
		}
	}
	return newest, nil
}

// exportAccount is what a payer's database keeps about a channel with an x402 server.
func exportAccount(ctx context.Context, db *store.DB, txs *chain.Store, id common.Hash) (*audit.Bundle, error) {
	accounts := accounts{wallet.Store{DB: db}}
	b, err := accounts.Bundle(ctx, txs, id)
	if err != nil {
		return nil, err
	}
	if b.X402 == nil {
		return nil, fmt.Errorf("%w: %s is no channel of x402", channel.ErrUnknown, id)
	}
	if err := accounts.export(ctx, b); err != nil {
		return nil, err
	}
	return b, accounts.AddEvidence(ctx, b)
}

// export adds the leases whose records were checked for ticks, in the order in which
// they ran.
func (s accounts) export(ctx context.Context, b *audit.Bundle) error {
	records, err := s.records(ctx, b.Channel)
	if err != nil {
		return err
	}
	for _, rec := range records { // of one lease they follow one another
		if n := len(b.Leases); n > 0 && b.Leases[n-1].ID == rec.LeaseID {
			b.Leases[n-1].Records = append(b.Leases[n-1].Records, rec)
			continue
		}
		l := audit.Lease{ID: rec.LeaseID, OwedBefore: wire.NewAmount(rec.OwedBefore), Records: []metering.SignedRecord{rec}}
		for _, d := range rec.Evidence.Devices {
			l.Devices = append(l.Devices, d.Device.UUID)
		}
		if l.Offer, err = s.offer(ctx, rec.OfferHash); err != nil {
			return err
		}
		b.Leases = append(b.Leases, l)
	}
	slices.SortStableFunc(b.Leases, func(l, o audit.Lease) int {
		one, two := l.Records[len(l.Records)-1].Owed, o.Records[len(o.Records)-1].Owed
		return cmp.Or(l.OwedBefore.Cmp(&o.OwedBefore.Int), one.Cmp(&two))
	})
	return nil
}
