package renter_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/chain"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestOnlyTheChainEndsAChannel: a provider that says that a channel is closed, or that it does not know it, is believed
// when the chain says so, and what is noted then is on disk.
func TestOnlyTheChainEndsAChannel(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, said := range []error{&wire.ChannelFinalized, &wire.ChannelNotFound} {
		if gone, err := l.Lease().Gone(t.Context(), said); gone || err != nil || l.Lease().Row.Ended != "" {
			t.Errorf("%v, of a channel that is open: %v, %v, %q", said, gone, err, l.Lease().Row.Ended)
		}
	}
	server.Close()
	id, err := r.Wallet().Sender.Submit(t.Context(), l.Lease().Escrow.RequestCloseCall(l.Lease().Row.Terms))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Wallet().Sender.Wait(t.Context(), id, 1); err != nil {
		t.Fatal(err)
	}
	if gone, err := l.Lease().Gone(t.Context(), errors.New("connection refused")); gone || err != nil {
		t.Errorf("what says nothing of the channel: %v, %v", gone, err)
	}
	gone, err := l.Lease().Gone(t.Context(), &wire.ChannelFinalized)
	row, loadErr := r.Store().Load(t.Context(), l.Lease().ID)
	if !gone || err != nil || loadErr != nil || row.Ended == "" {
		t.Errorf("of a channel that closes: %v, %v; on disk %q, %v", gone, err, row.Ended, loadErr)
	}
}

// TestInterruptIsNoEnd: who stops a rental while its provider cannot be reached is told that, and not that it ended.
func TestInterruptIsNoEnd(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	config := renterrig.Config(t, m, m.Payer)
	config.Patience = time.Minute
	l, err := renterrig.Open(t, config).Rent(t.Context(), server.URL, renter.Options{Deposit: "1"})
	if err != nil {
		t.Fatal(err)
	}
	testrig.HangUp(server)
	server.Close()
	for range 5 { // now in a pause, now in a try
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		err := l.Run(ctx)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("%v", err)
		}
	}
}

// TestOutgoingCountsItsKind: what the outbox holds of a channel is found again after a crash, and is not taken for the next
// of its kind.
func TestOutgoingCountsItsKind(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1"})
	if err != nil {
		t.Fatal(err)
	}
	all, err := r.Wallet().Sender.Find(t.Context(), l.Lease().ID)
	if err != nil {
		t.Fatal(err)
	}
	var opens []chain.TxID
	for _, tx := range all {
		if tx.Call.Kind == chain.Open {
			opens = append(opens, tx.ID)
		}
	}
	if len(opens) != 1 {
		t.Fatalf("%d opens in the outbox", len(opens))
	}
	for _, c := range []struct {
		kind  chain.Kind
		after int
		want  chain.TxID
	}{{chain.Open, 0, opens[0]}, {chain.Open, 1, ""}, {chain.TopUp, 0, ""}} {
		if id, err := l.Lease().Outgoing(t.Context(), c.kind, c.after); err != nil || id != c.want {
			t.Errorf("%s after %d: %q, %v, want %q", c.kind, c.after, id, err, c.want)
		}
	}
}

// TestTopUpIsOverOnDisk: a top-up that arrived is not tried again by the next process.
func TestTopUpIsOverOnDisk(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "0.5", TopUp: "0.25"})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Lease().TopUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	row, err := r.Store().Load(t.Context(), l.Lease().ID)
	if err != nil || row.TopUp != nil || row.TopUps != 1 {
		t.Errorf("on disk: %+v, %d top-ups, %v", row.TopUp, row.TopUps, err)
	}
	if paid, err := l.Lease().Payer.State(t.Context(), l.Lease().ID); err != nil || paid.Deposit.Uint64() != 750_000 {
		t.Errorf("the deposit is %s, %v", paid.Deposit.Dec(), err)
	}
}

// TestRentNeedsItsBalance: a balance that cannot be read is no balance.
func TestRentNeedsItsBalance(t *testing.T) {
	m := testrig.NewMarket(t)
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if l, err := r.Prepare(ended, renter.Quote{}, renter.Options{GPUs: 1}, *uint256.NewInt(1)); !errors.Is(err, context.Canceled) || l != nil {
		t.Errorf("%v, %v", l, err)
	}
}
