package sdk

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

// maxAnswer bounds what a renter reads of any answer that is not a stream.
const maxAnswer = 1 << 20

// answerTimeout bounds a round trip that moves no money on the chain;
// chainTimeout one for which the provider waits for a transaction.
const (
	answerTimeout = 20 * time.Second
	chainTimeout  = 3 * time.Minute
)

// What one meets who asks a provider.
var (
	// ErrOffer: an offer that does not hold together. Nothing was signed.
	ErrOffer = errors.New("offer does not hold together")
	// ErrGone: the provider cannot be reached.
	ErrGone = errors.New("provider cannot be reached")
	// ErrSilent: the provider sent no usage record for too long. Nothing is owed
	// for the time.
	ErrSilent = errors.New("provider is silent")
	// ErrDemand: the provider demands money that no record accounts for.
	ErrDemand = errors.New("provider demands more than its records say")
	// ErrGarbage: the provider's stream is not what it should be.
	ErrGarbage = errors.New("provider's stream does not parse")
	// ErrRefused: the provider does not close the channel. Leave gets the
	// deposit back without it.
	ErrRefused = errors.New("provider does not close the channel")
)

// peer is a provider as a renter reaches it.
type peer struct {
	base  string
	http  *http.Client
	plain *atomic.Bool // a duplex stream was tried, and something between us does not let it through
}

func newPeer(h *http.Client, base string) (peer, error) {
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.RawQuery != "" || u.User != nil {
		return peer{}, fmt.Errorf("renter: %.200q is not a provider's URL such as https://host/path", redact.URL(base))
	}
	client := *h
	// A credential is for the provider that it was made for and no other.
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	client.Timeout = 0 // streams do not end; every other request has its own limit
	return peer{base: strings.TrimRight(base, "/"), http: &client, plain: new(atomic.Bool)}, nil
}

// offer returns the provider's current offer as it is published.
func (p peer) offer(ctx context.Context) ([]byte, error) { return p.offerAt(ctx, "/offer") }

// offerOf returns the offer that a challenge names. That is another one than the provider's current where a gateway answers that did
// not make the challenge, and the two have signed offers of their own: their clocks differ, or one has renewed its offer. An offer
// that is not to be had is left to who holds the challenge to the current one.
func (p peer) offerOf(ctx context.Context, c wire.Challenge) ([]byte, error) {
	document, err := p.offer(ctx)
	if err != nil {
		return nil, err
	}
	offer, err := wire.ParseOffer(document)
	request, undecoded := c.Decode()
	if err != nil || undecoded != nil || offer.Hash.Hex() == request.ExternalID {
		return document, nil
	}
	named := common.HexToHash(request.ExternalID)
	other, err := p.pastOffer(ctx, named)
	if errors.Is(err, ErrGone) {
		return nil, err
	}
	if err != nil || named.Hex() != request.ExternalID {
		return document, nil
	}
	return other.Document, nil
}

// pastOffer returns an offer that was published once, if it is what its hash says.
func (p peer) pastOffer(ctx context.Context, hash common.Hash) (wire.SignedOffer, error) {
	document, err := p.offerAt(ctx, "/offer/"+hash.Hex())
	if err != nil {
		return wire.SignedOffer{}, err
	}
	offer, err := wire.ParseOffer(document)
	if err == nil && offer.Hash != hash {
		err = fmt.Errorf("it has the hash %s", offer.Hash)
	}
	if err != nil {
		return offer, fmt.Errorf("provider %s: %w: offer %s: %w", p.base, ErrOffer, hash, err)
	}
	return offer, nil
}

func (p peer) offerAt(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	resp, err := p.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("provider %s: reading its offer: %w", p.base, wire.ParseProblem(resp))
	}
	return p.body(resp)
}

func leasePath(gpus int) string { return "/lease?gpus=" + strconv.Itoa(gpus) }

// challenge asks what the provider wants for a number of GPUs, and how many it
// has free, nil if it does not say.
func (p peer) challenge(ctx context.Context, gpus int) (wire.Challenge, *int, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	resp, err := p.do(ctx, http.MethodGet, leasePath(gpus), nil)
	if err != nil {
		return wire.Challenge{}, nil, err
	}
	defer resp.Body.Close()
	problem := wire.ParseProblem(resp)
	if resp.StatusCode != http.StatusPaymentRequired && !wire.IsProblem(resp) {
		return wire.Challenge{}, nil, fmt.Errorf("provider %s: asked for its price, it answered: %w: %s", p.base, problem, notOurs(resp.StatusCode))
	}
	if resp.StatusCode != http.StatusPaymentRequired {
		return wire.Challenge{}, nil, fmt.Errorf("provider %s: asked for its price, it answered: %w", p.base, problem)
	}
	c, err := sessionChallenge(resp.Header)
	if err != nil {
		return c, nil, fmt.Errorf("provider %s: %w", p.base, err)
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

// send answers a challenge. A refusal is a *wire.Problem.
func (p peer) send(ctx context.Context, method string, gpus int, c wire.Credential, header http.Header) (*http.Response, error) {
	authorization, err := c.Header()
	if err != nil {
		return nil, err
	}
	if header == nil {
		header = http.Header{}
	}
	header.Set("Authorization", authorization)
	resp, err := p.do(ctx, method, leasePath(gpus), header)
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

// printable leaves of a stranger's words what cannot steer a terminal or forge
// a line of a log.
func printable(s string) string { return reach.Printable(s, maxShown) }

// plainJSON is a document without what could steer a terminal in its texts. Line
// ends and tabs stay: keys have them.
func plainJSON(document []byte) ([]byte, error) {
	if len(document) == 0 {
		return nil, nil
	}
	dec := json.NewDecoder(bytes.NewReader(document))
	dec.UseNumber()
	var tree any
	if err := dec.Decode(&tree); err != nil {
		return nil, err
	}
	var plain bytes.Buffer
	enc := json.NewEncoder(&plain)
	enc.SetEscapeHTML(false)
	err := enc.Encode(plainTexts(tree))
	return bytes.TrimSpace(plain.Bytes()), err
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
			plain[printable(key)] = plainTexts(value)
		}
		return plain
	}
	return v
}

func (p peer) do(ctx context.Context, method, path string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, p.base+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header = p.header(header)
	resp, err := p.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrGone, p.base, reach.Explain(err))
	}
	return resp, nil
}

// header is that of every request, with what this one needs.
func (p peer) header(more http.Header) http.Header {
	h := more.Clone()
	if h == nil {
		h = http.Header{}
	}
	h.Set("Accept-Payment", wire.Method+"/"+wire.Intent)
	return h
}

func (p peer) body(resp *http.Response) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrGone, p.base, err)
	}
	if len(body) > maxAnswer {
		return nil, fmt.Errorf("provider %s: %w: an answer of more than %d bytes", p.base, wire.ErrMalformed, maxAnswer)
	}
	return body, nil
}
