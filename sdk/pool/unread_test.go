package pool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/sqlfault"
	"github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/pool"
	"github.com/gpupay/gpupay/sdk/route"
)

// answers has something else than the shop answer its requests.
func (s *shop) answers(requests http.HandlerFunc) {
	s.Server.Close()
	s.Server = rig.Serve(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/chat/completions"):
			requests(out, r)
		case s.dead.Load():
			panic(http.ErrAbortHandler)
		default:
			s.server.Load().ServeHTTP(out, r)
		}
	}))
}

// lies has a shop serve each request as it is changed, and bill that, whoever is there; its client is told something else by tell.
func (s *shop) lies(change string, tell func(out http.ResponseWriter, r *http.Request, served <-chan struct{})) {
	s.answers(func(out http.ResponseWriter, r *http.Request) {
		again := r.Clone(context.WithoutCancel(r.Context()))
		again.Body, again.ContentLength = io.NopCloser(bytes.NewReader([]byte(change))), int64(len(change))
		served := make(chan struct{})
		go func() {
			defer close(served)
			s.server.Load().ServeHTTP(httptest.NewRecorder(), again)
		}()
		out.Header().Set("Gpupay-Request", r.Header.Get("Gpupay-Request"))
		tell(out, r, served)
		<-served
	})
}

// ask1 is a request of the API.
func ask1(t *testing.T) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://api/v1/chat/completions", strings.NewReader(`{"millis":1}`))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestNobodyReads: an answer that nobody reads or closes ends when what was reserved for it is used up: a provider that bills on is not paid.
func TestNobodyReads(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	s := w.shop("360", 4) // 25,000 base units a slot's second
	over := make(chan struct{})
	s.lies(`{"millis":6000}`, func(out http.ResponseWriter, r *http.Request, served <-chan struct{}) {
		out.Header().Set("Content-Type", "text/event-stream")
		for r.Context().Err() == nil { // until it fills what lies between
			if _, err := fmt.Fprintf(out, ": %s\n\n", strings.Repeat("a", 60<<10)); err != nil {
				break
			}
		}
		<-served
		close(over)
	})
	client := w.client()
	p := w.pool(client, nil)
	offer(t, p, s)
	h, err := p.Reserve(t.Context(), "", anyPrice(s.URL), route.Base(50_000)) // two seconds
	if err != nil {
		t.Fatal(err)
	}
	res, err := h.RoundTrip(ask1(t))
	if err != nil {
		t.Fatal(err)
	}
	<-over
	time.Sleep(500 * time.Millisecond) // its record comes
	if _, err := res.Body.Read(make([]byte, 1)); !errors.Is(err, pool.ErrLimit) {
		t.Errorf("the body ended otherwise: %v", err)
	}
	if err := h.Done(t.Context(), route.Base(1)); err != nil {
		t.Error(err)
	}
	if got := counted(t, p); got.Cmp(route.Base(50_000+50_000)) > 0 { // with what is kept aside
		t.Errorf("%s count of 50,000", got)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all := w.settled(client); all > 50_000+50_000 {
		t.Errorf("%d are settled of 50,000", all)
	}
}

// TestCountsItsMost: a request that is ended at its limit is measured for a moment longer, and counts at its most, though no record of it comes.
func TestCountsItsMost(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	s := w.shop("360", 4) // 25,000 base units a slot's second
	s.answers(func(_ http.ResponseWriter, r *http.Request) {
		s.dead.Store(true)
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	p := w.pool(w.client(), nil)
	offer(t, p, s)
	h, err := p.Reserve(t.Context(), "", anyPrice(s.URL), route.Base(25_000)) // a second
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.RoundTrip(ask1(t)); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, pool.ErrLimit) {
		t.Error(err)
	}
	if err := h.Done(t.Context(), route.Nano{}); err != nil {
		t.Error(err)
	}
	if got := counted(t, p); got != route.Base(25_000+50_000) { // with what is kept aside
		t.Errorf("%s count of 25,000", got)
	}
}

// TestEndThatIsNotWritten: a reservation for which nothing was sent is free again, though the disk failed when it was over.
func TestEndThatIsNotWritten(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	s := w.shop("36", 4) // 2500 base units a slot's second
	dir := t.TempDir()
	disk := sqlfault.At(t, dir)
	p := w.pool(w.client(), func(c *pool.Config) { c.File = filepath.Join(dir, "pool.db") })
	offer(t, p, s)
	h, err := p.Reserve(t.Context(), "", anyPrice(s.URL), route.Base(50_000))
	if err != nil {
		t.Fatal(err)
	}
	disk.Arm(true)
	err = h.Done(t.Context(), route.Nano{})
	disk.Arm(false)
	if err == nil {
		t.Error("nothing is said")
	}
	for end := time.Now().Add(10 * time.Second); counted(t, p) != route.Base(5000); time.Sleep(100 * time.Millisecond) { // what is kept aside
		if time.Now().After(end) {
			t.Fatalf("%s count of what was never sent", counted(t, p))
		}
	}
}

// TestFail: what was answered with a failure counts nothing, and a provider that bills it is not paid for it.
func TestFail(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	s := w.shop("360", 4) // 25,000 base units a slot's second
	s.lies(`{"millis":3000}`, func(out http.ResponseWriter, _ *http.Request, _ <-chan struct{}) {
		time.Sleep(2500 * time.Millisecond) // all but what is in the tolerance
		text := `{"error":{"message":"out of memory"}}`
		out.Header().Set("Content-Length", strconv.Itoa(len(text)))
		_, _ = io.WriteString(out, text)
		_ = http.NewResponseController(out).Flush()
	})
	client := w.client()
	p := w.pool(client, nil)
	offer(t, p, s)
	h, err := p.Reserve(t.Context(), "", anyPrice(s.URL), route.Base(200_000))
	if err != nil {
		t.Fatal(err)
	}
	res, err := h.RoundTrip(ask1(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(res.Body); err != nil {
		t.Error(err)
	}
	if err := h.Fail(t.Context()); err != nil {
		t.Error(err)
	}
	if got := counted(t, p); got.Cmp(route.Base(50_000)) > 0 { // what is kept aside
		t.Errorf("%s count of what failed", got)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all := w.settled(client); all > 50_000 {
		t.Errorf("%d are settled of what failed", all)
	}
}

// TestKilledWithinItsLimit: what ran when a process was killed costs no more than was reserved for it, whenever the next one begins.
func TestKilledWithinItsLimit(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	s := w.shop("360", 4) // 25,000 base units a slot's second
	over := make(chan struct{})
	s.lies(`{"millis":6000}`, func(_ http.ResponseWriter, _ *http.Request, served <-chan struct{}) {
		<-served
		close(over)
	})
	w.spawn("limited", s).kill() // two seconds
	<-over
	client := w.client()
	p := w.pool(client, nil)
	offer(t, p, s)
	time.Sleep(500 * time.Millisecond)                                // its record comes
	if got := counted(t, p); got.Cmp(route.Base(50_000+50_000)) > 0 { // with what is kept aside
		t.Errorf("%s count of 50,000", got)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all := w.settled(client); all > 50_000+50_000 {
		t.Errorf("%d are settled of 50,000", all)
	}
}
