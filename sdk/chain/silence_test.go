package chain_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/chain"
)

// TestHungEndpointIsLeftOut: one of two endpoints takes what is sent to it and answers nothing. Reads and transactions wait for it
// a few times and not each time, whichever of the two it is, and it counts again once it answers.
func TestHungEndpointIsLeftOut(t *testing.T) {
	for _, which := range []string{"first", "second"} {
		t.Run(which, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			p, log := newProxy(t, w.URL), &record{}
			urls := []string{p.URL, w.URL}
			if which == "second" {
				urls = []string{w.URL, p.URL}
			}
			backend, err := chain.Connect(t.Context(), strings.Join(urls, ","), slog.New(slog.NewTextHandler(log, nil)))
			if err != nil {
				t.Fatal(err)
			}
			backend.(*chain.Endpoints).Wait(200 * time.Millisecond)
			escrow, err := chain.NewEscrow(t.Context(), backend, w.Escrow)
			if err != nil {
				t.Fatal(err)
			}
			store, _ := openStore(t, file(t))
			s := &chain.Sender{Backend: backend, Key: w.payer, Store: store, Poll: 10 * time.Millisecond}
			look := func() {
				t.Helper()
				if _, _, err := escrow.Confirmed(t.Context(), []common.Hash{{1}}, 1); err != nil {
					t.Fatal(err)
				}
			}
			look()
			before := p.count()
			p.fail(hangs)
			for i := range byte(20) {
				look()
				if _, _, err := backend.TransactionByHash(t.Context(), common.Hash{i}); !errors.Is(err, ethereum.NotFound) {
					t.Fatal(err)
				}
			}
			for i := range uint64(5) {
				send(t, s, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1 + i)))
			}
			if n := p.count() - before; n > 20 { // what was asked at once, the transactions, and whether it answers again
				t.Errorf("it was asked %d times", n)
			}
			if n := strings.Count(log.String(), "does not answer"); n != 1 {
				t.Errorf("it is said %d times: %s", n, log)
			}
			p.fail(0)
			for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
				before, again := p.count(), strings.Contains(log.String(), "answers again")
				if look(); again && p.count() > before {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("it is left out for ever: %s", log)
				}
			}
		})
	}
}

// TestCutOffReadIsAnError: a read that its caller gives up before any endpoint has answered is an error, and no answer of nothing.
func TestCutOffReadIsAnError(t *testing.T) {
	w := newWorld(t)
	one, two := newProxy(t, w.URL), newProxy(t, w.URL)
	backend, err := chain.Connect(t.Context(), one.URL+","+two.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	one.fail(hangs)
	two.fail(hangs)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if head, err := backend.HeaderByNumber(ctx, nil); err == nil {
		t.Errorf("the newest block is %v", head)
	}
}
