package channel

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// AcceptNewest takes vouchers of one channel that one party sent and that wait
// together, as in a stream. The newest replaces all below it, so it alone is
// verified and stored, and the next lower one only if the payer did not sign it
// or the deposit does not cover it.
//
// The receipt is for the voucher that was taken; the error joins those of the
// vouchers above it, and a receipt without an outcome means that none was taken.
// Those below it were not looked at: tell nobody but their sender that they are
// paid, and give no service for them.
func (p *Payee) AcceptNewest(ctx context.Context, vouchers []Voucher) (Receipt, error) {
	for _, v := range vouchers {
		if v.ChannelID != vouchers[0].ChannelID {
			return Receipt{}, fmt.Errorf("channel %s: a voucher of channel %s came with its own: take them apart", vouchers[0].ChannelID, v.ChannelID)
		}
	}
	var refused error
	for _, v := range newestFirst(vouchers) {
		receipt, err := p.Accept(ctx, v)
		if err == nil {
			return receipt, refused
		}
		refused = errors.Join(refused, err)
		if !errors.Is(err, ErrSignature) && !errors.Is(err, ErrExceedsDeposit) && !errors.Is(err, ErrAmount) {
			break // it goes for those below, too
		}
	}
	return Receipt{}, refused
}

// newestFirst leaves the caller's slice as it is, and does not copy what a stream
// in order holds already the other way round.
func newestFirst(vouchers []Voucher) func(yield func(int, Voucher) bool) {
	order := func(a, b Voucher) int { return a.Cumulative.Cmp(&b.Cumulative) }
	if !slices.IsSortedFunc(vouchers, order) {
		vouchers = slices.Clone(vouchers)
		slices.SortStableFunc(vouchers, order)
	}
	return slices.Backward(vouchers)
}
