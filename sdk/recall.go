package sdk

import (
	"context"
	"errors"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/wire"
)

// recall is session for a request that may be about a channel which this database
// has lost: from the terms that the request shows, and what the chain says of them,
// the channel is taken up again. What was charged since the last settlement is not
// known then; the record that the renter shows says it, or else its voucher, which
// paid for what was used.
func (d *session) recall(r *request) (channel.State, error) {
	payload := &r.cred.Payload
	s, err := d.find(r.Context(), payload.ChannelID)
	if !errors.Is(err, channel.ErrUnknown) || payload.Salt == nil {
		return s, err
	}
	if known, other := d.payee.State(r.Context(), payload.ChannelID); other == nil {
		return known, err // it is one of another protocol
	}
	terms, bad := d.termsOf(r, payload)
	if bad != nil {
		return s, errors.Join(err, bad)
	}
	slot, full := d.limiter.Deposit(r.Request)
	if full != nil {
		return s, full
	}
	defer slot.Release()
	ctx, cancel := context.WithTimeout(r.Context(), d.config.OpenTimeout)
	defer cancel()
	defer d.opens.Lock(terms.ID())()
	if s, err = d.fromChain(ctx, terms); err != nil {
		return s, err
	}
	return d.presume(ctx, r, s)
}

// fromChain reads a channel from the chain, at the depth at which a deposit counts,
// and records what it says.
func (d *session) fromChain(ctx context.Context, terms channel.Terms) (s channel.State, err error) {
	err = d.escrow.Record(func() error {
		views, _, err := d.escrow.Fresh(ctx, []common.Hash{terms.ID()}, d.config.Confirmations)
		if err != nil {
			return err
		}
		if views[0].View.Deposit.IsZero() {
			return channel.ErrUnknown
		}
		s, err = d.payee.Register(ctx, terms, views[0].View)
		return err
	})
	if err == nil {
		d.config.Log.Warn("channel taken up again from the chain: this database did not know it", "channel", s.ID, "settled", s.Settled.Dec())
	}
	return s, err
}

// presume charges a channel that was lost what is known to have been used.
func (d *session) presume(ctx context.Context, r *request, s channel.State) (channel.State, error) {
	used := s.Settled
	payload := &r.cred.Payload
	shown, err := wire.ParseShownRecord(r.Header)
	if err != nil {
		return s, err
	}
	told := shown != nil && shown.Record.ChannelID == s.ID && d.shownTo.signed(ctx, s, *shown)
	if !told && payload.CumulativeAmount != nil && payload.CumulativeAmount.Gt(&used) {
		voucher := channel.Voucher{ChannelID: s.ID, Cumulative: payload.CumulativeAmount.Int, Signature: payload.Signature}
		if err := d.escrow.Domain().Verify(voucher, s.Terms.Signer()); err != nil {
			return s, err
		}
		used = u256.Min(voucher.Cumulative, s.Deposit)
	}
	if used == (uint256.Int{}) || !used.Gt(&s.Spent) {
		return s, nil
	}
	return d.payee.Charge(ctx, s.ID, used)
}
