package sdk

import (
	"errors"
	"testing"
	"time"

	"github.com/gpupay/gpupay/channel"
)

// TestRunAfterSignLeave: once a leave is signed nothing more is paid or topped up, though the deposit runs low and the lease goes
// on. Run says so and ends; the request can be relayed, and the rest comes back.
func TestRunAfterSignLeave(t *testing.T) {
	m := newMarket(t)
	server := m.provider(t, func(c *ProviderConfig) { c.Credit = 20 * time.Second })
	config := m.renterConfig(t, m.dusty(t))
	relay := relayer(t, m)
	config.Relay, config.ClockOff = relay, 1000*time.Hour
	r := openRenter(t, config)
	l, err := r.Rent(t.Context(), server.URL, RentOptions{Deposit: "0.25", TopUp: "0.25", PayEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	done := background(t.Context(), l)
	eventually(t, "payments", func() bool { s := l.Snapshot(); return s.Paid.Uint64() > 500 || len(done) > 0 })
	request, err := l.SignLeave(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	paid := l.Snapshot().Paid
	select {
	case err = <-done:
	case <-time.After(time.Minute):
		t.Fatal("Run goes on")
	}
	var dispute *Dispute
	if !errors.Is(err, channel.ErrClosing) || errors.As(err, &dispute) {
		t.Errorf("Run: %v", err)
	}
	if err := l.Run(t.Context()); !errors.Is(err, channel.ErrClosing) {
		t.Errorf("Run again: %v", err)
	}
	if s := l.Snapshot(); s.Paid != paid && s.Paid.Gt(&paid) {
		t.Errorf("%s is signed for after the leave was, %s before", s.Paid.Dec(), paid.Dec())
	}
	if err := relay.RequestClose(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	c := leave(t, m, l)
	checkRefund(t, m, c, r.Address())
}
