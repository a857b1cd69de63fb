package renter

import (
	"context"
	"fmt"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
)

// Resume takes up a rental that a crash or a restart cut off: it opens what was
// being opened, and for everything else returns the rental as it was left. Then
// Run goes on paying, and Close or Leave end it. To end one that was being
// opened take it from Rental instead: Resume would make the deposit.
func (r *Client) Resume(ctx context.Context, channelID common.Hash) (*Rental, error) {
	l, err := r.Rental(ctx, channelID)
	if err != nil || l.row.Phase != PhaseOpening {
		return l, err
	}
	if err := l.open(ctx, nil); err != nil {
		return nil, l.openFailed(ctx, "resume it again", err)
	}
	return l, nil
}

// Rental returns a rental as it was left, finished or not. Nothing is signed or
// sent.
func (r *Client) Rental(ctx context.Context, channelID common.Hash) (*Rental, error) {
	row, err := r.store.load(ctx, channelID)
	if err != nil {
		return nil, err
	}
	escrow, err := r.knownEscrow(ctx, row.Terms)
	if err != nil {
		return nil, fmt.Errorf("channel %s: %w", channelID, err)
	}
	return r.rental(ctx, row, escrow)
}

// knownEscrow reaches an escrow that was checked when the rental began: money
// may be in it, so nothing but the chain may keep us from it.
func (r *Client) knownEscrow(ctx context.Context, terms channel.Terms) (*chain.Escrow, error) {
	if err := r.w.OnChain(ctx, terms.ChainID); err != nil {
		return nil, err
	}
	return chain.NewEscrow(ctx, r.w.Backend, terms.Escrow)
}
