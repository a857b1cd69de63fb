package renter_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wire"
)

// behindEndpoint is a renter's configuration whose chain is an endpoint that can misbehave.
func behindEndpoint(t *testing.T, m *testrig.Market) (renter.Config, *badrpc.Endpoint) {
	t.Helper()
	bad := badrpc.New(t, m.URL)
	config := renterrig.Config(t, m, m.Payer)
	config.Chain.Backend, config.RPC = nil, bad.URL
	return config, bad
}

// TestParallelRents: several rentals of one renter with coin approve and spend one allowance; none takes what another one
// has approved, and nothing stays approved.
func TestParallelRents(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	rented := make(chan error)
	const n = 3
	for i := range n {
		go func() {
			l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: fmt.Sprintf("0.%d", i+1), PayEvery: 100 * time.Millisecond})
			if err == nil {
				_, err = l.Close(t.Context())
			}
			rented <- err
		}()
	}
	for range n {
		if err := <-rented; err != nil {
			t.Error(err)
		}
	}
	left, err := r.Wallet().Token.Allowance(t.Context(), m.PayerAddress(), m.Escrow)
	if err != nil || !left.IsZero() {
		t.Errorf("%s is still approved (%v)", left.Dec(), err)
	}
}

// TestRentBehindABalancer: an endpoint whose nodes are some blocks apart is rented through, topped up through and closed
// through.
func TestRentBehindABalancer(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	config, bad := behindEndpoint(t, m)
	mining := time.NewTicker(300 * time.Millisecond)
	defer mining.Stop()
	go func() {
		for range mining.C {
			_ = m.Backend.Client().Call(nil, "anvil_mine", "0x1")
		}
	}()
	time.Sleep(time.Second)
	bad.Balance(2)
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "0.01", TopUp: "0.02", PayEvery: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	done := renterrig.Background(t.Context(), l)
	testrig.Eventually(t, "a top-up", func() bool { s := l.Snapshot(); return s.Deposit.Uint64() > 10_000 })
	c, err := l.Close(t.Context())
	if err != nil || c.Owed != c.Settled {
		t.Errorf("owed %s, settled %s: %v", c.Owed.Dec(), c.Settled.Dec(), err)
	}
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// TestProviderWithoutHistory: a provider whose endpoint keeps less state than deposits need confirmations says so at the start.
func TestProviderWithoutHistory(t *testing.T) {
	m := testrig.NewMarket(t)
	m.Mine(t, 20)
	bad := badrpc.New(t, m.URL)
	bad.On("eth_call", func(x *badrpc.Exchange) {
		if !strings.Contains(string(x.Params), "latest") {
			badrpc.Fail(-32000, "missing trie node 0123 (path )")(x)
		}
	})
	_, err := provider.New(t.Context(), provider.Config{
		RPC: bad.URL, Escrow: m.Escrow, Token: m.Token, Key: channel.NewKey(m.Payee), Database: filepath.Join(t.TempDir(), "provider.db"),
		PricePerGPUHour: "3.60", Source: testclock.GPUs(1), Metering: provider.Metering{Clock: testclock.Process()}, Chain: provider.Chain{Confirmations: 12}, Log: slog.New(slog.DiscardHandler),
	})
	if !errors.Is(err, chain.ErrHistory) || strings.Contains(err.Error(), "\n") {
		t.Errorf("want one line about the history, got %v", err)
	}
}

// TestEndpointThatUsedEverything: an endpoint that says of each authorization that it was used already keeps a top-up from
// being made, says so, and holds up nothing else; after it the top-up is made.
func TestEndpointThatUsedEverything(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	config, bad := behindEndpoint(t, m)
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "0.5", TopUp: "0.7", Gasless: true})
	if err != nil {
		t.Fatal(err)
	}
	bad.On("eth_call", word("authorizationState(address,bytes32)", map[int]uint64{1: 1}))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- l.Lease().SkipUsed(ctx, l.Lease().Step()) }()
	testrig.Eventually(t, "an end of that", func() bool { return len(done) > 0 || bad.Count("eth_call") > 1000 })
	if len(done) == 0 {
		t.Fatalf("asked %d times, and goes on", bad.Count("eth_call"))
	}
	if err := <-done; !rental.IsTransient(err) || !strings.Contains(err.Error(), "RPC endpoint says") {
		t.Error(err)
	}
	bad.Heal()
	if err := l.Lease().SkipUsed(t.Context(), l.Lease().Step()); err != nil {
		t.Error(err)
	}
}

// TestSickEndpointEndsNoLease: a top-up fails because the renter's endpoint is sick, and the lease is suspended for longer than
// Patience until the next try: that is not the provider's silence, and the lease goes on. It takes as long as topUpPause.
func TestSickEndpointEndsNoLease(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, func(c *provider.Config) { c.Deposits.Min = "0.003" })
	config, bad := behindEndpoint(t, m)
	log := &testrig.Log{}
	config.Patience, config.Log = 2*time.Second, slog.New(slog.NewTextHandler(log, nil))
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "0.003", TopUp: "0.02", PayEvery: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	bad.On("eth_getBalance", badrpc.Null)
	done := renterrig.Background(t.Context(), l)
	testrig.Eventually(t, "a try to top up", func() bool { return bad.Count("eth_getBalance") > 0 || len(done) > 0 })
	testrig.Eventually(t, "a suspension", func() bool { return l.Snapshot().Service == wire.StateSuspended || len(done) > 0 })
	bad.Heal()
	testrig.Eventually(t, "a top-up", func() bool { s := l.Snapshot(); return s.Deposit.Uint64() > 3_000 || len(done) > 0 })
	testrig.Eventually(t, "service", func() bool { return l.Snapshot().Service == wire.StateActive || len(done) > 0 })
	if len(done) > 0 {
		t.Fatal("the lease was ended: ", <-done)
	}
	if _, err := l.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "top-up failed: it is tried again") {
		t.Error("the log does not say that a top-up failed")
	}
}
