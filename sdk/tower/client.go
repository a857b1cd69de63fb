package tower

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/exactjson"
	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/reach"
	"github.com/gpupay/gpupay/sdk/wire"
)

// maxReply bounds what is read of a tower's answer.
const maxReply = 128 << 10

// Client is a watchtower somewhere else, to who wants out of a channel: an
// renter.Relay. It is given documents that anybody may see, and can take nothing.
type Client struct {
	URL  string       // of the watchtower
	HTTP *http.Client // http.DefaultClient if nil
	Log  *slog.Logger // slog.Default() if nil
}

// RequestClose has the watchtower start the grace period of a channel.
func (c *Client) RequestClose(ctx context.Context, q wire.LeaveRequest) error {
	return c.relay(ctx, "/close-requests", q)
}

// Withdraw has the watchtower pay the payer of a channel after its grace period.
func (c *Client) Withdraw(ctx context.Context, terms channel.Terms) error {
	return c.relay(ctx, "/withdrawals", wire.NewTerms(terms))
}

// relay posts a document. What may be otherwise in a moment is an errLater, for
// which a leave looks at the chain and tries again; what stays refused is the
// watchtower's problem document.
func (c *Client) relay(ctx context.Context, path string, document any) error {
	err := post(ctx, c.HTTP, c.URL, path, document, nil)
	var later *errLater
	if errors.As(err, &later) && ctx.Err() == nil {
		cmp.Or(c.Log, slog.Default()).Warn("the watchtower has not done it yet", "err", err)
	}
	return err
}

// errLater is a tower that could not be reached or is not ready. To who leaves
// it is what an endpoint that fails is: a reason to try again.
type errLater struct {
	url string
	err error
}

func (e *errLater) Error() string        { return fmt.Sprintf("watchtower %s: %v", redact.URL(e.url), e.err) }
func (e *errLater) Unwrap() error        { return e.err }
func (e *errLater) Is(target error) bool { return target == chain.ErrUnreachable }

// clientTimeout is longer than a tower takes to answer.
const clientTimeout = answerTime + 10*time.Second

// post posts a document to a tower and reads its answer.
func post(ctx context.Context, client *http.Client, base, path string, document, answer any) error {
	raw, err := json.Marshal(document)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, clientTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(base, "/")+path, bytes.NewReader(raw))
	if err != nil {
		return fmt.Errorf("watchtower %s: %w", redact.URL(base), reach.Explain(err))
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := cmp.Or(client, http.DefaultClient).Do(req)
	if err != nil {
		return &errLater{base, reach.Explain(err)}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		problem := wire.ParseProblem(resp)
		switch resp.StatusCode {
		case http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusRequestEntityTooLarge:
			return fmt.Errorf("watchtower %s: %w", redact.URL(base), problem)
		}
		return &errLater{base, problem}
	}
	body := io.LimitReader(resp.Body, maxReply)
	if answer == nil {
		_, err = io.Copy(io.Discard, body)
	} else {
		var document []byte
		if document, err = io.ReadAll(body); err == nil {
			err = exactjson.Unmarshal(document, answer)
		}
	}
	if err != nil {
		return &errLater{base, err}
	}
	return nil
}

// CheckURLs refuses what is no URL of a tower.
func CheckURLs(urls []string) error {
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			return fmt.Errorf("%q is not the http or https URL of a watchtower", redact.URL(text))
		}
	}
	return nil
}
