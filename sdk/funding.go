package sdk

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/admit"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/outcome"
	"github.com/gpupay/gpupay/sdk/wire"
)

// deposit runs an open or a top-up that came alone or merged with a voucher.
func (d *session) deposit(r *request, payload *wire.Payload) (s channel.State, fresh bool, err error) {
	if payload.Action == wire.ActionOpen {
		return d.open(r, payload)
	}
	s, err = d.topUp(r, payload)
	return s, false, err
}

// open takes up a channel: the payer's own transaction, or its signature that
// we send. fresh is true for a channel that was not known here before.
func (d *session) open(r *request, payload *wire.Payload) (s channel.State, fresh bool, err error) {
	ctx, cancel := context.WithTimeout(r.Context(), d.config.OpenTimeout)
	defer cancel()
	slot, err := d.limiter.Deposit(r.Request)
	if err != nil {
		return s, false, err
	}
	defer slot.Release()
	terms, err := d.termsOf(r, payload)
	if err != nil {
		return s, false, err
	}
	voucher := channel.Voucher{ChannelID: terms.ID(), Cumulative: payload.CumulativeAmount.Int, Signature: payload.Voucher()}
	if err := d.escrow.Domain().Verify(voucher, terms.Signer()); err != nil {
		return s, false, err
	}
	// Only who can sign for the channel gets here, so nobody else can hold it up.
	unlock, ok := d.opens.TryLock(terms.ID())
	if !ok && !slot.Wait() { // what it waits for may be a transaction that never comes
		return s, false, wire.Unavailable.With("channel %s is being opened: send the same request again later", terms.ID())
	}
	if !ok {
		unlock = d.opens.Lock(terms.ID())
	}
	defer unlock()
	if s, err = d.payee.State(ctx, terms.ID()); err == nil {
		return s, false, nil // opened before: an open that is sent again changes nothing
	}
	if !errors.Is(err, channel.ErrUnknown) {
		return s, false, err
	}
	if err := d.fundOpen(ctx, slot, r, terms, payload); err != nil {
		return s, false, err
	}
	if err := d.awaitDeposit(ctx, terms.ID(), uint256.Int{}); err != nil {
		return s, false, err
	}
	s, err = d.record(ctx, terms.ID(), 0, func(ctx context.Context, view channel.ChainView) (channel.State, error) {
		if err := worthOpening(terms.ID(), view, r.offer, voucher.Cumulative); err != nil {
			return channel.State{}, err
		}
		s, err := d.payee.Register(ctx, terms, view)
		if err != nil {
			return s, err
		}
		return d.shownTo.remember(ctx, s) // a database that was lost has forgotten its leases
	})
	if err != nil {
		return s, false, err
	}
	fault.Point(fault.OpenRegistered)
	if !voucher.Cumulative.IsZero() {
		s, err = d.accept(ctx, d.payee, voucher)
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

// sourceOf is who opens a channel, and on which chain. An authorization names its
// payer itself, and its challenge the chain; a transaction's hash names neither.
func sourceOf(r *request, payload *wire.Payload) (chainID uint64, payer common.Address, err error) {
	if r.cred.Source == "" && payload.Authorization != nil {
		return r.offer.ChainID, common.Address(payload.Authorization.From), nil
	}
	return wire.ParseSource(r.cred.Source)
}

// termsOf rebuilds the channel's terms from what the challenge asked for and
// what the renter chose. That they hash to the channel's id shows that both
// mean the same channel.
func (d *session) termsOf(r *request, payload *wire.Payload) (channel.Terms, error) {
	chainID, payer, err := sourceOf(r, payload)
	if err != nil {
		return channel.Terms{}, err
	}
	terms := channel.Terms{
		ChainID: chainID,
		Escrow:  common.Address(r.offer.Escrow),
		Payer:   payer,
		Payee:   common.Address(r.offer.Payee),
		Token:   common.Address(r.offer.Token),
		Salt:    *payload.Salt,
	}
	if payload.AuthorizedSigner != nil {
		terms.AuthorizedSigner = common.Address(*payload.AuthorizedSigner)
	}
	if chainID != d.escrow.ChainID() {
		return terms, wire.VerificationFailed.With("source is on chain %d, this provider is paid on chain %d", chainID, d.escrow.ChainID())
	}
	if got := terms.ID(); got != payload.ChannelID {
		return terms, wire.VerificationFailed.With("channelId %s does not follow from the terms, which give %s", payload.ChannelID, got)
	}
	return terms, nil
}

func (d *session) fundOpen(ctx context.Context, slot *admit.Slot, r *request, terms channel.Terms, payload *wire.Payload) error {
	if payload.Type == wire.TypeHash {
		return d.checkTransaction(ctx, slot, terms.ID(), *payload.Hash, uint256.Int{})
	}
	a, err := d.authorization(payload, terms.Payer, channel.OpenNonce(terms.Payer, terms))
	if err != nil {
		return err
	}
	if a.Value.Lt(&r.offer.MinDeposit.Int) {
		return wire.PaymentInsufficient.With("the deposit is %s, the offer wants at least %s", a.Value.Dec(), r.offer.MinDeposit.Dec())
	}
	fault.Point(fault.OpenChecked)
	return d.sendOnce(ctx, r, terms, d.escrow.OpenAuthorizedCall(terms, a))
}

// topUp adds to a known channel's deposit.
func (d *session) topUp(r *request, payload *wire.Payload) (channel.State, error) {
	ctx, cancel := context.WithTimeout(r.Context(), d.config.OpenTimeout)
	defer cancel()
	slot, err := d.limiter.Deposit(r.Request)
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
	if err := d.fundTopUp(ctx, slot, r, s, payload); err != nil {
		return s, err
	}
	if err := d.awaitDeposit(ctx, s.ID, s.Deposit); err != nil {
		return s, err
	}
	s, err = d.record(ctx, s.ID, 0, d.observed(s.ID))
	fault.Point(fault.TopUpObserved)
	if l := d.leases.Running(s.ID); err == nil && l != nil {
		l.Balance.Observe(s)
	}
	return s, err
}

func (d *session) fundTopUp(ctx context.Context, slot *admit.Slot, r *request, s channel.State, payload *wire.Payload) error {
	if payload.Type == wire.TypeHash {
		return d.checkTransaction(ctx, slot, s.ID, *payload.Hash, s.Deposit)
	}
	from := s.Terms.Payer // what it costs counts for the payer: nobody else may use up its budget
	if by := common.Address(payload.Authorization.From); by != from {
		return wire.VerificationFailed.With("the top-up is authorized by %s, and this provider sends only those of the channel's payer %s: send the transaction yourself and give its hash", by, from)
	}
	a, err := d.authorization(payload, from, channel.TopUpNonce(s.ID, payload.AdditionalDeposit.Int, from, *payload.Salt))
	if err != nil {
		return err
	}
	if a.Value != payload.AdditionalDeposit.Int {
		return wire.VerificationFailed.With("the authorization is over %s, additionalDeposit is %s", a.Value.Dec(), payload.AdditionalDeposit.Dec())
	}
	if err := d.worthSending(a.Value); err != nil {
		return err
	}
	return d.sendOnce(ctx, r, s.Terms, d.escrow.TopUpAuthorizedCall(s.Terms, *payload.Salt, a))
}

// authorization checks what can be checked of an ERC-3009 authorization before
// gas is spent on it.
func (d *session) authorization(payload *wire.Payload, from common.Address, nonce common.Hash) (chain.Authorization, error) {
	if !d.gasless {
		return chain.Authorization{}, wire.VerificationFailed.With("this provider does not send deposits for renters: send the transaction yourself and give its hash")
	}
	w := payload.Authorization
	now := time.Now()
	switch {
	case common.Address(w.From) != from:
		return chain.Authorization{}, wire.VerificationFailed.With("the authorization is from %s, the payer is %s", w.From, from)
	case common.Address(w.To) != d.escrow.Address():
		return chain.Authorization{}, wire.VerificationFailed.With("the authorization is to %s, the escrow is %s", w.To, d.escrow.Address())
	case w.Nonce != nonce:
		return chain.Authorization{}, wire.VerificationFailed.With("the authorization's nonce does not bind it to channel %s", payload.ChannelID)
	case !w.ValidAfter.IsUint64() || w.ValidAfter.Uint64() >= uint64(now.Unix()):
		return chain.Authorization{}, wire.VerificationFailed.With("the authorization is not valid yet")
	case w.ValidBefore.IsUint64() && w.ValidBefore.Uint64() <= uint64(now.Add(chain.AuthorizationMargin).Unix()):
		return chain.Authorization{}, wire.VerificationFailed.With("the authorization ends within %s: its transaction could come too late", chain.AuthorizationMargin)
	case !w.ValidBefore.IsUint64():
		return chain.Authorization{}, wire.VerificationFailed.With("validBefore is no unix time")
	case w.Value.IsZero():
		return chain.Authorization{}, wire.PaymentInsufficient.With("the authorization is over nothing")
	}
	return chain.Authorization{
		Authorization: channel.Authorization{
			From: from, To: common.Address(w.To), Value: w.Value.Int,
			ValidAfter: w.ValidAfter.Uint64(), ValidBefore: w.ValidBefore.Uint64(), Nonce: w.Nonce,
		},
		Signature: payload.Signature,
	}, nil
}

// sendOnce sends a renter's deposit and waits until it is mined. The call is
// simulated first: a stranger's bad signature costs no gas. A deposit that an
// earlier request sent already is waited for and not sent again.
func (d *session) sendOnce(ctx context.Context, r *request, terms channel.Terms, call chain.Call) error {
	tx, err := d.outbox.SubmitOnce(ctx, terms, call, func() error { return d.reserveFor(r, terms.ID()) })
	if err != nil {
		return err
	}
	return outcome.Over(ctx, d.sender, tx, d.config.Confirmations) // what came of it the contract says
}

// checkTransaction waits for a renter's own transaction and refuses one that reverted or is about another channel. That it moved
// money is not believed from it: the contract is asked. A renter that was told its transaction's hash is rarely here before the
// block, so waits are few, and a stranger's invented hashes find no room. Where no receipt is shown, more than before in the
// channel does: another version of the transaction may be the one that was mined.
func (d *session) checkTransaction(ctx context.Context, slot *admit.Slot, id, hash common.Hash, before uint256.Int) error {
	for {
		receipt, err := chain.Receipt(ctx, d.escrow.Backend(), hash)
		switch {
		case err == nil && receipt.Status != types.ReceiptStatusSuccessful:
			return wire.TransactionReverted.With("transaction %s reverted; that is final", hash)
		case err == nil && !d.mentions(receipt, id):
			return wire.VerificationFailed.With("transaction %s is not about channel %s", hash, id)
		case err == nil || holdsMore(ctx, d.escrow, id, before, d.config.Confirmations):
			return nil
		case !errors.Is(err, ethereum.NotFound) && !errors.Is(err, chain.ErrIndexing):
			return fmt.Errorf("reading transaction %s: %w", hash, err)
		}
		if !slot.Wait() || chain.Pause(ctx, d.config.Poll) != nil {
			return wire.Unavailable.With("transaction %s is not mined yet: send the same request again later", hash)
		}
	}
}

// holdsMore reports whether a channel has a deposit of more than that, with so many confirmations, as far as it can be read.
func holdsMore(ctx context.Context, e *chain.Escrow, id common.Hash, than uint256.Int, confirmations uint64) bool {
	views, _, err := e.Confirmed(ctx, []common.Hash{id}, confirmations)
	return err == nil && views[0].View.Deposit.Gt(&than)
}

// mentions reports whether the escrow logged something about the channel.
// Every event of the escrow has the channel's id as its first topic.
func (d *session) mentions(receipt *types.Receipt, id common.Hash) bool {
	for _, log := range receipt.Logs {
		if log.Address == d.escrow.Address() && len(log.Topics) > 1 && log.Topics[1] == id {
			return true
		}
	}
	return false
}

// awaitDeposit waits until more than before is deposited with enough
// confirmations, or nothing is on its way.
func (d *session) awaitDeposit(ctx context.Context, id common.Hash, before uint256.Int) error {
	for {
		views, _, err := d.escrow.Confirmed(ctx, []common.Hash{id}, d.config.Confirmations)
		if err != nil {
			return err
		}
		if view := views[0].View; view.Deposit.Gt(&before) || view.Finalized || !views[0].Pending() {
			return nil
		}
		if err := chain.Pause(ctx, d.config.Poll); err != nil {
			return wire.Unavailable.With("the deposit of channel %s has not %d confirmations yet: send the same request again later", id, d.config.Confirmations)
		}
	}
}

// recordTimeout bounds one reading that others wait for.
const recordTimeout = 15 * time.Second

// record reads a channel from a node that knows the block least, and keeps what
// it says while no other reading of it is kept: an answer that came late must
// not land on top of a newer one, or a channel that is over would be served.
func (d *session) record(ctx context.Context, id common.Hash, least uint64, keep func(context.Context, channel.ChainView) (channel.State, error)) (s channel.State, err error) {
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	return s, d.escrow.Record(func() error {
		views, head, err := d.escrow.Fresh(ctx, []common.Hash{id}, d.config.Confirmations)
		if err != nil {
			return err
		}
		if head < least || views[0].Disputed && views[0].Known < least {
			return fmt.Errorf("%w: it is at block %d, before at %d", errBehind, min(head, views[0].Known), least)
		}
		s, err = keep(ctx, views[0].View)
		return err
	})
}

// errBehind is an endpoint that has not heard of a block yet, which another look
// mends.
var errBehind = errors.New("the endpoint is behind")

// observed keeps a view of a known channel.
func (d *session) observed(id common.Hash) func(context.Context, channel.ChainView) (channel.State, error) {
	return func(ctx context.Context, view channel.ChainView) (channel.State, error) {
		return d.payee.Observe(ctx, id, view)
	}
}

// closeChannel settles the newest voucher and refunds the rest. The close is
// on disk before it is broadcast, so that a crash does not forget it.
func (d *session) closeChannel(ctx context.Context, s channel.State) (common.Hash, channel.State, error) {
	tx, err := d.closeOnce(ctx, s.ID)
	if err != nil {
		return common.Hash{}, s, err
	}
	result, err := d.sender.Wait(ctx, tx, 1)
	if reverted := new(chain.Reverted); errors.As(err, &reverted) {
		return common.Hash{}, s, d.undoClose(ctx, s.ID, err)
	}
	if err != nil {
		return common.Hash{}, s, err
	}
	for id := s.ID; ; { // what failed has no state
		s, err = d.record(ctx, id, result.Receipt.BlockNumber.Uint64(), d.observed(id))
		if !errors.Is(err, errBehind) || chain.Pause(ctx, d.config.Poll) != nil {
			break
		}
	}
	fault.Point(fault.CloseObserved)
	return result.Hash, s, err
}

// closeOnce sends a channel's close unless it was sent before. Beside a close that another
// gateway has sent the channel is closing here, too.
func (d *session) closeOnce(ctx context.Context, id common.Hash) (chain.TxID, error) {
	held, err := d.outbox.Claim(ctx, closeClaim(id))
	if err != nil {
		return "", err
	}
	defer held.Release(ctx)
	tx, err := d.sender.Sent(ctx, id, chain.Close, nil)
	switch {
	case err != nil:
		return "", err
	case tx == "":
		return d.sendClose(ctx, id, held)
	}
	_, err = d.payee.Close(ctx, id)
	return tx, err
}

// closeClaim names the claim of a channel's close.
func closeClaim(id common.Hash) string { return "close " + id.Hex() }

// sendClose closes a channel at what was accepted when no gateway accepts any more.
// A lease that began meanwhile ends. Who lost its claim since sends nothing: more may
// be accepted by now, or another close be on its way.
func (d *session) sendClose(ctx context.Context, id common.Hash, held *leasestore.Lock) (chain.TxID, error) {
	s, err := d.payee.Close(ctx, id)
	if err != nil {
		return "", err
	}
	tx, err := func() (chain.TxID, error) {
		row, ok, err := d.store.Leases.Newest(ctx, id)
		if err == nil && ok {
			err = d.leases.EndLease(ctx, id, &row, "closed by the renter")
		}
		if err != nil {
			return "", err
		}
		amount, signature := s.Accepted, s.Signature
		if !amount.Gt(&s.Settled) {
			amount, signature = s.Settled, nil // what is settled needs no signature
		}
		call, err := d.closeCall(ctx, s.Terms, amount, signature)
		if err != nil {
			return "", err
		}
		call.Guard = held.Guard()
		return d.sponsor.SubmitReturn(ctx, s, call)
	}()
	if err != nil {
		return "", d.keepOpen(ctx, id, held, err)
	}
	return tx, nil
}

// undoClose is keepOpen for a close that was mined and reverted.
func (d *session) undoClose(ctx context.Context, id common.Hash, reason error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	held, err := d.outbox.Claim(ctx, closeClaim(id))
	if err != nil {
		return errors.Join(reason, err)
	}
	defer held.Release(ctx)
	return d.keepOpen(ctx, id, held, reason)
}

// errCloseSent keeps a channel closing.
var errCloseSent = errors.New("a close of it is on its way")

// keepOpen lets a channel be used again whose close came to nothing: where the claim of
// its close is still held, and no close of it is on its way. What was accepted beside
// one would never be fetched.
func (d *session) keepOpen(ctx context.Context, id common.Hash, held *leasestore.Lock, reason error) error {
	ctx = context.WithoutCancel(ctx)
	payee := *d.payee
	payee.Store = d.db.Guard(leasestore.All(held.Guard(), func(tx *sqlx.Tx) error {
		sent, err := d.sender.StandsIn(ctx, tx, id, chain.Close)
		if err == nil && sent {
			err = errCloseSent
		}
		return err
	})).Payee()
	if _, err := payee.Keep(ctx, id); !errors.Is(err, errCloseSent) {
		reason = errors.Join(reason, err)
	}
	return reason
}

// closeDeadline is how long a close that a past key signed can be sent.
const closeDeadline = 24 * time.Hour

// closeCall closes a channel as its payee: the key that sends, or one from before
// that signs for it.
func (d *session) closeCall(ctx context.Context, terms channel.Terms, amount uint256.Int, signature []byte) (chain.Call, error) {
	if terms.Payee == d.config.Key.Address() {
		return d.escrow.CloseCall(terms, amount, signature), nil
	}
	past := channel.SignerOf(d.config.PastKeys, terms.Payee)
	if past == nil {
		return chain.Call{}, wire.NotServed.With("channel %s pays %s, whose key this provider does not use any more: what is vouchered is settled, the rest comes back without its help (leave the channel)", terms.ID(), terms.Payee)
	}
	now, err := d.escrow.Now(ctx)
	if err != nil {
		return chain.Call{}, err
	}
	deadline := uint64(now.Add(closeDeadline).Unix())
	payee, err := past.Sign(ctx, d.escrow.Domain().CloseDigest(terms.ID(), amount, deadline))
	if err != nil {
		return chain.Call{}, fmt.Errorf("channel %s: signing its close with the past key %s: %w", terms.ID(), terms.Payee, err)
	}
	return d.escrow.CloseAuthorizedCall(terms, amount, signature, deadline, payee), nil
}
