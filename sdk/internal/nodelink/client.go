package nodelink

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/node/nodekeys"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Error is a node that could not be reached, or not understood: it is asked again.
type Error struct {
	Node string
	Err  error
}

func (e *Error) Error() string { return fmt.Sprintf("node %s: %v", e.Node, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// Client is a gateway's end of a link.
type Client struct {
	Name, base string
	http       *http.Client
}

// NewClient is the client of the node of a name, at an https URL.
func NewClient(name, address string, identity nodekeys.Identity) (*Client, error) {
	if err := nodekeys.CheckName(name); err != nil {
		return nil, err
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("node %s: %q is not the https URL of a node", name, redact.URL(address))
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 64
	transport.Proxy = nil // a node is on a private network
	transport.TLSClientConfig = identity.DialTLS(name)
	return &Client{Name: name, base: strings.TrimRight(address, "/"),
		http: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}, nil
}

// Call asks the node. What the node itself refuses is its problem document; what failed on the way is an Error.
func (c *Client) Call(ctx context.Context, timeout time.Duration, method, path string, question, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var raw []byte
	var err error
	if question != nil {
		if raw, err = json.Marshal(question); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(raw))
	if err != nil {
		return &Error{c.Name, err}
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return &Error{c.Name, err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxAnswer+1))
	if err != nil {
		return &Error{c.Name, err}
	}
	if len(body) > MaxAnswer {
		return &Error{c.Name, fmt.Errorf("its answer has more than %d bytes", MaxAnswer)}
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body = io.NopCloser(bytes.NewReader(body))
		problem := wire.ParseProblem(resp)
		problem.Title, problem.Detail = oneLine(problem.Title), oneLine(problem.Detail)
		if problem.Status >= http.StatusInternalServerError || problem.Status == http.StatusUnauthorized {
			return &Error{c.Name, problem}
		}
		return fmt.Errorf("node %s: %w", c.Name, problem)
	}
	if err := Parse(body, answer); err != nil {
		return &Error{c.Name, errors.New(oneLine(err.Error()))}
	}
	if a, ok := answer.(interface{ bound() }); ok {
		a.bound()
	}
	return nil
}

// End ends a lease at its node. One that it does not know has ended.
func (c *Client) End(ctx context.Context, timeout time.Duration, id common.Hash, q End) error {
	err := c.Call(ctx, timeout, "POST", "/leases/"+id.Hex()+"/end", q, &Lease{})
	if Gone(err) {
		return nil
	}
	return err
}

// Gone reports that a node has no such lease.
func Gone(err error) bool { return errors.Is(err, &NoLease) || errors.Is(err, &LeaseEnded) }
