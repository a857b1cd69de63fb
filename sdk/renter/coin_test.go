package renter_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/chain"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestTopUpWithoutCoin: a renter whose coin ends after it paid for the open tops up by what its provider sends, from then on, also
// after it was resumed; every deposit is there once.
func TestTopUpWithoutCoin(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, func(c *provider.Config) { c.Terms.SuspendTimeout = 8 * time.Second })
	config := renterrig.Config(t, m, m.Payer)
	r := renterrig.Open(t, config)
	before := m.Tokens(t, m.PayerAddress())
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "0.01", TopUp: "0.01", PayEvery: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := renterrig.Background(ctx, l)
	deposit := func(want uint64) func() bool {
		return func() bool {
			if len(done) > 0 {
				t.Fatalf("Run: %v, with %+v", <-done, l.Snapshot())
			}
			now := l.Snapshot()
			return now.Deposit.Uint64() >= want
		}
	}
	testrig.Eventually(t, "a top-up of its own", deposit(20_000))
	m.RPC(t, nil, "anvil_setBalance", m.PayerAddress(), "0x1")
	testrig.Eventually(t, "a top-up that the provider sends", deposit(30_000))
	stop()
	<-done
	m.RPC(t, nil, "anvil_setBalance", m.PayerAddress(), "0xde0b6b3a7640000") // what follows is numbered after it
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r = renterrig.Open(t, config)
	if l, err = r.Resume(t.Context(), l.ID()); err != nil {
		t.Fatal(err)
	}
	done = renterrig.Background(t.Context(), l)
	testrig.Eventually(t, "another one", deposit(40_000))
	sent, err := r.Wallet().Sender.Find(t.Context(), l.ID(), chain.TopUp)
	if err != nil || len(sent) != 1 {
		t.Errorf("%d top-ups of our own, want 1 (%v)", len(sent), err)
	}
	c, err := l.Close(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	<-done
	moved := l.Lease().Row.Arrived()
	if !l.Lease().Row.Coinless {
		t.Error("its next top-up would be its own")
	}
	if got := m.Tokens(t, m.PayerAddress()); c.Deposit != moved || before-got != c.Settled.Uint64() {
		t.Errorf("%+v: %s moved, %d tokens are gone", c, moved.Dec(), before-got)
	}
}

// TestReopenWithTooLittleCoin: taking a close request back with coin that does not pay for it, or with none, says that at once, and
// what to do.
func TestReopenWithTooLittleCoin(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "0.02"})
	if err != nil {
		t.Fatal(err)
	}
	leaving, cut := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() { _, err := l.Leave(leaving); left <- err }()
	testrig.Eventually(t, "the close request", func() bool {
		view, err := l.Lease().Escrow.View(t.Context(), l.ID(), nil)
		return err == nil && view.CloseRequestedAt != 0
	})
	cut()
	<-left
	for _, coin := range []string{"0x1", "0x0"} {
		m.RPC(t, nil, "anvil_setBalance", m.PayerAddress(), coin)
		if err := l.Reopen(t.Context()); !errors.Is(err, wallet.ErrNoGas) || !strings.Contains(err.Error(), m.PayerAddress().Hex()) {
			t.Errorf("Reopen with %s wei: %v", coin, err)
		}
	}
	m.RPC(t, nil, "anvil_setBalance", m.PayerAddress(), "0xde0b6b3a7640000")
	if err := l.Reopen(t.Context()); err != nil {
		t.Errorf("with coin again: %v", err)
	}
}

// TestTopUpThatNobodySends: a top-up that our coin does not pay for, and that the provider would not send, is an error that says
// what to do; the rental is as it was.
func TestTopUpThatNobodySends(t *testing.T) {
	m := testrig.NewMarket(t)
	d := newDrawerOf(t, m, func(o *wire.Offer) {
		least := wire.NewAmount(*uint256.NewInt(20_000))
		o.MinTopUp = &least
	})
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	l, err := r.Rent(t.Context(), d.Server.URL, renter.Options{Deposit: "0.05", TopUp: "0.01"})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		sponsored bool
		says      string
	}{"none for others": {false, "sends no deposits for others"}, "none so small": {true, "none under 0.02"}} {
		amount := wire.NewAmount(*uint256.NewInt(10_000))
		topUp := wire.Payload{Type: wire.TypeHash, AdditionalDeposit: &amount}
		l.Lease().Row.Sponsored = c.sponsored
		if err := l.Lease().Sponsor(t.Context(), &topUp, chain.ErrFunds); !errors.Is(err, wallet.ErrNoGas) || !errors.Is(err, chain.ErrFunds) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
		if topUp.Type != wire.TypeHash || l.Lease().Row.Coinless || l.Lease().Row.TopUp != nil {
			t.Errorf("%s: %+v, %+v", name, topUp, l.Lease().Row.TopUp)
		}
	}
}
