package sdk

import (
	"context"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
)

// A lease is charged whole base units of its own time. What rounding leaves of it
// is carried to the channel's next lease, which begins with a base unit more owed as
// soon as the pieces make one: time costs the same in many leases as in one. Both
// sides find the figure in the final records that both have.

// carry is what a channel owes when its next lease begins, and what is left then of
// what its leases before were not charged, in parts of which metering.Fractions make
// a base unit. A channel that was charged more than its newest lease says has had
// leases that the database forgot: nothing is carried from those that it knows.
func (s leaseStore) carry(ctx context.Context, at channel.State) (begins uint256.Int, parts uint64, err error) {
	row, ok, err := s.newest(ctx, at.ID)
	if err != nil || !ok {
		return at.Spent, 0, err
	}
	begins, parts, err = s.left(ctx, row)
	if err != nil || begins.Lt(&at.Spent) {
		return at.Spent, 0, err
	}
	begins.AddUint64(&begins, parts/metering.Fractions)
	return begins, parts % metering.Fractions, nil
}

// left is what a channel owed when a lease on it ended, and what it was not charged.
func (s leaseStore) left(ctx context.Context, row leaseRow) (owed uint256.Int, parts uint64, err error) {
	last, err := s.last(ctx, common.HexToHash(row.ID))
	if err != nil {
		return owed, 0, err
	}
	if last == nil {
		owed, err = channel.ParseAmount(row.OwedBefore)
		return owed, uint64(row.Carried), err
	}
	offer, err := s.offer(ctx, last.OfferHash)
	if err != nil {
		return owed, 0, err
	}
	parts, err = offer.Uncharged(last.Nanos, last.Final)
	return last.Owed, parts + uint64(row.Carried), err
}
