package tower_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/tilltest"
	"github.com/gpupay/gpupay/sdk/tower"
)

// TestOneChannelHoldsUpNoOther: a channel that a watchtower does not find on the chain waits by itself, longer each time. The vouchers of
// the others are told as ever, and its own as soon as it begins to close.
func TestOneChannelHoldsUpNoOther(t *testing.T) {
	l := newLookout(t, nil)
	asked := make(map[common.Hash]int)
	counting := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var sent tower.Vouchers
		raw, err := io.ReadAll(r.Body)
		if err != nil || json.Unmarshal(raw, &sent) != nil {
			t.Errorf("%s: %v", raw, err)
		}
		for _, v := range sent.Vouchers {
			asked[v.Channel().ID()]++
		}
		r.Body = io.NopCloser(bytes.NewReader(raw))
		l.server.Config.Handler.ServeHTTP(w, r)
	}))
	defer counting.Close()
	good, bad := l.Open(1, 10_000), l.Terms(2) // nobody opened that one: as where the tower's endpoint is behind
	if _, err := l.Payee.Register(t.Context(), bad, channel.ChainView{Deposit: *uint256.NewInt(10_000)}); err != nil {
		t.Fatal(err)
	}
	l.Accept(bad, 700)
	feed, now := tower.NewTeller(tower.NewFeed(l.Payee, nil, 0, l.config.Log)), time.Now()
	for n := range uint64(20) {
		l.Accept(good, 100*(n+1))
		if err := feed.Tell(t.Context(), counting.URL, now); err != nil {
			t.Fatalf("one channel holds up the tower: %v", err)
		}
		if !tilltest.Is(l.towerState(good).Accepted, 100*(n+1)) {
			t.Fatalf("the tower was not told voucher %d of a channel that it watches", n)
		}
		now = now.Add(time.Second)
	}
	if n := asked[bad.ID()]; n < 2 || n > 10 {
		t.Errorf("the tower was told %d times in 20 s of a channel that it does not find", n)
	}
	before := asked[bad.ID()]
	if err := feed.Tell(t.Context(), counting.URL, now); err != nil {
		t.Fatal(err)
	}
	if asked[bad.ID()] != before { // it was its turn
		before = asked[bad.ID()]
	}
	if _, err := l.Payee.Observe(t.Context(), bad.ID(), channel.ChainView{Deposit: *uint256.NewInt(10_000), CloseRequestedAt: 1}); err != nil {
		t.Fatal(err)
	}
	if err := feed.Tell(t.Context(), counting.URL, now); err != nil {
		t.Fatal(err)
	}
	if asked[bad.ID()] != before+1 {
		t.Error("a channel that begins to close waits")
	}
}

// TestHurryWhereATowerDoesNotAnswer: a payer wants out, and a watchtower that did not answer is told at once all the same.
func TestHurryWhereATowerDoesNotAnswer(t *testing.T) {
	l := newLookout(t, nil)
	l.Accept(l.Open(1, 1000), 700)
	asked := make(chan struct{}, 100)
	down := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		asked <- struct{}{}
	}))
	defer down.Close()
	feed := tower.NewFeed(l.Payee, []string{down.URL}, time.Hour, l.config.Log)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = feed.Run(ctx) })
	defer running.Wait()
	defer cancel()
	began := time.Now()
	for range 7 { // unhurried, half of 1, 2, 4, 8, 16 and 32 s at least
		<-asked
		feed.Hurry()
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it was told seven times in %s", took)
	}
}
