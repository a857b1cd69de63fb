package sdk

import (
	"context"
	"errors"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
)

// recall is session for a request that may be about a channel which this database
// has lost: from the terms that the request shows, and what the chain says of them,
// the channel is taken up again. What was charged since the last settlement is not
// in the database then: see presume.
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

// presume charges a channel that was lost what is known to have been used: what the newest record said that was signed on this
// host, or, where the file that remembers it is lost too, what the renter's voucher paid for. A record that the renter shows may
// be an old one, and lowers nothing: what is vouchered ahead of the newest is the provider's to fetch in any case, and what a
// record states beyond the voucher is charged when it is looked at (heedShown).
func (d *session) presume(ctx context.Context, r *request, s channel.State) (channel.State, error) {
	charged, err := d.shownTo.remember(ctx, s)
	if err != nil || charged.Spent.Gt(&s.Spent) {
		return charged, err
	}
	used, err := vouchered(d.escrow.Domain(), r, s)
	if err != nil || !used.Gt(&s.Spent) {
		return s, err
	}
	return d.payee.Charge(ctx, s.ID, used)
}
