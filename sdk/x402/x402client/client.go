// Package x402client pays x402 servers (version 2, scheme batch-settlement) from a wallet, whoever wrote them: Client is an
// http.RoundTripper that pays what is answered by 402, and Rental is GPU time of a provider of this project, paid tick by tick.
//
// A Client keeps an account of each channel that it pays from, in the wallet's database: what the server charged, the deposit
// that may still arrive, the tick that was not answered. Nothing is signed before it is there.
package x402client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/x402"
)

// What a renter meets at x402 servers, beside what it meets at providers:
// wallet.ErrPrice is a price over MaxPrice, ErrDeposit a deposit over Caps.PerLease.
var (
	// ErrNotOffered: the server wants to be paid in no way that this renter pays in.
	ErrNotOffered = errors.New("x402 offer is not one that this renter pays")
	// ErrForged: the server's word on a channel contradicts what was signed or what the chain says.
	ErrForged = errors.New("x402 server's word on the channel is false")
	// ErrOvercharged: the server charged more than the price that it had offered.
	ErrOvercharged = errors.New("x402 server charged more than its price")
	// ErrLostAnswer: the connection broke and the server charged for the answer that was lost. Asking again pays again,
	// but for a tick, which is asked for again with the same payment.
	ErrLostAnswer = errors.New("x402 answer was charged and lost")
)

// Options say what a Client may pay by itself.
type Options struct {
	// MaxPrice is the most that one request may cost, in units of the token
	// ("0.05"). It must be said; Unlimited leaves it to the caps.
	MaxPrice string
	// Deposit goes into a channel whenever it runs dry, in units of the token. Empty: what the server suggests, or ten
	// requests. Both are bounded by Caps.PerLease, which for x402 is the most that is ever put into one channel.
	Deposit string
	// Salt tells channels with one site apart. A channel's own salt is made of it and of the site. Whoever has the key,
	// the site, its 402 and Salt finds the channel on the chain again, also without the database.
	Salt common.Hash
	// SameSite has a site paid from the channel of another, for a payee that serves under several addresses:
	// {"https://b.example": "https://a.example"}. Whoever runs either can use up what is in that channel and end what is
	// rented from it. Say so before the first is paid: what it has in a channel of its own is not moved. May be nil.
	SameSite map[string]string
	// Transport sends the requests; that of wallet.Config.HTTP if nil.
	Transport http.RoundTripper
	// OnPaid hears of each answer that was paid for; may be nil. It must not block.
	OnPaid func(Payment)
}

// Payment is one answer that was paid for. Amounts are base units.
type Payment struct {
	URL       string
	Channel   common.Hash
	Charged   uint256.Int // for this answer
	Total     uint256.Int // charged on the channel so far
	Deposited uint256.Int // that went into the channel with it
}

// Client pays x402 servers (version 2, scheme batch-settlement) out of channels in x402's settlement contract, whoever
// wrote them. It is an http.RoundTripper: a request that is answered by 402 is paid and sent again. It is safe for
// concurrent use; requests that pay from one channel take turns until their answers begin, since each voucher counts
// from the one before, also between clients of one renter.
//
// It promises: nothing is signed above the caps or for more than MaxPrice a request; what a channel can cost and every
// deposit are on disk before they are signed; a deposit that may still be on its way is sent again and not signed
// again; what a server says of a channel is believed only as far as our own signatures and the chain bear it out. A
// request is paid for at most once. A site (scheme, host and port) has one channel at a time with its payee, whatever
// its 402s say, and pays and locks nothing in another's, whomever it names as its payee; one that was caught is not
// paid again under another address or at another payee.
//
// Deposits are ERC-3009 authorizations that the server sends: no native coin is
// needed to pay or to be refunded. Leave needs some.
type Client struct {
	w        *wallet.Wallet
	options  Options
	escrow   *chain.BatchSettlement
	payer    *channel.Payer
	maxPrice uint256.Int
	deposit  uint256.Int // zero: as the server suggests
	limits   limits
	leaves   leaves
}

// limits are for how long a refund waits, whatever its caller's context allows: it has the channel's turn, and a Leave waits behind it.
type limits struct {
	offer  time.Duration // for the server's offer
	refund time.Duration // for the answer to each request for a refund, before which the server waits for its transaction
	whole  time.Duration // in all: two requests, the turn and the chain
}

var _ http.RoundTripper = (*Client)(nil)

// New returns a client that pays x402 servers from a wallet, within its caps. It fails where x402's contracts are not on
// the wallet's chain.
func New(ctx context.Context, w *wallet.Wallet, options Options) (*Client, error) {
	x := &Client{w: w, options: options}
	if options.MaxPrice == "" {
		return nil, errors.New("renter: MaxPrice is empty: say how much one request may cost, in units of the token, such as \"0.05\"")
	}
	var err error
	if x.maxPrice = channel.MaxAmount(); options.MaxPrice != wallet.Unlimited {
		if x.maxPrice, err = units.Parse(options.MaxPrice, w.Token.Decimals); err != nil {
			return nil, fmt.Errorf("renter: MaxPrice: %w", err)
		}
	}
	if options.Deposit != "" {
		if x.deposit, err = units.Parse(options.Deposit, w.Token.Decimals); err != nil {
			return nil, fmt.Errorf("renter: Deposit: %w", err)
		}
	}
	if x.options.Transport == nil {
		x.options.Transport = w.HTTP.Transport
	}
	if x.options.Transport == nil {
		x.options.Transport = http.DefaultTransport
	}
	if x.escrow, err = chain.NewBatchSettlement(ctx, w.Backend); err != nil {
		return nil, err
	}
	x.payer = w.Payer(x.escrow.Domain())
	x.limits = limits{offer: peer.AnswerTimeout, refund: peer.ChainTimeout, whole: peer.AnswerTimeout + 2*peer.ChainTimeout + w.Patience}
	return x, nil
}

// Client returns an http.Client that pays. It follows redirects within one host only, and until something was paid: who
// asked one server did not ask to pay another, nor ten times.
func (x *Client) Client() *http.Client {
	return &http.Client{Transport: x, CheckRedirect: sameHost}
}

const maxRedirects = 10

func sameHost(req *http.Request, via []*http.Request) error {
	first := via[0].URL
	if req.URL.Host != first.Host || req.URL.Scheme != first.Scheme || len(via) >= maxRedirects || wasPaid(req) {
		return http.ErrUseLastResponse
	}
	return nil
}

// wasPaid reports whether a request is a redirect's, of whichever http.Client, and an answer on the way to it was paid for:
// whether it was charged only the server knows, which may say so with the next answer.
func wasPaid(req *http.Request) bool {
	for resp := req.Response; resp != nil && resp.Request != nil; resp = resp.Request.Response {
		if resp.Request.Header.Get(x402.HeaderSignature) != "" {
			return true
		}
	}
	return false
}

// RoundTrip sends a request and, where the answer is a 402 that it may pay, pays and sends it again. An answer that is
// no such 402 is returned as it is. The errors are ErrNotOffered, wallet.ErrPrice, ErrDeposit, ErrBalance, ErrForged
// (in a *Dispute), ErrOvercharged (in a *Dispute), ErrLostAnswer, *channel.CapError, channel.ErrClosing, and those of
// transport, signer and disk.
func (x *Client) RoundTrip(req *http.Request) (*http.Response, error) {
	ask, err := newRequest(req)
	if err != nil {
		return nil, err
	}
	resp, err := ask.send(x.options.Transport, "")
	if err != nil {
		return nil, err
	}
	required, err := required(resp)
	if err != nil {
		return nil, err
	}
	if required == nil {
		return resp, nil
	}
	if wasPaid(req) {
		return nil, fmt.Errorf("%s: %w: this call was paid for before it was redirected here, and a call is paid for once: ask for it in a call of its own",
			req.URL.Host, wallet.ErrPrice)
	}
	b, err := x.choose(req.Context(), ask, *required, x.maxPrice)
	if err != nil {
		return nil, err
	}
	release, err := b.takeTurn(req.Context())
	if err != nil {
		return nil, err
	}
	defer release()
	return b.buy(req.Context())
}

// takeTurn waits for the turn of a channel, which is also that of all that pay the
// same payee at the same site in its place.
func (b *ledger) takeTurn(ctx context.Context) (release func(), err error) {
	return b.x.w.Turns.Take(ctx, b.turn())
}

// origin is what of a URL is kept: no query, which may hold secrets, and no user.
func origin(u *url.URL) string { return u.Scheme + "://" + u.Host + u.EscapedPath() }
