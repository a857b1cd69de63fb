package chain_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/sdk/chain"
)

const (
	receiptMethod = "eth_getTransactionReceipt"
	byHashMethod  = "eth_getTransactionByHash"
)

// record is a log that tests read.
type record struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.Write(p)
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.String()
}

// badSender is a sender of the payer's behind an endpoint that can misbehave, and what it logs.
func (w *world) badSender(t *testing.T) (*chain.Sender, *badrpc.Endpoint, *record) {
	t.Helper()
	bad := badrpc.New(t, w.URL)
	client, err := chain.Dial(t.Context(), bad.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	log := &record{}
	store, _ := openStore(t, file(t))
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(log.String())
		}
	})
	return &chain.Sender{
		Backend: chain.Checked(client), Key: w.payer, Store: store, Poll: 10 * time.Millisecond,
		Stuck: 50 * time.Millisecond, Resend: 50 * time.Millisecond, Finality: 3,
		Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}, bad, log
}

// looks lets blocks pass, and has the sender look at each.
func (w *world) looks(t *testing.T, s *chain.Sender, blocks int) {
	t.Helper()
	for range blocks {
		w.Mine(t, 1)
		time.Sleep(s.Stuck / 4)
		_ = s.Sync(t.Context())
	}
}

// A receipt that comes late never moves money twice: not while the node indexes, not while it knows the transaction without
// its receipt, not while it knows nothing for a few looks, and not when the contract would refuse the call now.
func TestLateReceipt(t *testing.T) {
	for name, hide := range map[string]func(*badrpc.Endpoint){
		"indexing": func(b *badrpc.Endpoint) {
			b.On(receiptMethod, badrpc.Fail(-32000, "transaction indexing is in progress"))
			b.On(byHashMethod, badrpc.Fail(-32000, "transaction indexing is in progress"))
		},
		"known by its hash": func(b *badrpc.Endpoint) { b.On(receiptMethod, badrpc.Null) },
		"unknown for a while": func(b *badrpc.Endpoint) {
			b.On(receiptMethod, badrpc.Null)
			b.On(byHashMethod, badrpc.Times(2, badrpc.Null))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s, bad, _ := w.badSender(t)
			terms := w.open(t, w.sender(t, w.Keys[1]), 1, 1000)
			send(t, s, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(5000)))
			hide(bad)
			id, err := s.Submit(t.Context(), w.escrow.TopUpCall(terms, *uint256.NewInt(500)))
			if err != nil {
				t.Fatal(err)
			}
			w.looks(t, s, 12)
			bad.Heal()
			w.deposited(t, s, id, terms, 1500, 2)
		})
	}
}

// deposited checks that a transaction is found, and what the channel holds after so many transactions of its sender.
func (w *world) deposited(t *testing.T, s *chain.Sender, id chain.TxID, terms channel.Terms, deposit, nonce uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := s.Wait(ctx, id, 1); err != nil {
		t.Error(err)
	}
	w.looks(t, s, 8)
	if got := w.view(t, terms).Deposit; got.Uint64() != deposit {
		t.Errorf("deposit %s, want %d", got.Dec(), deposit)
	}
	if got := w.nonce(t, s.Address()); got != nonce {
		t.Errorf("%d transactions, want %d", got, nonce)
	}
	if flying, err := s.InFlight(t.Context()); err != nil || len(flying) != 0 {
		t.Errorf("in flight: %v, %v", flying, err)
	}
}

// lose has the node show a block in which another transaction of the payer's took the nonce, and no trace of ours.
func lose(w *world, bad *badrpc.Endpoint, nonce uint64) {
	bad.On(receiptMethod, badrpc.Null)
	bad.On(byHashMethod, badrpc.Null)
	bad.On("eth_getBlockByNumber", badrpc.About(",true]", badrpc.With("transactions", []map[string]any{
		{"hash": common.Hash{0xde, 0xad}, "from": w.payer.Address(), "nonce": hexutil.Uint64(nonce)},
	})))
}

// The node shows another branch for so long that the transaction is sent anew, and then that it was mined: the copy, which
// waits, is cancelled.
func TestReceiptAfterTheCopyWasSent(t *testing.T) {
	w := newWorld(t)
	s, bad, log := w.badSender(t)
	terms := w.open(t, w.sender(t, w.Keys[1]), 1, 1000)
	send(t, s, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(5000)))
	w.looks(t, s, 4) // final
	lose(w, bad, 1)
	id, err := s.Submit(t.Context(), w.escrow.TopUpCall(terms, *uint256.NewInt(500)))
	if err != nil {
		t.Fatal(err)
	}
	w.Automine(t, false)
	// The node takes the copy and does not mine it: blocks are made without it.
	bad.Instead("eth_sendRawTransaction", badrpc.Says(common.Hash{}))
	for range 100 {
		w.looks(t, s, 1)
		if strings.Contains(log.String(), "another program uses this key") {
			break
		}
	}
	bad.Heal()
	w.Automine(t, true)
	w.deposited(t, s, id, terms, 1500, 3) // the third uses up the copy's nonce
	if !strings.Contains(log.String(), "its copy is cancelled") {
		t.Error("no word of it")
	}
}

// A node that has no index of transactions shows nothing of ours for ever: its block does, and nothing is sent twice.
func TestNodeWithoutAnIndex(t *testing.T) {
	w := newWorld(t)
	s, bad, log := w.badSender(t)
	terms := w.open(t, w.sender(t, w.Keys[1]), 1, 1000)
	send(t, s, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(5000)))
	bad.On(receiptMethod, badrpc.Null)
	bad.On(byHashMethod, badrpc.Null)
	id, err := s.Submit(t.Context(), w.escrow.TopUpCall(terms, *uint256.NewInt(500)))
	if err != nil {
		t.Fatal(err)
	}
	w.looks(t, s, 20)
	if n := strings.Count(log.String(), "does not show the receipt"); n != 2 { // of each transaction once
		t.Errorf("it is said %d times, want 2", n)
	}
	bad.Heal()
	w.deposited(t, s, id, terms, 1500, 2)
}

// Another transaction took the nonce, and the contract would refuse ours now: it is given up, and who waits is told so.
func TestLostAndRefused(t *testing.T) {
	w := newWorld(t)
	s, bad, _ := w.badSender(t)
	terms := w.open(t, w.sender(t, w.Keys[1]), 1, 1000)
	send(t, s, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(500)))
	w.looks(t, s, 4) // final
	lose(w, bad, 1)
	id, err := s.Submit(t.Context(), w.escrow.TopUpCall(terms, *uint256.NewInt(500)))
	if err != nil {
		t.Fatal(err)
	}
	w.looks(t, s, 20)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err = s.Wait(ctx, id, 1)
	var reverted *chain.Reverted
	if !errors.As(err, &reverted) || !strings.Contains(err.Error(), "given up") {
		t.Errorf("want that it was given up, got %v", err)
	}
	if got := w.view(t, terms).Deposit; got.Uint64() != 1500 || w.nonce(t, s.Address()) != 2 {
		t.Errorf("deposit %s after %d transactions, want 1500 after 2", got.Dec(), w.nonce(t, s.Address()))
	}
}

// TestAbsenceIsWaitedFor: a transaction that the node does not show any more is given up by no number of looks before the time of a stuck
// fee is over, and by no time before some looks at newer blocks.
func TestAbsenceIsWaitedFor(t *testing.T) {
	for name, c := range map[string]struct {
		stuck time.Duration
		looks int
	}{"many looks": {time.Hour, 10}, "a long time": {time.Millisecond, 2}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s, bad, _ := w.badSender(t)
			s.Stuck = c.stuck
			looks := func(n int) {
				for range n {
					w.Mine(t, 1)
					time.Sleep(5 * time.Millisecond)
					_ = s.Sync(t.Context())
				}
			}
			terms := w.open(t, w.sender(t, w.Keys[1]), 1, 1000)
			send(t, s, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(500)))
			looks(4) // final
			lose(w, bad, 1)
			if _, err := s.Submit(t.Context(), w.escrow.TopUpCall(terms, *uint256.NewInt(500))); err != nil {
				t.Fatal(err)
			}
			looks(c.looks)
			if flying, err := s.InFlight(t.Context()); err != nil || len(flying) != 1 {
				t.Errorf("%d are on their way, %v", len(flying), err)
			}
		})
	}
}

// A node that is behind shows a mined transaction no more: nothing is sent, and no re-org is cried.
func TestNodeThatIsBehindIsNoReorg(t *testing.T) {
	w := newWorld(t)
	s, bad, log := w.badSender(t)
	result := send(t, s, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1)))
	w.Mine(t, 1)
	bad.On(receiptMethod, badrpc.Null)
	w.looks(t, s, 1)
	bad.Heal()
	w.looks(t, s, 1)
	if strings.Contains(log.String(), "re-org") {
		t.Error("a receipt that was missing once was taken for a re-org")
	}
	if _, err := s.Wait(t.Context(), result.ID, 2); err != nil {
		t.Error(err)
	}
}

// An endpoint that says a nonce far ahead, or an estimate that no block has room for, does not leave what can never be mined
// in the outbox: it is refused, or signed anew once the chain says otherwise.
func TestNonceFarAhead(t *testing.T) {
	w := newWorld(t)
	s, bad, log := w.badSender(t)
	approve := w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1))
	for method, much := range map[string]string{"eth_getTransactionCount": "0xfffffffff", "eth_estimateGas": "0xfffffff"} {
		bad.On(method, badrpc.Says(much))
		if _, err := s.Submit(t.Context(), approve); !errors.Is(err, chain.ErrAnswer) {
			t.Errorf("%s: %v", method, err)
		}
		bad.Heal()
	}
	bad.On("eth_getTransactionCount", badrpc.Says("0x3e8")) // a thousand, which can be
	id, err := s.Submit(t.Context(), approve)
	if err != nil {
		t.Fatal(err)
	}
	bad.Heal()
	w.looks(t, s, 20)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := s.Wait(ctx, id, 1); err != nil {
		t.Error(err)
	}
	if got := w.nonce(t, s.Address()); got != 1 {
		t.Errorf("%d transactions, want 1", got)
	}
	if n := strings.Count(log.String(), "far ahead"); n != 1 {
		t.Errorf("it is said %d times", n)
	}
}
