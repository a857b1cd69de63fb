package chain_test

import (
	"context"
	"errors"
	"log/slog"
	"math/big"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/rpc"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
)

// mute is a backend whose wire is cut for transactions as long as it is told to: a program that used it has written to
// its disk and died before the broadcast.
type mute struct {
	chain.Backend
	silent    atomic.Bool
	broadcast atomic.Int64
}

func (m *mute) SendTransaction(ctx context.Context, tx *types.Transaction) error {
	if m.silent.Load() {
		return rpc.ErrClientQuit
	}
	m.broadcast.Add(1)
	return m.Backend.SendTransaction(ctx, tx)
}

// within runs f until it is true, for a minute.
func within(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("not within a minute: %s", what)
}

// background runs a sender until the test ends.
func background(t *testing.T, s *chain.Sender) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	})
}

func (w *world) nonce(t *testing.T, of common.Address) uint64 {
	t.Helper()
	n, err := w.Backend.NonceAt(t.Context(), of, nil)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A crash after the outbox row is on disk and before the broadcast: another process sends it, exactly once.
func TestRestartBetweenDiskAndBroadcast(t *testing.T) {
	w := newWorld(t)
	path := file(t)
	store, db := openStore(t, path)
	dead := &mute{Backend: w.Backend}
	dead.silent.Store(true)
	before := &chain.Sender{Backend: dead, Key: w.payer, Store: store}
	id, err := before.Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(42)))
	if err != nil {
		t.Fatal(err)
	}
	if got := w.nonce(t, w.payer.Address()); got != 0 {
		t.Fatalf("the dead sender broadcast: nonce %d", got)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}

	store, _ = openStore(t, path)
	alive := &mute{Backend: w.Backend}
	after := &chain.Sender{Backend: alive, Key: w.payer, Store: store, Poll: 10 * time.Millisecond}
	background(t, after)
	result, err := after.Wait(t.Context(), id, 1)
	if err != nil {
		t.Fatal(err)
	}
	w.Mine(t, 3)
	time.Sleep(300 * time.Millisecond) // thirty more polls
	if got := w.nonce(t, w.payer.Address()); got != 1 {
		t.Errorf("nonce %d, want 1: it was sent %d times", got, alive.broadcast.Load())
	}
	if got := alive.broadcast.Load(); got != 1 {
		t.Errorf("broadcast %d times, want once", got)
	}
	allowance, err := w.token.Allowance(t.Context(), w.payer.Address(), w.escrow.Address())
	if err != nil || !allowance.Eq(uint256.NewInt(42)) {
		t.Errorf("allowance %s, %v; mined in %s", allowance.Dec(), err, result.Hash)
	}
}

// A transaction whose fee is too low for the chain is replaced at a higher one, under the same nonce.
func TestStuckTransactionIsReplaced(t *testing.T) {
	w := newWorld(t)
	s := w.sender(t, w.Keys[0])
	s.Stuck, s.Resend = 200*time.Millisecond, 50*time.Millisecond
	w.Automine(t, false)
	id, err := s.Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(7)))
	if err != nil {
		t.Fatal(err)
	}
	flying, err := s.InFlight(t.Context())
	if err != nil || len(flying) != 1 {
		t.Fatalf("in flight: %v, %v", flying, err)
	}
	first := flying[0].Attempts[0].Signed
	// The base fee rises over what the transaction offers: no block takes it.
	w.RPC(t, nil, "anvil_setNextBlockBaseFeePerGas", (*hexutil.Big)(new(big.Int).Mul(first.GasFeeCap(), big.NewInt(3))))
	w.Mine(t, 1)
	background(t, s)
	within(t, "the fee is raised", func() bool {
		flying, err := s.InFlight(t.Context())
		return err == nil && len(flying) == 1 && len(flying[0].Attempts) > 1
	})
	w.Automine(t, true)
	w.Mine(t, 1)
	result, err := s.Wait(t.Context(), id, 1)
	if err != nil {
		t.Fatal(err)
	}
	tx, _, err := w.Backend.TransactionByHash(t.Context(), result.Hash)
	if err != nil {
		t.Fatal(err)
	}
	least := new(big.Int).Div(new(big.Int).Mul(first.GasFeeCap(), big.NewInt(1125)), big.NewInt(1000))
	if tx.Hash() == first.Hash() || tx.Nonce() != first.Nonce() || tx.GasFeeCap().Cmp(least) < 0 {
		t.Errorf("replaced %s (nonce %d, fee %s) by %s (nonce %d, fee %s)", first.Hash(), first.Nonce(), first.GasFeeCap(), tx.Hash(), tx.Nonce(), tx.GasFeeCap())
	}
	if got := w.nonce(t, w.payer.Address()); got != 1 {
		t.Errorf("nonce %d, want 1", got)
	}
}

// A node forgets a transaction; it is sent again.
func TestDroppedTransactionIsSentAgain(t *testing.T) {
	w := newWorld(t)
	s := w.sender(t, w.Keys[0])
	s.Resend = 100 * time.Millisecond
	w.Automine(t, false)
	id, err := s.Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(7)))
	if err != nil {
		t.Fatal(err)
	}
	w.RPC(t, nil, "anvil_dropAllTransactions")
	w.Automine(t, true)
	background(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := s.Wait(ctx, id, 1); err != nil {
		t.Fatal(err)
	}
}

// A nonce that nobody will ever use keeps everything behind it from being mined, until it is filled.
func TestNonceGapIsFilled(t *testing.T) {
	w := newWorld(t)
	w.Automine(t, false)
	// Another program's transaction is pending under nonce 0 when we take nonce 1; then it disappears.
	other := w.sender(t, w.Keys[0])
	if _, err := other.Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1))); err != nil {
		t.Fatal(err)
	}
	s := w.sender(t, w.Keys[0])
	s.Resend = 100 * time.Millisecond
	id, err := s.Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(2)))
	if err != nil {
		t.Fatal(err)
	}
	w.RPC(t, nil, "anvil_dropAllTransactions")
	w.Automine(t, true)
	background(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := s.Wait(ctx, id, 1); err != nil {
		t.Fatal(err)
	}
	if got := w.nonce(t, w.payer.Address()); got != 2 {
		t.Errorf("nonce %d, want 2", got)
	}
}

// Another program used our nonce: the transaction gets a new one once that is certain, and is still sent once.
func TestDisplacedTransactionGetsANewNonce(t *testing.T) {
	w := newWorld(t)
	store, _ := openStore(t, file(t))
	dead := &mute{Backend: w.Backend}
	dead.silent.Store(true)
	s := &chain.Sender{Backend: dead, Key: w.payer, Store: store, Poll: 10 * time.Millisecond, Resend: 50 * time.Millisecond, Stuck: 50 * time.Millisecond, Finality: 3}
	id, err := s.Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(11)))
	if err != nil {
		t.Fatal(err)
	}
	send(t, w.sender(t, w.Keys[0]), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(12)))
	dead.silent.Store(false)
	background(t, s)
	time.Sleep(200 * time.Millisecond)
	if got := w.nonce(t, w.payer.Address()); got != 1 {
		t.Fatalf("nonce %d: acted before it was certain", got)
	}
	for range 8 { // several looks
		w.Mine(t, 1)
		time.Sleep(40 * time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := s.Wait(ctx, id, 1); err != nil {
		t.Fatal(err)
	}
	if got := w.nonce(t, w.payer.Address()); got != 2 {
		t.Errorf("nonce %d, want 2", got)
	}
}

// A re-org takes out a mined top-up: it comes back, once, and the gas is what was paid in the end.
func TestReorgedTransactionIsSentAgainOnce(t *testing.T) {
	w := newWorld(t)
	setup, s := w.sender(t, w.Keys[1]), w.sender(t, w.Keys[0])
	terms := w.open(t, setup, 1, 1000)
	send(t, s, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(5000)))
	w.Mine(t, 5)
	for _, depth := range []int{1, 3} {
		before := w.view(t, terms).Deposit
		result := send(t, s, w.escrow.TopUpCall(terms, *uint256.NewInt(100)))
		w.Mine(t, depth-1)
		w.Reorg(t, depth)
		if got := w.view(t, terms).Deposit; got != before {
			t.Fatalf("depth %d: the re-org did not undo the top-up: %s", depth, got.Dec())
		}
		within(t, "the top-up is back", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := s.Wait(ctx, result.ID, 1)
			return err == nil && w.view(t, terms).Deposit != before
		})
		w.Mine(t, 2)
		want := new(uint256.Int).AddUint64(&before, 100)
		if got := w.view(t, terms).Deposit; !got.Eq(want) {
			t.Errorf("depth %d: deposit %s, want %s", depth, got.Dec(), want.Dec())
		}
	}
	w.explainGas(t, s)
}

// explainGas checks that the gas spent is all that the payer's account lost, to the wei.
func (w *world) explainGas(t *testing.T, s *chain.Sender) {
	t.Helper()
	spent, err := s.GasSpent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	balance, err := w.Backend.BalanceAt(t.Context(), w.payer.Address(), nil)
	if err != nil {
		t.Fatal(err)
	}
	start := new(big.Int).Mul(big.NewInt(10_000), big.NewInt(1e18))
	if balance.Add(balance, spent).Cmp(start) != 0 {
		t.Errorf("gas spent %s does not explain the balance: off by %s wei", spent, balance.Sub(balance, start))
	}
}

// Final transactions are left alone, and what they cost is kept.
func TestFinalTransactionsLeaveTheOutbox(t *testing.T) {
	w := newWorld(t)
	store, _ := openStore(t, file(t))
	counted := &mute{Backend: w.Backend}
	s := &chain.Sender{Backend: counted, Key: w.payer, Store: store, Poll: 10 * time.Millisecond, Finality: 2}
	result := send(t, s, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1)))
	paid, err := s.GasSpent(t.Context())
	if err != nil || paid.Sign() == 0 {
		t.Fatalf("gas %v, %v", paid, err)
	}
	w.Mine(t, 3)
	if _, err := s.Wait(t.Context(), result.ID, 3); err != nil {
		t.Fatal(err)
	}
	background(t, s)
	time.Sleep(100 * time.Millisecond)
	again, err := s.GasSpent(t.Context())
	if err != nil || again.Cmp(paid) != 0 {
		t.Errorf("gas %s became %s, %v", paid, again, err)
	}
	open, err := s.InFlight(t.Context())
	if err != nil || len(open) != 0 {
		t.Errorf("in flight: %v, %v", open, err)
	}
}

// A transaction that reverts on the chain, though it did not in the simulation, names its channel and the reason.
func TestRevertNamesTheChannel(t *testing.T) {
	w := newWorld(t)
	setup, s := w.sender(t, w.Keys[1]), w.sender(t, w.Keys[2])
	terms := w.open(t, setup, 1, 1000)
	v := w.voucher(t, terms, 600)
	w.Automine(t, false)
	lost, err := s.Submit(t.Context(), w.escrow.SettleCall(terms, v.Accepted, v.Signature))
	if err != nil {
		t.Fatal(err)
	}
	// Somebody else settles the same voucher before us, in the same block, with a higher tip.
	faster := w.sender(t, w.Keys[3])
	w.RPC(t, nil, "anvil_dropAllTransactions")
	if _, err := faster.Submit(t.Context(), w.escrow.SettleCall(terms, v.Accepted, v.Signature)); err != nil {
		t.Fatal(err)
	}
	w.Mine(t, 1)
	s.Resend = 50 * time.Millisecond
	w.Automine(t, true)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err = s.Wait(ctx, lost, 1)
	var reverted *chain.Reverted
	var reason *chain.Revert
	if !errors.As(err, &reverted) || len(reverted.Call.Channels) != 1 || reverted.Call.Channels[0] != terms.ID() {
		t.Fatalf("want a revert that names channel %s, got %v", terms.ID(), err)
	}
	if !errors.As(err, &reason) || reason.Name != "Stale" {
		t.Errorf("reason %v", reverted.Reason)
	}
	all, err := s.Recent(t.Context(), time.Now().Add(-time.Hour), chain.Settle)
	wasted, risked, lostErr := s.Wasted(t.Context(), time.Now().Add(-time.Hour), chain.Settle)
	if err != nil || lostErr != nil || len(all) != 1 || wasted.Cmp(all[0].Cost) != 0 || wasted.Sign() <= 0 || risked.Sign() != 0 {
		t.Errorf("%s wei are lost and %s risked (%v, %v)", wasted, risked, err, lostErr)
	}
}

// Nothing is queued that cannot be paid for, and the message says what to do.
func TestNoGas(t *testing.T) {
	w := newWorld(t)
	s := w.sender(t, w.Keys[4])
	w.RPC(t, nil, "anvil_setBalance", addressOf(w.Keys[4]), "0x1")
	_, err := s.Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1)))
	if !errors.Is(err, chain.ErrFunds) {
		t.Errorf("want ErrFunds, got %v", err)
	}
	if flying, err := s.InFlight(t.Context()); err != nil || len(flying) != 0 {
		t.Errorf("in flight: %v, %v", flying, err)
	}
}

// MaxFee holds at the first fee and at every raise.
func TestMaxFeeIsNeverExceeded(t *testing.T) {
	w := newWorld(t)
	w.Automine(t, false)
	s := w.sender(t, w.Keys[0])
	s.Stuck, s.Resend, s.MaxFee = 50*time.Millisecond, 50*time.Millisecond, big.NewInt(3e9)
	if _, err := s.Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1))); err != nil {
		t.Fatal(err)
	}
	background(t, s)
	time.Sleep(time.Second)
	flying, err := s.InFlight(t.Context())
	if err != nil || len(flying) != 1 {
		t.Fatalf("in flight: %v, %v", flying, err)
	}
	for _, a := range flying[0].Attempts {
		if a.Signed.GasFeeCap().Cmp(s.MaxFee) > 0 {
			t.Errorf("offered %s, allowed %s", a.Signed.GasFeeCap(), s.MaxFee)
		}
	}
}

// Many goroutines share one sender: no nonce is used twice and none is left out.
func TestConcurrentSubmits(t *testing.T) {
	w := newWorld(t)
	s := w.sender(t, w.Keys[0])
	s.Log = slog.New(slog.DiscardHandler)
	const n = 20
	ids := make(chan chain.TxID, n)
	for i := range uint64(n) {
		go func() {
			id, err := s.Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(i)))
			if err != nil {
				t.Error(err)
			}
			ids <- id
		}()
	}
	for range n {
		if id := <-ids; id != "" {
			if _, err := s.Wait(t.Context(), id, 1); err != nil {
				t.Error(err)
			}
		}
	}
	if got := w.nonce(t, w.payer.Address()); got != n {
		t.Errorf("nonce %d, want %d", got, n)
	}
}

var _ channel.ContractVerifier = chain.Contracts{}

// An endpoint that fails for a while: nothing is lost, nothing is sent twice, and it is not hammered meanwhile.
func TestEndpointFailsForAWhile(t *testing.T) {
	w := newWorld(t)
	p := newProxy(t, w.URL)
	client, err := chain.Dial(t.Context(), p.URL)
	if err != nil {
		t.Fatal(err)
	}
	store, _ := openStore(t, file(t))
	cut := &mute{Backend: client}
	cut.silent.Store(true)
	s := &chain.Sender{Backend: cut, Key: w.payer, Store: store, Poll: 5 * time.Millisecond}
	id, err := s.Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(3)))
	if err != nil {
		t.Fatal(err)
	}
	p.fail(503)
	cut.silent.Store(false)
	background(t, s)
	before, began := p.count(), time.Now()
	time.Sleep(3 * time.Second) // at 5 ms a poll, 600 requests if failures were not paused
	n := p.count() - before
	if took := time.Since(began); n == 0 || n > 4+int(took.Seconds()) {
		t.Errorf("%d requests in %s of failure, want a handful", n, took)
	}
	if _, err := s.Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(4))); err == nil {
		t.Error("submitted what could not be simulated")
	}
	p.fail(0)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := s.Wait(ctx, id, 1); err != nil {
		t.Fatal(err)
	}
	if got := w.nonce(t, w.payer.Address()); got != 1 {
		t.Errorf("nonce %d, want 1", got)
	}
}
