package x402client

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
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// Refund is what came back from a channel, seen on the chain. Amounts are base units.
type Refund struct {
	Channel     common.Hash
	Amount      uint256.Int
	Left        uint256.Int // in the channel, and not charged or, after Leave, not claimed
	Transaction common.Hash // as the server says; zero where we sent it ourselves
}

// Refund has the server give money back that is in our channel with it: amount, in units of the token, or all that was
// not charged if that is empty. url is anything that the server wants to be paid for. It costs no gas. The channel can
// be used on; the next payment deposits again.
//
// ErrRefused means that the server does not, or does not answer: Leave needs it not. A
// request is waited for as long as 3 minutes, and all of it takes some 7 at most, whatever ctx allows.
func (x *Client) Refund(ctx context.Context, url, amount string) (Refund, error) {
	var part *wire.Amount
	if amount != "" {
		units, err := units.Parse(amount, x.w.Token.Decimals)
		if err != nil || units.IsZero() {
			return Refund{}, errors.Join(fmt.Errorf("renter: a refund of %q", amount), err)
		}
		wanted := wire.NewAmount(units)
		part = &wanted
	}
	limited, cancel := context.WithTimeout(ctx, x.limits.whole)
	defer cancel()
	refund, err := x.refund(limited, url, part)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: no refund within %s: ask again, or leave it to get the money back without the server: %w", peer.ErrRefused, x.limits.whole, err)
	}
	return refund, err
}

// refund is Refund in base units, for as long as ctx allows.
func (x *Client) refund(ctx context.Context, url string, part *wire.Amount) (Refund, error) {
	b, err := x.reach(ctx, url)
	if err != nil {
		return Refund{}, err
	}
	if err := b.retarget(ctx); err != nil {
		return Refund{}, err
	}
	release, err := b.takeTurn(ctx)
	if err != nil {
		return Refund{}, fmt.Errorf("channel %s: no refund: another request to its server goes on: %w", b.id, err)
	}
	defer release()
	return b.refund(ctx, part)
}

// reach asks a server for its offer, so that something can be said on the channel that pays it.
func (x *Client) reach(ctx context.Context, url string) (*payment, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	a := &request{req: req}
	resp, err := a.ask(x.options.Transport, "", x.limits.offer)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: no refund: ask again, or leave it to get the money back without the server: %w: %w",
			req.URL.Host, peer.ErrRefused, peer.ErrUnreachable, err)
	}
	p, err := required(resp)
	if err != nil {
		return nil, err
	}
	if p == nil {
		return nil, fmt.Errorf("%s: %w: it answers %d without an x402 offer", req.URL.Host, ErrNotOffered, resp.StatusCode)
	}
	return x.choose(ctx, a, *p, channel.MaxAmount()) // nothing is bought
}

// refund asks for one, and once more if the server shows that it counts from
// another base. A server that was caught may still refund.
func (b *payment) refund(ctx context.Context, part *wire.Amount) (Refund, error) {
	known, err := b.x.accounts().Load(ctx, b.id)
	if err != nil {
		return Refund{}, err
	}
	if known == nil {
		err = b.begin(ctx)
	} else {
		b.account = *known
	}
	if err != nil {
		return Refund{}, err
	}
	b.refunding = true
	for try := 0; ; try++ {
		paid, before, err := b.observe(ctx)
		if err != nil {
			return Refund{}, err
		}
		b.serverBase = u256.Max(b.serverBase, b.spent())
		if !before.Deposit.Gt(&b.serverBase) {
			return Refund{}, fmt.Errorf("channel %s: nothing to refund: it holds %s, %s is charged", b.id, before.Deposit.Dec(), b.serverBase.Dec())
		}
		b.prior, b.most = paid.Signed, b.serverBase
		header, err := b.header(ctx, x402.TypeRefund, b.serverBase, nil, part)
		if err != nil {
			return Refund{}, err
		}
		resp, err := b.ask(b.x.options.Transport, header, b.x.limits.refund)
		if err != nil {
			return Refund{}, fmt.Errorf("channel %s: %w: no refund: ask again, or leave it to get the money back without the server: %w: %w",
				b.id, peer.ErrRefused, peer.ErrUnreachable, err)
		}
		refund, again, err := b.refunded(ctx, resp, before)
		if err != nil || !again {
			return refund, err
		}
		if try > 0 {
			return Refund{}, b.refused(resp)
		}
	}
}

// refunded reads the answer to a refund and believes the chain.
func (b *payment) refunded(ctx context.Context, resp *http.Response, before channel.ChainView) (refund Refund, again bool, err error) {
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
	b.serverBase = u256.Max(b.serverBase, b.spent()) // the last of what was charged is claimed with a refund
	b.endRefunded()
	if err := b.save(ctx); err != nil {
		return refund, false, err
	}
	refund = Refund{Channel: b.id, Transaction: common.Hash(receipt.Transaction)}
	refund.Amount.Sub(&before.Deposit, &view.Deposit)
	refund.Left = u256.SaturatingSub(view.Deposit, b.serverBase)
	return refund, false, nil
}

// endRefunded ends what was paid for when a refund is there: to pay again is a new decision. What the server counted, or claimed,
// is the next voucher's base as far as it can be.
func (b *payment) endRefunded() {
	if b.ticks().Plausible(b.serverBase) {
		b.account.AdoptBase(u256.Max(b.account.Charged, b.serverBase))
		b.account.Open = nil
	} else {
		b.logRefusedBase(b.serverBase)
		b.account.GiveUp()
	}
	b.account.Tick = nil
}

// refused is a server's no to a refund, in its words.
func (b *ledger) refused(resp *http.Response) error {
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
func (b *ledger) await(ctx context.Context, seen func(channel.ChainView) bool) (channel.ChainView, error) {
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
