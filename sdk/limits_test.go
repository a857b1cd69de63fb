package sdk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/limit"
	"github.com/gpupay/gpupay/sdk/wire"
)

func from(address string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/lease", nil)
	r.RemoteAddr = address
	return r
}

func TestLimitsAreEachClientsOwn(t *testing.T) {
	g := newGuard(Limits{Challenges: limit.Rate{PerSecond: 1e-6, Burst: 3}, Deposits: limit.Rate{PerSecond: 1e-6, Burst: 2}}.withDefaults())
	for _, address := range []string{"192.0.2.1:1", "192.0.2.2:1"} {
		for i := range 5 {
			if got, want := g.challenge(from(address)), i < 3; got != want {
				t.Errorf("%s: challenge %d: %v", address, i, got)
			}
			a, err := g.deposit(from(address))
			if want := i < 2; (err == nil) != want {
				t.Errorf("%s: deposit %d: %v", address, i, err)
			}
			if err == nil {
				a.leave()
			} else if !errors.Is(err, &wire.TooMany) {
				t.Errorf("refused with %v", err)
			}
		}
	}
	for range 1000 {
		if !g.challenge(from("127.0.0.1:1")) {
			t.Fatal("a proxy's clients share one client's limit")
		}
	}
}

func TestNegativeRateIsNoLimit(t *testing.T) {
	g := newGuard(Limits{Challenges: limit.Rate{PerSecond: -1}}.withDefaults())
	for range 1000 {
		if !g.challenge(from("192.0.2.1:1")) {
			t.Fatal("refused")
		}
	}
	if err := (Limits{Pending: -1}).withDefaults().check(); err == nil {
		t.Error("a negative Pending is no error")
	}
}

// The bounds that all share hold for clients of no address too, and no client
// can take all of them.
func TestPendingIsShared(t *testing.T) {
	g := newGuard(Limits{Pending: 16, Unmined: 8, Deposits: limit.Rate{PerSecond: -1}}.withDefaults())
	var all []*admission
	for i := range 3 {
		a, err := g.deposit(from("192.0.2.1:1"))
		if (err == nil) != (i < 2) {
			t.Fatalf("one client, deposit %d: %v", i, err)
		}
		if err == nil {
			all = append(all, a)
		}
	}
	for i, want := range []bool{true, true, false} { // to go on waiting takes no more room
		if got := all[i/2].await(); got != want {
			t.Errorf("wait %d of one client: %v; it gets an eighth of 8", i, got)
		}
	}
	for range 14 {
		a, err := g.deposit(from("127.0.0.1:1"))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, a)
	}
	if _, err := g.deposit(from("192.0.2.2:1")); !errors.Is(err, &wire.Unavailable) {
		t.Errorf("more than all: %v", err)
	}
	waiting := 0
	for _, a := range all {
		if a.await() {
			waiting++
		}
	}
	if waiting != 8 {
		t.Errorf("%d wait, want 8", waiting)
	}
	for _, a := range all {
		a.leave()
	}
	if g.all != (pending{}) {
		t.Errorf("after all have left: %+v", g.all)
	}
}

// What is remembered of clients is bounded, and the one seen longest ago is
// forgotten first.
func TestClientsAreForgotten(t *testing.T) {
	g := newGuard(Limits{Clients: 100, Challenges: limit.Rate{PerSecond: 1e-6, Burst: 1}}.withDefaults())
	g.challenge(from("198.51.100.1:1"))
	for i := range 10_000 {
		g.challenge(from(fmt.Sprintf("10.0.%d.%d:1", i/256, i%256)))
		if i%50 == 0 && g.challenge(from("198.51.100.1:1")) {
			t.Fatalf("after %d others a client that stayed was forgotten", i)
		}
	}
	if n := g.clients.Len(); n != 100 {
		t.Errorf("%d clients are remembered", n)
	}
}

// errorsSaid counts what an operator is woken by.
type errorsSaid struct {
	slog.Handler
	count *int
}

func (e errorsSaid) Enabled(context.Context, slog.Level) bool { return true }

func (e errorsSaid) Handle(_ context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		*e.count++
	}
	return nil
}

// TestRefusalsWakeNobody: strangers write nothing into the log that an operator has to read, and what is our own failure
// does stand there.
func TestRefusalsWakeNobody(t *testing.T) {
	said := 0
	p := &Provider{config: ProviderConfig{Log: slog.New(errorsSaid{count: &said})}}
	for range 100 {
		p.problem(wire.TooMany.With("wait"))
		p.problem(channel.ErrSignature)
	}
	if said != 0 {
		t.Errorf("%d lines for refusals", said)
	}
	if p.problem(errors.New("disk on fire")); said != 1 {
		t.Errorf("%d lines for a failure of our own, want one", said)
	}
}
