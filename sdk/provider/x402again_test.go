package provider

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/internal/x402server"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestFreshProcessIsServedAnew: a client that keeps nothing signs the same voucher
// for each new wish. It is told what was charged and served anew, and not given an
// answer of before.
func TestFreshProcessIsServedAnew(t *testing.T) {
	r := newPayRig(t)
	b := r.buyer("/tick")
	first := b.open(100_000)
	b.idle()
	spent := b.charged
	for range 3 {
		one := b.fresh()
		one.corrected(one.pay(one.payment(one.next())))
		if one.charged < spent {
			t.Fatalf("told %d, charged %d", one.charged, spent)
		}
		tick := one.again()
		if tick.State == wire.StateEnded || string(tick.Access) == "null" || tick.LeaseID == first.LeaseID || tick.ChargedAmount.IsZero() {
			t.Errorf("a new process got %s, access %s, for %s", tick.State, tick.Access, tick.ChargedAmount.Dec())
		}
		spent = one.charged
	}
	b.charged = 0
	kept := b.kept()
	if kept.Spent.Uint64() < spent {
		t.Errorf("told %d, booked %s", spent, kept.Spent.Dec())
	}
}

// lostRig serves a handler that says when it began and waits until it may go on. The answer of a request that lose sends is
// written when written is called.
type lostRig struct {
	*buyer
	runs        atomic.Int64
	began, goOn chan struct{}
	gone, done  chan struct{} // the server sees that lose's connection is cut, and is done with its request
	written     func()        // has what lose's request is answered written, and waits until that is over
}

func newLostRig(t *testing.T) *lostRig {
	l := &lostRig{began: make(chan struct{}, 10), goOn: make(chan struct{}, 10), gone: make(chan struct{}), done: make(chan struct{})}
	var r *payRig
	r, l.buyer = meteredRig(t, Route{MaxTime: 10 * time.Second}, func(w http.ResponseWriter, req *http.Request) {
		n := l.runs.Add(1)
		l.began <- struct{}{}
		<-l.goOn
		testclock.Sleep(20 * time.Millisecond) // so that it costs something
		fmt.Fprintf(w, "run %d", n)
	})
	served, write := r.server.Config.Handler, make(chan struct{})
	l.written = sync.OnceFunc(func() { close(write); <-l.done })
	r.server.Close()
	r.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("X-Lose") != "" {
			context.AfterFunc(req.Context(), func() { close(l.gone) })
			w = heldWriter{w, write}
			defer close(l.done)
		}
		served.ServeHTTP(w, req)
	}))
	return l
}

// heldWriter begins an answer when it is told to.
type heldWriter struct {
	http.ResponseWriter
	write <-chan struct{}
}

func (w heldWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w heldWriter) WriteHeader(status int) {
	<-w.write
	w.ResponseWriter.WriteHeader(status)
}

// lose sends a request, once, and cuts its connection while it is served.
func (b *lostRig) lose(header http.Header) {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", b.server.URL+b.path, nil)
	if err != nil {
		b.Fatal(err)
	}
	req.Header = header
	req.Header.Set("X-Lose", "1")
	b.Cleanup(b.written)
	cut := make(chan error, 1)
	go func() {
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		cut <- err
	}()
	<-b.began
	cancel()
	if err := <-cut; !errors.Is(err, context.Canceled) {
		b.Fatalf("the request was not cut: %v", err)
	}
	<-b.gone
	b.goOn <- struct{}{}
}

// TestAnswerThatWasLost: it is had again for nothing by the same request, soon, and
// once; later only with an idempotency key. That an answer cannot be written counts once: its connection may hang long after
// the answer was had again.
func TestAnswerThatWasLost(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		key   string
		later time.Duration
		again bool
	}{
		{"soon", "", 0, true},
		{"long after", "", 30 * time.Second, false},
		{"long after, with a key", "k", 30 * time.Second, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newLostRig(t)
			p := b.depositing(b.next(), 100_000)
			header := headerOf(t, p)
			if c.key != "" {
				header.Set("Idempotency-Key", c.key)
			}
			b.lose(header.Clone())
			eventually(t, "it was noted as lost", func() bool { return b.noted(t, "answered_at > 0 AND broken = 1") })
			b.age(t, c.later)
			b.goOn <- struct{}{}
			if !c.again {
				b.written()
			}
			resp := b.send("GET", b.path, header)
			if !c.again {
				if b.corrected(resp); b.runs.Load() != 1 {
					t.Errorf("%d runs", b.runs.Load())
				}
				return
			}
			kept := b.kept()
			if b.take(resp); b.runs.Load() != 1 || kept.Spent.Uint64() != b.charged || b.kept().Spent != kept.Spent {
				t.Errorf("%d runs, charged %d of %s", b.runs.Load(), b.charged, kept.Spent.Dec())
			}
			if c.key == "" { // that was its answer: another is another wish
				b.written()
				b.fresh().corrected(b.send("GET", b.path, header))
			}
		})
	}
}

// TestKeysTellRequestsApart: an answer is had again with its own key only.
func TestKeysTellRequestsApart(t *testing.T) {
	b := newLostRig(t)
	for range 3 {
		b.goOn <- struct{}{}
	}
	p := b.depositing(b.next(), 100_000)
	b.take(b.keyed(p, "one"))
	b.fresh().take(b.keyed(p, "one"))
	b.fresh().corrected(b.keyed(p, "two"))
	b.fresh().corrected(b.pay(p))
	if b.runs.Load() != 1 {
		t.Errorf("%d runs", b.runs.Load())
	}
	if resp := b.keyed(p, strings.Repeat("x", x402server.MaxIdempotencyKey+1)); resp.StatusCode == http.StatusOK {
		t.Errorf("a key of any length: %s", resp.Status)
	}
}

// TestPublicVoucherNeedsASecretKey: an answer whose voucher was claimed is had again with the key that it was asked for with, if
// nobody guesses that; not without one, nor with another.
func TestPublicVoucherNeedsASecretKey(t *testing.T) {
	r := newPayRig(t)
	b := r.buyer("/tick")
	secret := strings.Repeat("s", 22)
	b.open(100_000)
	b.idle()
	for _, c := range []struct {
		key, again string
		answered   bool
	}{
		{secret, secret, true}, {secret, secret + "t", false}, {secret, "", false}, {secret[1:], secret[1:], false},
	} {
		p := b.payment(b.next())
		before := b.charged
		b.take(b.keyed(p, c.key))
		b.idle()
		if err := r.provider.Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		used, again := b.kept().Spent, *b
		again.charged = before
		if resp := again.keyed(p, c.again); c.answered {
			again.take(resp)
		} else {
			again.refused(resp)
		}
		if kept := b.kept(); kept.Spent != used {
			t.Errorf("key %q after %q was charged: %s after %s", c.again, c.key, kept.Spent.Dec(), used.Dec())
		}
	}
}

// noted reports whether a request of the channel is noted so.
func (b *buyer) noted(t *testing.T, where string) bool {
	t.Helper()
	var n int
	db := b.provider.db.View()
	if err := db.GetContext(t.Context(), &n, db.Rebind(`SELECT COUNT(*) FROM x402_requests WHERE channel = ? AND `+where), b.terms.ID().Hex()); err != nil {
		t.Fatal(err)
	}
	return n > 0
}

// age makes what is noted of requests older.
func (b *buyer) age(t *testing.T, by time.Duration) {
	t.Helper()
	if err := b.provider.db.Update(t.Context(), func(tx *sqlx.Tx) error {
		_, err := tx.Exec(tx.Rebind(`UPDATE x402_requests SET answered_at = answered_at - ?, created_at = created_at - ?`), by.Milliseconds(), by.Milliseconds())
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// TestLostAnswerAfterAClockWasSetBack: what is noted of a request is not forgotten before what was noted under a clock that
// was ahead: its answer is had again for nothing.
func TestLostAnswerAfterAClockWasSetBack(t *testing.T) {
	r := newPayRig(t)
	b := r.buyer("/tick")
	b.open(100_000)
	for _, key := range []string{"a", "b", "c", "d", "e"} {
		b.idle()
		b.take(b.keyed(b.payment(b.next()), key))
	}
	err := r.provider.db.Update(t.Context(), func(tx *sqlx.Tx) error { // as they stand where they were written an hour ahead
		_, err := tx.Exec(`UPDATE x402_requests SET created_at = created_at + 3600000`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	b.idle()
	p := b.payment(b.next())
	b.take(b.keyed(p, "late"))
	b.idle()
	used := b.kept().Spent
	if again := b.keyed(p, "late"); again.StatusCode != http.StatusOK {
		t.Errorf("an answer that got lost must be paid once more: %s", again.Status)
	}
	if kept := b.kept(); kept.Spent != used {
		t.Errorf("charged %s for an answer that got lost, before %s", kept.Spent.Dec(), used.Dec())
	}
}
