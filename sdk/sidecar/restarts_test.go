package sidecar_test

import (
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/sidecar"
)

// refusesToPay waits for a renter to refuse what it must not pay, and fails the test if that is paid.
func (g *guest) refusesToPay() {
	g.Helper()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		select {
		case err := <-g.ran:
			if err == nil || !strings.Contains(err.Error(), "too much") {
				g.Errorf("Run: %v", err)
			}
			return
		default:
		}
		if view := g.rental.Snapshot(); !view.Paid.IsZero() {
			g.Errorf("%s base units are paid", view.Paid.Dec())
			return
		}
	}
	g.Errorf("it is neither refused nor paid: %+v", g.rental.Snapshot())
}

// TestEndsOutliveARestart: what a renter saw fail has failed also after it was started anew, and what took a moment is not billed until then.
func TestEndsOutliveARestart(t *testing.T) {
	t.Parallel()
	for name, status := range map[string]int{"failed": http.StatusInternalServerError, "short": http.StatusOK} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t, func(c *sidecar.Config) { c.Provider.Terms.Credit = 30 * time.Second })
			held := make(chan *provider.Request, 1)
			s.cheat(func(w http.ResponseWriter, request *provider.Request) {
				w.WriteHeader(status)
				_, _ = io.WriteString(w, "{}")
				held <- request
			})
			g := s.guest(renter.Options{})
			if got, _, _, err := g.post(t.Context(), ask{}); err != nil || got != status {
				t.Fatal(got, err)
			}
			g.stop()
			<-g.ran
			time.Sleep(5 * time.Second) // the renter is away: it could be hours
			g.reopen(s)
			(<-held).End(metering.RequestDone, time.Now())
			g.refusesToPay()
		})
	}
}

// rebooted is the clock of a host that may be rebooted: its monotonic clocks begin anew, its wall clock is right.
type rebooted struct {
	metering.Clock
	by atomic.Int64
}

func (c *rebooted) Now() metering.Instant {
	at := c.Clock.Now()
	at.Boot, at.Mono = at.Boot-c.by.Load(), at.Mono-c.by.Load()
	return at
}

func (c *rebooted) BootID() string {
	if c.by.Load() != 0 {
		return "second"
	}
	return "first"
}

// TestRenterThatIsRebooted: what it sent before no record has named yet is paid all the same, and no honest provider is accused.
func TestRenterThatIsRebooted(t *testing.T) {
	s := newShop(t, func(c *sidecar.Config) { c.Provider.Share.Slots, c.Provider.Terms.Credit = 1, 30*time.Second })
	clock := &rebooted{Clock: metering.System}
	g := s.guest(renter.Options{})
	if err := g.client.Close(); err != nil { // the same renter, on that clock
		t.Fatal(err)
	}
	g.config.Clock = clock
	g.reopen(s)
	g.stop()
	<-g.ran // no record is heard of
	g.must(4000)
	clock.by.Store(clock.Now().Boot - int64(20*time.Second))
	g.reopen(s)
	g.accusesNobody(3500)
	if paid := g.close(s.chain); paid < 3500 {
		t.Errorf("%d are paid of 4000", paid)
	}
}

// TestFailureIsNoLimit: an answer that is an error has failed, however much is unpaid and however small the deposit: no limit was reached.
func TestFailureIsNoLimit(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		credit  time.Duration
		deposit string
		restart bool
	}{
		"half of the credit":                             {credit: 8 * time.Second, deposit: "1.00"},
		"a deposit of less than a quarter of the credit": {credit: time.Minute, deposit: "0.01"},
		"a renter that is started anew":                  {credit: 8 * time.Second, deposit: "1.00", restart: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t, func(s *sidecar.Config) { s.Provider.Share.Slots, s.Provider.Terms.Credit = 1, c.credit })
			held := make(chan *provider.Request, 1)
			s.cheat(func(w http.ResponseWriter, request *provider.Request) {
				time.Sleep(3500 * time.Millisecond)
				http.Error(w, "out of memory", http.StatusInternalServerError)
				held <- request
			})
			g := s.guest(renter.Options{Deposit: c.deposit})
			if status, _, _, err := g.post(t.Context(), ask{}); err != nil || status != http.StatusInternalServerError {
				t.Fatal(status, err)
			}
			if c.restart {
				g.stop()
				<-g.ran
				g.reopen(s)
			}
			(<-held).End(metering.RequestLimit, time.Now())
			g.refusesToPay()
		})
	}
}
