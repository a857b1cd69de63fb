package x402client

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/x402"
)

// answered takes what an answer says about the payment. again means that what is
// known of the channel was repaired, so that paying once more can work.
func (b *payment) answered(ctx context.Context, resp *http.Response, p signedPayment) (again bool, err error) {
	receipt, err := x402.ParseSettleResponse(resp.Header)
	switch {
	case errors.Is(err, x402.ErrNone) && resp.StatusCode == http.StatusPaymentRequired:
		return b.corrected(ctx, resp)
	case errors.Is(err, x402.ErrNone):
		return false, nil // nothing was charged, or the next answer will tell
	case err != nil:
		boundlog.Warn(b.x.w.Log, "x402 receipt does not parse: nothing is booked", b.id, err)
		return false, nil
	}
	if !receipt.Success {
		b.x.w.Log.Warn("x402 payment failed", "channel", b.id, "reason", peer.Printable(receipt.ErrorReason), "message", peer.Printable(receipt.ErrorMessage))
		return false, nil
	}
	return false, b.charged(ctx, resp, receipt, p)
}

// charged books an answer that was paid for.
func (b *payment) charged(ctx context.Context, resp *http.Response, receipt x402.SettleResponse, p signedPayment) error {
	var charge, total uint256.Int
	if receipt.ChargedAmount != nil {
		charge = receipt.ChargedAmount.Int
	}
	if _, overflow := total.AddOverflow(&b.account.Charged, &charge); overflow || total.Gt(&p.most) { // whatever the price is by now
		return b.disputeHeader(ctx, fmt.Errorf("%w: %s on top of %s, for a voucher of %s", ErrOvercharged, charge.Dec(), b.account.Charged.Dec(), p.most.Dec()), resp.Header, x402.HeaderResponse)
	}
	if s := receipt.ChannelState; s != nil && s.ChargedCumulativeAmount != nil && s.ChargedCumulativeAmount.Int != total {
		// Theirs counts, and the corrective answer that shows it must hold.
		b.x.w.Log.Warn("x402 receipt does not add up: nothing is booked", "channel", b.id,
			"charge", charge.Dec(), "ours", total.Dec(), "theirs", s.ChargedCumulativeAmount.Dec())
		return nil
	}
	if b.tick == "" {
		b.account.CountOther(total)
	}
	b.account.Charged, b.booked, b.charge = total, true, charge
	if err := b.save(ctx); err != nil {
		return err
	}
	paid := Payment{URL: origin(b.req.URL), Channel: b.id, Charged: charge, Total: total}
	if p.deposit != nil {
		paid.Deposited = p.deposit.Amount.Int
		if _, err := b.depositInFlight(ctx); err != nil { // the next payment looks again
			boundlog.Warn(b.x.w.Log, "x402 deposit: the chain cannot be read", b.id, err)
		}
	}
	if b.x.options.OnPaid != nil {
		b.x.options.OnPaid(paid)
	}
	return nil
}

// corrected takes up a corrective 402: the server counts from another base than
// we do. Its word is believed as far as it is proved.
func (b *payment) corrected(ctx context.Context, resp *http.Response) (again bool, err error) {
	p, err := x402.ParsePaymentRequired(resp.Header)
	if err != nil {
		return false, nil // a plain 402, the caller's
	}
	switch x402.Code(p.Error) {
	case x402.CodeCumulativeMismatch, x402.CodeCumulativeBelowClaimed:
	case x402.CodeCumulativeExceedsBalance:
		return b.underfunded(ctx)
	default:
		return false, nil
	}
	for _, offer := range p.Accepts {
		if b.isOf(offer) && uint64(offer.Network) == b.terms.ChainID {
			return b.resync(ctx, offer.Extra, resp.Header)
		}
	}
	return false, nil
}

// underfunded looks whether the channel holds less than we thought: a receiver may refund by itself.
func (b *ledger) underfunded(ctx context.Context) (again bool, err error) {
	before, err := b.x.payer.State(ctx, b.id)
	if err != nil {
		return false, err
	}
	after, _, err := b.observe(ctx)
	return err == nil && after.Deposit.Lt(&before.Deposit), err
}

// resync takes the server's base for the next voucher. With our own newest signature beside it, it may be anything up
// to what we signed, and of ticks only what allows says; without one, it is what was claimed on the chain, within what
// this database signed for.
func (b *payment) resync(ctx context.Context, said x402.Extra, h http.Header) (again bool, err error) {
	paid, view, err := b.observe(ctx)
	if err != nil {
		return false, err
	}
	base, lost := view.Settled, false
	if s, v := said.ChannelState, said.VoucherState; s != nil && v != nil && s.ChargedCumulativeAmount != nil {
		base = s.ChargedCumulativeAmount.Int
		if err := b.verifyBase(base, *v); err != nil {
			return false, b.disputeHeader(ctx, err, h, x402.HeaderRequired)
		}
		if base.Lt(&view.Settled) {
			return false, nil // it has forgotten what it claimed, and cannot be paid on that base
		}
		if v.SignedMaxClaimable.Gt(&paid.Signed) {
			if err := b.recall(ctx, *v); err != nil {
				return false, err
			}
		}
		// With a channel that was on the chain before this database knew of it, the
		// voucher may be one of an earlier request.
		lost = base.Gt(&b.prior) && !v.SignedMaxClaimable.Gt(&b.most) && !(b.found && b.account.Deposit == nil)
		b.untaken = v.SignedMaxClaimable.Lt(&b.most)
	} else if base.Gt(&paid.Signed) && !b.confirmed(ctx, base) {
		b.x.w.Log.Warn("x402 channel: more was claimed than this database signed for, and neither the server's voucher nor two endpoints show it: it is not paid on; leave it, or name a second endpoint",
			"channel", b.id, "claimed", base.Dec(), "signed", paid.Signed.Dec())
		return false, nil // an endpoint's word alone has nothing signed
	} else if base.Gt(&paid.Signed) {
		b.account.Plain = u256.Max(b.account.Plain, base) // signed before this database, for whatever
	}
	if b.refunding { // nothing more is signed for it than was, and what counts later is held to the clock when the refund is there
		same := base == b.serverBase
		b.serverBase = base
		return !same, nil
	}
	if base == b.account.Charged {
		return false, nil // nothing is different: the same would come of it
	}
	if b.tick != "" && base.Gt(&b.account.Charged) {
		lost = !b.allows(base)
	}
	if !lost && !b.ticks().Plausible(base) {
		b.logRefusedBase(base)
		return false, nil
	}
	b.x.w.Log.Info("x402 channel was out of step", "channel", b.id, "ours", b.account.Charged.Dec(), "theirs", base.Dec())
	b.account.AdoptBase(base)
	if err := b.save(ctx); err != nil {
		return false, err
	}
	if lost { // it counts this very request as served: a second voucher would pay it twice
		return false, b.lostAnswer(ctx, h)
	}
	return true, nil
}

// logRefusedBase says that a server's base is more than can be.
func (b *ledger) logRefusedBase(base uint256.Int) {
	b.x.w.Log.Warn("x402 server counts more GPU time than passed: its base is not taken", "channel", b.id, "ours", b.account.Charged.Dec(), "theirs", base.Dec())
}

// allows reports whether a base can be what was charged with no record that we saw. It is once taken too on a channel that was
// on the chain before this database knew of it.
func (b *payment) allows(base uint256.Int) bool {
	if b.ticks().Allows(base) {
		return true
	}
	if b.found && b.account.Deposit == nil && b.account.Lost.IsZero() {
		b.account.Lost = b.most
		return true
	}
	return false
}

// confirmed reports whether two endpoints say that so much was claimed of a channel that this database has forgotten.
func (b *ledger) confirmed(ctx context.Context, claimed uint256.Int) bool {
	if _, several := b.x.w.Backend.(*chain.Endpoints); !several || !b.account.Found {
		return false
	}
	on, _, err := b.x.escrow.Confirmed(ctx, []common.Hash{b.id}, 1)
	return err == nil && !on[0].Disputed && on[0].Latest.Settled == claimed
}

// verifyBase holds a server's base against our signature.
func (b *ledger) verifyBase(base uint256.Int, v x402.VoucherState) error {
	voucher := channel.Voucher{ChannelID: b.id, Cumulative: v.SignedMaxClaimable.Int, Signature: v.Signature[:]}
	if err := b.x.payer.Domain.Verify(voucher, b.terms.Signer()); err != nil {
		return fmt.Errorf("%w: the voucher it shows is not ours: %w", ErrForged, err)
	}
	if base.Gt(&v.SignedMaxClaimable.Int) {
		return fmt.Errorf("%w: it says that %s is charged and shows a voucher for %s", ErrForged, base.Dec(), v.SignedMaxClaimable.Dec())
	}
	return nil
}

// recall books a voucher of ours that this database has forgotten: what the channel can cost is known again.
func (b *ledger) recall(ctx context.Context, shown x402.VoucherState) error {
	v := channel.Voucher{ChannelID: b.id, Cumulative: shown.SignedMaxClaimable.Int, Signature: shown.Signature[:]}
	_, err := b.x.payer.Recall(ctx, v)
	b.account.Found, b.prior = true, u256.Max(b.prior, v.Cumulative)
	b.account.Ceiling = u256.Max(b.account.Ceiling, v.Cumulative)
	return err
}
