package provider

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/x402"
)

// TestMeteredChargesTheHandlersTime: with a tick of a second, as by default, what
// requests of any length are charged is at least the time of their handler and at
// most the time of the request, of each GPU; at 10 base units a millisecond.
func TestMeteredChargesTheHandlersTime(t *testing.T) {
	const perMilli, gpus = 10, 2
	r := newPayRig(t, func(c *Config) {
		c.PricePerGPUHour, c.Metering.Tick, c.Metering.RecordEvery, c.Metering.MaxGap = "36.00", time.Second, time.Second, 3*time.Second
		c.Terms.Credit, c.X402.Window, c.X402.Slack = 8*time.Second, 2*time.Second, 4*time.Second
	})
	var ran atomic.Int64
	var work time.Duration
	handler, err := r.provider.Metered(Route{Devices: []string{sim.UUID(0), sim.UUID(1)}, MaxTime: 2 * time.Second}, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		took := testclock.Stopwatch()
		testclock.Sleep(work)
		ran.Store(int64(took()))
	}))
	if err != nil {
		t.Fatal(err)
	}
	r.server.Close()
	r.server = httptest.NewServer(handler)
	b := r.buyer("/infer")
	pay := b.depositing(b.next(), 900_000)
	random := rand.New(rand.NewPCG(5, 6))
	for range 12 {
		work = time.Duration(random.IntN(150)) * time.Millisecond
		took := testclock.Stopwatch()
		resp := b.pay(pay)
		whole := took()
		receipt, err := x402.ParseSettleResponse(resp.Header)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status, err)
		}
		charged := receipt.ChargedAmount.Uint64()
		b.charged += charged
		least, most := gpus*perMilli*uint64(ran.Load())/1e6, gpus*perMilli*uint64(whole)/1e6+1
		if charged < least || charged > most {
			t.Errorf("a handler of %s in a request of %s was charged %d, want %d to %d", time.Duration(ran.Load()), whole, charged, least, most)
		}
		pay = b.payment(b.next())
	}
	if kept := b.kept(); kept.Spent.Uint64() != b.charged {
		t.Errorf("told %d, booked %s", b.charged, kept.Spent.Dec())
	}
}

// TestBodyIsReadForMoney: a metered request without a payment that counts is
// refused before its body is read, and one whose body is too long before its deposit
// is sent; a payment that counts has its body read.
func TestBodyIsReadForMoney(t *testing.T) {
	r, b := meteredRig(t, Route{MaxTime: time.Second}, func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(w, req.Body)
	}, func(c *Config) { c.X402.MaxReply = 1 << 20 })
	stranger := r.buyer("/infer")
	garbage := http.Header{x402.HeaderSignature: {"bm9uc2Vuc2U="}}
	for name, c := range map[string]struct {
		header http.Header
		length string
	}{
		"nonsense":                        {garbage, "Content-Length: 1048576"},
		"a voucher of a channel of air":   {headerOf(t, stranger.payment(stranger.next())), "Content-Length: 1048576"},
		"a deposit beside too much":       {headerOf(t, stranger.depositing(stranger.next(), 50_000)), "Content-Length: 1048577"},
		"a deposit beside who knows what": {headerOf(t, stranger.depositing(stranger.next(), 50_000)), "Transfer-Encoding: chunked"},
	} {
		conn, err := net.Dial("tcp", r.server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST /infer HTTP/1.1\r\nHost: x\r\n%s\r\n%s: %s\r\n\r\n", c.length, x402.HeaderSignature, c.header.Get(x402.HeaderSignature))
		_ = conn.SetReadDeadline(time.Now().Add(serve.BodyTimeout / 2))
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil) // it waits for no byte of the body
		if err != nil || resp.StatusCode != http.StatusPaymentRequired && resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %v %v", name, resp, err)
		}
		if conn.Close(); stranger.holds() != 0 {
			t.Errorf("%s: the contract holds %d", name, stranger.holds())
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), "POST", r.server.URL+"/infer", strings.NewReader("prompt"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = headerOf(t, b.depositing(b.next(), 50_000))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || string(text) != "prompt" {
		t.Errorf("%s: %q %v", resp.Status, text, err)
	}
}
