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
	"strings"
	"time"

	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/node/nodekeys"
	"github.com/gpupay/gpupay/sdk/wire"
)

// NodeLink is how a gateway reaches a node.
type NodeLink struct {
	Name string // as the node's identity was issued: leases are kept under it, so it stays when the address changes
	URL  string // https
}

// errNode is a node that could not be reached, or not understood: it is asked
// again.
type errNode struct {
	name string
	err  error
}

func (e *errNode) Error() string { return fmt.Sprintf("node %s: %v", e.name, e.err) }
func (e *errNode) Unwrap() error { return e.err }

// nodeClient is a gateway's end of a link.
type nodeClient struct {
	name, base string
	http       *http.Client
}

func newNodeClient(link NodeLink, identity nodekeys.Identity) (*nodeClient, error) {
	if err := nodekeys.CheckName(link.Name); err != nil {
		return nil, err
	}
	u, err := url.Parse(link.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("node %s: %q is not the https URL of a node", link.Name, redact.URL(link.URL))
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 64
	transport.Proxy = nil // a node is on a private network
	transport.TLSClientConfig = identity.DialTLS(link.Name)
	return &nodeClient{name: link.Name, base: strings.TrimRight(link.URL, "/"),
		http: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}, nil
}

// call asks the node. What the node itself refuses is its problem document; what
// failed on the way is an errNode.
func (c *nodeClient) call(ctx context.Context, timeout time.Duration, method, path string, question, answer any) error {
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
		return &errNode{c.name, err}
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return &errNode{c.name, err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxNodeAnswer+1))
	if err != nil {
		return &errNode{c.name, err}
	}
	if len(body) > maxNodeAnswer {
		return &errNode{c.name, fmt.Errorf("its answer has more than %d bytes", maxNodeAnswer)}
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body = io.NopCloser(bytes.NewReader(body))
		problem := wire.ParseProblem(resp)
		problem.Title, problem.Detail = brief(problem.Title), brief(problem.Detail)
		if problem.Status >= http.StatusInternalServerError || problem.Status == http.StatusUnauthorized {
			return &errNode{c.name, problem}
		}
		return fmt.Errorf("node %s: %w", c.name, problem)
	}
	if err := parseNode(body, answer); err != nil {
		return &errNode{c.name, errors.New(brief(err.Error()))}
	}
	if a, ok := answer.(interface{ curb() }); ok {
		a.curb()
	}
	return nil
}

// gone reports that a node has no such lease.
func gone(err error) bool { return errors.Is(err, &problemNoLease) || errors.Is(err, &problemEnded) }
