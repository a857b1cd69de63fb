// Package peer is a provider as a payer reaches it over HTTP: what a renter and an x402 client share.
package peer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/internal/reach"
	"github.com/gpupay/gpupay/sdk/wire"
)

// MaxAnswer bounds, in bytes, what a payer reads of any answer that is not a stream.
const MaxAnswer = 1 << 20

// AnswerTimeout bounds a round trip that moves no money on the chain;
// ChainTimeout one for which the provider waits for a transaction.
const (
	AnswerTimeout = 20 * time.Second
	ChainTimeout  = 3 * time.Minute
)

// What a payer meets that asks a provider.
var (
	// ErrOffer is an offer that does not hold together. Nothing was signed.
	ErrOffer = errors.New("offer does not hold together")
	// ErrUnreachable says that the provider cannot be reached.
	ErrUnreachable = errors.New("provider cannot be reached")
	// ErrSilent says that the provider sent no usage record for too long. Nothing is
	// owed for the time.
	ErrSilent = errors.New("provider is silent")
	// ErrDemand says that the provider demands money that no record accounts for.
	ErrDemand = errors.New("provider demands more than its records say")
	// ErrProtocol says that the provider's stream is not what it should be.
	ErrProtocol = errors.New("provider's stream does not parse")
	// ErrRefused says that the provider does not close the channel. Leave gets the
	// deposit back without it.
	ErrRefused = errors.New("provider does not close the channel")
)

// Peer is a provider as a payer reaches it.
type Peer struct {
	Base  string       // its URL, without a slash at its end
	Class string       // of GPUs that it is asked for; empty: it is not told
	HTTP  *http.Client // follows no redirect: a credential is for the provider that it was made for
	plain *atomic.Bool // a duplex stream was tried, and something between us does not let it through
}

// New is a provider at a base URL, spoken to through a copy of a client: one that follows no redirect and has no timeout of its own.
func New(h *http.Client, base string) (Peer, error) {
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.RawQuery != "" || u.User != nil {
		return Peer{}, fmt.Errorf("renter: %.200q is not a provider's URL such as https://host/path", redact.URL(base))
	}
	client := *h
	// A credential is for the provider that it was made for and no other.
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	client.Timeout = 0 // streams do not end; every other request has its own limit
	return Peer{Base: strings.TrimRight(base, "/"), HTTP: &client, plain: new(atomic.Bool)}, nil
}

// Offer returns the provider's current offer as it is published.
func (p Peer) Offer(ctx context.Context) ([]byte, error) {
	return p.offerAt(ctx, "/offer"+p.query("?"))
}

// OfferOf returns the offer that a challenge names. That is another one than the provider's current where a gateway answers that did
// not make the challenge, and the two have signed offers of their own: their clocks differ, or one has renewed its offer. An offer
// that is not to be had is left to who holds the challenge to the current one.
func (p Peer) OfferOf(ctx context.Context, c wire.Challenge) ([]byte, error) {
	document, err := p.Offer(ctx)
	if err != nil {
		return nil, err
	}
	offer, err := wire.ParseOffer(document)
	request, undecoded := c.Decode()
	if err != nil || undecoded != nil || offer.Hash.Hex() == request.ExternalID {
		return document, nil
	}
	named := common.HexToHash(request.ExternalID)
	other, err := p.PastOffer(ctx, named)
	if errors.Is(err, ErrUnreachable) {
		return nil, err
	}
	if err != nil || named.Hex() != request.ExternalID {
		return document, nil
	}
	return other.Document, nil
}

// PastOffer returns an offer that was published once, if it is what its hash says.
func (p Peer) PastOffer(ctx context.Context, hash common.Hash) (wire.SignedOffer, error) {
	document, err := p.offerAt(ctx, "/offer/"+hash.Hex())
	if err != nil {
		return wire.SignedOffer{}, err
	}
	offer, err := wire.ParseOffer(document)
	if err == nil && offer.Hash != hash {
		err = fmt.Errorf("it has the hash %s", offer.Hash)
	}
	if err != nil {
		return offer, fmt.Errorf("provider %s: %w: offer %s: %w", p.Base, ErrOffer, hash, err)
	}
	return offer, nil
}

func (p Peer) offerAt(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, AnswerTimeout)
	defer cancel()
	resp, err := p.Do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("provider %s: reading its offer: %w", p.Base, wire.ParseProblem(resp))
	}
	return p.Body(resp)
}

// LeasePath is where leases of so many GPUs are offered, below the base URL, and TickPath where they are paid by ticks.
func (p Peer) LeasePath(gpus int) string { return "/lease?gpus=" + strconv.Itoa(gpus) + p.query("&") }
func (p Peer) TickPath(gpus int) string  { return "/tick?gpus=" + strconv.Itoa(gpus) + p.query("&") }

// ClassIn is the class of GPUs that an address of such a path asks for; empty where it does not say.
func ClassIn(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return u.Query().Get("class")
}

// query names the class, where there is one.
func (p Peer) query(before string) string {
	if p.Class == "" {
		return ""
	}
	return before + "class=" + url.QueryEscape(p.Class)
}

// Sells refuses an offer of another class of GPUs than is asked for.
func (p Peer) Sells(o wire.Offer) error {
	if p.Class != "" && o.ClassID() != p.Class {
		return fmt.Errorf("provider %s: %w: asked for GPUs of class %s, it offers those of class %q", p.Base, ErrOffer, p.Class, o.ClassID())
	}
	return nil
}

// Challenge asks what the provider wants for a number of GPUs, and how many it
// has free, nil if it does not say.
func (p Peer) Challenge(ctx context.Context, gpus int) (wire.Challenge, *int, error) {
	ctx, cancel := context.WithTimeout(ctx, AnswerTimeout)
	defer cancel()
	resp, err := p.Do(ctx, http.MethodGet, p.LeasePath(gpus), nil)
	if err != nil {
		return wire.Challenge{}, nil, err
	}
	defer resp.Body.Close()
	problem := wire.ParseProblem(resp)
	if resp.StatusCode != http.StatusPaymentRequired && !wire.IsProblem(resp) {
		return wire.Challenge{}, nil, fmt.Errorf("provider %s: asked for its price, it answered: %w: %s", p.Base, problem, notOurs(resp.StatusCode))
	}
	if resp.StatusCode != http.StatusPaymentRequired {
		return wire.Challenge{}, nil, fmt.Errorf("provider %s: asked for its price, it answered: %w", p.Base, problem)
	}
	c, err := sessionChallenge(resp.Header)
	if err != nil {
		return c, nil, fmt.Errorf("provider %s: %w", p.Base, err)
	}
	return c, problem.FreeGPUs, nil
}

// notOurs says what to do about an answer that no provider of ours gives.
func notOurs(status int) string {
	switch status {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return "the proxy in front of the provider does not reach it; try again later"
	case http.StatusBadRequest:
		return "if it speaks TLS there, give its URL with https://"
	}
	return "no gpupay provider answers there; check its URL, with port and path"
}

// sessionChallenge returns the first challenge that we can answer.
func sessionChallenge(h http.Header) (wire.Challenge, error) {
	all, err := wire.ParseChallenges(h)
	if err != nil {
		return wire.Challenge{}, err
	}
	for _, c := range all {
		if c.Method == wire.Method && c.Intent == wire.Intent {
			return c, nil
		}
	}
	return wire.Challenge{}, fmt.Errorf("%w: it offers no %s/%s", wire.ErrMethod, wire.Method, wire.Intent)
}

// Send answers a challenge. A refusal is a *wire.Problem.
func (p Peer) Send(ctx context.Context, method string, gpus int, c wire.Credential, header http.Header) (*http.Response, error) {
	authorization, err := c.Header()
	if err != nil {
		return nil, err
	}
	if header == nil {
		header = http.Header{}
	}
	header.Set("Authorization", authorization)
	resp, err := p.Do(ctx, method, p.LeasePath(gpus), header)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, wire.ParseProblem(resp)
}

// maxShown bounds a provider's words in our errors and tables.
const maxShown = 300

// Printable leaves of a stranger's words what cannot steer a terminal or forge
// a line of a log.
func Printable(s string) string { return reach.Printable(s, maxShown) }

// PlainJSON is a document without what could steer a terminal in its texts. Line
// ends and tabs stay: keys have them. It is empty for what is no JSON.
func PlainJSON(document []byte) []byte {
	dec := json.NewDecoder(bytes.NewReader(document))
	dec.UseNumber()
	var tree any
	if dec.Decode(&tree) != nil {
		return nil
	}
	var plain bytes.Buffer
	enc := json.NewEncoder(&plain)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(plainTexts(tree)) // it was JSON
	return bytes.TrimSpace(plain.Bytes())
}

func plainTexts(v any) any {
	switch v := v.(type) {
	case string:
		return strings.Map(func(r rune) rune {
			if r == '\n' || r == '\t' || unicode.IsPrint(r) {
				return r
			}
			return -1
		}, v)
	case []any:
		for i := range v {
			v[i] = plainTexts(v[i])
		}
	case map[string]any:
		plain := make(map[string]any, len(v))
		for key, value := range v {
			plain[Printable(key)] = plainTexts(value)
		}
		return plain
	}
	return v
}

// Do sends a request without a body. Its error is ErrUnreachable.
func (p Peer) Do(ctx context.Context, method, path string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, p.Base+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header = p.header(header)
	resp, err := p.HTTP.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrUnreachable, p.Base, reach.Explain(err))
	}
	return resp, nil
}

// header is that of every request, with what this one needs.
func (p Peer) header(more http.Header) http.Header {
	h := more.Clone()
	if h == nil {
		h = http.Header{}
	}
	h.Set("Accept-Payment", wire.Method+"/"+wire.Intent)
	return h
}

// Body reads an answer, of MaxAnswer bytes at most.
func (p Peer) Body(resp *http.Response) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrUnreachable, p.Base, err)
	}
	if len(body) > MaxAnswer {
		return nil, fmt.Errorf("provider %s: %w: an answer of more than %d bytes", p.Base, wire.ErrMalformed, MaxAnswer)
	}
	return body, nil
}
