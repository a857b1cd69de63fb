package provider

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// streamed reads an answer of /lease: the lease and the record.
func (b *buyer) streamed(resp *http.Response) (wire.Lease, metering.SignedRecord) {
	b.Helper()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		body, _ := io.ReadAll(resp.Body)
		b.Fatalf("%s: %s", resp.Status, body)
	}
	receipt, err := x402.ParseSettleResponse(resp.Header)
	if err != nil || receipt.ChargedAmount.Uint64() >= testMost {
		b.Fatalf("%+v %v", receipt, err)
	}
	b.charged += receipt.ChargedAmount.Uint64()
	if b.charged != receipt.ChannelState.ChargedCumulativeAmount.Uint64() {
		b.Fatalf("charged %d, told %s", b.charged, receipt.ChannelState.ChargedCumulativeAmount.Dec())
	}
	in := wire.NewEvents(resp.Body)
	var lease wire.Lease
	var rec metering.SignedRecord
	for _, want := range []struct {
		name string
		into any
	}{{wire.EventLease, &lease}, {wire.EventUsage, &rec}} {
		e, err := in.Next()
		if err != nil || e.Name != want.name || json.Unmarshal(e.Data, want.into) != nil {
			b.Fatalf("%+v %v, want %s", e, err, want.name)
		}
	}
	if _, err := in.Next(); err != io.EOF {
		b.Fatalf("after the record: %v", err)
	}
	return lease, rec
}

// TestStreamIsToldItsChargeFirst: the receipt and the lease are there before the
// window is over; what was not used is credit.
func TestStreamIsToldItsChargeFirst(t *testing.T) {
	r := newPayRig(t, func(c *Config) { c.X402.Window, c.X402.Slack = time.Second, time.Second })
	b := r.buyer("/lease")
	p := b.depositing(b.next(), 100_000)
	resp := b.pay(p)
	receipt, err := x402.ParseSettleResponse(resp.Header)
	if err != nil || receipt.ChargedAmount.Uint64() < 1000 {
		t.Fatalf("%+v %v", receipt, err)
	}
	if kept := b.kept(); !kept.Spent.IsZero() {
		t.Errorf("the receipt came when %s were used: it was not told first", kept.Spent.Dec())
	}
	in := wire.NewEvents(resp.Body)
	if e, err := in.Next(); err != nil || e.Name != wire.EventLease {
		t.Fatalf("%+v %v", e, err)
	}
	e, err := in.Next()
	var rec metering.SignedRecord
	if err != nil || e.Name != wire.EventUsage || json.Unmarshal(e.Data, &rec) != nil {
		t.Fatalf("%+v %v", e, err)
	}
	b.charged = receipt.ChargedAmount.Uint64()
	if rec.Owed.Uint64() < 1000 {
		t.Errorf("the record states %s of a window of 1000", rec.Owed.Dec())
	}
	// The next is charged what brings the whole to the next window.
	resp = b.pay(b.payment(b.next()))
	if resp.StatusCode == http.StatusPaymentRequired {
		b.corrected(resp)
		resp = b.pay(b.payment(b.next()))
	}
	second, err := x402.ParseSettleResponse(resp.Header)
	if err != nil {
		t.Fatal(err)
	}
	told := second.ChannelState.ChargedCumulativeAmount.Uint64()
	used := rec.Owed.Uint64()
	if told < used+1000 || told > used+2000 {
		t.Errorf("told %d after %d were used", told, used)
	}
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	b.idle()
	// A claim takes what was used, not what was told.
	if err := r.provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if used, on := b.used(), b.on().View; on.Settled != used {
		t.Errorf("claimed %s, used %s, told %d", on.Settled.Dec(), used.Dec(), told)
	}
}

// TestStreamAgain: who lost a stream sees it again and is not charged twice.
func TestStreamAgain(t *testing.T) {
	r := newPayRig(t)
	b := r.buyer("/lease")
	p := b.depositing(b.next(), 100_000)
	lease, rec := b.streamed(b.keyed(p, "one"))
	charged, spent := b.charged, b.kept().Spent
	b.charged = 0
	lease2, rec2 := b.streamed(b.keyed(p, "one"))
	if lease2.LeaseID != lease.LeaseID || rec2.Record != rec.Record || b.charged != charged {
		t.Errorf("another stream: %+v, charged %d after %d", lease2, b.charged, charged)
	}
	if after := b.kept(); after.Spent != spent && r.provider.leases.Running(b.terms.ID()) == nil {
		t.Errorf("spent %s after %s", after.Spent.Dec(), spent.Dec())
	}
}

// meteredRig is a rig that serves a handler by the GPU time that it runs.
func meteredRig(t *testing.T, route Route, h http.HandlerFunc, change ...func(*Config)) (*payRig, *buyer) {
	t.Helper()
	r := newPayRig(t, change...)
	route.Devices = []string{r.provider.leases.Offered.Devices[0].UUID}
	remeter(t, r, route, h)
	return r, r.buyer("/infer")
}

// remeter serves a metered route beside the provider's own.
func remeter(t *testing.T, r *payRig, route Route, h http.HandlerFunc) {
	t.Helper()
	handler, err := r.provider.Metered(route, h)
	if err != nil {
		t.Fatal(err)
	}
	r.server.Close()
	mux := http.NewServeMux()
	mux.Handle("/", r.provider)
	mux.Handle("/infer", handler)
	r.server = httptest.NewServer(mux)
}

// TestMeteredChargesWhatWasUsed: and an equal request is answered and not
// charged, nor run, again.
func TestMeteredChargesWhatWasUsed(t *testing.T) {
	runs := 0
	r, b := meteredRig(t, Route{MaxTime: 5 * time.Second}, func(w http.ResponseWriter, req *http.Request) {
		runs++
		body, _ := io.ReadAll(req.Body)
		testclock.Sleep(300 * time.Millisecond)
		w.Header().Set("X-Model", "m1")
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, "run %d: %s", runs, body)
	})
	post := func(p *x402.PaymentPayload, body string) (*http.Response, string) {
		req, err := http.NewRequestWithContext(t.Context(), "POST", r.server.URL+"/infer", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = headerOf(t, p)
		req.Header.Set("Idempotency-Key", "the same")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return resp, string(text)
	}
	first := b.depositing(b.next(), 100_000)
	for range 2 {
		resp, text := post(first, "prompt")
		receipt, err := x402.ParseSettleResponse(resp.Header)
		if err != nil || resp.StatusCode != http.StatusCreated || text != "run 1: prompt" || resp.Header.Get("X-Model") != "m1" {
			t.Fatalf("%s %q %v", resp.Status, text, err)
		}
		b.charged = receipt.ChargedAmount.Uint64()
		if kept := b.kept(); b.charged < 50 || // a loaded machine takes its first reading late
			b.charged > 4000 || kept.Spent.Uint64() != b.charged {
			t.Errorf("300 ms were charged %d, the channel %s", b.charged, kept.Spent.Dec())
		}
	}
	resp, text := post(b.payment(b.next()), "other")
	if resp.StatusCode != http.StatusCreated || text != "run 2: other" {
		t.Errorf("%s %q", resp.Status, text)
	}
	if resp, text := post(first, "changed"); resp.StatusCode != http.StatusPaymentRequired {
		t.Errorf("an old voucher with another body: %s %q", resp.Status, text)
	}
	if r.provider.leases.Running(b.terms.ID()) != nil || runs != 2 {
		t.Errorf("%d runs, or a lease goes on", runs)
	}
	if err := r.provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if used, on := b.used(), b.on().View; on.Settled != used {
		t.Errorf("claimed %s, charged %s", on.Settled.Dec(), used.Dec())
	}
	kept := b.kept()
	b.charged = kept.Spent.Uint64()
	b.refund(0)
}

// TestMeteredStopsWithItsMoney: the handler's context ends with the time that
// was paid for, and no more than the ceiling is charged.
func TestMeteredStopsWithItsMoney(t *testing.T) {
	_, b := meteredRig(t, Route{MaxTime: 200 * time.Millisecond}, func(w http.ResponseWriter, req *http.Request) {
		<-req.Context().Done()
		w.WriteHeader(http.StatusGatewayTimeout)
	})
	amount := b.accept().Amount.Int
	resp := b.pay(b.depositing(b.next(), 100_000))
	receipt, err := x402.ParseSettleResponse(resp.Header)
	if err != nil || resp.StatusCode != http.StatusGatewayTimeout || !receipt.ChargedAmount.Lt(&amount) || receipt.ChargedAmount.Uint64() < 150 {
		t.Errorf("%s: %+v of %s, %v", resp.Status, receipt.ChargedAmount, amount.Dec(), err)
	}
}

// TestMeteredStream: the receipt first, each write at once, and credit for what
// was not used.
func TestMeteredStream(t *testing.T) {
	step := make(chan struct{})
	_, b := meteredRig(t, Route{MaxTime: 10 * time.Second, Streamed: true}, func(w http.ResponseWriter, req *http.Request) {
		fmt.Fprint(w, "one ")
		testclock.Sleep(100 * time.Millisecond) // two readings, at least
		select {
		case <-step:
		case <-req.Context().Done():
		}
		fmt.Fprint(w, "two")
	})
	resp := b.pay(b.depositing(b.next(), 100_000))
	receipt, err := x402.ParseSettleResponse(resp.Header)
	if err != nil {
		t.Fatal(err)
	}
	one := make([]byte, 4)
	if _, err := io.ReadFull(resp.Body, one); err != nil || string(one) != "one " {
		t.Fatalf("%q %v", one, err)
	}
	close(step)
	rest, err := io.ReadAll(resp.Body)
	if err != nil || string(rest) != "two" {
		t.Errorf("%q %v", rest, err)
	}
	b.charged = receipt.ChargedAmount.Uint64()
	eventually(t, "the charge is written", func() bool { kept := b.kept(); return !kept.Spent.IsZero() })
	if kept := b.kept(); kept.Spent.Uint64() >= b.charged {
		t.Fatalf("used %s, told %d", kept.Spent.Dec(), b.charged)
	}
	// The next one is paid by the credit, so far as it reaches.
	resp = b.pay(b.payment(b.next()))
	next, err := x402.ParseSettleResponse(resp.Header)
	if err != nil || next.ChargedAmount.Uint64() >= b.charged {
		t.Errorf("%s: %+v %v", resp.Status, next.ChargedAmount, err)
	}
}

// TestMeteredHandlerThatFails: a panic and an answer that is too long are told,
// and what was metered is charged.
func TestMeteredHandlerThatFails(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]http.HandlerFunc{
		"panic":    func(http.ResponseWriter, *http.Request) { panic("broken") },
		"too long": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 2000)) },
	} {
		t.Run(name, func(t *testing.T) {
			_, b := meteredRig(t, Route{MaxTime: time.Second}, h, func(c *Config) { c.X402.MaxReply = 1000 })
			resp := b.pay(b.depositing(b.next(), 100_000))
			receipt, err := x402.ParseSettleResponse(resp.Header)
			problem := wire.ParseProblem(resp)
			if err != nil || resp.StatusCode != http.StatusInternalServerError || receipt.ChargedAmount == nil || !strings.Contains(problem.Detail, "charged") {
				t.Errorf("%s %v, %+v %v", resp.Status, problem, receipt, err)
			}
		})
	}
}

// TestNothingMeteredNothingCharged: a request whose GPU cannot be read is
// answered all the same, with a record that says so, for nothing.
func TestNothingMeteredNothingCharged(t *testing.T) {
	source := testclock.GPUs(1)
	r := newPayRig(t, func(c *Config) { c.Source = source })
	b := r.buyer("/tick")
	b.open(20_000)
	source.Inject(sim.Fault{Kind: sim.Lost, Device: 0, For: time.Hour})
	for range 3 { // what was metered before it was lost, then nothing
		if tick := b.again(); tick.ChargedAmount.IsZero() && tick.Record != nil {
			return
		}
	}
	t.Error("time was charged that was not metered")
}

// TestLeaseStopsWithoutThePayer: who does not come again is served for the
// slack, and no more; then its next request goes on with the same lease.
func TestLeaseStopsWithoutThePayer(t *testing.T) {
	r := newPayRig(t)
	b := r.buyer("/tick")
	first := b.open(20_000)
	eventually(t, "the lease is suspended", func() bool { return r.provider.Service(b.terms.ID()) == wire.StateSuspended })
	stopped := b.kept()
	if stopped.Spent.Gt(&stopped.Accepted) || stopped.Spent.Uint64() <= b.charged {
		t.Errorf("used %s under a voucher over %s, %d were told", stopped.Spent.Dec(), stopped.Accepted.Dec(), b.charged)
	}
	time.Sleep(5 * testSlack)
	if now := b.kept(); now.Spent != stopped.Spent {
		t.Errorf("a lease that stopped went on to charge: %s, then %s", stopped.Spent.Dec(), now.Spent.Dec())
	}
	b.corrected(b.pay(b.payment(b.next()))) // the slack was used
	if next := b.again(); next.LeaseID != first.LeaseID {
		t.Errorf("another lease: %s", next.LeaseID)
	}
}

// TestRefundGivesCreditBack: what a stream was charged and did not use goes back
// with the rest, and a client that reads the chain is right about its base.
func TestRefundGivesCreditBack(t *testing.T) {
	_, b := meteredRig(t, Route{MaxTime: 10 * time.Second, Streamed: true}, func(w http.ResponseWriter, _ *http.Request) {
		testclock.Sleep(100 * time.Millisecond)
		fmt.Fprint(w, "done")
	})
	resp := b.pay(b.depositing(b.next(), 100_000))
	receipt, err := x402.ParseSettleResponse(resp.Header)
	if _, failed := io.ReadAll(resp.Body); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	b.charged = receipt.ChargedAmount.Uint64()
	b.refund(0)
	on, used := b.on().View, b.used()
	if on.Settled != used || used.Uint64() >= b.charged || on.Deposit != used {
		t.Fatalf("the contract says %+v, used %s, told %d", on, used.Dec(), b.charged)
	}
	b.charged = used.Uint64() // as a client without a record takes it
	if resp := b.pay(b.depositing(b.next(), 100_000)); resp.StatusCode != http.StatusOK {
		t.Errorf("%s", resp.Status)
	}
}
