package renter_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/chain"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// TestRunAfterSignLeave: once a leave is signed nothing more is paid or topped up, though the deposit runs low and the lease goes
// on. Run says so and ends; the request can be relayed, and the rest comes back.
func TestRunAfterSignLeave(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, func(c *provider.Config) { c.Terms.Credit = 20 * time.Second })
	config := renterrig.Config(t, m, m.Dusty(t))
	relay := m.Relayer(t)
	config.Relay, config.Chain.ClockTolerance = relay, 1000*time.Hour
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "0.25", TopUp: "0.25", PayEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	done := renterrig.Background(t.Context(), l)
	testrig.Eventually(t, "payments", func() bool { s := l.Snapshot(); return s.Paid.Uint64() > 500 || len(done) > 0 })
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
	var dispute *wallet.Dispute
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

// TestReopen: a renter that requested a close, by its own transaction or by who relayed it, takes it back and goes on with
// another lease on the channel, also where it was cut off in between. The first lease is paid to its end, and so is the second.
func TestReopen(t *testing.T) {
	for _, by := range []string{"by itself", "relayed"} {
		t.Run(by, func(t *testing.T) {
			m := testrig.NewMarket(t)
			server := serveProvider(t, m, nil)
			before := m.Tokens(t, m.PayeeAddress())
			config := renterrig.Config(t, m, m.Payer)
			config.Chain.ClockTolerance, config.Patience = 1000*time.Hour, 20*time.Second
			r := renterrig.Open(t, config)
			l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1", PayEvery: 50 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			run, stop := context.WithCancel(t.Context())
			done := renterrig.Background(run, l)
			testrig.Eventually(t, "payments", func() bool { s := l.Snapshot(); return s.Paid.Uint64() > 500 || len(done) > 0 })
			first := l.Snapshot().Lease
			if err := l.Reopen(t.Context()); err != nil || l.Snapshot().Lease != first {
				t.Errorf("a rental that runs: %v", err)
			}
			stop()
			<-done
			requested := func() bool {
				view, err := l.Lease().Escrow.View(t.Context(), l.ID(), nil)
				return err == nil && view.CloseRequestedAt != 0
			}
			if by == "relayed" {
				request, err := l.SignLeave(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if err := l.Reopen(t.Context()); !errors.Is(err, channel.ErrClosing) {
					t.Errorf("a request that anyone can send: %v", err)
				}
				if err := m.Relayer(t).RequestClose(t.Context(), request); err != nil {
					t.Fatal(err)
				}
			} else {
				leaving, cut := context.WithCancel(t.Context())
				left := make(chan error, 1)
				go func() { _, err := l.Leave(leaving); left <- err }()
				testrig.Eventually(t, "the close request", requested)
				cut()
				<-left
			}
			testrig.Eventually(t, "the provider to settle, and end the lease before", func() bool {
				view, err := l.Lease().Escrow.View(t.Context(), l.ID(), nil)
				return err == nil && !view.Settled.IsZero()
			})
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			r = renterrig.Open(t, config)
			if l, err = r.Rental(t.Context(), l.ID()); err != nil {
				t.Fatal(err)
			}
			short, cut := context.WithTimeout(t.Context(), 20*time.Millisecond)
			if err := l.Reopen(short); err == nil {
				t.Log("it was not cut off")
			}
			cut()
			if err := l.Reopen(t.Context()); err != nil {
				t.Fatal(err)
			}
			s := l.Snapshot()
			if s.Lease == first || s.Phase != renter.PhaseRunning || requested() {
				t.Errorf("reopened: %+v", s)
			}
			done = renterrig.Background(t.Context(), l)
			testrig.Eventually(t, "payments again", func() bool { now := l.Snapshot(); return now.Paid.Uint64() > s.Paid.Uint64()+500 || len(done) > 0 })
			c, err := l.Close(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			checkClosing(t, m, c, m.PayerAddress(), before)
			if c.Owed != c.Settled {
				t.Errorf("owed %s, settled %s", c.Owed.Dec(), c.Settled.Dec())
			}
			if err := l.Reopen(t.Context()); !errors.Is(err, channel.ErrFinalized) {
				t.Errorf("a rental that is closed: %v", err)
			}
			if kept, err := r.Evidence(t.Context(), l.ID()); err != nil || len(kept) != 0 {
				t.Errorf("an honest provider is accused: %v, %v", kept, err)
			}
			b, err := r.Export(t.Context(), l.ID())
			if err != nil || len(b.Leases) != 2 || b.Leases[0].ID != first || len(b.Leases[0].Records) == 0 || len(b.Leases[1].Records) == 0 {
				t.Errorf("exported: %d leases, %v", len(b.Leases), err)
			}
			for _, check := range audit.Verify(t.Context(), b, m.Backend) {
				if check.Err != nil {
					t.Errorf("verify: %s: %v", check.Name, check.Err)
				}
			}
		})
	}
}

// TestReopenAwaitsItsRequest: a request to close that was sent and is not mined yet is waited for and taken back. One that came
// later would close what was reopened.
func TestReopenAwaitsItsRequest(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	config := renterrig.Config(t, m, m.Payer)
	config.Patience = 20 * time.Second
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1", PayEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	m.Automine(t, false)
	leaving, cut := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() { _, err := l.Leave(leaving); left <- err }()
	testrig.Eventually(t, "the request to be sent", func() bool {
		sent, err := r.Wallet().Sender.Find(t.Context(), l.ID(), chain.RequestClose)
		return err == nil && len(sent) == 1 && len(sent[0].Attempts) > 0
	})
	cut()
	<-left
	reopened := make(chan error, 1)
	go func() { reopened <- l.Reopen(t.Context()) }()
	select {
	case err := <-reopened:
		t.Errorf("it did not wait: %v", err)
		reopened <- err
	case <-time.After(time.Second):
	}
	m.Automine(t, true)
	m.Mine(t, 1)
	if err := <-reopened; err != nil {
		t.Errorf("Reopen: %v", err)
	}
	if view, err := l.Lease().Escrow.View(t.Context(), l.ID(), nil); err != nil || view.CloseRequestedAt != 0 || l.Snapshot().Phase != renter.PhaseRunning {
		t.Errorf("%+v, %s, %v: want it open", view, l.Snapshot().Phase, err)
	}
}

// mute is a key that signs nothing while its device is away.
type mute struct {
	channel.Signer
	away atomic.Bool
}

func (k *mute) Sign(ctx context.Context, digest common.Hash) ([]byte, error) {
	if k.away.Load() {
		return nil, errors.New("the key's device is away")
	}
	return k.Signer.Sign(ctx, digest)
}

// TestKeyThatIsAway: where the key does not sign, a leave is not signed and says so, and a close leaves the last seconds unpaid and
// says so. Once it signs, both are made, and everything is paid.
func TestKeyThatIsAway(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, func(c *provider.Config) { c.Source = testclock.GPUs(2) })
	before := m.Tokens(t, m.PayeeAddress())
	config, log := renterrig.Config(t, m, m.Payer), &testrig.Log{}
	key := &mute{Signer: config.Key}
	config.Key, config.Log = key, slog.New(slog.NewTextHandler(log, nil))
	r := renterrig.Open(t, config)
	var both []*renter.Rental
	for range 2 {
		l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1"})
		if err != nil {
			t.Fatal(err)
		}
		both = append(both, l)
	}
	testclock.Sleep(300 * time.Millisecond)
	key.away.Store(true)
	if request, err := both[0].SignLeave(t.Context()); err == nil || !strings.Contains(err.Error(), "device is away") || len(request.Signature) != 0 {
		t.Errorf("SignLeave: %+v, %v", request, err)
	}
	if _, err := both[1].Close(t.Context()); err == nil || !strings.Contains(err.Error(), "device is away") {
		t.Errorf("Close: %v", err)
	}
	if !strings.Contains(log.String(), "the lease's last seconds could not be paid") {
		t.Error("the log does not say that the last seconds are not paid")
	}
	key.away.Store(false)
	if _, err := both[0].SignLeave(t.Context()); err != nil {
		t.Error(err)
	}
	c, err := both[1].Close(t.Context())
	if err != nil || c.Settled.IsZero() {
		t.Fatalf("%+v, %v", c, err)
	}
	if got := m.Tokens(t, m.PayeeAddress()) - before; c.Settled != c.Owed || got != c.Settled.Uint64() {
		t.Errorf("owed %s, settled %s, the payee got %d", c.Owed.Dec(), c.Settled.Dec(), got)
	}
}
