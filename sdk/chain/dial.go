package chain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/ethereum/go-ethereum/ethclient"
	"github.com/ethereum/go-ethereum/rpc"

	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/internal/reach"
	"github.com/gpupay/gpupay/sdk/internal/secretpath"
)

// Errors of the surroundings. Each comes wrapped in one line that says what to do.
var (
	ErrUnreachable = errors.New("RPC endpoint unreachable")
	ErrChainID     = errors.New("wrong chain")
	ErrNoContract  = errors.New("no contract at the address")
	ErrNotEscrow   = errors.New("not a channel escrow")
	ErrGrace       = errors.New("grace period too short")
	ErrClock       = errors.New("clock far from the chain's")
	ErrFunds       = errors.New("not enough native coin for gas")
)

// dialTimeout bounds the first contact; requestTimeout every later request over HTTP. A node that does not answer in
// that time is as good as down, and a settlement must not hang on it.
const (
	dialTimeout    = 10 * time.Second
	requestTimeout = 30 * time.Second
)

// Dial connects to a JSON-RPC endpoint (http, https, ws or wss) and asks it one question, so that a wrong URL fails
// here, in one line, and not in the middle of a lease. Path, query and password of the URL often are the customer's
// key to the endpoint: they appear in no error of the client.
func Dial(ctx context.Context, rawurl string) (*ethclient.Client, error) {
	endpoint, err := url.Parse(rawurl)
	if err != nil || endpoint.Host == "" {
		return nil, fmt.Errorf("%w: %q is not a URL such as http://127.0.0.1:8545 or wss://host/path", ErrUnreachable, redact.URL(rawurl))
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()

	client, err := connect(ctx, endpoint)
	if err != nil {
		return nil, unreachable(rawurl, err)
	}
	if _, err := client.ChainID(ctx); err != nil {
		client.Close()
		return nil, unreachable(rawurl, err)
	}
	return client, nil
}

func connect(ctx context.Context, endpoint *url.URL) (*ethclient.Client, error) {
	switch endpoint.Scheme {
	case "http", "https":
		public := url.URL{Scheme: endpoint.Scheme, Host: endpoint.Host}
		client, err := rpc.DialOptions(ctx, public.String(), rpc.WithHTTPClient(&http.Client{
			Timeout: requestTimeout,
			Transport: &secretpath.Transport{Endpoint: endpoint, Body: func(body io.ReadCloser) io.ReadCloser {
				return &cappedBody{ReadCloser: body, host: endpoint.Host, left: maxBody}
			}},
			// A redirect would carry the secret to another host.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}))
		if err != nil {
			return nil, err
		}
		return ethclient.NewClient(client), nil
	case "ws", "wss":
		client, err := rpc.DialOptions(ctx, endpoint.String(), rpc.WithWebsocketMessageSizeLimit(maxBody))
		if err != nil {
			return nil, err
		}
		return ethclient.NewClient(client), nil
	default:
		return nil, fmt.Errorf("scheme %q is none of http, https, ws, wss", endpoint.Scheme)
	}
}

// maxBody is the most that is read of one answer, in bytes and unpacked: a block full of transactions, or the events of a busy
// contract, take a few MiB.
const maxBody = 32 << 20

// A cappedBody is an answer as the client has it, unpacked already: a small one that unpacks to more than the memory holds ends in an
// error.
type cappedBody struct {
	io.ReadCloser
	host string
	left int64
}

func (b *cappedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, &incomplete{"an answer of " + b.host, fmt.Sprintf("it is longer than %d MiB and is not read", maxBody>>20)}
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	return n, err
}

func unreachable(rawurl string, err error) error {
	return fmt.Errorf("%w: %s: %s; %s", ErrUnreachable, redact.URL(rawurl), cause(err), cmp.Or(reach.Hint(err), "check the URL and that the node runs"))
}

// cause strips what quotes the URL from a dialling error.
func cause(err error) string {
	var quoted *url.Error
	if errors.As(err, &quoted) {
		err = quoted.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("no answer in %s", dialTimeout)
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err.Error()
	}
	return line(err.Error())
}

// line makes one short line of what an endpoint said, which may be a page of HTML.
func line(text string) string { return redact.Line(text) }
