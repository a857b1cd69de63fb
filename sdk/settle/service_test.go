package settle_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/sdk/settle"
)

// hurries counts how often watchtowers were to be told at once.
type hurries chan struct{}

func (hurries) Run(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

func (h hurries) Hurry() { h <- struct{}{} }

// TestServiceSettlesWhatCloses: whoever asks to close is settled at once, the watchtowers and the watcher's own listener hear of
// it, and the service knows when it looked last.
func TestServiceSettlesWhatCloses(t *testing.T) {
	k := newTill(t)
	k.Settler.Policy = settle.Policy{Interval: time.Hour, MaxAge: time.Hour}
	hurry := make(hurries, 16)
	service := settle.NewService(k.Sender, hurry, &settle.Book{Watcher: k.Watcher, Settler: k.Settler})
	if !service.Looked().IsZero() {
		t.Error("it has looked before it ran")
	}
	if service.CheckLooks(time.Hour) != nil || service.CheckLooks(-1) == nil {
		t.Error("a service that has not looked yet is as old as it is")
	}
	terms := k.Open(1, 1000)
	k.Accept(terms, 400)
	stop := k.Run(service.Run)
	k.RequestClose(terms)
	k.Eventually("what is due is settled", func() bool { s := k.State(terms); return is(s.Settled, 400) })
	stop()
	if len(hurry) == 0 {
		t.Error("the watchtowers were not told")
	}
	if service.Looked().IsZero() || len(k.Changes) == 0 {
		t.Error("the watcher's own listener, or its look, is lost")
	}
	if looked := service.Looked(); !strings.Contains(looked.String(), " m=") {
		t.Errorf("it looked at %s: who sets the wall clock makes that older or newer", looked)
	}
}

// TestBlindServiceEndsWhileItSettles: a service whose looks fail ends also while a call of Settle waits for a transaction that no
// block takes: another process may lead then.
func TestBlindServiceEndsWhileItSettles(t *testing.T) {
	k := newTill(t)
	bad := badrpc.New(t, k.URL)
	k.on(t, bad.URL)
	service := settle.NewService(k.Sender, make(hurries, 16), &settle.Book{Watcher: k.Watcher, Settler: k.Settler})
	service.Blind = 2 * time.Second
	terms := k.Open(1, 1000)
	k.Accept(terms, 400)
	bad.Instead("eth_sendRawTransaction", badrpc.Status(503))
	ended := make(chan error, 1)
	go func() { ended <- service.Run(t.Context()) }()
	go func() { _ = service.Settle(t.Context()) }()
	k.Eventually("it has looked, and a settlement is under way", func() bool {
		flying, err := k.Sender.InFlight(t.Context())
		return err == nil && len(flying) == 1 && !service.Looked().IsZero()
	})
	bad.On("eth_call", badrpc.Status(503)) // its newest block is known all the same
	k.Mine(t, 1)
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "were not read for") {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("it goes on")
	}
}

// TestServiceExpectsOfItsOwnContract: what a contract set aside for a channel is asked for at the next settlement of that contract, and of
// no other: one payee's channels may be of two.
func TestServiceExpectsOfItsOwnContract(t *testing.T) {
	k := newTill(t)
	terms := k.Open(1, 1000)
	other := terms
	other.Escrow = common.Address{9}
	busy := &busyContract{Contract: k.Settler.Contract, settled: func() {}}
	k.Settler.Contract = busy
	service := settle.NewService(k.Sender, make(hurries, 16), &settle.Book{Watcher: k.Watcher, Settler: k.Settler})
	asked := func() int64 {
		t.Helper()
		if err := k.Settler.Once(t.Context()); err != nil {
			t.Fatal(err)
		}
		return busy.asked.Load()
	}
	began := asked() // looks into all, as at the start
	if service.Expect(other); asked() != began {
		t.Error("it is asked for what another contract set aside")
	}
	if service.Expect(terms); asked() != began+1 {
		t.Error("it is not asked for what it set aside")
	}
}
