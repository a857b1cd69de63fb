package x402scheme

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/x402server"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// Refunds gives deposits back, and says while one is on its way.
type Refunds struct{ core }

// refund gives the payer back what was not charged, or a part of it. The lease ends first, and what it used is claimed
// in the same transaction. A withdrawal that is pending is no obstacle: the payer gets the same money, sooner.
func (d *Refunds) refund(ctx context.Context, r *Request, tab x402server.Account) (*x402server.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, d.OpenTimeout)
	defer cancel()
	if !tab.Known {
		return nil, fmt.Errorf("%w: channel %s holds nothing", x402.CodeRefundNoBalance, r.ID)
	}
	if err := d.WorthRefunding(tab.State, r.Paid.Payload.Refund); err != nil {
		return nil, err // before anything ends for it
	}
	slot, err := d.Limiter.Deposit(r.Request)
	if err != nil {
		return nil, err
	}
	defer slot.Release()
	note := x402server.Entry{Channel: r.ID.Hex(), MaxClaimable: r.Voucher.Cumulative.Dec(), Hash: r.Hash, Kind: x402server.KindRefund, Base: tab.Charged.Dec(), Moved: "0"}
	if err := d.EndNewest(ctx, r, "the payer takes a refund"); err != nil {
		return nil, err
	}
	s, _, err := d.Confirmed(ctx, r.Terms)
	if err != nil {
		return nil, err
	}
	amount, err := x402server.Refundable(s, r.Paid.Payload.Refund)
	if err != nil {
		return nil, err
	}
	note.Moved = amount.Dec() // at most; what it was, the chain will say
	if err := d.JournalOf(&r.PaidRequest).Admit(ctx, note, tab.Balance.Reserved); err != nil {
		return nil, err
	}
	tx, err := d.Submit(ctx, r.Claim, s, amount)
	if err != nil {
		return nil, err
	}
	return d.refunded(ctx, r, note, tx)
}

// Submit puts a refund into the outbox, where its claim is still held: else more
// may have been served for since the amount was decided on.
func (d *Refunds) Submit(ctx context.Context, held *leasestore.Lock, s channel.State, amount uint256.Int) (chain.TxID, error) {
	submit := d.Sponsor.SubmitReturn
	if all, err := x402server.Refundable(s, nil); err == nil && amount.Lt(&all) {
		submit = d.Sponsor.SubmitPart
	}
	call, err := d.Contract.RefundCall(ctx, s, amount)
	if err != nil {
		return "", err
	}
	call.Guard = held.Guard()
	tx, err := submit(ctx, s, call)
	if err != nil {
		return "", x402server.Refused(err, x402.CodeRefundSimulation)
	}
	d.Log.Info("refund sent", "channel", s.ID, "most", amount.Dec(), "tx", tx)
	return tx, nil
}

// refunded waits for a refund and answers with what it moved.
func (d *Refunds) refunded(ctx context.Context, r *Request, note x402server.Entry, tx chain.TxID) (*x402server.Answer, error) {
	result, err := d.Mined(ctx, tx, x402.CodeRefundFailed)
	if errors.Is(err, x402.CodeRefundFailed) {
		return nil, err
	}
	if err != nil {
		return nil, wire.Unavailable.With("the refund of channel %s is on its way: send the same request again to hear of it", r.ID)
	}
	s, _, err := d.Confirmed(ctx, r.Terms)
	if err == nil {
		err = d.RefreshNonce(ctx, &r.PaidRequest, s)
	}
	if err == nil && r.Paid.Payload.Refund == nil {
		err = d.JournalOf(&r.PaidRequest).Prepay(ctx, r.ID, uint256.Int{}) // credit is given back with the rest
	}
	if err != nil {
		return nil, err
	}
	if d.Settlement != nil {
		d.Settlement.Expect(s.Terms)
	}
	tab, err := d.Account(ctx, s)
	if err != nil {
		return nil, err
	}
	note.Tx, note.Moved = result.Hash.Hex(), chain.RefundedBy(result.Receipt, r.ID).Dec()
	receipt := tab.Receipt(note, tab.Charged, tab.Charged)
	receipt.ChargedAmount = nil
	return x402server.NewAnswer(note, receipt, struct {
		Message   string      `json:"message"`
		ChannelID common.Hash `json:"channelId"`
	}{"refunded", r.ID})
}

// Again is the answer to a refund that was sent and never answered. One
// that was answered is another wish: refunds of equal parts are equal requests.
func (d *Refunds) Again(ctx context.Context, r *Request, tab x402server.Account, note x402server.Entry) (*x402server.Answer, error) {
	repeated := r.Repeats(note)
	if note.AnsweredAt != 0 && !repeated {
		return nil, nil
	}
	refunds, err := d.Sender.Find(ctx, r.ID, chain.Refund)
	if err != nil {
		return nil, err
	}
	for _, tx := range slices.Backward(refunds) {
		if tx.CreatedAt.UnixMilli() >= note.CreatedAt && d.Sender.InForce(tx) && (!tx.Succeeded || repeated) {
			ctx, cancel := context.WithTimeout(ctx, d.OpenTimeout)
			defer cancel()
			return d.refunded(ctx, r, note, tx.ID)
		}
	}
	return nil, nil
}
