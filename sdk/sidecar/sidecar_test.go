package sidecar_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/sidecar"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestTwoRentersShareOneGPU: each pays a third of the GPU for the time of its requests, by its own clock at most, to the base unit on the
// chain, and both together no more than the GPU.
func TestTwoRentersShareOneGPU(t *testing.T) {
	s := newShop(t)
	began := time.Now()
	guests := []*guest{s.guest(renter.Options{}), s.guest(renter.Options{})}
	took := make([]time.Duration, len(guests))
	var wait sync.WaitGroup
	for i, g := range guests {
		wait.Add(1)
		go func() {
			defer wait.Done()
			for _, millis := range []int{700, 300, 1100} {
				took[i] += g.must(millis)
			}
		}()
	}
	wait.Wait()
	var all uint64
	for i, g := range guests {
		paid := g.close(s.chain)
		most, least := uint64(took[i].Seconds()*price/3)+1, uint64(2.1*price/3)
		if paid > most || paid < least*95/100 {
			t.Errorf("renter %d paid %d, its requests took %s: %d at most, and %d by what it asked for", i, paid, took[i], most, least)
		}
		all += paid
	}
	if most := uint64(time.Since(began).Seconds() * price); all > most {
		t.Errorf("both paid %d for a GPU that costs %d", all, most)
	}
}

// TestSlotsAreLimited: a request more than there are slots waits for a second at most, for nothing, and is told to ask again.
func TestSlotsAreLimited(t *testing.T) {
	s := newShop(t, func(c *sidecar.Config) { c.Provider.Share.Slots, c.Provider.Terms.Credit = 2, 30*time.Second })
	g := s.guest(renter.Options{})
	var wait sync.WaitGroup
	for range 2 {
		wait.Add(1)
		go func() { defer wait.Done(); g.must(3000) }()
	}
	rig.Eventually(t, "two that run", func() bool { return s.engine.running.Load() == 2 })
	began := time.Now()
	status, text, _, err := g.post(t.Context(), ask{Millis: 10})
	if waited := time.Since(began); err != nil || status != http.StatusTooManyRequests || waited < 900*time.Millisecond || waited > 1900*time.Millisecond {
		t.Errorf("the third one after %s: %d %s, %v", waited, status, text, err)
	}
	time.Sleep(1200 * time.Millisecond)
	took := g.must(10) // it waits until one of the others is over
	wait.Wait()
	if took < 100*time.Millisecond {
		t.Errorf("it took %s", took)
	}
	g.close(s.chain)
	all := s.requests(g.rental.ID())
	if len(all) != 3 {
		t.Errorf("%d requests are recorded", len(all))
	}
	if short := all[4]; time.Duration(short.Nanos) > took-50*time.Millisecond {
		t.Errorf("what waited is billed %s of %s", time.Duration(short.Nanos), took)
	}
}

// TestAbortIsBilledToTheAbort: who leaves pays for what it had until then, and its slot is free.
func TestAbortIsBilledToTheAbort(t *testing.T) {
	s := newShop(t, func(c *sidecar.Config) { c.Provider.Share.Slots = 1 })
	g := s.guest(renter.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 600*time.Millisecond)
	defer cancel()
	_, _, took, err := g.post(ctx, ask{Millis: 10_000})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	g.must(10)
	paid := g.close(s.chain)
	r := s.requests(g.rental.ID())[1]
	if nanos := time.Duration(r.Nanos); r.Outcome != metering.RequestAborted || nanos < 400*time.Millisecond || nanos > took+100*time.Millisecond {
		t.Errorf("%+v after %s", r, took)
	}
	if paid == 0 {
		t.Error("nothing is paid")
	}
}

// TestCreditIsReachedWithinOneRequest: it is cut off there, billed to there, and can be paid: then the next one is served.
func TestCreditIsReachedWithinOneRequest(t *testing.T) {
	s := newShop(t, func(c *sidecar.Config) { c.Provider.Share.Slots, c.Provider.Terms.Credit = 1, 4*time.Second })
	g := s.guest(renter.Options{PayEvery: time.Hour})
	_, _, took, err := g.post(t.Context(), ask{Millis: 20_000})
	if err == nil || took > 4500*time.Millisecond || took < 3*time.Second {
		t.Errorf("it is served for %s: %v", took, err)
	}
	g.must(300)
	paid := g.close(s.chain)
	all := s.requests(g.rental.ID())
	if r := all[1]; r.Outcome != metering.RequestLimit || time.Duration(r.Nanos) < took/2 || time.Duration(r.Nanos) > took {
		t.Errorf("%+v after %s", r, took)
	}
	var nanos int64
	for _, r := range all {
		nanos += r.Nanos
	}
	if want := uint64(nanos / 1e6); paid != want {
		t.Errorf("%d are paid for %d ns, and not %d", paid, nanos, want)
	}
	if s := g.rental.Snapshot(); s.Phase != renter.PhaseClosed {
		t.Errorf("the rental is %s", s.Phase)
	}
}

// TestUnpaidIsToldWhatToPay: a client whose renter does not pay is told what is missing, and is served once that is paid.
func TestUnpaidIsToldWhatToPay(t *testing.T) {
	s := newShop(t, func(c *sidecar.Config) { c.Provider.Share.Slots, c.Provider.Terms.Credit = 1, time.Second })
	g := s.guest(renter.Options{PayEvery: time.Hour})
	g.stop()
	<-g.ran
	_, _, _, _ = g.post(t.Context(), ask{Millis: 8000})
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	status, text, _, err := g.post(ctx, ask{Millis: 10})
	var problem wire.Problem
	if json.Unmarshal([]byte(text), &problem) != nil && !errors.Is(err, context.DeadlineExceeded) || err == nil && (status != http.StatusPaymentRequired || problem.Needs == nil) {
		t.Fatalf("%d %s: %v", status, text, err)
	}
	if err == nil {
		if n := problem.Needs; n.ChannelID != g.rental.ID() || n.AcceptedCumulative.Sign() != 0 || n.RequiredCumulative.LtUint64(500) || n.RequiredCumulative.GtUint64(1200) {
			t.Errorf("it needs %s", text)
		}
	}
	g.run()
	g.must(10)
	g.close(s.chain)
}

// TestRestartInTheMiddle: a provider is killed while a request runs, and goes on from its disk. What no record states is not billed, and
// nothing twice; the lease goes on with its token.
func TestRestartInTheMiddle(t *testing.T) {
	s := newShop(t)
	g, other := s.guest(renter.Options{}), s.guest(renter.Options{})
	took := g.must(700)
	rig.Eventually(t, "its record", func() bool { s := g.rental.Snapshot(); return !s.Owed.IsZero() })
	broken := make(chan error, 1)
	go func() {
		_, _, _, err := g.post(t.Context(), ask{Millis: 20_000})
		broken <- err
	}()
	rig.Eventually(t, "one that runs", func() bool { return s.engine.running.Load() == 1 })
	s.kill()
	if err := <-broken; err == nil {
		t.Error("its answer is whole")
	}
	took += g.must(500)
	other.must(10) // its lease goes on beside the other's
	paid := g.close(s.chain)
	all := s.requests(g.rental.ID())
	if least, most := uint64(price*11/30), uint64(took.Seconds()*price/3)+1; paid > most || paid < least { // the engine takes 1.2 s for both
		t.Errorf("%d are paid, %d to %d are right: %+v", paid, least, most, all)
	}
	if r := all[2]; r.Nanos != 0 {
		t.Errorf("what was killed is billed: %+v", r)
	}
}

// TestProviderThatHoldsASlotTooLong: it is not paid that record. The renter says which request and by how much, and keeps the record beside
// what it measured.
func TestProviderThatHoldsASlotTooLong(t *testing.T) {
	s := newShop(t)
	s.cheat(func(w http.ResponseWriter, request *provider.Request) {
		_, _ = io.WriteString(w, "{}")
		time.AfterFunc(3200*time.Millisecond, func() { request.End(metering.RequestDone, time.Now()) })
	})
	g := s.guest(renter.Options{})
	g.must(1)
	var dispute *wallet.Dispute
	if err := <-g.ran; !errors.As(err, &dispute) || !strings.Contains(err.Error(), "request 1 is billed 3.2") || !strings.Contains(err.Error(), "too much") {
		t.Fatalf("Run: %v", err)
	}
	kept, err := g.rental.Evidence(t.Context())
	if err != nil || len(kept) != 1 || !strings.Contains(string(kept[0].Document), `"own":{"1":`) || !strings.Contains(string(kept[0].Document), `"refused":{`) {
		t.Errorf("%v is kept: %v", kept, err)
	}
	if paid := g.rental.Snapshot().Paid; !paid.IsZero() {
		t.Errorf("%s are paid", paid.Dec())
	}
}

// TestWhoMayNotSend: without a token, with one that is nobody's, and where control routes are.
func TestWhoMayNotSend(t *testing.T) {
	s := newShop(t)
	for _, header := range []string{"", "Bearer ", "Bearer gp-00"} {
		r := httptest.NewRequest(http.MethodPost, "/v1/chat/completions", strings.NewReader("{}"))
		r.Header.Set("Authorization", header)
		w := httptest.NewRecorder()
		if s.server.ServeHTTP(w, r); w.Code != http.StatusUnauthorized {
			t.Errorf("%q: %d %s", header, w.Code, w.Body)
		}
	}
	if s.engine.running.Load() != 0 {
		t.Error("the engine was asked")
	}
}

// TestEngineThatIsDown: nothing is rented, nothing billed, and that is said within ten seconds; it goes on when the engine does.
func TestEngineThatIsDown(t *testing.T) {
	s := newShop(t, func(c *sidecar.Config) { c.Provider.Share = provider.Share{Slots: 1} })
	g := s.guest(renter.Options{})
	s.engine.down.Store(true)
	began := time.Now()
	rig.Eventually(t, "that it is down", func() bool {
		status, text, _, _ := g.post(t.Context(), ask{Millis: 1})
		return status == http.StatusServiceUnavailable && strings.Contains(text, "does not work now")
	})
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it is said after %s", took)
	}
	if _, err := g.client.Rent(t.Context(), s.site.URL, renter.Options{Share: true, Deposit: "1.00"}); err == nil {
		t.Error("it is rented")
	}
	if names := s.listed(); len(names) > 0 {
		t.Errorf("it lists %q", names)
	}
	s.engine.down.Store(false)
	rig.Eventually(t, "that it is up", func() bool {
		status, _, _, _ := g.post(t.Context(), ask{Millis: 1})
		return status == http.StatusOK
	})
	rig.Eventually(t, "its models", func() bool { return slices.Equal(s.listed(), []string{"test"}) })
	g.close(s.chain)
}

// TestOwnerIsToldOfADeadEngine: a line in the log when it goes down, with the reason, and one when it works again; health and metrics say
// so meanwhile.
func TestOwnerIsToldOfADeadEngine(t *testing.T) {
	log := new(rig.Log)
	s := newShop(t, func(c *sidecar.Config) { c.Provider.Log = slog.New(slog.NewTextHandler(log, nil)) })
	said := func(status, gauge string) func() bool {
		return func() bool {
			var page [2]string
			for i, handler := range []http.Handler{s.server.Health(), s.server.Metrics()} {
				w := httptest.NewRecorder()
				handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
				if page[i] = w.Body.String(); w.Code != http.StatusOK {
					t.Errorf("%d %s", w.Code, page[i])
				}
			}
			return strings.Contains(page[0], `"status":"`+status) && strings.Contains(page[1], "\ngpupay_upstream_up "+gauge+"\n")
		}
	}
	if models, err := s.server.Ask(t.Context()); err != nil || !slices.Equal(models, []string{"test"}) {
		t.Errorf("it serves %q: %v", models, err)
	}
	rig.Eventually(t, "that it is up", said("ok", "1"))
	s.engine.down.Store(true)
	rig.Eventually(t, "that it is down", said("degraded: nothing is served or rented of the GPUs that are shared: the upstream answers /v1/models with status 503", "0"))
	if _, err := s.server.Ask(t.Context()); err == nil {
		t.Error("it answers")
	}
	s.engine.down.Store(false)
	rig.Eventually(t, "that it is up again", said("ok", "1"))
	rig.Eventually(t, "the log", func() bool { return strings.Contains(log.String(), "works again") })
	if text := log.String(); strings.Count(text, "the inference server is down") != 1 || strings.Count(text, "works again") != 1 || !strings.Contains(text, "status 503") {
		t.Error(text)
	}
}

// TestEngineThatIsDown: nothing: a lease that is over before its GPU is read again is billed all the same.
func TestShortLeasesAreNotFree(t *testing.T) {
	s := newShop(t, func(c *sidecar.Config) {
		c.Provider.Share.Slots, c.Provider.Terms.Credit = 1, 10*time.Second
		c.Provider.Metering.Tick, c.Provider.Metering.MaxGap, c.Provider.Metering.RecordEvery = 2*time.Second, 10*time.Second, 5*time.Second
	})
	g := s.guest(renter.Options{})
	took := g.must(500)
	if paid := g.close(s.chain); paid < 450 || paid > uint64(took.Seconds()*price)+1 {
		t.Errorf("%d are paid for %s", paid, took)
	}
}

// TestChargesAreOnDisk: however far a renter has paid ahead, and however seldom records are made, what no record on disk states is within
// the credit before another request begins: so much, and that request, a provider that is killed loses at most.
func TestChargesAreOnDisk(t *testing.T) {
	s := newShop(t, func(c *sidecar.Config) {
		c.Provider.Share.Slots, c.Provider.Terms.Credit, c.Provider.Metering.RecordEvery = 1, time.Second, time.Minute
	})
	g := s.guest(renter.Options{Prepay: time.Minute})
	const requests, each = 8, 400 * time.Millisecond // and more where the machine is slow, which is then stated too
	for range requests {
		g.must(int(each.Milliseconds()))
	}
	stated := time.Duration(g.stated(s))
	if lost := requests*each - stated; lost > time.Second+each+100*time.Millisecond {
		t.Errorf("%s of %s are on disk: %s would be lost", stated, requests*each, lost)
	}
}

// TestProviderThatBillsAFailure: it is not paid for a request that it failed itself.
func TestProviderThatBillsAFailure(t *testing.T) {
	s := newShop(t)
	s.cheat(func(w http.ResponseWriter, request *provider.Request) {
		time.Sleep(2500 * time.Millisecond)
		http.Error(w, "out of memory", http.StatusInternalServerError)
		request.End(metering.RequestDone, time.Now())
	})
	g := s.guest(renter.Options{})
	if status, _, _, err := g.post(t.Context(), ask{}); err != nil || status != http.StatusInternalServerError {
		t.Fatal(status, err)
	}
	select {
	case err := <-g.ran:
		if err == nil || !strings.Contains(err.Error(), "too much: it failed") {
			t.Errorf("Run: %v", err)
		}
	case <-time.After(15 * time.Second):
		t.Error("it is paid")
	}
}

// TestRenterRestarts: requests that a renter sent before it was started anew are its own still.
func TestRenterRestarts(t *testing.T) {
	s := newShop(t, func(c *sidecar.Config) { c.Provider.Terms.Credit = 30 * time.Second })
	g := s.guest(renter.Options{})
	g.stop()
	<-g.ran // no record is heard of
	g.must(3000)
	g.reopen(s)
	took := 3*time.Second + g.must(200)
	if paid, least := g.close(s.chain), uint64(took.Seconds()*price/3*9/10); paid < least {
		t.Errorf("%d are paid, and not %d", paid, least)
	}
}

// TestLeasesOfAPayerAreBounded: one payer has four that share GPUs, and no deposit is made for a fifth.
func TestLeasesOfAPayerAreBounded(t *testing.T) {
	s := newShop(t, func(c *sidecar.Config) { c.Provider.Share.LeasesPerPayer, c.Provider.Terms.Credit = 2, time.Minute })
	g := s.guest(renter.Options{Gasless: true})
	options := renter.Options{Share: true, Deposit: "1.00", Gasless: true}
	if _, err := g.client.Rent(t.Context(), s.site.URL, options); err != nil {
		t.Fatal(err)
	}
	before := s.balance(g.client.Address())
	if _, err := g.client.Rent(t.Context(), s.site.URL, options); err == nil || !strings.Contains(err.Error(), "2 leases of") {
		t.Errorf("the third: %v", err)
	}
	if after := s.balance(g.client.Address()); after != before {
		t.Errorf("a deposit was made: %s are left of %s", after.Dec(), before.Dec())
	}
	s.guest(renter.Options{}) // of another payer
}

// TestRequestsPerSecond: a lease begins as many requests in a second as its provider allows, with a burst of ten seconds' worth; the next is told when.
func TestRequestsPerSecond(t *testing.T) {
	s := newShop(t, func(c *sidecar.Config) { c.Provider.Share.RequestsPerSecond, c.Provider.Terms.Credit = 1, time.Minute })
	g := s.guest(renter.Options{})
	served, refused := 0, 0
	began := time.Now()
	for refused == 0 && time.Since(began) < 30*time.Second {
		status, text, _, err := g.post(t.Context(), ask{Millis: 1})
		switch {
		case err != nil:
			t.Fatal(err)
		case status == http.StatusOK:
			served++
		case status == http.StatusTooManyRequests && strings.Contains(text, "a second"):
			refused++
		default:
			t.Fatalf("%d %s", status, text)
		}
	}
	took := time.Since(began) // in which one more a second may begin
	if served < 10 || refused == 0 || served > 12+int(took/time.Second) {
		t.Errorf("%d are served and %d refused in %s", served, refused, took)
	}
}
