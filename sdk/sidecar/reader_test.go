package sidecar_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/sidecar"
)

// flood is an inference server that writes as fast as it is read.
func flood(t *testing.T) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/models" {
			_, _ = io.WriteString(w, `{"data":[{"id":"test"}]}`)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		event := fmt.Sprintf(`data: {"choices":[{"delta":{"content":"%s"},"finish_reason":null}]}`+"\n\n", strings.Repeat("x", 8000))
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, event); err != nil {
				return
			}
		}
	}))
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	return server.URL
}

// gulp asks for an answer and reads 1 MB of it, and then no more.
func (g *guest) gulp(ctx context.Context) (body io.Closer) {
	g.Helper()
	to, err := g.rental.Endpoint()
	if err != nil {
		g.Fatal(err)
	}
	r, _ := http.NewRequestWithContext(ctx, http.MethodPost, to.String()+"/v1/chat/completions", strings.NewReader("{}"))
	res, err := g.http.Do(r)
	if err != nil || res.StatusCode != http.StatusOK {
		g.Fatal(res, err)
	}
	_, _ = io.CopyN(io.Discard, res.Body, 1<<20)
	return res.Body
}

// TestSlowReaderAtTheRelease: who has its lease ended while its client does not read pays for what it had until then: also where the
// request does not end in the time for that.
func TestSlowReaderAtTheRelease(t *testing.T) {
	t.Parallel()
	for _, timeout := range []time.Duration{5 * time.Second, 100 * time.Millisecond} {
		t.Run(timeout.String(), func(t *testing.T) {
			s := newShop(t, func(c *sidecar.Config) {
				c.Upstream, c.Provider.Terms.Credit, c.Provider.Commands.Timeout = flood(t), 60*time.Second, timeout
			})
			g := s.guest(renter.Options{})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			began := time.Now()
			for range 3 {
				defer g.gulp(ctx).Close()
			}
			time.Sleep(4 * time.Second) // an engine would write so long as the buffers take
			if paid := g.close(s.chain); paid < 2500 || paid > uint64(time.Since(began).Milliseconds()) {
				t.Errorf("%d are paid for 4 s of all slots, which cost 4000", paid)
			}
		})
	}
}

// TestSlotAfterTheCredit: a slot is another's when the request that had it is cut off, whether its client reads or not.
func TestSlotAfterTheCredit(t *testing.T) {
	s := newShop(t, func(c *sidecar.Config) {
		c.Upstream, c.Provider.Share.Slots, c.Provider.Terms.Credit = flood(t), 1, 3*time.Second
	})
	g, other := s.guest(renter.Options{}), s.guest(renter.Options{})
	began := time.Now()
	defer g.gulp(t.Context()).Close()
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		status, _, _, _ := other.post(ctx, ask{})
		cancel()
		if status == http.StatusOK {
			break
		}
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("the slot is free after %s, and the credit was 3s", took)
	}
}
