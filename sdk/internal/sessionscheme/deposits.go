package sessionscheme

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/admit"
	"github.com/gpupay/gpupay/sdk/internal/outcome"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Deposits sends the deposits that renters authorize, and waits for those and for their own.
type Deposits struct{ core }

// fundOpen moves the deposit of an open, or waits for the transaction by which its payer does.
func (d *Deposits) fundOpen(ctx context.Context, slot *admit.Slot, r *Request, terms channel.Terms, payload *wire.Payload) error {
	if payload.Type == wire.TypeHash {
		return d.checkTransaction(ctx, slot, terms.ID(), *payload.Hash, uint256.Int{})
	}
	a, err := d.Authorization(payload, terms.Payer, channel.OpenNonce(terms.Payer, terms))
	if err != nil {
		return err
	}
	if a.Value.Lt(&r.Offer.MinDeposit.Int) {
		return wire.PaymentInsufficient.With("the deposit is %s, the offer wants at least %s", a.Value.Dec(), r.Offer.MinDeposit.Dec())
	}
	fault.Point(fault.OpenChecked)
	return d.sendOnce(ctx, r, terms, d.Escrow.OpenAuthorizedCall(terms, a))
}

// FundTopUp moves the deposit of a top-up, or waits for the transaction by which its payer does.
func (d *Deposits) FundTopUp(ctx context.Context, slot *admit.Slot, r *Request, s channel.State, payload *wire.Payload) error {
	if payload.Type == wire.TypeHash {
		return d.checkTransaction(ctx, slot, s.ID, *payload.Hash, s.Deposit)
	}
	from := s.Terms.Payer // what it costs counts for the payer: nobody else may use up its budget
	if by := common.Address(payload.Authorization.From); by != from {
		return wire.VerificationFailed.With("the top-up is authorized by %s, and this provider sends only those of the channel's payer %s: send the transaction yourself and give its hash", by, from)
	}
	a, err := d.Authorization(payload, from, channel.TopUpNonce(s.ID, payload.AdditionalDeposit.Int, from, *payload.Salt))
	if err != nil {
		return err
	}
	if a.Value != payload.AdditionalDeposit.Int {
		return wire.VerificationFailed.With("the authorization is over %s, additionalDeposit is %s", a.Value.Dec(), payload.AdditionalDeposit.Dec())
	}
	if err := d.worthSending(a.Value); err != nil {
		return err
	}
	return d.sendOnce(ctx, r, s.Terms, d.Escrow.TopUpAuthorizedCall(s.Terms, *payload.Salt, a))
}

// Authorization checks what can be checked of an ERC-3009 authorization before
// gas is spent on it.
func (d *Deposits) Authorization(payload *wire.Payload, from common.Address, nonce common.Hash) (chain.Authorization, error) {
	if !d.Gasless {
		return chain.Authorization{}, wire.VerificationFailed.With("this provider does not send deposits for renters: send the transaction yourself and give its hash")
	}
	w := payload.Authorization
	now := time.Now()
	switch {
	case common.Address(w.From) != from:
		return chain.Authorization{}, wire.VerificationFailed.With("the authorization is from %s, the payer is %s", w.From, from)
	case common.Address(w.To) != d.Escrow.Address():
		return chain.Authorization{}, wire.VerificationFailed.With("the authorization is to %s, the escrow is %s", w.To, d.Escrow.Address())
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

// worthSending refuses a top-up that we would send and that is not worth its gas.
func (d *Deposits) worthSending(amount uint256.Int) error {
	if !amount.Lt(&d.MinTransfer) {
		return nil
	}
	return wire.PaymentInsufficient.With("the top-up is %s, the least that this provider sends for others is %s: add more, or send the transaction yourself and give its hash",
		amount.Dec(), d.MinTransfer.Dec())
}

// sendOnce sends a renter's deposit and waits until it is mined. The call is
// simulated first: a stranger's bad signature costs no gas. A deposit that an
// earlier request sent already is waited for and not sent again.
func (d *Deposits) sendOnce(ctx context.Context, r *Request, terms channel.Terms, call chain.Call) error {
	tx, err := d.Outbox.SubmitOnce(ctx, terms, call, func() error { return d.ReserveFor(r, terms.ID()) })
	if err != nil {
		return err
	}
	return outcome.Over(ctx, d.Sender, tx, d.Confirmations) // what came of it the contract says
}

// ReserveFor keeps what a session's request wants, if it wants a lease to begin.
func (d *Deposits) ReserveFor(r *Request, id common.Hash) (err error) {
	if r.Method == http.MethodGet && !d.Leases.Begun(r.Context(), id) {
		r.Seat, err = d.GPUs.Reserve(r.Context(), r.Offer.ClassID(), id, r.GPUs, 0)
	}
	return err
}

// checkTransaction waits for a renter's own transaction and refuses one that reverted or is about another channel. That it moved
// money is not believed from it: the contract is asked. A renter that was told its transaction's hash is rarely here before the
// block, so waits are few, and a stranger's invented hashes find no room. Where no receipt is shown, more than before in the
// channel does: another version of the transaction may be the one that was mined.
func (d *Deposits) checkTransaction(ctx context.Context, slot *admit.Slot, id, hash common.Hash, before uint256.Int) error {
	for {
		receipt, err := chain.Receipt(ctx, d.Escrow.Backend(), hash)
		switch {
		case err == nil && receipt.Status != types.ReceiptStatusSuccessful:
			return wire.TransactionReverted.With("transaction %s reverted; that is final", hash)
		case err == nil && !d.mentions(receipt, id):
			return wire.VerificationFailed.With("transaction %s is not about channel %s", hash, id)
		case err == nil || holdsMore(ctx, d.Escrow, id, before, d.Confirmations):
			return nil
		case !errors.Is(err, ethereum.NotFound) && !errors.Is(err, chain.ErrIndexing):
			return fmt.Errorf("reading transaction %s: %w", hash, err)
		}
		if !slot.Wait() || chain.Pause(ctx, d.Poll) != nil {
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
func (d *Deposits) mentions(receipt *types.Receipt, id common.Hash) bool {
	for _, log := range receipt.Logs {
		if log.Address == d.Escrow.Address() && len(log.Topics) > 1 && log.Topics[1] == id {
			return true
		}
	}
	return false
}

// awaitDeposit waits until more than before is deposited with enough
// confirmations, or nothing is on its way.
func (d *Deposits) awaitDeposit(ctx context.Context, id common.Hash, before uint256.Int) error {
	for {
		views, _, err := d.Escrow.Confirmed(ctx, []common.Hash{id}, d.Confirmations)
		if err != nil {
			return err
		}
		if view := views[0].View; view.Deposit.Gt(&before) || view.Finalized || !views[0].Pending() {
			return nil
		}
		if err := chain.Pause(ctx, d.Poll); err != nil {
			return wire.Unavailable.With("the deposit of channel %s has not %d confirmations yet: send the same request again later", id, d.Confirmations)
		}
	}
}
