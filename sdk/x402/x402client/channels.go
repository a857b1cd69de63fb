package x402client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/x402account"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// Channel is a channel with an x402 server. Amounts are base units.
type Channel struct {
	ID      common.Hash
	URL     string // where it was paid first
	Terms   channel.Terms
	Status  channel.Status
	Deposit uint256.Int // in the channel, what was claimed included, as far as we know
	Charged uint256.Int // by the server, for answers
	Signed  uint256.Int // the most that the server could claim
	Dispute string      // what the server, or else one of its sites, was caught at
	Leaving bool
}

// Channels lists the channels with x402 servers, as this database knows them.
func (x *Client) Channels(ctx context.Context) ([]Channel, error) {
	all, err := x.accounts().List(ctx)
	if err != nil {
		return nil, err
	}
	channels := make([]Channel, len(all))
	for i, t := range all {
		s, err := x.payer.State(ctx, t.ID)
		if err != nil {
			return nil, err
		}
		channels[i] = Channel{
			ID: t.ID, URL: t.URL, Terms: s.Terms, Status: s.Status, Deposit: s.Deposit, Charged: t.Charged, Signed: s.Cost(),
			Dispute: t.Violation(), Leaving: t.Leaving,
		}
	}
	return channels, nil
}

// Export returns what a wallet keeps about a channel with an x402 server.
func Export(ctx context.Context, w *wallet.Wallet, channelID common.Hash) (*audit.Bundle, error) {
	return x402account.Export(ctx, w.DB, w.Sender.Store, channelID)
}

// ExportFile returns what a payer's database kept about a channel with an x402 server, or about the channel of a lease; with
// the zero id about the one that changed last. Its error is channel.ErrUnknown for one of a rental. The program that owns the
// database may run meanwhile.
func ExportFile(ctx context.Context, path string, id common.Hash) (*audit.Bundle, error) {
	return wallet.ExportFile(ctx, path, id, func(s wallet.Store) wallet.Books {
		return wallet.Books{Records: "x402_records", Newest: x402account.Store{Store: s}.Newest, Export: x402account.Export}
	})
}

// Prune deletes the usage records of a wallet's channels with x402 servers over which nobody can argue any more, each after
// archive has kept its bundle: those that were caught at nothing and hold no money, by a look at the chain before a time and by
// one now. What was signed stays, what the GPUs were billed for and what counts against the caps. It returns how many channels it
// pruned, and stops at the first error.
func Prune(ctx context.Context, w *wallet.Wallet, before time.Time, archive func(*audit.Bundle) error) (pruned int, err error) {
	all := x402account.Store{Store: w.Store}
	quiet, err := all.Quiet(ctx, before)
	for _, s := range quiet {
		empty, err := emptySince(ctx, w, s.ID, before)
		if err != nil {
			return pruned, fmt.Errorf("channel %s: whether it holds money: %w", s.ID, err)
		}
		if !empty {
			continue
		}
		b, err := Export(ctx, w, s.ID)
		if err == nil {
			err = archive(b)
		}
		deleted := false
		if err == nil {
			deleted, err = all.Prune(ctx, s, before)
		}
		if err != nil {
			return pruned, fmt.Errorf("channel %s: pruning its records: %w", s.ID, err)
		}
		if deleted {
			pruned++
		}
	}
	return pruned, err
}

// emptySince reports whether an x402 channel has nothing that could be claimed or refunded, by what was seen of the
// chain before a time and is there now, and whether the books have what became of our transactions about it. What is
// seen first counts from now on: it may be undone.
func emptySince(ctx context.Context, w *wallet.Wallet, id common.Hash, before time.Time) (bool, error) {
	known, err := w.DB.Payer().Load(ctx, id)
	if err != nil {
		return false, err
	}
	contract, err := chain.NewBatchSettlement(ctx, w.Backend)
	if err != nil {
		return false, err
	}
	on, _, err := contract.Confirmed(ctx, []common.Hash{id}, 1)
	if err != nil || on[0].Disputed || on[0].Latest.Deposit.Gt(&on[0].Latest.Settled) || on[0].Latest.CloseRequestedAt != 0 {
		return false, err
	}
	if known.Deposit != on[0].Latest.Deposit || known.Settled != on[0].Latest.Settled {
		payer := channel.Payer{Store: w.DB.Payer(), Now: w.Now}
		_, err = payer.Observe(ctx, id, on[0].Latest)
		return false, err
	}
	if !known.UpdatedAt.Before(before) {
		return false, nil
	}
	if err = w.Sync(ctx, id); errors.Is(err, wallet.ErrNotYet) {
		return false, nil
	}
	return err == nil, err
}
