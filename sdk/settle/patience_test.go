package settle_test

import (
	"context"
	"errors"
	"math/big"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/settle"
)

// A lease that goes on while its channel is settled is not old from then on: it waits for the next hour, however often
// somebody looks.
func TestWhatCameInMeanwhileIsNotOld(t *testing.T) {
	k := newTill(t)
	backend := &meddler{Backend: k.Backend}
	k.Restart(backend)
	terms := k.Open(1, 1000)
	k.Accept(terms, 200)
	backend.before = func() {}
	var clock atomic.Int64
	start := time.Now()
	k.Settler.Now = func() time.Time { return start.Add(time.Duration(clock.Load())) }
	k.Run(k.Settler.Run)
	k.aside(2)
	backend.once, backend.before = sync.Once{}, func() { k.Accept(terms, 201) }
	clock.Store(int64(time.Hour))
	k.Eventually("the first hour is settled", func() bool { s := k.State(terms); return is(s.Settled, 200) })
	clock.Store(int64(2*time.Hour - time.Minute))
	k.aside(3)
	if s := k.State(terms); !is(s.Settled, 200) || !is(s.Accepted, 201) {
		t.Errorf("%s of %s is settled after a minute less than an hour", s.Settled.Dec(), s.Accepted.Dec())
	}
	clock.Store(int64(2 * time.Hour))
	k.Eventually("the second hour is settled", func() bool { s := k.State(terms); return is(s.Settled, 201) })
}

// mute is an endpoint that does not say what a transaction would pay.
type mute struct {
	chain.Backend
	on    atomic.Bool
	asked atomic.Int64
}

func (m *mute) SuggestGasTipCap(ctx context.Context) (*big.Int, error) {
	m.asked.Add(1)
	if m.on.CompareAndSwap(true, false) {
		return nil, errors.New("no fee today")
	}
	return m.Backend.SuggestGasTipCap(ctx)
}

// With a share of fees that nothing meets, what came together and what is closing is settled all the same, also where the
// fee is not known; the rest waits.
func TestFeesHoldUpNothingThatIsDue(t *testing.T) {
	k := newTill(t)
	backend := &mute{Backend: k.Backend}
	k.Restart(backend)
	k.Settler.Policy = settle.Policy{Interval: poll, MaxFeeShare: 1, MinValue: *uint256.NewInt(500), CoinPrice: *uint256.NewInt(1e18)}
	first, second := k.Open(1, 1000), k.Open(2, 1000)
	k.Accept(first, 200)
	k.Accept(second, 299)
	k.Run(k.Settler.Run)
	k.Eventually("fees are asked for", func() bool { return backend.asked.Load() > 5 })
	k.Balance(0)
	backend.on.Store(true)
	k.Accept(second, 300)
	k.Eventually("both are settled", func() bool { a, b := k.State(first), k.State(second); return is(a.Settled, 200) && is(b.Settled, 300) })
	if backend.on.Load() {
		t.Error("the fee was known")
	}
	k.Accept(first, 210)
	k.Accept(second, 310)
	k.RequestClose(first)
	k.Check()
	backend.on.Store(true)
	k.Eventually("the closing one is settled", func() bool { s := k.State(first); return is(s.Settled, 210) })
	if s := k.State(second); !is(s.Settled, 300) {
		t.Errorf("%s of the other is settled", s.Settled.Dec())
	}
}

// Where gas costs next to nothing, money is fetched once it has waited for an hour, and not before.
func TestCheapFeesFetchEarly(t *testing.T) {
	k := newTill(t)
	backend := &mute{Backend: k.Backend}
	k.Restart(backend)
	k.Settler.Policy = settle.Policy{Interval: poll, MaxFeeShare: 50, CoinPrice: *uint256.NewInt(1_000_000)}
	terms := k.Open(1, 500_000)
	k.Accept(terms, 400_000)
	var clock atomic.Int64
	start := time.Now()
	k.Settler.Now = func() time.Time { return start.Add(time.Duration(clock.Load())) }
	k.Run(k.Settler.Run)
	k.Eventually("fees are asked for", func() bool { return backend.asked.Load() > 5 })
	k.Balance(0)
	clock.Store(int64(time.Hour))
	k.Eventually("it is settled", func() bool { s := k.State(terms); return is(s.Settled, 400_000) })
}

// What a rollup charges for data holds up what it takes too much of, as gas does.
func TestDataFeesHoldUp(t *testing.T) {
	k := newTill(t)
	oracle := func(answers string) {
		k.RPC(t, nil, "anvil_setCode", "0x420000000000000000000000000000000000000F", "0x"+answers+"60005260206000f3")
	}
	oracle("662386f26fc10000") // 10^16 wei, whatever it is asked
	backend := &mute{Backend: k.Backend}
	k.Restart(backend)
	k.Settler.Policy = settle.Policy{Interval: poll, MaxFeeShare: 50, CoinPrice: *uint256.NewInt(1_000_000)}
	terms := k.Open(1, 500_000)
	k.Accept(terms, 400_000)
	var clock atomic.Int64
	start := time.Now()
	k.Settler.Now = func() time.Time { return start.Add(time.Duration(clock.Load())) }
	k.Run(k.Settler.Run)
	k.Eventually("fees are asked for", func() bool { return backend.asked.Load() > 5 })
	clock.Store(int64(time.Hour))
	more := backend.asked.Load() + 5
	k.Eventually("fees are asked for again", func() bool { return backend.asked.Load() > more })
	k.Balance(0)
	oracle("6000")
	k.Eventually("it is settled", func() bool { s := k.State(terms); return is(s.Settled, 400_000) })
}
