package renter_test

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wire"
)

const escape = "\x1b]0;owned\a"

// TestProviderFillsNoLog: a provider that refuses a thousand vouchers in its stream, at length, has a few short lines in its
// renter's log.
func TestProviderFillsNoLog(t *testing.T) {
	m := testrig.NewMarket(t)
	v := testrig.NewHostile(t, m, nil)
	const refusals = 1000
	v.Script = func(p *testrig.Stream) {
		p.Honest(1)
		for range refusals {
			p.Send(0, wire.EventProblem, wire.Problem{Type: escape + strings.Repeat("x", 10_000), Title: escape, Status: 402, Detail: strings.Repeat("y", 10_000)})
		}
		p.Honest(1)
	}
	var log testrig.Log
	config := renterrig.Config(t, m, m.Payer)
	config.Log, config.Now = slog.New(slog.NewTextHandler(&log, nil)), func() time.Time { return time.Unix(2_000_000_000, 0) }
	config.Chain.ClockTolerance = 1_000_000 * time.Hour
	v.Offer = resignedUntil(t, v, 2_000_003_600)
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "0.1"})
	if err != nil {
		t.Fatal(err)
	}
	done := renterrig.Background(t.Context(), l)
	testrig.Eventually(t, "the record after them", func() bool { return l.Snapshot().Sequence == 2 || len(done) > 0 })
	said := log.String()
	if n := strings.Count(said, "did not take a voucher"); n == 0 || n > boundlog.MaxLines || len(said) > 100_000 {
		t.Errorf("%d lines of %d refusals, %d bytes of log", n, refusals, len(said))
	}
	if !strings.Contains(said, "left out until the minute is over") {
		t.Error("no word of what was left out")
	}
	if strings.Contains(said, "owned\\a") || strings.Contains(said, "\x1b") || strings.Contains(said, "\\x1b") {
		t.Errorf("the log steers a terminal: %.300q", said)
	}
}

func resignedUntil(t *testing.T, v *testrig.Hostile, expires int64) wire.SignedOffer {
	t.Helper()
	o := v.Offer.Offer
	o.Expires = expires
	signed, err := wire.SignOffer(t.Context(), v.Key, o)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// TestStrangersWordsAreBounded: whatever answers in a provider's place, an error has few words and steers no terminal; and so
// has what is kept of a provider that was caught.
func TestStrangersWordsAreBounded(t *testing.T) {
	m := testrig.NewMarket(t)
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	long := strings.Repeat("x", 400_000)
	check := func(name, said string) {
		t.Helper()
		if len(said) > 3000 || strings.Contains(said, "\x1b") || strings.Contains(said, "\a") {
			t.Errorf("%s: %d bytes: %.100q", name, len(said), said)
		}
	}
	raw := func(answer string) *httptest.Server {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, answer)
		}))
		t.Cleanup(s.Close)
		return s
	}
	problem := func(document string) string {
		return fmt.Sprintf("HTTP/1.1 500 no\r\nContent-Type: application/problem+json\r\nContent-Length: %d\r\n\r\n%s", len(document), document)
	}
	for name, answer := range map[string]string{
		"no HTTP":          escape + long + "\r\n\r\n",
		"a long status":    "HTTP/1.1 500 " + escape + long + "\r\nContent-Length: 0\r\n\r\n",
		"a bad status":     "HTTP/1.1 " + long + "\r\n\r\n",
		"a bad header":     "HTTP/1.1 200 OK\r\n" + long + "\r\n\r\n",
		"a type":           problem(`{"type":"\u001b]0;owned\u0007","title":"t"}`),
		"a title":          problem(`{"type":"about:blank","title":"\u001b]0;owned\u0007` + long[:5000] + `"}`),
		"a long type":      problem(`{"type":"` + long[:6000] + `","title":"t"}`),
		"a long detail":    problem(`{"type":"a","title":"t","detail":"` + long[:6000] + `"}`),
		"another method":   "HTTP/1.1 402 no\r\nWWW-Authenticate: Payment id=\"" + long[:5000] + "\", method=\"\x1b" + long[:5000] + "\"\r\nContent-Length: 0\r\n\r\n",
		"another location": "HTTP/1.1 302 no\r\nLocation: " + long[:5000] + "\r\nContent-Length: 0\r\n\r\n",
	} {
		_, err := r.Quote(t.Context(), raw(answer).URL)
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		check(name, err.Error())
	}
	v := testrig.NewHostile(t, m, nil)
	v.Script = func(*testrig.Stream) {}
	l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "0.1"})
	if err != nil {
		t.Fatal(err)
	}
	caught := l.Lease().Dispute(t.Context(), fmt.Errorf("%w: %s", peer.ErrProtocol, escape+long), nil)
	if !errors.Is(caught, peer.ErrProtocol) {
		t.Errorf("%v, want %v", caught, peer.ErrProtocol)
	}
	check("a dispute", caught.Error())
	check("its reason", l.Snapshot().Reason)
	kept, err := l.Evidence(t.Context())
	if err != nil || len(kept) != 1 {
		t.Fatal(len(kept), err)
	}
	check("its evidence", kept[0].Reason)
}
