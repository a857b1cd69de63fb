package sdk

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
	"github.com/gpupay/gpupay/sdk/internal/evidence"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Export returns what this renter kept about a channel.
func (r *Renter) Export(ctx context.Context, channelID common.Hash) (*audit.Bundle, error) {
	return exportPayer(ctx, r.w.DB, r.w.Sender.Store, channelID)
}

// newestOf is the channel whose rental was made last; one of x402, which is of no rental, counts by when it changed last.
func newestOf(ctx context.Context, rentals rentalStore, channels []channel.PayerState) (common.Hash, error) {
	made := make(map[common.Hash]int64)
	if len(channels) > 1 {
		rows, err := rentals.list(ctx, "")
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

func exportPayer(ctx context.Context, db *store.DB, txs *chain.Store, id common.Hash) (*audit.Bundle, error) {
	s, err := db.Payer().Load(ctx, id)
	if err != nil {
		return nil, err
	}
	books := wallet.Store{DB: db}
	rentals := rentalStore{books}
	var row rentalRow // none of a channel of x402
	if s.Terms.Scheme != channel.BatchSettlement {
		row, err = rentals.load(ctx, id)
	}
	if err != nil {
		return nil, err
	}
	b, err := audit.New(ctx, txs, audit.KeptByPayer, s.Terms)
	if err != nil {
		return nil, err
	}
	b.Deposit, b.Settled = wire.NewAmount(s.Deposit), wire.NewAmount(s.Settled)
	if len(s.Signature) > 0 {
		b.Vouchers = append(b.Vouchers, audit.Voucher{Cumulative: wire.NewAmount(s.Signed), Signature: s.Signature})
	}
	if b.X402 != nil {
		err = slates{books}.export(ctx, b)
	} else {
		err = row.exportLease(ctx, rentals, b)
	}
	if err != nil {
		return nil, err
	}
	kept, err := rentals.Evidence(ctx, id)
	if err != nil {
		return nil, err
	}
	for _, e := range kept {
		b.Evidence = append(b.Evidence, audit.Evidence{Reason: e.Reason, At: e.At.UTC(), Document: evidence.Redact(string(e.Document), row.Secret, string(row.Access))})
	}
	proofs, err := rentals.Proofs(ctx, id)
	for _, p := range proofs { // nothing is cut out of one: what a provider calls its secret may be a part of it, and no more
		b.Evidence = append(b.Evidence, audit.Evidence{Reason: audit.EquivocationKind, At: time.UnixMilli(p.At).UTC(), Document: p.Document})
	}
	return b, err
}

// exportLease adds the rental's lease, if it came to one, and what was prepaid.
func (row rentalRow) exportLease(ctx context.Context, rentals rentalStore, b *audit.Bundle) error {
	if row.found() {
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
		leases = append(slices.Clone(leases), pastLease{ID: row.Lease, Offer: row.Offer, Devices: row.Devices, OwedBefore: row.OwedBefore, Binding: row.Binding})
	}
	records, err := rentals.records(ctx, b.Channel)
	for _, l := range leases {
		b.Leases = append(b.Leases, audit.Lease{
			ID: l.ID, Offer: l.Offer, Devices: l.Devices, OwedBefore: wire.NewAmount(l.OwedBefore), Binding: l.Binding, Records: of(l.ID, records),
		})
	}
	return err
}

// Equivocations returns the proofs that a provider contradicted itself on a
// channel, also on one with an x402 server. A renter that meets a second record of
// one number keeps both.
func (r *Renter) Equivocations(ctx context.Context, channelID common.Hash) ([]*audit.Equivocation, error) {
	b, err := r.Export(ctx, channelID)
	if err == nil {
		return b.Equivocations(), nil
	}
	if !errors.Is(err, channel.ErrUnknown) { // no rental: it may be of x402
		return nil, err
	}
	stored, readErr := r.store.Proofs(ctx, channelID)
	if readErr != nil || len(stored) == 0 {
		known, slateErr := slates{r.w.Store}.load(ctx, channelID)
		if readErr != nil || slateErr != nil || known == nil {
			return nil, errors.Join(err, readErr, slateErr)
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
