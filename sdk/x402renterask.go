package sdk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/internal/reach"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/x402"
)

const (
	// maxReplayed bounds a request's body without GetBody: it is held in memory to be sent again.
	maxReplayed = 4 << 20
	// maxRefusal bounds what is read of a 402's body, so that its connection can be used again.
	maxRefusal = 64 << 10
)

// ask is a request that can be sent more than once.
type ask struct {
	req  *http.Request
	body func() (io.ReadCloser, error) // nil: there is none
	key  string                        // says that the payment was sent before, where it is sent again; empty: none is sent
}

// newAsk takes a request over and with it the duty to close its body.
func newAsk(req *http.Request) (*ask, error) {
	a := &ask{req: req}
	if req.Body == nil || req.Body == http.NoBody {
		return a, a.unpaid()
	}
	defer req.Body.Close()
	if a.body = req.GetBody; a.body == nil {
		body, err := io.ReadAll(io.LimitReader(req.Body, maxReplayed+1))
		if err != nil {
			return nil, err
		}
		if len(body) > maxReplayed {
			return nil, fmt.Errorf("x402: a request's body of more than %d bytes is sent twice: set GetBody", maxReplayed)
		}
		a.body = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	}
	return a, a.unpaid()
}

func (a *ask) unpaid() error {
	if a.req.Header.Get(x402.HeaderSignature) != "" {
		return fmt.Errorf("x402: the request carries %s already: this client makes it", x402.HeaderSignature)
	}
	return nil
}

// send sends the request with a payment, or without one if that is empty.
func (a *ask) send(transport http.RoundTripper, payment string) (*http.Response, error) {
	req := a.req.Clone(a.req.Context())
	if a.body != nil {
		body, err := a.body()
		if err != nil {
			return nil, err
		}
		req.Body = body
	}
	if payment != "" {
		req.Header.Set(x402.HeaderSignature, payment)
		if a.key != "" && req.Header.Get(x402.HeaderIdempotencyKey) == "" {
			req.Header.Set(x402.HeaderIdempotencyKey, a.key)
		}
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, reach.Explain(err)
	}
	resp.Request = req // says whether it was paid, whatever transport this is
	return resp, nil
}

// idempotent reports whether sending the request twice does what once does.
func (a *ask) idempotent() bool {
	switch a.req.Method {
	case http.MethodGet, "", http.MethodHead, http.MethodOptions, http.MethodPut, http.MethodDelete:
		return true
	}
	return false
}

// dropTime bounds how long the rest of an answer is waited for that nobody reads.
// The channel's turn may be held meanwhile.
const dropTime = time.Second

// drop ends an answer that nobody will read. What of it is there is read, so that
// its connection can be used again; one that stalls is cut.
func drop(resp *http.Response) {
	stalled := time.AfterFunc(dropTime, func() { _ = resp.Body.Close() })
	defer stalled.Stop()
	_, _ = io.CopyN(io.Discard, resp.Body, maxRefusal)
	_ = resp.Body.Close()
}

// required reads the offers of a 402; nil if the answer is something else, and
// is the caller's then.
func required(resp *http.Response) (*x402.PaymentRequired, error) {
	if resp.StatusCode != http.StatusPaymentRequired {
		return nil, nil
	}
	p, err := x402.ParsePaymentRequired(resp.Header)
	if errors.Is(err, x402.ErrNone) {
		return nil, nil
	}
	drop(resp)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", resp.Request.URL.Host, ErrNotOffered, err)
	}
	return &p, nil
}

// buying is one request that is being paid for. Whoever has its channel's turn
// owns it.
type buying struct {
	*ask
	x      *X402Client
	first  x402.PaymentRequired // what the request was refused with
	offer  x402.Requirements    // the one of it that is paid
	terms  channel.Terms
	id     common.Hash
	slate  slate
	view   channel.ChainView // as last read
	fresh  bool              // nothing is on disk yet
	found  bool              // fresh, and the chain held money for it when the request began
	prior  uint256.Int       // the most that was signed for before this request, or said to be claimed of a channel that is not known
	own    uint256.Int       // the most that this database knows to be signed for, by then
	most   uint256.Int       // what its voucher is for
	tick   string            // where a tick is asked for; empty: this is none
	gpus   int               // of the tick
	hourly uint256.Int       // the price of a GPU-hour of the tick
	back   bool              // a refund is asked for: nothing is bought
	counts uint256.Int       // what the server counts as charged, for a refund

	untaken bool // the server has not taken this request's voucher
	resent  bool // it is a tick that was asked for before
	apart   bool // our clocks have parted since its lease was heard of
	booked  bool // the answer's receipt was, and says:
	charge  uint256.Int
}

// choose takes the cheapest offer that this renter may pay, at most maxPrice.
func (x *X402Client) choose(a *ask, required x402.PaymentRequired, maxPrice uint256.Int) (*buying, error) {
	err := fmt.Errorf("it has none of scheme %s with ERC-3009 deposits", x402.Scheme)
	var best *x402.Requirements
	for i, offer := range required.Accepts {
		unfit := x.fits(offer, maxPrice)
		if unfit == nil && (best == nil || offer.Amount.Lt(&best.Amount.Int)) {
			best = &required.Accepts[i]
		}
		if i == 0 && unfit != nil {
			err = unfit
		}
	}
	if best == nil {
		return nil, fmt.Errorf("%s: %w: %w", a.req.URL.Host, ErrNotOffered, err)
	}
	terms := x.terms(*best)
	return &buying{ask: a, x: x, first: required, offer: *best, terms: terms, id: terms.ID()}, nil
}

// terms are of the channel that pays an offer. Our own key signs the vouchers
// and says so: servers would rather not ask a payer's code whether it did.
func (x *X402Client) terms(offer x402.Requirements) channel.Terms {
	return channel.Terms{
		ChainID: x.escrow.ChainID(), Escrow: x.escrow.Address(), Payer: x.w.Address(), Payee: common.Address(offer.PayTo),
		Token: common.Address(offer.Asset), Salt: x.options.Salt, AuthorizedSigner: x.w.Address(),
		Scheme: channel.BatchSettlement, PayeeAuthorizer: common.Address(offer.Extra.ReceiverAuthorizer),
		WithdrawDelay: offer.Extra.WithdrawDelay,
	}
}

// fits says why an offer is not paid.
func (x *X402Client) fits(offer x402.Requirements, maxPrice uint256.Int) error {
	delay := time.Duration(min(offer.Extra.WithdrawDelay, uint64(channel.MaxWithdrawDelay/time.Second)+1)) * time.Second
	switch {
	case uint64(offer.Network) != x.escrow.ChainID():
		return fmt.Errorf("%w: it is on %s, this renter's endpoint serves eip155:%d", chain.ErrChainID, offer.Network, x.escrow.ChainID())
	case common.Address(offer.Asset) != x.w.Token.Address:
		return fmt.Errorf("%w: it is %s, this renter pays in %s", wallet.ErrToken, offer.Asset, x.w.Token.Address)
	case offer.Amount.Gt(&maxPrice):
		return fmt.Errorf("%w: a request costs up to %s, at most %s may be asked", wallet.ErrPrice, x.w.Format(offer.Amount.Int), x.w.Format(maxPrice))
	case delay > x.w.MaxGrace:
		return fmt.Errorf("%w: it takes %s to get the deposit back, MaxGrace is %s", wallet.ErrEscrow, delay, x.w.MaxGrace)
	}
	return x.terms(offer).Validate()
}

// lostTries is how often a payment is sent again, unchanged, when the connection
// broke before the answer began; lostPause lies before each try.
const (
	lostTries = 2
	lostPause = 200 * time.Millisecond
)

// deliver sends the request with its payment. A connection that breaks leaves
// open whether the server served: the same payment again can cost nothing more,
// and one of our providers answers it with what it had answered. It is sent again
// where the request may be repeated. lost says that it was sent more than once,
// by us or, as transports do, below us.
func (b *buying) deliver(ctx context.Context, payment string) (resp *http.Response, lost bool, err error) {
	var sent atomic.Int32
	trace := httptrace.WithClientTrace(b.req.Context(), &httptrace.ClientTrace{WroteHeaders: func() { sent.Add(1) }})
	a := ask{req: b.req.WithContext(trace), body: b.body, key: b.key}
	for try := 0; ; try++ {
		if resp, err = a.send(b.x.options.Transport, payment); err == nil {
			return resp, try > 0 || sent.Load() > 1, nil
		}
		if try == lostTries || !b.idempotent() || ctx.Err() != nil {
			return nil, true, fmt.Errorf("%w: %w", peer.ErrUnreachable, err)
		}
		if err := chain.Pause(ctx, lostPause); err != nil {
			return nil, true, err
		}
	}
}

// buy pays and sends the request, and repairs what is known of the channel once
// if the server shows that it must be.
func (b *buying) buy(ctx context.Context) (*http.Response, error) {
	if err := b.load(ctx); err != nil {
		return nil, err
	}
	return b.pay(ctx)
}

func (b *buying) pay(ctx context.Context) (*http.Response, error) {
	for try := 0; ; try++ {
		p, err := b.payment(ctx)
		if err != nil {
			return nil, err
		}
		if err := b.pend(ctx, p); err != nil {
			return nil, err
		}
		resp, lost, err := b.deliver(ctx, p.header)
		if err != nil {
			return nil, err
		}
		before := b.slate.Charged
		again, err := b.answered(ctx, resp, p)
		if err == nil && again && lost && b.tick == "" && !b.untaken && b.slate.Charged.Gt(&before) {
			err = b.lost(ctx, resp.Header)
		}
		if err != nil {
			drop(resp)
			return nil, err
		}
		if !again || try > 0 {
			return resp, nil
		}
		drop(resp)
	}
}

// lost is a request that was charged and not answered. Paying it again is for
// the caller to decide; a tick is asked for again with the same payment. A second
// tick with no record since the first is a lie: an honest provider answers the same
// payment with what it had answered.
func (b *buying) lost(ctx context.Context, h http.Header) error {
	if b.tick == "" {
		return fmt.Errorf("channel %s: %w: ask again and it is paid again", b.id, ErrLostAnswer)
	}
	if first := b.slate.Lost; !first.IsZero() && first != b.most {
		return b.dispute(ctx, fmt.Errorf("%w: a second tick was charged and not answered, and no record came", peer.ErrProtocol), h, x402.HeaderRequired)
	}
	b.slate.Lost = b.most
	return errors.Join(b.lostTick(), b.save(ctx))
}

func (b *buying) lostTick() error {
	return fmt.Errorf("channel %s: %w: the provider shows no record of a tick for which up to %s is signed: Tick asks for it again and signs nothing more before it comes, was claimed on the chain, or was given up by a refund or a leave",
		b.id, ErrLostAnswer, b.x.w.Format(b.slate.Lost))
}
