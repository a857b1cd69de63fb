package sdk

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
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
)

// maxTowerReply bounds what is read of a tower's answer.
const maxTowerReply = 128 << 10

// HTTPRelay is a Relay that is a watchtower somewhere else. It is given
// documents that anybody may see, and can take nothing.
type HTTPRelay struct {
	URL  string       // of the watchtower
	HTTP *http.Client // http.DefaultClient if nil
	Log  *slog.Logger // slog.Default() if nil
}

var _ Relay = (*HTTPRelay)(nil)

// RequestClose has the watchtower start the grace period of a channel.
func (h *HTTPRelay) RequestClose(ctx context.Context, q wire.LeaveRequest) error {
	return h.relay(ctx, "/close-requests", q)
}

// Withdraw has the watchtower pay the payer of a channel after its grace period.
func (h *HTTPRelay) Withdraw(ctx context.Context, terms channel.Terms) error {
	return h.relay(ctx, "/withdrawals", wire.NewTerms(terms))
}

// relay posts a document. What may be otherwise in a moment is an errTower, for
// which Leave looks at the chain and tries again; what stays refused is the
// watchtower's problem document.
func (h *HTTPRelay) relay(ctx context.Context, path string, document any) error {
	err := postTower(ctx, h.HTTP, h.URL, path, document, nil)
	var later *errTower
	if errors.As(err, &later) && ctx.Err() == nil {
		cmp.Or(h.Log, slog.Default()).Warn("the watchtower has not done it yet", "err", err)
	}
	return err
}

// errTower is a tower that could not be reached or is not ready. To who leaves
// it is what an endpoint that fails is: a reason to try again.
type errTower struct {
	url string
	err error
}

func (e *errTower) Error() string        { return fmt.Sprintf("watchtower %s: %v", e.url, e.err) }
func (e *errTower) Unwrap() error        { return e.err }
func (e *errTower) Is(target error) bool { return target == chain.ErrUnreachable }

// towerTimeout is longer than a tower takes to answer.
const towerTimeout = towerAnswer + 10*time.Second

// postTower posts a document to a tower and reads its answer.
func postTower(ctx context.Context, client *http.Client, base, path string, document, answer any) error {
	raw, err := json.Marshal(document)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, towerTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(base, "/")+path, bytes.NewReader(raw))
	if err != nil {
		return fmt.Errorf("watchtower %s: %w", base, err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := cmp.Or(client, http.DefaultClient).Do(req)
	if err != nil {
		return &errTower{base, err}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		problem := wire.ParseProblem(resp)
		switch resp.StatusCode {
		case http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusRequestEntityTooLarge:
			return fmt.Errorf("watchtower %s: %w", base, problem)
		}
		return &errTower{base, problem}
	}
	body := io.LimitReader(resp.Body, maxTowerReply)
	if answer == nil {
		_, err = io.Copy(io.Discard, body)
	} else {
		err = json.NewDecoder(body).Decode(answer)
	}
	if err != nil {
		return &errTower{base, err}
	}
	return nil
}

// checkTowers refuses what is no URL of a tower.
func checkTowers(urls []string) error {
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			return fmt.Errorf("%q is not the http or https URL of a watchtower", text)
		}
	}
	return nil
}
