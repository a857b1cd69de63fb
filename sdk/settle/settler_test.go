package settle_test

import (
	"context"
	"errors"
	"math/big"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/rpc"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"

	"github.com/gpupay/gpupay/sdk/chain"
)

// One transaction claims and pays out everything, and every figure agrees with the chain to the base unit and the wei.
func TestSettleAllInOneTransaction(t *testing.T) {
	k := newTill(t)
	var all []channel.Terms
	for i := range byte(5) {
		terms := k.Open(i, 1000)
		k.Accept(terms, 100*uint64(i+1))
		all = append(all, terms)
	}
	if err := k.Settler.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	k.Balance(1500)
	done := k.Settlements()
	if len(done) != 1 || len(done[0].Channels) != 5 || !is(done[0].Paid, 1500) {
		t.Fatalf("settlements: %+v", done)
	}
	spent, err := k.Sender.GasSpent(t.Context())
	if err != nil || spent.Cmp(done[0].Gas) != 0 || spent.Sign() == 0 {
		t.Errorf("gas spent %s, settlement %s, %v", spent, done[0].Gas, err)
	}
	balance, err := k.Backend.BalanceAt(t.Context(), k.Key.Address(), nil)
	start := new(big.Int).Mul(big.NewInt(10_000), big.NewInt(1e18))
	if err != nil || balance.Add(balance, spent).Cmp(start) != 0 {
		t.Errorf("the key lost another amount than the gas spent: %v", err)
	}
	for i, terms := range all {
		if s := k.State(terms); !is(s.Settled, 100*uint64(i+1)) {
			t.Errorf("channel %d: settled %s", i, s.Settled.Dec())
		}
	}
	if err := k.Settler.Settle(t.Context()); err != nil || len(k.Settlements()) != 1 {
		t.Errorf("settling nothing: %v, %d transactions", err, len(k.Settlements()))
	}
}

// The three triggers of the policy, one at a time.
func TestPolicy(t *testing.T) {
	k := newTill(t)
	first, second := k.Open(1, 1000), k.Open(2, 1000)
	k.Settler.Policy.MinValue = *uint256.NewInt(500)
	k.Accept(first, 200)
	k.Accept(second, 250)
	stop := k.Run(k.Settler.Run)
	time.Sleep(20 * poll)
	k.Balance(0)
	k.Settler.Urgent(first.ID()) // its lease ended: at once, and alone
	k.Eventually("the ended lease is settled", func() bool { s := k.State(first); return is(s.Settled, 200) })
	k.Balance(200)
	k.Accept(first, 450) // 250 + 250 have come together
	k.Eventually("both are settled", func() bool { a, b := k.State(first), k.State(second); return is(a.Settled, 450) && is(b.Settled, 250) })
	k.Balance(700)
	stop()

	// Age, across a restart: what waited for 59 minutes before it waits one more minute, not an hour.
	k.Accept(second, 251)
	clock := time.Now()
	k.Settler.Now = func() time.Time { return clock }
	stop = k.Run(k.Settler.Run)
	time.Sleep(10 * poll)
	stop()
	k.Restart(k.Backend)
	k.Settler.Policy.MinValue = *uint256.NewInt(500)
	later := clock.Add(59 * time.Minute)
	var now atomic.Pointer[time.Time]
	now.Store(&later)
	k.Settler.Now = func() time.Time { return *now.Load() }
	k.Run(k.Settler.Run)
	time.Sleep(10 * poll)
	k.Balance(700)
	old := clock.Add(time.Hour)
	now.Store(&old)
	k.Eventually("the old one is settled", func() bool { s := k.State(second); return is(s.Settled, 251) })
	k.Balance(701)
}

// A channel whose payer wants out is settled before its grace period ends, though the policy would have waited.
func TestClosingChannelIsSettledInTime(t *testing.T) {
	k := newTill(t)
	terms := k.Open(1, 1000)
	k.Accept(terms, 900)
	k.Watcher.OnChange = func(_, now channel.State) {
		if now.Status == channel.Closing {
			k.Settler.Urgent(now.ID)
		}
	}
	k.Run(k.Sender.Run)
	k.Run(k.Settler.Run)
	k.Run(k.Watcher.Run)
	k.RequestClose(terms)
	k.Eventually("it is settled", func() bool { s := k.State(terms); return is(s.Settled, 900) && s.Status == channel.Closing })
	k.AdvanceTime(t, chaintest.Grace)
	k.Send(k.Others, k.Contract.WithdrawCall(terms))
	k.Balance(900)
	if got := k.Tokens(t, k.Payer.Address()); got != 1_000_000-900 {
		t.Errorf("payer has %d", got)
	}
	k.Eventually("the end is seen", func() bool { return k.State(terms).Status == channel.Finalized })
}

// A provider that was down for most of the grace period settles with what is left of it.
func TestCloseRequestedWhileDown(t *testing.T) {
	k := newTill(t)
	terms := k.Open(1, 1000)
	k.Accept(terms, 700)
	if err := k.Watcher.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := k.DB.Close(); err != nil {
		t.Fatal(err)
	}
	k.RequestClose(terms)
	k.AdvanceTime(t, chaintest.Grace-30*time.Second)
	k.Mine(t, 300) // more blocks than the trail keeps
	k.Start(k.Backend)
	if err := k.Watcher.Check(t.Context()); err != nil { // the first look finds it
		t.Fatal(err)
	}
	if s := k.State(terms); s.Status != channel.Closing || s.CloseRequestedAt == 0 {
		t.Fatalf("after the first look: %s", s.Status)
	}
	k.Run(k.Settler.Run) // closing: due without anybody's word
	k.Eventually("it is settled", func() bool { s := k.State(terms); return is(s.Settled, 700) })
	k.Balance(700)
}

// A bad channel in a batch costs the others nothing, is named, is tried again alone, and does not loop.
func TestBadChannelHoldsUpNobody(t *testing.T) {
	k := newTill(t)
	var good []channel.Terms
	for i := range byte(3) {
		terms := k.Open(i, 1000)
		k.Accept(terms, 10)
		good = append(good, terms)
	}
	// The bad one: its deposit was believed, and a re-org gave the channel less.
	bad := k.Terms(9)
	k.Send(k.Others, k.Contract.OpenAuthorizedCall(bad, k.Authorize(50, channel.OpenNonce(bad.Payer, bad))))
	if _, err := k.Payee.Register(t.Context(), bad, channel.ChainView{Deposit: *uint256.NewInt(100)}); err != nil {
		t.Fatal(err)
	}
	k.Accept(bad, 80)

	err := k.Settler.Settle(t.Context())
	if err == nil || !strings.Contains(err.Error(), bad.ID().Hex()) || !strings.Contains(err.Error(), "exceeds deposit") {
		t.Errorf("the bad channel is not named: %v", err)
	}
	for _, terms := range good {
		if s := k.State(terms); !is(s.Settled, 10) || strings.Contains(err.Error(), terms.ID().Hex()) {
			t.Errorf("a good channel suffered: settled %s", s.Settled.Dec())
		}
	}
	k.Balance(30)
	nonce, err := k.Backend.NonceAt(t.Context(), k.Key.Address(), nil)
	if err != nil || nonce != 1 {
		t.Errorf("%d transactions, %v", nonce, err)
	}
	// Alone it is refused before any gas is spent, again and again, and then works.
	if err := k.Settler.Settle(t.Context(), bad.ID()); err == nil {
		t.Error("settled what exceeds the deposit")
	}
	k.TopUp(bad, 50, 1)
	if err := k.Watcher.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	k.Mine(t, 3)
	if err := k.Watcher.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := k.Settler.Settle(t.Context(), bad.ID()); err != nil {
		t.Fatal(err)
	}
	k.Balance(110)
}

// A voucher of a contract account does not fit a batch: it is settled alone, the others together.
func TestContractAccountIsSettledAlone(t *testing.T) {
	k := newTill(t)
	account := common.HexToAddress("0xacc0")
	k.RPC(t, nil, "anvil_setCode", account, "0x631626ba7e60e01b60005260206000f3") // signs everything
	one, two := k.Open(1, 1000), k.Open(2, 1000)
	smart := k.Terms(3)
	smart.AuthorizedSigner = account
	k.Send(k.Others, k.Contract.OpenAuthorizedCall(smart, k.Authorize(1000, channel.OpenNonce(smart.Payer, smart))))
	k.Register(smart)
	k.Accept(one, 5)
	k.Accept(two, 6)
	if _, err := k.Payee.Accept(t.Context(), channel.Voucher{ChannelID: smart.ID(), Cumulative: *uint256.NewInt(7), Signature: []byte("a wallet's own words")}); err != nil {
		t.Fatal(err)
	}
	if err := k.Settler.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	k.Balance(18)
	if n := len(k.Settlements()); n != 2 {
		t.Errorf("%d transactions, want 2", n)
	}
}

// A re-org undoes a settlement: it is redone, not doubled, and nobody believes it meanwhile.
func TestReorgedSettlementIsRedone(t *testing.T) {
	for _, depth := range []int{1, 4} {
		k := newTill(t)
		terms := k.Open(1, 1000)
		k.Mine(t, 6)
		k.Accept(terms, 400)
		if err := k.Settler.Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := k.Watcher.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		k.Mine(t, depth-1)
		k.Reorg(t, depth)
		k.Balance(0)
		if err := k.Watcher.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s := k.State(terms); !s.Settled.IsZero() {
			t.Fatalf("depth %d: settled %s is still believed", depth, s.Settled.Dec())
		}
		k.Run(k.Sender.Run)
		k.Run(k.Settler.Run)
		k.Run(k.Watcher.Run)
		k.Settler.Urgent(terms.ID())
		k.Eventually("it is settled again", func() bool { s := k.State(terms); return is(s.Settled, 400) })
		k.Mine(t, 3)
		time.Sleep(20 * poll)
		k.Balance(400)
		nonce, err := k.Backend.NonceAt(t.Context(), k.Key.Address(), nil)
		if err != nil || nonce != 1 {
			t.Errorf("depth %d: %d transactions, want the same one again, %v", depth, nonce, err)
		}
	}
}

// cut is a backend that loses its wire for transactions.
type cut struct {
	chain.Backend
	on atomic.Bool
}

func (c *cut) SendTransaction(ctx context.Context, tx *types.Transaction) error {
	if c.on.Load() {
		return rpc.ErrClientQuit
	}
	return c.Backend.SendTransaction(ctx, tx)
}

// The program dies when a settlement is on disk and not on the wire: the next one sends that, and no second one.
func TestRestartResumesSettlement(t *testing.T) {
	k := newTill(t)
	terms := k.Open(1, 1000)
	wire := &cut{Backend: k.Backend}
	wire.on.Store(true)
	k.Restart(wire)
	k.Accept(terms, 300)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- k.Settler.Settle(ctx) }()
	k.Eventually("it is in flight", func() bool {
		flying, err := k.Sender.InFlight(t.Context())
		return err == nil && len(flying) == 1 && flying[0].Call.Kind == chain.Settle
	})
	time.Sleep(10 * poll)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatalf("settled over a wire that is cut: %v", err)
	}
	k.Restart(k.Backend)
	k.Settler.Urgent(terms.ID())
	k.Run(k.Settler.Run)
	k.Eventually("it is settled", func() bool { s := k.State(terms); return is(s.Settled, 300) })
	time.Sleep(20 * poll)
	k.Balance(300)
	nonce, err := k.Backend.NonceAt(t.Context(), k.Key.Address(), nil)
	if err != nil || nonce != 1 {
		t.Errorf("%d transactions, want 1, %v", nonce, err)
	}
}

// Anyone may settle. What somebody else settled is not paid for again.
func TestSettledBySomebodyElse(t *testing.T) {
	k := newTill(t)
	terms := k.Open(1, 1000)
	k.Accept(terms, 300)
	s := k.State(terms)
	k.Send(k.Others, k.Contract.SettleCall(terms, s.Accepted, s.Signature))
	if err := k.Settler.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := k.State(terms); !is(s.Settled, 300) || len(k.Settlements()) != 0 {
		t.Errorf("settled %s with %d transactions", s.Settled.Dec(), len(k.Settlements()))
	}
}

// A token that blocks the payee takes down only its own channels.
func TestBatchesAreSplitByTokenAndSize(t *testing.T) {
	k := newTill(t)
	k.Settler.Policy.MaxBatch = 2
	for i := range byte(5) {
		k.Accept(k.Open(i, 100), 1)
	}
	if err := k.Settler.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	k.Balance(5)
	if n := len(k.Settlements()); n != 3 {
		t.Errorf("%d transactions, want 3", n)
	}
}

// No gas money: the error says whose account is empty, and nothing is lost.
func TestNoGasToSettle(t *testing.T) {
	k := newTill(t)
	terms := k.Open(1, 100)
	k.Accept(terms, 40)
	k.RPC(t, nil, "anvil_setBalance", k.Key.Address(), "0x0")
	if err := k.Settler.Settle(t.Context()); !errors.Is(err, chain.ErrFunds) || !strings.Contains(err.Error(), k.Key.Address().Hex()) {
		t.Errorf("want ErrFunds that names %s, got %v", k.Key.Address(), err)
	}
	k.RPC(t, nil, "anvil_setBalance", crypto.PubkeyToAddress(k.Keys[1].PublicKey), "0xde0b6b3a7640000")
	if err := k.Settler.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	k.Balance(40)
}

// TestTooLittleGasForAll: there is coin for a settlement, and not for one of all channels. Many that hold next to nothing do
// not keep the one that matters from being settled.
func TestTooLittleGasForAll(t *testing.T) {
	k := newTill(t)
	rich := k.Open(1, 100_000)
	k.Register(rich)
	k.Accept(rich, 50_000)
	for i := range 11 {
		dust := k.Open(byte(i+2), 1000)
		k.Register(dust)
		k.Accept(dust, 1)
	}
	price, err := k.Sender.GasPrice(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	coin := new(big.Int).Mul(price, big.NewInt(2*110_000))
	k.RPC(t, nil, "anvil_setBalance", k.Key.Address(), (*hexutil.Big)(coin))
	if err := k.Settler.Settle(t.Context()); !errors.Is(err, chain.ErrFunds) {
		t.Errorf("the rest waits for coin: %v", err)
	}
	if now := k.State(rich); !is(now.Settled, 50_000) {
		t.Errorf("settled %s of 50000", now.Settled.Dec())
	}
}

// Many callers at once: each channel is settled once.
func TestConcurrentSettlers(t *testing.T) {
	k := newTill(t)
	for i := range byte(4) {
		k.Accept(k.Open(i, 100), 25)
	}
	k.Settler.Policy.MinValue = *uint256.NewInt(1)
	k.Run(k.Settler.Run)
	done := make(chan error)
	for range 8 {
		go func() { done <- k.Settler.Settle(t.Context()) }()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	k.Eventually("all is settled", func() bool { return k.Tokens(t, k.Key.Address()) == 100 })
	var paid uint64
	for _, s := range k.Settlements() {
		paid += s.Paid.Uint64()
	}
	if paid != 100 {
		t.Errorf("settlements say %d", paid)
	}
}
