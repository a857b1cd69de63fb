package x402client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// payment is one request that is being paid for. Whoever has its channel's turn owns it.
type payment struct {
	*request
	ledger
	first      x402.PaymentRequired // what the request was refused with
	offer      x402.Requirements    // the one of it that is paid
	most       uint256.Int          // what its voucher is for
	tick       string               // where a tick is asked for; empty: this is none
	gpus       int                  // of the tick
	hourly     uint256.Int          // the price of a GPU-hour of the tick
	refunding  bool                 // a refund is asked for: nothing is bought
	serverBase uint256.Int          // what the server counts as charged, for a refund

	untaken bool // the server has not taken this request's voucher
	resent  bool // it is a tick that was asked for before
	booked  bool // the answer's receipt was, and says:
	charge  uint256.Int
}

// buy pays and sends the request, and repairs what is known of the channel once if the server shows that it must be.
func (b *payment) buy(ctx context.Context) (*http.Response, error) {
	if err := b.load(ctx); err != nil {
		return nil, err
	}
	return b.pay(ctx)
}

func (b *payment) pay(ctx context.Context) (*http.Response, error) {
	for try := 0; ; try++ {
		p, err := b.sign(ctx)
		if err != nil {
			return nil, err
		}
		if err := b.storePending(ctx, p); err != nil {
			return nil, err
		}
		resp, lost, err := b.deliver(ctx, p.header)
		if err != nil {
			return nil, err
		}
		before := b.account.Charged
		again, err := b.answered(ctx, resp, p)
		if err == nil && again && lost && b.tick == "" && !b.untaken && b.account.Charged.Gt(&before) {
			err = b.lostAnswer(ctx, resp.Header)
		}
		if err != nil {
			drainBody(resp)
			return nil, err
		}
		if !again || try > 0 {
			return resp, nil
		}
		drainBody(resp)
	}
}

// lostAnswer is a request that was charged and not answered. Paying it again is for the caller to decide; a tick is
// asked for again with the same payment. A second tick with no record since the first is a lie: an honest provider
// answers the same payment with what it had answered.
func (b *payment) lostAnswer(ctx context.Context, h http.Header) error {
	if b.tick == "" {
		return fmt.Errorf("channel %s: %w: ask again and it is paid again", b.id, ErrLostAnswer)
	}
	if first := b.account.Lost; !first.IsZero() && first != b.most {
		return b.disputeHeader(ctx, fmt.Errorf("%w: a second tick was charged and not answered, and no record came", peer.ErrProtocol), h, x402.HeaderRequired)
	}
	b.account.Lost = b.most
	return errors.Join(b.lostTick(), b.save(ctx))
}

func (b *ledger) lostTick() error {
	return fmt.Errorf("channel %s: %w: the provider shows no record of a tick for which up to %s is signed: Tick asks for it again and signs nothing more before it comes, was claimed on the chain, or was given up by a refund or a leave",
		b.id, ErrLostAnswer, b.x.w.Format(b.account.Lost))
}

// signedPayment is a payment that is ready to be sent.
type signedPayment struct {
	header  string
	most    uint256.Int   // what the voucher is for
	deposit *x402.Deposit // that goes with it
}

// sign makes the payment for the request: a voucher for what was charged and
// the price, and a deposit if the channel does not cover it.
func (b *payment) sign(ctx context.Context) (signedPayment, error) {
	p := signedPayment{}
	if _, overflow := p.most.AddOverflow(&b.account.Charged, &b.offer.Amount.Int); overflow {
		return p, fmt.Errorf("channel %s: %w", b.id, channel.ErrAmount)
	}
	var err error
	if p.deposit, err = b.fund(ctx, p.most); err != nil {
		return p, err
	}
	b.most = p.most
	kind := x402.TypeVoucher
	if p.deposit != nil {
		kind = x402.TypeDeposit
	}
	p.header, err = b.header(ctx, kind, p.most, p.deposit, nil)
	return p, err
}

// header signs the voucher and writes the payment. What the voucher can cost is on disk before.
func (b *payment) header(ctx context.Context, kind x402.Type, most uint256.Int, deposit *x402.Deposit, refund *wire.Amount) (string, error) {
	if err := b.enter(ctx); err != nil {
		return "", err
	}
	voucher, err := b.x.payer.Pay(ctx, b.id, most)
	if err != nil {
		return "", err
	}
	config, err := x402.ConfigOf(b.terms)
	if err != nil {
		return "", err
	}
	p := x402.PaymentPayload{
		Accepted: b.offer, Extensions: b.first.Extensions,
		Payload: x402.Payload{Type: kind, Config: config, Deposit: deposit, Refund: refund},
	}
	if b.first.Resource.URL != "" {
		p.Resource = &b.first.Resource
	}
	if p.Payload.Voucher, err = x402.VoucherOf(voucher); err != nil {
		return "", err
	}
	h := http.Header{}
	if err := p.Set(h); err != nil {
		return "", err
	}
	b.key = rand.Text()
	return h.Get(x402.HeaderSignature), nil
}
