package sidecar_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/sidecar"
)

// answersAfter is an inference server that answers after a time, all at once.
func answersAfter(t *testing.T, after time.Duration, answer http.HandlerFunc) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/models" {
			_, _ = io.WriteString(w, `{"data":[{"id":"test"}]}`)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		select {
		case <-r.Context().Done():
		case <-time.After(after):
			answer(w, r)
		}
	}))
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	return server.URL
}

// accusesNobody waits until a renter has paid, and fails the test where it accuses its honest provider instead.
func (g *guest) accusesNobody(least uint64) {
	g.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		select {
		case err := <-g.ran:
			g.Fatalf("an honest provider is accused: %v", err)
		default:
		}
		if view := g.rental.Snapshot(); !view.Paid.LtUint64(least) {
			return
		}
	}
	g.Errorf("less than %d are paid: %+v", least, g.rental.Snapshot())
}

// TestCloseWhileARequestRuns: who closes its rental while its request runs pays for it until then, and accuses nobody.
func TestCloseWhileARequestRuns(t *testing.T) {
	s := newShop(t, func(c *sidecar.Config) { c.Provider.Share.Slots, c.Provider.Terms.Credit = 1, 60*time.Second })
	g := s.guest(renter.Options{})
	go func() { _, _, _, _ = g.post(context.WithoutCancel(t.Context()), ask{Millis: 30_000}) }()
	rig.Eventually(t, "one that runs", func() bool { return s.engine.running.Load() == 1 })
	time.Sleep(4 * time.Second)
	if paid := g.close(s.chain); paid < 3500 {
		t.Errorf("%d are paid of 4000", paid)
	}
}

// TestClientsOwnTimeouts: a client that gives up pays for the time until then, however it is told to, and accuses nobody.
func TestClientsOwnTimeouts(t *testing.T) {
	t.Parallel()
	for name, client := range map[string]func(*renter.Rental) *http.Client{
		"of the client": func(r *renter.Rental) *http.Client {
			return &http.Client{Transport: r.Transport(nil), Timeout: 4 * time.Second}
		},
		"of the transport": func(r *renter.Rental) *http.Client {
			return &http.Client{Transport: r.Transport(&http.Transport{ResponseHeaderTimeout: 4 * time.Second})}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t, func(c *sidecar.Config) {
				c.Upstream = answersAfter(t, 30*time.Second, func(http.ResponseWriter, *http.Request) {})
				c.Provider.Share.Slots, c.Provider.Terms.Credit = 1, 60*time.Second
			})
			g := s.guest(renter.Options{})
			g.http = client(g.rental)
			if _, _, took, err := g.post(t.Context(), ask{}); err == nil || took > 6*time.Second {
				t.Fatalf("after %s: %v", took, err)
			}
			g.accusesNobody(3500)
		})
	}
}

// TestProblemOfTheInferenceServer: its own refusal, in whatever shape, is an answer that it worked for: it is paid, and nobody accused.
func TestProblemOfTheInferenceServer(t *testing.T) {
	s := newShop(t, func(c *sidecar.Config) {
		c.Upstream = answersAfter(t, 3500*time.Millisecond, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusUnprocessableEntity)
			_, _ = io.WriteString(w, `{"title":"no such schema","status":422}`)
		})
		c.Provider.Share.Slots, c.Provider.Terms.Credit = 1, 60*time.Second
	})
	g := s.guest(renter.Options{})
	if status, _, _, err := g.post(t.Context(), ask{}); err != nil || status != http.StatusUnprocessableEntity {
		t.Fatal(status, err)
	}
	g.accusesNobody(3000)
}
