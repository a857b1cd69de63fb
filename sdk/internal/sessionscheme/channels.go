package sessionscheme

import (
	"context"
	"errors"
	"fmt"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/sdk/internal/keyed"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Channels takes up channels, tops them up and finds them again that the database has lost.
type Channels struct {
	core
	deposits *Deposits
	vouchers *vouchers
	records  *Records

	Opens keyed.Mutex // one open at a time of a channel
}

// deposit runs an open or a top-up that came alone or merged with a voucher.
func (d *Channels) deposit(r *Request, payload *wire.Payload) (s channel.State, fresh bool, err error) {
	if payload.Action == wire.ActionOpen {
		return d.open(r, payload)
	}
	s, err = d.topUp(r, payload)
	return s, false, err
}

// open takes up a channel: the payer's own transaction, or its signature that
// we send. fresh is true for a channel that was not known here before.
func (d *Channels) open(r *Request, payload *wire.Payload) (s channel.State, fresh bool, err error) {
	ctx, cancel := context.WithTimeout(r.Context(), d.OpenTimeout)
	defer cancel()
	slot, err := d.Limiter.Deposit(r.Request)
	if err != nil {
		return s, false, err
	}
	defer slot.Release()
	terms, err := d.termsOf(r, payload)
	if err != nil {
		return s, false, err
	}
	voucher := channel.Voucher{ChannelID: terms.ID(), Cumulative: payload.CumulativeAmount.Int, Signature: payload.Voucher()}
	if err := d.Escrow.Domain().Verify(voucher, terms.Signer()); err != nil {
		return s, false, err
	}
	// Only who can sign for the channel gets here, so nobody else can hold it up.
	unlock, ok := d.Opens.TryLock(terms.ID())
	if !ok && !slot.Wait() { // what it waits for may be a transaction that never comes
		return s, false, wire.Unavailable.With("channel %s is being opened: send the same request again later", terms.ID())
	}
	if !ok {
		unlock = d.Opens.Lock(terms.ID())
	}
	defer unlock()
	if s, err = d.Payee.State(ctx, terms.ID()); err == nil {
		return s, false, nil // opened before: an open that is sent again changes nothing
	}
	if !errors.Is(err, channel.ErrUnknown) {
		return s, false, err
	}
	if err := d.deposits.fundOpen(ctx, slot, r, terms, payload); err != nil {
		return s, false, err
	}
	if err := d.deposits.awaitDeposit(ctx, terms.ID(), uint256.Int{}); err != nil {
		return s, false, err
	}
	s, err = d.record(ctx, terms.ID(), 0, func(ctx context.Context, view channel.ChainView) (channel.State, error) {
		if err := worthOpening(terms.ID(), view, r.Offer, voucher.Cumulative); err != nil {
			return channel.State{}, err
		}
		s, err := d.Payee.Register(ctx, terms, view)
		if err != nil {
			return s, err
		}
		return d.records.Remember(ctx, s) // a database that was lost has forgotten its leases
	})
	if err != nil {
		return s, false, err
	}
	fault.Point(fault.OpenRegistered)
	if !voucher.Cumulative.IsZero() {
		s, err = d.vouchers.accept(ctx, d.Payee, voucher)
	}
	return s, true, err
}

// worthOpening refuses a channel that is over or holds too little. One that
// was settled before was known here once: its vouchers are public, so taking
// it up again takes a proof, which an open is not.
func worthOpening(id common.Hash, view channel.ChainView, offer wire.SignedOffer, cumulative uint256.Int) error {
	switch {
	case view.Finalized:
		return fmt.Errorf("channel %s: %w", id, channel.ErrFinalized)
	case view.CloseRequestedAt != 0:
		return fmt.Errorf("channel %s: %w", id, channel.ErrClosing)
	case !view.Settled.IsZero():
		return wire.VerificationFailed.With("channel %s was used before and is not known here: close it and open another", id)
	case view.Deposit.Lt(&offer.MinDeposit.Int):
		return wire.PaymentInsufficient.With("channel %s holds %s, the offer wants at least %s", id, view.Deposit.Dec(), offer.MinDeposit.Dec())
	case cumulative.Gt(&view.Deposit):
		return fmt.Errorf("channel %s: first voucher %s: %w %s", id, cumulative.Dec(), channel.ErrExceedsDeposit, view.Deposit.Dec())
	}
	return nil
}

// sourceOf returns who opens a channel, and on which chain. An authorization names its
// payer itself, and its challenge the chain; a transaction's hash names neither.
func sourceOf(r *Request, payload *wire.Payload) (chainID uint64, payer common.Address, err error) {
	if r.Cred.Source == "" && payload.Authorization != nil {
		return r.Offer.ChainID, common.Address(payload.Authorization.From), nil
	}
	return wire.ParseSource(r.Cred.Source)
}

// termsOf rebuilds the channel's terms from what the challenge asked for and
// what the renter chose. That they hash to the channel's id shows that both
// mean the same channel.
func (d *Channels) termsOf(r *Request, payload *wire.Payload) (channel.Terms, error) {
	chainID, payer, err := sourceOf(r, payload)
	if err != nil {
		return channel.Terms{}, err
	}
	terms := channel.Terms{
		ChainID: chainID,
		Escrow:  common.Address(r.Offer.Escrow),
		Payer:   payer,
		Payee:   common.Address(r.Offer.Payee),
		Token:   common.Address(r.Offer.Token),
		Salt:    *payload.Salt,
	}
	if payload.AuthorizedSigner != nil {
		terms.AuthorizedSigner = common.Address(*payload.AuthorizedSigner)
	}
	if chainID != d.Escrow.ChainID() {
		return terms, wire.VerificationFailed.With("source is on chain %d, this provider is paid on chain %d", chainID, d.Escrow.ChainID())
	}
	if got := terms.ID(); got != payload.ChannelID {
		return terms, wire.VerificationFailed.With("channelId %s does not follow from the terms, which give %s", payload.ChannelID, got)
	}
	return terms, nil
}

// topUp adds to a known channel's deposit.
func (d *Channels) topUp(r *Request, payload *wire.Payload) (channel.State, error) {
	ctx, cancel := context.WithTimeout(r.Context(), d.OpenTimeout)
	defer cancel()
	slot, err := d.Limiter.Deposit(r.Request)
	if err != nil {
		return channel.State{}, err
	}
	defer slot.Release()
	s, err := d.find(ctx, payload.ChannelID)
	if err != nil {
		return s, err
	}
	if s.Status == channel.Finalized {
		return s, fmt.Errorf("channel %s: %w", s.ID, channel.ErrFinalized)
	}
	if s.Status == channel.Closing && !s.CloseRequested() {
		return s, fmt.Errorf("channel %s: %w: its close is on its way", s.ID, channel.ErrClosing)
	}
	// Nothing is locked while a transaction is waited for: a stranger who names
	// one that never comes must not keep the renter's own vouchers out.
	if err := d.deposits.FundTopUp(ctx, slot, r, s, payload); err != nil {
		return s, err
	}
	if err := d.deposits.awaitDeposit(ctx, s.ID, s.Deposit); err != nil {
		return s, err
	}
	s, err = d.record(ctx, s.ID, 0, d.observed(s.ID))
	fault.Point(fault.TopUpObserved)
	if l := d.Leases.Running(s.ID); err == nil && l != nil {
		l.Balance.Observe(s)
	}
	return s, err
}

// recall finds the channel of a request, also one that this database has lost: from
// the terms that the request shows, and what the chain says of them, it is taken up
// again. What was charged since the last settlement is not
// in the database then: see presume.
func (d *Channels) recall(r *Request) (channel.State, error) {
	payload := &r.Cred.Payload
	s, err := d.find(r.Context(), payload.ChannelID)
	if !errors.Is(err, channel.ErrUnknown) || payload.Salt == nil {
		return s, err
	}
	if known, other := d.Payee.State(r.Context(), payload.ChannelID); other == nil {
		return known, err // it is one of another protocol
	}
	terms, bad := d.termsOf(r, payload)
	if bad != nil {
		return s, errors.Join(err, bad)
	}
	slot, full := d.Limiter.Deposit(r.Request)
	if full != nil {
		return s, full
	}
	defer slot.Release()
	ctx, cancel := context.WithTimeout(r.Context(), d.OpenTimeout)
	defer cancel()
	defer d.Opens.Lock(terms.ID())()
	if s, err = d.fromChain(ctx, terms); err != nil {
		return s, err
	}
	return d.presume(ctx, r, s)
}

// fromChain reads a channel from the chain, at the depth at which a deposit counts,
// and records what it says.
func (d *Channels) fromChain(ctx context.Context, terms channel.Terms) (s channel.State, err error) {
	err = d.Escrow.Record(func() error {
		views, _, err := d.Escrow.Fresh(ctx, []common.Hash{terms.ID()}, d.Confirmations)
		if err != nil {
			return err
		}
		if views[0].View.Deposit.IsZero() {
			return channel.ErrUnknown
		}
		s, err = d.Payee.Register(ctx, terms, views[0].View)
		return err
	})
	if err == nil {
		d.Log.Warn("channel taken up again from the chain: this database did not know it", "channel", s.ID, "settled", s.Settled.Dec())
	}
	return s, err
}

// presume charges a channel that was lost what is known to have been used: what the newest record said that was signed on this
// host, or, where the file that remembers it is lost too, what the renter's voucher paid for. A record that the renter shows may
// be an old one, and lowers nothing: what is vouchered ahead of the newest is the provider's to fetch in any case, and what a
// record states beyond the voucher is charged when it is looked at (Records.heed).
func (d *Channels) presume(ctx context.Context, r *Request, s channel.State) (channel.State, error) {
	charged, err := d.records.Remember(ctx, s)
	if err != nil || charged.Spent.Gt(&s.Spent) {
		return charged, err
	}
	used, err := vouchered(d.Escrow.Domain(), r, s)
	if err != nil || !used.Gt(&s.Spent) {
		return s, err
	}
	return d.Payee.Charge(ctx, s.ID, used)
}
