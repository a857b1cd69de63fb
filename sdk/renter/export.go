package renter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Export returns what this renter kept about the channel of a rental; that of an x402 server is x402client.Export's.
func (r *Client) Export(ctx context.Context, channelID common.Hash) (*audit.Bundle, error) {
	return exportRental(ctx, r.w.DB, r.w.Sender.Store, channelID)
}

// ExportFile returns what a renter's database kept about a channel, or about the channel of a lease; with the zero id about
// its newest. Its error is channel.ErrUnknown for one with an x402 server, which is x402client.ExportFile's. The program that owns the
// database may run meanwhile.
func ExportFile(ctx context.Context, path string, id common.Hash) (*audit.Bundle, error) {
	return wallet.ExportFile(ctx, path, id, func(s wallet.Store) wallet.Books {
		newest := func(ctx context.Context, channels []channel.PayerState) (common.Hash, error) {
			return newestOf(ctx, rental.Store{Store: s}, channels)
		}
		return wallet.Books{Records: "rental_records", Newest: newest, Export: exportRental}
	})
}

// newestOf is the channel whose rental was made last; one of x402, which is of no rental, counts by when it changed last.
func newestOf(ctx context.Context, rentals rental.Store, channels []channel.PayerState) (common.Hash, error) {
	made := make(map[common.Hash]int64)
	if len(channels) > 1 {
		rows, err := rentals.All(ctx)
		if err != nil {
			return common.Hash{}, err
		}
		for _, row := range rows {
			made[row.Terms.ID()] = row.Made
		}
	}
	newest := slices.MaxFunc(channels, func(a, b channel.PayerState) int {
		since := func(s channel.PayerState) int64 { return cmp.Or(made[s.ID], s.UpdatedAt.Unix()) }
		return cmp.Or(cmp.Compare(since(a), since(b)), a.UpdatedAt.Compare(b.UpdatedAt))
	})
	return newest.ID, nil
}

// exportRental is what a renter's database keeps about the channel of a rental.
func exportRental(ctx context.Context, db *store.DB, txs *chain.Store, id common.Hash) (*audit.Bundle, error) {
	rentals := rental.Store{Store: wallet.Store{DB: db}}
	b, err := rentals.Bundle(ctx, txs, id)
	if err != nil {
		return nil, err
	}
	row, err := rentals.Load(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := exportLease(ctx, rentals, row, b); err != nil {
		return nil, err
	}
	return b, rentals.AddEvidence(ctx, b, row.Secret, string(row.Access))
}

// exportLease adds the rental's lease, if it came to one, and what was prepaid.
func exportLease(ctx context.Context, rentals rental.Store, row rental.Row, b *audit.Bundle) error {
	if row.Found() {
		return nil // its lease and what was prepaid went with the database
	}
	offer, err := wire.ParseOffer(row.Offer)
	if err != nil {
		return fmt.Errorf("channel %s: its offer on disk: %w", b.Channel, err)
	}
	price, err := offer.Price()
	if err != nil {
		return err
	}
	ahead, err := price.Charge(uint64(row.Options.Prepay))
	if err != nil {
		return err
	}
	b.Prepaid = wire.NewAmount(ahead)
	leases := row.Past
	if row.Lease != (common.Hash{}) {
		leases = append(slices.Clone(leases), rental.Past{ID: row.Lease, Offer: row.Offer, Devices: row.Devices, OwedBefore: row.OwedBefore, Binding: row.Binding})
	}
	records, err := rentals.Records(ctx, b.Channel)
	for _, l := range leases {
		lease := audit.Lease{ID: l.ID, Offer: l.Offer, Devices: l.Devices, OwedBefore: wire.NewAmount(l.OwedBefore), Binding: l.Binding}
		for _, rec := range records {
			if rec.LeaseID == l.ID {
				lease.Records = append(lease.Records, rec)
			}
		}
		b.Leases = append(b.Leases, lease)
	}
	return err
}

// Equivocations returns the proofs that a provider contradicted itself on a
// channel, also on one with an x402 server. A renter that meets a second record of
// one number keeps both.
func (r *Client) Equivocations(ctx context.Context, channelID common.Hash) ([]*audit.Equivocation, error) {
	b, err := r.Export(ctx, channelID)
	if err == nil {
		return b.Equivocations(), nil
	}
	if !errors.Is(err, channel.ErrUnknown) { // no rental: it may be of x402
		return nil, err
	}
	stored, readErr := r.store.Proofs(ctx, channelID)
	if readErr != nil || len(stored) == 0 {
		known, failed := r.w.Store.HasAccount(ctx, channelID)
		if readErr != nil || failed != nil || !known {
			return nil, errors.Join(err, readErr, failed)
		}
		return nil, nil
	}
	var proofs []*audit.Equivocation
	for _, s := range stored {
		p, err := audit.ParseEquivocation([]byte(s.Document))
		if err != nil {
			return nil, fmt.Errorf("channel %s: a proof on disk does not hold; restore the database from its backup: %w", channelID, err)
		}
		proofs = append(proofs, p)
	}
	return proofs, nil
}

// Prune deletes the usage records of rentals over which nobody can argue any more, each after archive has kept its bundle: those
// whose end on the chain is final, that were written last before a time, and in which the provider was caught at nothing. What was
// signed stays, what the GPUs were billed for and what counts against the caps. It returns how many it pruned, and stops at the
// first error. Channels with x402 servers are x402client.Prune's.
func (r *Client) Prune(ctx context.Context, before time.Time, archive func(*audit.Bundle) error) (int, error) {
	rows, err := r.store.Settled(ctx, before)
	if err != nil {
		return 0, err
	}
	pruned := 0
	for _, row := range rows {
		if row.Dispute != "" {
			continue
		}
		id := row.Terms.ID()
		b, err := r.Export(ctx, id)
		if err == nil {
			err = archive(b)
		}
		still := false
		if err == nil {
			still, err = r.store.Prune(ctx, id, before)
		}
		if err != nil {
			return pruned, fmt.Errorf("channel %s: pruning its records: %w", id, err)
		}
		if still {
			pruned++
		}
	}
	return pruned, nil
}
