package admit

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/gpupay/gpupay/sdk/limit"
	"github.com/gpupay/gpupay/sdk/wire"
)

func from(address string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/lease", nil)
	r.RemoteAddr = address
	return r
}

// usual fills in what a test does not say.
func usual(l Limits) Limits {
	l.ClientIP = func(r *http.Request) string { return r.RemoteAddr }
	l.Challenges = cmp.Or(l.Challenges, limit.Rate{PerSecond: 10, Burst: 100})
	l.Deposits = cmp.Or(l.Deposits, limit.Rate{PerSecond: 0.5, Burst: 20})
	l.Pending, l.Unmined, l.Clients = cmp.Or(l.Pending, 256), cmp.Or(l.Unmined, 32), cmp.Or(l.Clients, 10_000)
	return l
}

func TestLimitsAreEachClientsOwn(t *testing.T) {
	l := NewLimiter(usual(Limits{Challenges: limit.Rate{PerSecond: 1e-6, Burst: 3}, Deposits: limit.Rate{PerSecond: 1e-6, Burst: 2}}))
	for _, address := range []string{"192.0.2.1:1", "192.0.2.2:1"} {
		for i := range 5 {
			if got, want := l.Challenge(from(address)), i < 3; got != want {
				t.Errorf("%s: challenge %d: %v", address, i, got)
			}
			a, err := l.Deposit(from(address))
			if want := i < 2; (err == nil) != want {
				t.Errorf("%s: deposit %d: %v", address, i, err)
			}
			if err == nil {
				a.Release()
			} else if !errors.Is(err, &wire.TooMany) {
				t.Errorf("refused with %v", err)
			}
		}
	}
	for range 1000 {
		if !l.Challenge(from("127.0.0.1:1")) {
			t.Fatal("a proxy's clients share one client's limit")
		}
	}
}

func TestNegativeRateIsNoLimit(t *testing.T) {
	l := NewLimiter(usual(Limits{Challenges: limit.Rate{PerSecond: -1}}))
	for range 1000 {
		if !l.Challenge(from("192.0.2.1:1")) {
			t.Fatal("refused")
		}
	}
}

// The bounds that all share hold for clients of no address too, and no client
// can take all of them.
func TestPendingIsShared(t *testing.T) {
	l := NewLimiter(usual(Limits{Pending: 16, Unmined: 8, Deposits: limit.Rate{PerSecond: -1}}))
	var all []*Slot
	for i := range 3 {
		a, err := l.Deposit(from("192.0.2.1:1"))
		if (err == nil) != (i < 2) {
			t.Fatalf("one client, deposit %d: %v", i, err)
		}
		if err == nil {
			all = append(all, a)
		}
	}
	for i, want := range []bool{true, true, false} { // to go on waiting takes no more room
		if got := all[i/2].Wait(); got != want {
			t.Errorf("wait %d of one client: %v; it gets an eighth of 8", i, got)
		}
	}
	for range 14 {
		a, err := l.Deposit(from("127.0.0.1:1"))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, a)
	}
	if _, err := l.Deposit(from("192.0.2.2:1")); !errors.Is(err, &wire.Unavailable) {
		t.Errorf("more than all: %v", err)
	}
	waiting := 0
	for _, a := range all {
		if a.Wait() {
			waiting++
		}
	}
	if waiting != 8 {
		t.Errorf("%d wait, want 8", waiting)
	}
	for _, a := range all {
		a.Release()
	}
	if l.all != (pending{}) {
		t.Errorf("after all have left: %+v", l.all)
	}
}

// What is remembered of clients is bounded, and the one seen longest ago is
// forgotten first.
func TestClientsAreForgotten(t *testing.T) {
	l := NewLimiter(usual(Limits{Clients: 100, Challenges: limit.Rate{PerSecond: 1e-6, Burst: 1}}))
	l.Challenge(from("198.51.100.1:1"))
	for i := range 10_000 {
		l.Challenge(from(fmt.Sprintf("10.0.%d.%d:1", i/256, i%256)))
		if i%50 == 0 && l.Challenge(from("198.51.100.1:1")) {
			t.Fatalf("after %d others a client that stayed was forgotten", i)
		}
	}
	if n := l.Remembered(); n != 100 {
		t.Errorf("%d clients are remembered", n)
	}
}
