package sdk

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// X402Refund is what came back from a channel, seen on the chain. Amounts are
// base units.
type X402Refund struct {
	Channel     common.Hash
	Amount      uint256.Int
	Left        uint256.Int // in the channel, and not charged or, after Leave, not claimed
	Transaction common.Hash // as the server says; zero where we sent it ourselves
}

// Refund has the server give money back that is in our channel with it: amount,
// in units of the token, or all that was not charged if that is empty. url is
// anything that the server wants to be paid for. It costs no gas. The channel can
// be used on; the next payment deposits again.
//
// ErrRefused means that the server does not: Leave needs it not.
func (x *X402Client) Refund(ctx context.Context, url, amount string) (X402Refund, error) {
	var part *wire.Amount
	if amount != "" {
		units, err := units.Parse(amount, x.w.Token.Decimals)
		if err != nil || units.IsZero() {
			return X402Refund{}, errors.Join(fmt.Errorf("renter: a refund of %q", amount), err)
		}
		wanted := wire.NewAmount(units)
		part = &wanted
	}
	b, err := x.reach(ctx, url)
	if err != nil {
		return X402Refund{}, err
	}
	if err := b.stand(ctx); err != nil {
		return X402Refund{}, err
	}
	release, err := x.queue(ctx, b.terms)
	if err != nil {
		return X402Refund{}, err
	}
	defer release()
	return b.refund(ctx, part)
}

// reach asks a server for its offer, so that something can be said on the channel
// that pays it.
func (x *X402Client) reach(ctx context.Context, url string) (*buying, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	a := &ask{req: req}
	resp, err := a.send(x.options.Transport, "")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", peer.ErrUnreachable, err)
	}
	p, err := required(resp)
	if err != nil {
		return nil, err
	}
	if p == nil {
		drop(resp)
		return nil, fmt.Errorf("%s: %w: it answers %d without an x402 offer", req.URL.Host, ErrNotOffered, resp.StatusCode)
	}
	return x.choose(a, *p, channel.MaxAmount()) // nothing is bought
}

// refund asks for one, and once more if the server shows that it counts from
// another base. A server that was caught may still refund.
func (b *buying) refund(ctx context.Context, part *wire.Amount) (X402Refund, error) {
	known, err := b.x.slates().load(ctx, b.id)
	if err != nil {
		return X402Refund{}, err
	}
	if known == nil {
		err = b.begin(ctx)
	} else {
		b.slate = *known
	}
	if err != nil {
		return X402Refund{}, err
	}
	b.back = true
	for try := 0; ; try++ {
		paid, before, err := b.observe(ctx)
		if err != nil {
			return X402Refund{}, err
		}
		b.counts = u256.Max(b.counts, b.spent())
		if !before.Deposit.Gt(&b.counts) {
			return X402Refund{}, fmt.Errorf("channel %s: nothing to refund: it holds %s, %s is charged", b.id, before.Deposit.Dec(), b.counts.Dec())
		}
		b.prior, b.most = paid.Signed, b.counts
		header, err := b.header(ctx, x402.TypeRefund, b.counts, nil, part)
		if err != nil {
			return X402Refund{}, err
		}
		resp, err := b.send(b.x.options.Transport, header)
		if err != nil {
			return X402Refund{}, fmt.Errorf("channel %s: %w: %w", b.id, peer.ErrUnreachable, err)
		}
		drop(resp)
		refund, again, err := b.refunded(ctx, resp, before)
		if err != nil || !again {
			return refund, err
		}
		if try > 0 {
			return X402Refund{}, b.refused(resp)
		}
	}
}

// refunded reads the answer to a refund and believes the chain.
func (b *buying) refunded(ctx context.Context, resp *http.Response, before channel.ChainView) (refund X402Refund, again bool, err error) {
	receipt, err := x402.ParseSettleResponse(resp.Header)
	if errors.Is(err, x402.ErrNone) && resp.StatusCode == http.StatusPaymentRequired {
		if again, err = b.corrected(ctx, resp); err == nil && !again {
			err = b.refused(resp)
		}
		return refund, again, err
	}
	if err != nil || !receipt.Success {
		return refund, false, errors.Join(b.refused(resp), err)
	}
	view, err := b.await(ctx, func(v channel.ChainView) bool { return v.Deposit.Lt(&before.Deposit) })
	if err != nil {
		return refund, false, fmt.Errorf("channel %s: %w: it said so, the chain does not: leave it: %w", b.id, peer.ErrRefused, err)
	}
	b.counts = u256.Max(b.counts, b.spent()) // the last of what was charged is claimed with a refund
	b.giveBack()
	if err := b.save(ctx); err != nil {
		return refund, false, err
	}
	refund = X402Refund{Channel: b.id, Transaction: common.Hash(receipt.Transaction)}
	refund.Amount.Sub(&before.Deposit, &view.Deposit)
	refund.Left = u256.SaturatingSub(view.Deposit, b.counts)
	return refund, false, nil
}

// giveBack ends what was paid for when a refund is there: to pay again is a new decision. What the server counted, or claimed,
// is the next voucher's base as far as it can be.
func (b *buying) giveBack() {
	if b.plausible(b.counts) {
		b.take(u256.Max(b.slate.Charged, b.counts))
		b.slate.Open = nil
	} else {
		b.notTaken(b.counts)
		if b.slate.Tick != nil {
			b.slate.Open = b.slate.Tick.after(b.slate.Open)
		}
	}
	b.slate.Tick = nil
}

// refused is a server's no to a refund, in its words.
func (b *buying) refused(resp *http.Response) error {
	reason := resp.Status
	if receipt, err := x402.ParseSettleResponse(resp.Header); err == nil {
		reason = receipt.ErrorReason + " " + receipt.ErrorMessage
	} else if p, err := x402.ParsePaymentRequired(resp.Header); err == nil {
		reason = p.Error
	}
	return fmt.Errorf("channel %s: %w: no refund: %s: leave it to get the money back without the server", b.id, peer.ErrRefused, peer.Printable(reason))
}

// await waits until the chain shows something of the channel. Endpoints have many
// nodes: one that is behind the one that was asked before is waited for.
func (b *buying) await(ctx context.Context, seen func(channel.ChainView) bool) (channel.ChainView, error) {
	limit := time.Now().Add(max(b.x.w.Patience, 10*b.x.w.Poll))
	for {
		_, view, err := b.observe(ctx)
		if err == nil && seen(view) {
			return view, nil
		}
		if time.Now().After(limit) {
			return view, errors.Join(fmt.Errorf("channel %s is not there yet", b.id), err)
		}
		if err := chain.Pause(ctx, b.x.w.Poll); err != nil {
			return view, err
		}
	}
}

// Leave gets back what is in a channel without the server: it starts the
// withdrawal, waits out the channel's delay, in which the server may still claim
// what was signed, and finishes it. Both transactions are the renter's own and
// need native coin (ErrNoGas); nobody can send them for it.
//
// It takes as long as the delay, 15 minutes at least. It can be cut off and
// called again, also in another process. Nothing is paid from the channel
// meanwhile; after it, a payment deposits again. What somebody deposited during the
// delay stays, and is X402Refund.Left: another Leave gets that. ErrStuck says that
// the contract refuses.
func (x *X402Client) Leave(ctx context.Context, id common.Hash) (X402Refund, error) {
	known, err := x.slates().load(ctx, id)
	if err != nil {
		return X402Refund{}, err
	}
	if known == nil {
		return X402Refund{}, fmt.Errorf("%w: %s is no channel with an x402 server in this database", channel.ErrUnknown, id)
	}
	paid, err := x.payer.State(ctx, id)
	if err != nil {
		return X402Refund{}, err
	}
	b := &buying{x: x, terms: paid.Terms, id: id}
	before, err := b.pack(ctx)
	if err != nil {
		return X402Refund{}, err
	}
	if err := b.walkOut(ctx); err != nil { // nobody pays meanwhile: the slate says so
		return X402Refund{}, err
	}
	return b.left(ctx, before)
}

// turn runs a step of leaving on the newest slate, when it is the channel's turn.
func (b *buying) turn(ctx context.Context, step func() error) error {
	release, err := b.x.queue(ctx, b.terms)
	if err != nil {
		return err
	}
	defer release()
	known, err := b.x.slates().load(ctx, b.id)
	if err != nil {
		return err
	}
	b.slate = *known
	return step()
}

// pack ends payments on a channel that is left, and returns what it holds.
func (b *buying) pack(ctx context.Context) (before channel.ChainView, err error) {
	err = b.turn(ctx, func() error {
		if b.slate.Leaving = true; b.slate.Deposit != nil {
			if err := b.settleDeposit(ctx); err != nil {
				return err
			}
		}
		if err := b.save(ctx); err != nil { // before the chain knows of it
			return err
		}
		if _, err := b.x.payer.Close(ctx, b.id); err != nil {
			return err
		}
		var err error
		_, before, err = b.observe(ctx)
		return err
	})
	return before, err
}

// left is what came back from a channel that was left.
func (b *buying) left(ctx context.Context, before channel.ChainView) (refund X402Refund, err error) {
	err = b.turn(ctx, func() error {
		_, after, err := b.observe(ctx)
		if err != nil {
			return err
		}
		refund = X402Refund{Channel: b.id}
		if before.Deposit.Gt(&after.Deposit) { // all that leaves a channel unclaimed goes to the payer
			refund.Amount.Sub(&before.Deposit, &after.Deposit)
		}
		refund.Left.Sub(&after.Deposit, &after.Settled)
		b.slate.Leaving, b.slate.Dispute, b.slate.Accused = false, "", nil // the money is back: to pay again is a new decision
		b.slate.Tick, b.slate.Open, b.slate.Lost = nil, nil, uint256.Int{}
		return b.save(ctx)
	})
	return refund, err
}

// settleDeposit waits until a deposit that is on its way has arrived or cannot
// any more: else it would arrive behind the withdrawal.
func (b *buying) settleDeposit(ctx context.Context) error {
	for {
		under, err := b.underWay(ctx)
		if err != nil || !under {
			return err
		}
		if err := chain.Pause(ctx, b.x.w.Poll); err != nil {
			return err
		}
	}
}

// walkOut does what the chain says is next, until nothing is left to withdraw or
// one withdrawal of all that was there is over: anybody can deposit dust meanwhile,
// and each withdrawal takes the delay and the renter's gas. A step that is refused
// wallet.LeaveRounds times is ErrStuck; waiting for the delay or an endpoint is no try.
func (b *buying) walkOut(ctx context.Context) error {
	var last channel.ChainView
	var begun bool // by us, of all that was free
	pace := chain.Backoff{Least: b.x.w.Poll, Most: 8 * b.x.w.Poll}
	for tries := 0; ; {
		wait := b.x.w.Poll
		_, view, err := b.observe(ctx)
		if err == nil {
			over := begun && view.CloseRequestedAt == 0 && view.Deposit.Lt(&last.Deposit)
			if view.CloseRequestedAt == 0 && !view.Deposit.Gt(&view.Settled) || over {
				return nil
			}
			if view.CloseRequestedAt != last.CloseRequestedAt {
				tries = 0
			}
			last = view
			begun = begun || view.CloseRequestedAt == 0
			err = b.exit(ctx, view)
		}
		var revert *chain.Revert
		switch {
		case errors.As(err, &revert):
			if tries++; tries >= wallet.LeaveRounds {
				return fmt.Errorf("channel %s: %w: the contract refused %d times: %w", b.id, wallet.ErrStuck, tries, err)
			}
			wait = pace.Next()
		case errors.Is(err, chain.ErrUnreachable):
			boundlog.Warn(b.x.w.Log, "leaving: not yet", b.id, err)
		case err != nil:
			return err
		}
		if err := chain.Pause(ctx, wait); err != nil {
			return err
		}
	}
}

// exit takes the step that the chain has come to.
func (b *buying) exit(ctx context.Context, view channel.ChainView) error {
	if view.CloseRequestedAt != 0 {
		return b.finalize(ctx, view)
	}
	var free uint256.Int
	free.Sub(&view.Deposit, &view.Settled)
	return b.sendOwn(ctx, b.x.escrow.InitiateWithdrawCall(b.terms, free))
}

// finalize waits out the delay by the chain's clock.
func (b *buying) finalize(ctx context.Context, view channel.ChainView) error {
	now, err := chain.Now(ctx, b.x.w.Backend)
	if err != nil || uint64(now.Unix()) < view.CloseRequestedAt+b.terms.WithdrawDelay {
		return err
	}
	return b.sendOwn(ctx, b.x.escrow.FinalizeWithdrawCall(b.terms))
}

// sendOwn sends a transaction of our own, which nobody can send for us.
func (b *buying) sendOwn(ctx context.Context, call chain.Call) error {
	own, err := b.x.w.HasGas(ctx)
	if err == nil && !own {
		err = fmt.Errorf("channel %s: %w: only %s can withdraw: send it some and call again", b.id, wallet.ErrNoGas, b.x.w.Address())
	}
	if err != nil {
		return err
	}
	return b.x.w.Sender.SendOnce(ctx, call, b.x.w.Confirmations)
}
