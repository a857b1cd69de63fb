package paystream

import (
	"context"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/rental"
)

// TestFoundOpen: a request that ran when its process died ended when that would have ended it, or when the next process began if that was
// earlier: by the wall clock after a reboot.
func TestFoundOpen(t *testing.T) {
	m := newMarket(t, openWallet(t), 1, 1, 0)
	l := m.leases[0]
	begin := func(limit time.Duration) uint64 {
		ctx := t.Context()
		if limit > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		id, err := l.Requests.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	short, long, open := begin(10*time.Second), begin(time.Hour), begin(0)
	m.clock.Advance(time.Minute)
	for _, reboot := range []bool{false, true} {
		next := newRequests(&l.Ledger, m.clock)
		if reboot {
			next.epoch++
		}
		known, err := next.known(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for id, want := range map[uint64]time.Duration{short: 10 * time.Second, long: time.Minute, open: time.Minute} {
			if took := time.Duration(known[id].To - known[id].From); took > want || took < want-time.Second || known[id].Failed {
				t.Errorf("reboot %t: request %d took %s, want %s", reboot, id, took, want)
			}
		}
	}
}

// TestFailIsKept: that a request failed, which ended as if it were whole, is known to the next process too.
func TestFailIsKept(t *testing.T) {
	m := newMarket(t, openWallet(t), 2, 1, 0)
	l := m.leases[0]
	id, err := l.Requests.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m.clock.Advance(time.Second)
	l.Requests.End(id, rental.Done)
	l.Requests.Fail(id)
	next := newRequests(&l.Ledger, m.clock)
	for name, q := range map[string]*Requests{"this process": l.Requests, "the next": next} {
		if known, err := q.known(t.Context(), nil); err != nil || !known[id].Failed || q.cutOff(id) {
			t.Errorf("%s: %+v, %v", name, known[id], err)
		}
	}
}

// TestForgottenFailure: what is known of a request, that it failed included, is forgotten with it: a rental of months keeps no list of them.
func TestForgottenFailure(t *testing.T) {
	m := newMarket(t, openWallet(t), 2, 1, 0)
	l := m.leases[0]
	m.begin(l)
	m.pass(tick)
	m.end(l, metering.RequestFailed)
	for _, id := range l.broken {
		l.Requests.End(id, rental.Errored)
	}
	if len(l.Requests.errored) != 1 {
		t.Fatalf("%d failed", len(l.Requests.errored))
	}
	for range 5 {
		m.pass(folded)
		if err := m.record(l); err != nil {
			t.Fatal(err)
		}
	}
	if len(l.Requests.own)+len(l.Requests.errored) > 0 {
		t.Errorf("%d requests are kept, %d failures", len(l.Requests.own), len(l.Requests.errored))
	}
}
