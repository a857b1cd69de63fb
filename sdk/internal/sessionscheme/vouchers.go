package sessionscheme

import (
	"context"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/wire"
)

// vouchers counts vouchers: one is on disk before anybody is told of it.
type vouchers struct{ core }

// accept counts a voucher, durably, and tells the lease that waits for it. The
// draft's voucher over nothing is checked and changes nothing.
func (d *vouchers) accept(ctx context.Context, payee *channel.Payee, v channel.Voucher) (channel.State, error) {
	if v.Cumulative.IsZero() {
		return payee.Check(ctx, v)
	}
	receipt, err := d.take(ctx, payee, []channel.Voucher{v})
	return receipt.State, err
}

// take counts the newest of vouchers that one renter sent together, and so all.
func (d *vouchers) take(ctx context.Context, payee *channel.Payee, waiting []channel.Voucher) (channel.Receipt, error) {
	receipt, err := payee.AcceptNewest(ctx, waiting)
	if receipt.Outcome == 0 {
		return receipt, err
	}
	d.Metrics.Voucher(receipt.Outcome)
	d.Leases.Paid(receipt.State)
	return receipt, err
}

// heldVoucher returns the newest voucher, for a renter that may have forgotten it. It is shown to who the lease belongs to only.
func heldVoucher(s channel.State) *wire.HeldVoucher {
	if s.Accepted.IsZero() {
		return nil
	}
	return &wire.HeldVoucher{CumulativeAmount: wire.NewAmount(s.Accepted), Signature: s.Signature}
}

// vouchered returns what a request's voucher is over that is within the deposit; zero if it has none.
func vouchered(domain channel.Domain, r *Request, s channel.State) (uint256.Int, error) {
	payload := &r.Cred.Payload
	if payload.CumulativeAmount == nil || payload.CumulativeAmount.IsZero() {
		return uint256.Int{}, nil
	}
	v := channel.Voucher{ChannelID: s.ID, Cumulative: payload.CumulativeAmount.Int, Signature: payload.Voucher()}
	if err := domain.Verify(v, s.Terms.Signer()); err != nil {
		return uint256.Int{}, err
	}
	return u256.Min(v.Cumulative, s.Deposit), nil
}
