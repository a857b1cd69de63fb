package renter

import (
	"context"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/internal/paystream"
	"github.com/gpupay/gpupay/sdk/internal/rental"
)

// Lease is what stands below a rental.
func (l *Rental) Lease() *paystream.Lease { return l.lease }

// Store keeps the client's rentals.
func (r *Client) Store() rental.Store { return r.store }

// Prepare puts a rental on disk, of which nothing is signed yet.
func (r *Client) Prepare(ctx context.Context, q Quote, options Options, deposit uint256.Int) (*Rental, error) {
	return r.prepare(ctx, q, options, deposit)
}
