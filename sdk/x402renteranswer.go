package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/internal/evidence"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/x402"
)

// answered takes what an answer says about the payment. again means that what is
// known of the channel was repaired, so that paying once more can work.
func (b *buying) answered(ctx context.Context, resp *http.Response, p signed) (again bool, err error) {
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
func (b *buying) charged(ctx context.Context, resp *http.Response, receipt x402.SettleResponse, p signed) error {
	var charge, total uint256.Int
	if receipt.ChargedAmount != nil {
		charge = receipt.ChargedAmount.Int
	}
	if _, overflow := total.AddOverflow(&b.slate.Charged, &charge); overflow || total.Gt(&p.most) { // whatever the price is by now
		return b.dispute(ctx, fmt.Errorf("%w: %s on top of %s, for a voucher of %s", ErrOvercharged, charge.Dec(), b.slate.Charged.Dec(), p.most.Dec()), resp.Header, x402.HeaderResponse)
	}
	if s := receipt.ChannelState; s != nil && s.ChargedCumulativeAmount != nil && s.ChargedCumulativeAmount.Int != total {
		// Theirs counts, and the corrective answer that shows it must hold.
		b.x.w.Log.Warn("x402 receipt does not add up: nothing is booked", "channel", b.id,
			"charge", charge.Dec(), "ours", total.Dec(), "theirs", s.ChargedCumulativeAmount.Dec())
		return nil
	}
	if b.tick == "" {
		b.unticked(total)
	}
	b.slate.Charged, b.booked, b.charge = total, true, charge
	if err := b.save(ctx); err != nil {
		return err
	}
	paid := X402Payment{URL: origin(b.req.URL), Channel: b.id, Charged: charge, Total: total}
	if p.deposit != nil {
		paid.Deposited = p.deposit.Amount.Int
		if _, err := b.underWay(ctx); err != nil { // the next payment looks again
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
func (b *buying) corrected(ctx context.Context, resp *http.Response) (again bool, err error) {
	p, err := x402.ParsePaymentRequired(resp.Header)
	if err != nil {
		return false, nil // a plain 402, the caller's
	}
	switch x402.Code(p.Error) {
	case x402.CodeCumulativeMismatch, x402.CodeCumulativeBelowClaimed:
	case x402.CodeCumulativeExceedsBalance:
		return b.drained(ctx)
	default:
		return false, nil
	}
	for _, offer := range p.Accepts {
		if b.x.terms(offer).ID() == b.id && uint64(offer.Network) == b.terms.ChainID {
			return b.rebase(ctx, offer.Extra, resp.Header)
		}
	}
	return false, nil
}

// drained looks whether the channel holds less than we thought: a receiver may
// refund by itself.
func (b *buying) drained(ctx context.Context) (again bool, err error) {
	before, err := b.x.payer.State(ctx, b.id)
	if err != nil {
		return false, err
	}
	after, _, err := b.observe(ctx)
	return err == nil && after.Deposit.Lt(&before.Deposit), err
}

// rebase takes the server's base for the next voucher. With our own newest
// signature beside it, it may be anything up to what we signed, and of ticks only
// what allows says; without one, it is what was claimed on the chain, within what
// this database signed for.
func (b *buying) rebase(ctx context.Context, said x402.Extra, h http.Header) (again bool, err error) {
	paid, view, err := b.observe(ctx)
	if err != nil {
		return false, err
	}
	base, lost := view.Settled, false
	if s, v := said.ChannelState, said.VoucherState; s != nil && v != nil && s.ChargedCumulativeAmount != nil {
		base = s.ChargedCumulativeAmount.Int
		if err := b.proved(base, *v); err != nil {
			return false, b.dispute(ctx, err, h, x402.HeaderRequired)
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
		lost = base.Gt(&b.prior) && !v.SignedMaxClaimable.Gt(&b.most) && !(b.found && b.slate.Deposit == nil)
		b.untaken = v.SignedMaxClaimable.Lt(&b.most)
	} else if base.Gt(&paid.Signed) && !b.confirmed(ctx, base) {
		b.x.w.Log.Warn("x402 channel: more was claimed than this database signed for, and neither the server's voucher nor two endpoints show it: it is not paid on; leave it, or name a second endpoint",
			"channel", b.id, "claimed", base.Dec(), "signed", paid.Signed.Dec())
		return false, nil // an endpoint's word alone has nothing signed
	} else if base.Gt(&paid.Signed) {
		b.slate.Plain = u256.Max(b.slate.Plain, base) // signed before this database, for whatever
	}
	if b.back { // nothing more is signed for it than was, and what counts later is held to the clock when the refund is there
		same := base == b.counts
		b.counts = base
		return !same, nil
	}
	if base == b.slate.Charged {
		return false, nil // nothing is different: the same would come of it
	}
	if b.tick != "" && base.Gt(&b.slate.Charged) {
		lost = !b.allows(base)
	}
	if !lost && !b.plausible(base) {
		b.notTaken(base)
		return false, nil
	}
	b.x.w.Log.Info("x402 channel was out of step", "channel", b.id, "ours", b.slate.Charged.Dec(), "theirs", base.Dec())
	b.take(base)
	if err := b.save(ctx); err != nil {
		return false, err
	}
	if lost { // it counts this very request as served: a second voucher would pay it twice
		return false, b.lost(ctx, h)
	}
	return true, nil
}

// notTaken says that a server's base is more than can be.
func (b *buying) notTaken(base uint256.Int) {
	b.x.w.Log.Warn("x402 server counts more GPU time than passed: its base is not taken", "channel", b.id, "ours", b.slate.Charged.Dec(), "theirs", base.Dec())
}

// take has the next voucher count from a base: what of it is no tick is told apart.
func (b *buying) take(base uint256.Int) {
	if !b.slate.Ticked || !base.Gt(&b.slate.Plain) {
		b.unticked(base)
	}
	b.slate.Charged = base
}

// confirmed reports whether two endpoints say that so much was claimed of a channel
// that this database has forgotten.
func (b *buying) confirmed(ctx context.Context, claimed uint256.Int) bool {
	if _, several := b.x.w.Backend.(*chain.Endpoints); !several || !b.slate.Found {
		return false
	}
	on, _, err := b.x.escrow.Confirmed(ctx, []common.Hash{b.id}, 1)
	return err == nil && !on[0].Disputed && on[0].Latest.Settled == claimed
}

// proved holds a server's base against our signature.
func (b *buying) proved(base uint256.Int, v x402.VoucherState) error {
	voucher := channel.Voucher{ChannelID: b.id, Cumulative: v.SignedMaxClaimable.Int, Signature: v.Signature[:]}
	if err := b.x.payer.Domain.Verify(voucher, b.terms.Signer()); err != nil {
		return fmt.Errorf("%w: the voucher it shows is not ours: %w", ErrForged, err)
	}
	if base.Gt(&v.SignedMaxClaimable.Int) {
		return fmt.Errorf("%w: it says that %s is charged and shows a voucher for %s", ErrForged, base.Dec(), v.SignedMaxClaimable.Dec())
	}
	return nil
}

// recall books a voucher of ours that this database has forgotten: what the
// channel can cost is known again.
func (b *buying) recall(ctx context.Context, shown x402.VoucherState) error {
	v := channel.Voucher{ChannelID: b.id, Cumulative: shown.SignedMaxClaimable.Int, Signature: shown.Signature[:]}
	_, err := b.x.payer.Recall(ctx, v)
	b.slate.Found, b.prior = true, u256.Max(b.prior, v.Cumulative)
	b.slate.Ceiling = u256.Max(b.slate.Ceiling, v.Cumulative)
	return err
}

// dispute stops paying on the channel: evidence first.
func (b *buying) dispute(ctx context.Context, reason error, h http.Header, name string) error {
	document, err := json.Marshal(map[string]any{name: h.Values(name), "signed": b.id})
	if err != nil {
		return err
	}
	return b.distrust(ctx, reason, document)
}

// distrust keeps what a server was caught at and pays it nothing more: its payee nowhere,
// if records that the payee signed prove it, and else nobody at this site.
func (b *buying) distrust(ctx context.Context, reason error, document []byte) error {
	ctx, reason = context.WithoutCancel(ctx), boundlog.Plain(reason)
	var err error
	if rec := recordIn(document); rec != nil {
		err = b.prove(ctx, *rec)
		document = evidence.OfRecord(*rec, document)
	}
	err = errors.Join(err, b.x.w.Keep(ctx, wallet.Evidence{Channel: b.id, URL: b.slate.URL, Reason: reason.Error(), At: b.x.w.Now(), Document: document}))
	if wallet.Convicts(reason) {
		b.slate.Dispute = reason.Error()
	} else {
		accused := map[string]string{peer.Site(b.req.URL): reason.Error()}
		maps.Copy(accused, b.slate.Accused)
		b.slate.Accused = accused
	}
	b.x.w.Log.Error("x402 server was caught: nothing more is paid", "channel", b.id, "reason", reason)
	return errors.Join(&wallet.Dispute{Channel: b.id, Reason: reason}, err, b.save(ctx))
}

// X402Channel is a channel with an x402 server. Amounts are base units.
type X402Channel struct {
	ID      common.Hash
	URL     string // where it was paid first
	Terms   channel.Terms
	Status  channel.Status
	Deposit uint256.Int // in the channel, what was claimed included, as far as we know
	Charged uint256.Int // by the server, for answers
	Signed  uint256.Int // the most that the server could claim
	Dispute string      // what the server, or else one of its sites, was caught at
	Leaving bool
}

// caught is what a payee was caught at, or else its sites, one after the other.
func (s slate) caught() string {
	if s.Dispute != "" {
		return s.Dispute
	}
	return strings.Join(slices.Sorted(maps.Values(s.Accused)), "; ")
}

// Channels lists the channels with x402 servers, as this database knows them.
func (x *X402Client) Channels(ctx context.Context) ([]X402Channel, error) {
	all, err := x.slates().list(ctx)
	if err != nil {
		return nil, err
	}
	channels := make([]X402Channel, len(all))
	for i, t := range all {
		s, err := x.payer.State(ctx, t.ID)
		if err != nil {
			return nil, err
		}
		channels[i] = X402Channel{
			ID: t.ID, URL: t.URL, Terms: s.Terms, Status: s.Status, Deposit: s.Deposit, Charged: t.Charged, Signed: s.Cost(),
			Dispute: t.caught(), Leaving: t.Leaving,
		}
	}
	return channels, nil
}
