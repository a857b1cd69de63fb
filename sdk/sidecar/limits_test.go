package sidecar_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/sidecar"
)

// TestTwoLeasesAtOneCredit: where one credit ends the requests of two leases of a payer, one of which owes little, both are paid up to
// there, and nobody is accused.
func TestTwoLeasesAtOneCredit(t *testing.T) {
	s := newShop(t, func(c *sidecar.Config) { c.Provider.Share.Slots, c.Provider.Terms.Credit = 8, 4*time.Second })
	g := s.guest(renter.Options{PayEvery: time.Hour})
	other := s.another(g)
	var wait sync.WaitGroup
	for i := range 8 {
		from := g
		if i == 7 {
			from = other
		}
		wait.Add(1)
		go func() {
			defer wait.Done()
			if _, _, took, err := from.post(t.Context(), ask{Millis: 30_000}); err == nil || took > 25*time.Second {
				t.Errorf("a request goes on for %s beyond the credit: %v", took, err)
			}
		}()
	}
	wait.Wait()
	other.accusesNobody(1)
	g.accusesNobody(1)
	first, second := g.close(s.chain), other.close(s.chain)
	if r := s.requests(other.rental.ID())[1]; r.Outcome != metering.RequestLimit || second == 0 || second > 1000 {
		t.Errorf("%+v, and %d are paid: a quarter of the credit is 1000", r, second)
	}
	if all := first + second; all < 3000 || all > 4500 {
		t.Errorf("%d are paid of a credit of 4000", all)
	}
}

// another is a second lease of a guest.
func (s *shop) another(g *guest) *guest {
	s.Helper()
	rental, err := g.client.Rent(s.Context(), s.site.URL, renter.Options{Share: true, Deposit: "1.00", PayEvery: time.Hour})
	if err != nil {
		s.Fatal(err)
	}
	second := &guest{T: s.T, config: g.config, client: g.client, rental: rental, http: &http.Client{Transport: rental.Transport(nil)}}
	second.run()
	return second
}

// TestAnswerWithoutAnEnd: it is ended at the longest time that the offer names, paid up to there, and free for nobody.
func TestAnswerWithoutAnEnd(t *testing.T) {
	s := newShop(t, func(c *sidecar.Config) {
		c.Provider.Share, c.Provider.Terms.Credit = provider.Share{Slots: 1, MaxTime: 4 * time.Second}, time.Minute
	})
	g := s.guest(renter.Options{})
	_, _, took, err := g.post(t.Context(), ask{Millis: 60_000})
	if err == nil || took < 4*time.Second || took > 30*time.Second {
		t.Errorf("it takes %s: %v", took, err)
	}
	g.accusesNobody(3500)
	paid := g.close(s.chain)
	if r := s.requests(g.rental.ID())[1]; r.Outcome != metering.RequestLimit || paid < 3900 || paid > uint64(took.Milliseconds())+1 {
		t.Errorf("%+v, and %d are paid for %s", r, paid, took)
	}
}

// TestHangIsNoLimit: an inference server that has not begun to answer when the longest time is over, or stands still, has failed, and is
// not paid.
func TestHangIsNoLimit(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"nothing": func(http.ResponseWriter, *http.Request) {},
		"a word": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, "data: {}\n\n")
			_ = http.NewResponseController(w).Flush()
		},
	} {
		t.Run(name, func(t *testing.T) {
			engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/v1/models" {
					_, _ = io.WriteString(w, `{"data":[{"id":"test"}]}`)
					return
				}
				_, _ = io.Copy(io.Discard, r.Body)
				answer(w, r)
				<-r.Context().Done()
			}))
			t.Cleanup(func() { engine.CloseClientConnections(); engine.Close() })
			s := newShop(t, func(c *sidecar.Config) {
				c.Upstream, c.Provider.Share, c.Provider.Terms.Credit = engine.URL, provider.Share{Slots: 1, MaxTime: 3 * time.Second}, time.Minute
			})
			g := s.guest(renter.Options{})
			if status, _, took, err := g.post(t.Context(), ask{}); err == nil && status != http.StatusServiceUnavailable || took > 30*time.Second {
				t.Errorf("it is answered %d after %s: %v", status, took, err)
			}
			if paid := g.close(s.chain); paid != 0 {
				t.Errorf("%d are paid: %+v", paid, s.requests(g.rental.ID()))
			}
		})
	}
}
