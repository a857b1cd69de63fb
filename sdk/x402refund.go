package sdk

import (
	"cmp"
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

// x402Refunds gives deposits back, and says while one is on its way.
type x402Refunds struct{ x402Leases }

// refund gives the payer back what was not charged, or a part of it. The lease ends first, and what it used is claimed
// in the same transaction. A withdrawal that is pending is no obstacle: the payer gets the same money, sooner.
func (d *x402Refunds) refund(ctx context.Context, r *x402Request, tab x402server.Account) (*x402Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, d.config.OpenTimeout)
	defer cancel()
	if !tab.Known {
		return nil, fmt.Errorf("%w: channel %s holds nothing", x402.CodeRefundNoBalance, r.ID)
	}
	if err := d.worthRefunding(tab.State, r.Paid.Payload.Refund); err != nil {
		return nil, err // before anything ends for it
	}
	slot, err := d.limiter.Deposit(r.Request)
	if err != nil {
		return nil, err
	}
	defer slot.Release()
	note := x402server.Entry{Channel: r.ID.Hex(), MaxClaimable: r.Voucher.Cumulative.Dec(), Hash: r.Hash, Kind: x402server.KindRefund, Base: tab.Charged.Dec(), Moved: "0"}
	if err := d.endNewest(ctx, r, "the payer takes a refund"); err != nil {
		return nil, err
	}
	s, _, err := d.Confirmed(ctx, r.Terms)
	if err != nil {
		return nil, err
	}
	amount, err := refundable(s, r.Paid.Payload.Refund)
	if err != nil {
		return nil, err
	}
	note.Moved = amount.Dec() // at most; what it was, the chain will say
	if err := d.JournalOf(&r.PaidRequest).Admit(ctx, note, tab.Balance.Reserved); err != nil {
		return nil, err
	}
	tx, err := d.submitRefund(ctx, r.claim, s, amount)
	if err != nil {
		return nil, err
	}
	return d.refunded(ctx, r, note, tx)
}

// refundable is what a refund may move: what is asked for, and no more than the
// channel holds beyond what is claimed and what will be.
func refundable(s channel.State, asked *wire.Amount) (uint256.Int, error) {
	taken := s.Payable()
	if s.Settled.Gt(&taken) {
		taken = s.Settled
	}
	var free uint256.Int
	if s.Deposit.Gt(&taken) {
		free.Sub(&s.Deposit, &taken)
	}
	if free.IsZero() {
		return free, fmt.Errorf("%w: channel %s holds %s, of which %s are used", x402.CodeRefundNoBalance, s.ID, s.Deposit.Dec(), taken.Dec())
	}
	if asked != nil && asked.Lt(&free) {
		return asked.Int, nil
	}
	return free, nil
}

// worthRefunding refuses a part that is not worth a transaction. The whole is given back however little it is.
func (d *x402Refunds) worthRefunding(s channel.State, asked *wire.Amount) error {
	if asked == nil || !asked.Lt(&d.minTransfer) {
		return nil
	}
	if all, err := refundable(s, nil); err != nil || !asked.Lt(&all) {
		return err
	}
	return fmt.Errorf("%w: a refund of %s, the least part is %s: ask for more, or for all", x402.CodeRefundAmountInvalid, asked.Dec(), d.minTransfer.Dec())
}

// submitRefund puts a refund into the outbox, where its claim is still held: else more
// may have been served for since the amount was decided on.
func (d *x402Refunds) submitRefund(ctx context.Context, held *leasestore.Lock, s channel.State, amount uint256.Int) (chain.TxID, error) {
	submit := d.sponsor.SubmitReturn
	if all, err := refundable(s, nil); err == nil && amount.Lt(&all) {
		submit = d.sponsor.SubmitPart
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
	d.config.Log.Info("refund sent", "channel", s.ID, "most", amount.Dec(), "tx", tx)
	return tx, nil
}

// refunded waits for a refund and answers with what it moved.
func (d *x402Refunds) refunded(ctx context.Context, r *x402Request, note x402server.Entry, tx chain.TxID) (*x402Answer, error) {
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
	if d.settlement != nil {
		d.settlement.Expect(s.Terms)
	}
	tab, err := d.Account(ctx, s)
	if err != nil {
		return nil, err
	}
	note.Tx, note.Moved = result.Hash.Hex(), chain.RefundedBy(result.Receipt, r.ID).Dec()
	receipt := tab.Receipt(note, tab.Charged, tab.Charged)
	receipt.ChargedAmount = nil
	return jsonAnswer(note, receipt, struct {
		Message   string      `json:"message"`
		ChannelID common.Hash `json:"channelId"`
	}{"refunded", r.ID})
}

// refundAgain is the answer to a refund that was sent and never answered. One
// that was answered is another wish: refunds of equal parts are equal requests.
func (d *x402Refunds) refundAgain(ctx context.Context, r *x402Request, tab x402server.Account, note x402server.Entry) (*x402Answer, error) {
	repeated := r.Repeats(note)
	if note.AnsweredAt != 0 && !repeated {
		return nil, nil
	}
	refunds, err := d.sender.Find(ctx, r.ID, chain.Refund)
	if err != nil {
		return nil, err
	}
	for _, tx := range slices.Backward(refunds) {
		if tx.CreatedAt.UnixMilli() >= note.CreatedAt && d.sender.InForce(tx) && (!tx.Succeeded || repeated) {
			ctx, cancel := context.WithTimeout(ctx, d.config.OpenTimeout)
			defer cancel()
			return d.refunded(ctx, r, note, tx.ID)
		}
	}
	return nil, nil
}

// unrefunded is a channel from which no refund takes anything any more. One that is in flight may take the deposit in
// the next block, whether or not its request was given up, and whichever gateway or key sent it: nothing is served
// meanwhile, nor while a re-org has undone it. Of one that was mined the channel is read from the chain, as the watcher
// may come to it later: each time until the refund is final, and then once at each gateway.
func (d *x402Refunds) unrefunded(ctx context.Context, tab x402server.Account) (x402server.Account, error) {
	refunds, err := d.sender.Find(ctx, tab.ID, chain.Refund)
	if err != nil {
		return tab, err
	}
	var unread []common.Hash
	for i, tx := range refunds {
		seen, over := tx.BlockHash, true
		if tx.State == chain.Pending {
			seen = tx.Attempts[0].Signed.Hash()
		}
		if tx.State != chain.Mined && d.Looked.Has(seen) {
			continue
		}
		switch tx.State {
		case chain.Pending:
			over, err = d.overtaken(ctx, tx, refunds[i+1:])
		case chain.Mined:
			over, err = d.sender.Stands(ctx, tx)
		}
		if err != nil || !over {
			return tab, cmp.Or(err, fmt.Errorf("channel %s: %w", tab.ID, x402server.ErrRefunding))
		}
		unread = append(unread, seen)
	}
	if len(unread) == 0 {
		return tab, nil
	}
	s, _, err := d.Confirmed(ctx, tab.Terms)
	if err != nil {
		return tab, fmt.Errorf("channel %s: nothing is served after a refund before it was read from the chain: %w", tab.ID, err)
	}
	for _, block := range unread {
		d.Looked.Add(block)
	}
	return d.Account(ctx, s)
}

// overtaken reports whether a refund that the outbox has in flight takes nothing any more. One that another key sent is
// in flight there for ever, as nobody looks after it: it was mined or never will be where its sender has used its
// nonce, or where a later refund was mined, since what it carries is signed for the channel's next one.
func (d *x402Refunds) overtaken(ctx context.Context, tx chain.Tx, later []chain.Tx) (bool, error) {
	if d.sender.InForce(tx) {
		return false, nil
	}
	if slices.ContainsFunc(later, func(o chain.Tx) bool { return o.Succeeded }) {
		return true, nil
	}
	return chain.Passed(ctx, d.Contract.Backend(), tx, d.config.Confirmations)
}
