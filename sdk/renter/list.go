package renter

import (
	"context"
	"errors"
	"fmt"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// Rentals lists what is not finished: each may hold money. Resume takes one up
// again.
//
// A rental that is closed stays in the list until no re-org can undo that; each
// call looks, and one that was undone is open again.
func (r *Client) Rentals(ctx context.Context) ([]State, error) {
	rows, err := r.store.Unfinished(ctx)
	if err != nil {
		return nil, err
	}
	for _, row := range rows {
		if row.Phase != rental.PhaseClosed {
			continue
		}
		l, err := r.Rental(ctx, row.Terms.ID())
		if err == nil {
			_, err = l.lease.Over(ctx)
		}
		if err != nil {
			return nil, err
		}
	}
	if rows, err = r.store.Unfinished(ctx); err != nil {
		return nil, err
	}
	for i, row := range rows {
		if row.Phase == rental.PhaseOpening && row.Until() != 0 {
			rows[i] = r.opening(ctx, row)
		}
	}
	return statesOf(ctx, r.store, rows)
}

// opening is a rental that is being opened as the chain shows it, where that has its channel: the deposit is promised no more.
// Nothing is kept: whoever opens it may be at work. An endpoint that does not answer changes nothing.
func (r *Client) opening(ctx context.Context, row rental.Row) rental.Row {
	l, err := r.Rental(ctx, row.Terms.ID())
	if err != nil {
		return row
	}
	if seen, err := l.lease.Look(ctx, r.w.Confirmations); err != nil || !seen.There {
		return row
	}
	return l.lease.Row
}

// History lists all rentals, the finished ones too, oldest first. Rental finds
// each of them again.
func (r *Client) History(ctx context.Context) ([]State, error) {
	rows, err := r.store.All(ctx)
	if err != nil {
		return nil, err
	}
	return statesOf(ctx, r.store, rows)
}

// RentalsFile lists what is not finished in a renter's database. The program that
// owns the database may run meanwhile; what it does not have yet is not there.
func RentalsFile(ctx context.Context, path string) ([]State, error) {
	s, err := wallet.ReadFile(ctx, path)
	if err != nil {
		return nil, err
	}
	defer s.DB.Close()
	store := rental.Store{Store: s}
	rows, err := store.Unfinished(ctx)
	if err != nil {
		return nil, err
	}
	return statesOf(ctx, store, rows)
}

// statesOf adds what vouchers say to what the rentals do.
func statesOf(ctx context.Context, store rental.Store, rows []rental.Row) ([]State, error) {
	states := make([]State, len(rows))
	for i, row := range rows {
		states[i] = stateOf(row, offerOf(row))
		paid, err := store.DB.Payer().Load(ctx, row.Terms.ID())
		if err != nil && !errors.Is(err, channel.ErrUnknown) {
			return nil, err
		}
		states[i].Paid = paid.Signed // zero of one that is not prepared yet
	}
	return states, nil
}

// Recover finds this renter's channels in an escrow that its database does not
// know, or has as over though the chain has them open, as after the loss of one,
// with a copy from before a deposit, or after a false word of an endpoint, and
// keeps them as rentals to be left: the channel, and not who its provider is,
// stands on the chain. Those whose vouchers another key signs are among them: what
// this renter deposited comes back to it. from is the first block to look at: that
// of the contract, or of the first rental. Nothing is signed or sent. It returns
// the channels that were found; the error joins those of the channels of which it
// could not be said.
func (r *Client) Recover(ctx context.Context, escrow common.Address, from uint64) ([]common.Hash, error) {
	contract, err := chain.NewEscrow(ctx, r.w.Backend, escrow)
	if err != nil {
		return nil, err
	}
	head, err := r.account.Moment(ctx, r.w.Confirmations)
	if err != nil {
		return nil, err
	}
	opened, err := contract.OpenedBy(ctx, r.Address(), from, head.Block.Uint64())
	if err != nil {
		return nil, err
	}
	var found []common.Hash
	var failed error
	for _, terms := range opened {
		fresh, err := r.adopt(ctx, contract, terms, head)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("channel %s: %w", terms.ID(), err))
		}
		if fresh {
			found = append(found, terms.ID())
		}
		if ctx.Err() != nil {
			break
		}
	}
	return found, failed
}

// adopt keeps a channel that is not over, pays in our token, and is not known yet
// or is over in the books. An event of a channel that the contract does not know
// is nobody's.
func (r *Client) adopt(ctx context.Context, contract *chain.Escrow, terms channel.Terms, head rental.Moment) (bool, error) {
	row, err := r.store.Load(ctx, terms.ID())
	known := err == nil
	if known && !row.IsOver() || terms.Token != r.w.Token.Address || ignoreUnknown(err) != nil {
		return false, ignoreUnknown(err)
	}
	view, err := contract.View(ctx, terms.ID(), head.Block)
	if err != nil || view.Finalized {
		return false, ignoreUnknown(err)
	}
	if _, err := r.payer(contract).Adopt(ctx, terms, view); err != nil {
		return false, err
	}
	if known { // its deposit came after it was taken for one that never would, or its end was undone or made up
		row.Closed, row.Deposit, row.Phase, row.Ended = nil, view.Deposit, rental.PhaseLeaving, "found on the chain: it was taken for over"
		err = r.store.Save(ctx, row)
	} else {
		row = rental.Row{Terms: terms, GPUs: 1, Deposit: view.Deposit, Phase: rental.PhaseLeaving, Ended: "found on the chain: its records were lost"}
		err = r.store.Create(ctx, row)
	}
	if err != nil {
		return false, err
	}
	r.w.Log.Warn("channel is ours and this database did not know that it is open: leave it", "channel", terms.ID(), "deposit", view.Deposit.Dec())
	return true, nil
}

func ignoreUnknown(err error) error {
	if errors.Is(err, channel.ErrUnknown) {
		return nil
	}
	return err
}
