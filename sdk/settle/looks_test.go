package settle_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/chain"
)

// counted notes which channels are read and settled, in front of the real contract, and fails to read when it is told to.
type counted struct {
	chain.Contract
	silent bool
	read   []common.Hash
	asked  []common.Hash
}

func (c *counted) Confirmed(ctx context.Context, ids []common.Hash, confirmations uint64) ([]chain.Confirmed, uint64, error) {
	if c.silent {
		return nil, 0, errDisk
	}
	c.read = append(c.read, ids...)
	return c.Contract.Confirmed(ctx, ids, confirmations)
}

func (c *counted) SettlementCall(ctx context.Context, states []channel.State) (chain.Call, error) {
	for _, s := range states {
		c.asked = append(c.asked, s.ID)
	}
	return c.Contract.SettlementCall(ctx, states)
}

// TestWhatALookReads: everything at the start and every five minutes, what is served every three blocks, what an event
// names, and nothing else; and what could not be read is read at the next look.
func TestWhatALookReads(t *testing.T) {
	k := newTill(t)
	one, two := k.Open(1, 1000), k.Open(2, 1000)
	k.Mine(t, 3)
	contract := &counted{Contract: k.Contract}
	now := time.Unix(1_800_000_000, 0)
	k.Watcher.Contract, k.Watcher.Now = contract, func() time.Time { return now }
	served := false
	k.Watcher.Served = func(context.Context) ([]common.Hash, error) {
		if !served {
			return nil, nil
		}
		return []common.Hash{two.ID()}, nil
	}
	look := func(what string, want ...channel.Terms) {
		t.Helper()
		contract.read = nil
		k.Check()
		ids := make([]common.Hash, len(want))
		for i, terms := range want {
			ids[i] = terms.ID()
		}
		slices.SortFunc(ids, common.Hash.Cmp)
		slices.SortFunc(contract.read, common.Hash.Cmp)
		if !slices.Equal(contract.read, ids) {
			t.Errorf("%s: read %v, want %v", what, contract.read, ids)
		}
	}
	look("at the start", one, two)
	k.Mine(t, 1)
	look("one block later") // and that no channel is served now
	served = true
	k.Mine(t, 2)
	look("two blocks later")
	k.Mine(t, 1)
	look("the third block", two)
	served = false
	k.Mine(t, 3)
	now = now.Add(5*time.Minute - 1)
	look("before five minutes")
	k.Mine(t, 1)
	now = now.Add(1)
	look("after five minutes", one, two)

	k.RequestClose(one)
	contract.silent = true
	if err := k.Watcher.Check(t.Context()); !errors.Is(err, errDisk) {
		t.Errorf("a look that could not read: %v", err)
	}
	contract.silent = false
	look("after it failed", one)
	if s := k.State(one); s.Status != channel.Closing {
		t.Errorf("the request to close was passed over: %s", s.Status)
	}
}

// TestEndpointStaysBehind: once blocks that are gone are given up, a look at the block before them says nothing new.
func TestEndpointStaysBehind(t *testing.T) {
	k := newTill(t)
	k.Open(1, 1000)
	k.Mine(t, 3)
	k.Check()
	var snapshot string
	k.RPC(t, &snapshot, "evm_snapshot")
	k.Mine(t, 2)
	k.Check()
	k.RPC(t, nil, "evm_revert", snapshot)
	for range 20 {
		if k.Watcher.Check(t.Context()) == nil {
			break
		}
	}
	for range 2 {
		k.Check()
	}
}

// TestWhatIsSettledIsNotAskedFor: a channel that somebody else settled takes no room in a transaction, which is paid for.
func TestWhatIsSettledIsNotAskedFor(t *testing.T) {
	k := newTill(t)
	one, two := k.Open(1, 1000), k.Open(2, 1000)
	k.Accept(one, 300)
	k.Accept(two, 200)
	s := k.State(one)
	k.Send(k.Others, k.Contract.SettleCall(one, s.Accepted, s.Signature))
	contract := &counted{Contract: k.Contract}
	k.Settler.Contract = contract
	if err := k.Settler.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(contract.asked, []common.Hash{two.ID()}) {
		t.Errorf("settled %v, want the second alone", contract.asked)
	}
	k.Balance(500)
}

// late does something on the chain after a call was tried and before it is sent.
type late struct {
	chain.Backend
	once  sync.Once
	after func()
}

func (l *late) EstimateGas(ctx context.Context, call ethereum.CallMsg) (uint64, error) {
	gas, err := l.Backend.EstimateGas(ctx, call)
	l.once.Do(l.after)
	return gas, err
}

// TestRevertedSettlementIsSaid: a settlement that was mined and did nothing is no settlement, and names its channel.
func TestRevertedSettlementIsSaid(t *testing.T) {
	k := newTill(t)
	backend := &late{Backend: k.Backend}
	k.Restart(backend)
	terms := k.Open(1, 1000)
	k.Accept(terms, 500)
	k.RequestClose(terms)
	backend.after = func() {
		k.AdvanceTime(t, chaintest.Grace)
		k.Send(k.Others, k.Contract.WithdrawCall(terms))
	}
	err := k.Settler.Settle(t.Context(), terms.ID())
	if err == nil || !strings.Contains(err.Error(), "channel "+terms.ID().Hex()+" is not settled") {
		t.Errorf("what reverted: %v", err)
	}
	k.Balance(0)
}

// broke is a store that cannot list what waits, as often as it is told.
type broke struct {
	channel.Store
	mu    sync.Mutex
	reads int
}

func (b *broke) Unsettled(ctx context.Context) ([]channel.State, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reads++
	if b.reads <= 2 || b.reads == 4 {
		return nil, errDisk
	}
	return b.Store.Unsettled(ctx)
}

// retries keeps how long each logged failure has the settler wait.
type retries struct {
	slog.Handler
	mu    sync.Mutex
	waits []time.Duration
}

func (r *retries) Enabled(context.Context, slog.Level) bool { return true }

func (r *retries) Handle(_ context.Context, rec slog.Record) error {
	rec.Attrs(func(a slog.Attr) bool {
		if a.Key == "retry" {
			r.mu.Lock()
			r.waits = append(r.waits, a.Value.Duration())
			r.mu.Unlock()
		}
		return true
	})
	return nil
}

// TestPauseBeginsAnew: a failure after a success is retried within a second, however many came before. It takes the two
// pauses before, some 2 s.
func TestPauseBeginsAnew(t *testing.T) {
	t.Parallel()
	k := newTill(t)
	k.Payee.Store = &broke{Store: k.Payee.Store}
	log := &retries{}
	k.Settler.Log = slog.New(log)
	k.Run(k.Settler.Run)
	waits := func() []time.Duration {
		log.mu.Lock()
		defer log.mu.Unlock()
		return slices.Clone(log.waits)
	}
	k.Eventually("it fails three times", func() bool { return len(waits()) == 3 })
	if w := waits(); w[1] < time.Second || w[2] > time.Second {
		t.Errorf("it waits %s", fmt.Sprint(w))
	}
}
