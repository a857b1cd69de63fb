package chain_test

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/rpc"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/sdk/chain"
)

const countMethod = "eth_getTransactionCount"

// marks are the nonces that were signed for.
type marks struct {
	mu   sync.Mutex
	next uint64
}

func (m *marks) NextNonce(context.Context, common.Address, uint64) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.next, nil
}

func (m *marks) RaiseNonce(_ context.Context, _ common.Address, _, nonce uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.next = max(m.next, nonce+1)
	return nil
}

func (m *marks) LowerNonce(_ context.Context, _ common.Address, _, next uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.next = min(m.next, next)
	return nil
}

// marked is a sender of the payer with marks, before endpoints that can lie: the only one, or one of two.
func (w *world) marked(t *testing.T, place string) (s *chain.Sender, liar *badrpc.Endpoint, m *marks) {
	t.Helper()
	s = w.sender(t, w.Keys[0])
	_, one, two, log := w.pair(t)
	urls, liar := one.URL+","+two.URL, one
	switch place {
	case "second":
		liar = two
	case "only":
		urls = one.URL
	}
	var err error
	s.Log = slog.New(slog.NewTextHandler(log, nil))
	if s.Backend, err = chain.Connect(t.Context(), urls, s.Log); err != nil {
		t.Fatal(err)
	}
	m = &marks{}
	s.Marks, s.Stuck, s.Finality = m, 200*time.Millisecond, 3
	return s, liar, m
}

// added adds to the nonces that a node says.
func added(n hexutil.Uint64) badrpc.Fault {
	return func(x *badrpc.Exchange) {
		var said hexutil.Uint64
		if json.Unmarshal(x.Result, &said) == nil {
			badrpc.Says(said + n)(x)
		}
	}
}

// A nonce that one endpoint makes up, for one settlement or for long, is not signed for and stays in no mark: of two endpoints
// everything goes on, and before an only one it is waited until it says so no more.
func TestFalseNonceIsNotSignedFor(t *testing.T) {
	for _, place := range []string{"first", "second", "only"} {
		for _, sent := range []uint64{0, 1} {
			if place == "only" && sent == 0 {
				continue // a new database: an only endpoint is believed
			}
			t.Run(fmt.Sprintf("%s, %d sent", place, sent), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				s, liar, m := w.marked(t, place)
				for n := range sent {
					send(t, s, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(100 + n)))
				}
				if place == "only" {
					s.Stuck = time.Minute
				}
				liar.On(countMethod, badrpc.Says("0xfffff"))
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				id, err := s.Submit(ctx, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1)))
				if next, _ := m.NextNonce(t.Context(), s.Address(), 0); next > sent+1 {
					t.Errorf("nonce %d was signed for", next-1)
				}
				if place == "only" {
					if !errors.Is(err, chain.ErrAnswer) || !strings.Contains(err.Error(), "it alone says") {
						t.Errorf("submitted: %v", err)
					}
					liar.Heal()
					send(t, s, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(2)))
				} else if err != nil {
					t.Fatal(err)
				} else if _, err := s.Wait(ctx, id, 1); err != nil {
					t.Error(err)
				}
				if got := w.nonce(t, s.Address()); got != sent+1 {
					t.Errorf("%d transactions, want %d", got, sent+1)
				}
			})
		}
	}
}

// What an only endpoint says for long of a key, and of a deep block too, is so: a key that was used elsewhere, and one whose
// database is older than its transactions.
func TestNonceOfAnotherProgramIsBelieved(t *testing.T) {
	w := newWorld(t)
	s, _, m := w.marked(t, "only")
	w.RPC(t, nil, "anvil_setNonce", s.Address(), hexutil.Uint64(500))
	w.Mine(t, 5)
	send(t, s, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1)))
	w.RPC(t, nil, "anvil_setNonce", s.Address(), hexutil.Uint64(1000))
	w.Mine(t, 5)
	within(t, "it is believed", func() bool {
		w.Mine(t, 1)
		id, err := s.Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(2)))
		if err != nil {
			return false
		}
		_, err = s.Wait(t.Context(), id, 1)
		return err == nil
	})
	if m.next != 1001 {
		t.Errorf("the next nonce is %d", m.next)
	}
}

// A mark that an endpoint's false word left far above the chain has no more than what it can hide used up, once, and is
// forgotten then.
func TestMarkFarAboveTheChain(t *testing.T) {
	w := newWorld(t)
	s, _, m := w.marked(t, "first")
	send(t, s, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1)))
	next := func() *chain.Sender { // after a restart
		return &chain.Sender{Backend: s.Backend, Key: s.Key, Store: s.Store, Poll: s.Poll, Stuck: s.Stuck, Finality: s.Finality, Marks: m, Log: s.Log}
	}
	m.next = 1 << 20
	again := next()
	if n, err := again.Unknown(t.Context()); err != nil || n == 0 || n > 128 {
		t.Fatalf("%d unknown, %v", n, err)
	}
	within(t, "it is forgotten", func() bool { _ = again.Sync(t.Context()); return m.next < 1<<20 })
	mined := w.nonce(t, s.Address())
	if mined > 129 || m.next != mined {
		t.Errorf("%d nonces are used up, the mark says %d", mined, m.next)
	}
	again = next()
	if n, err := again.Unknown(t.Context()); err != nil || n != 0 {
		t.Errorf("%d unknown, %v", n, err)
	}
	send(t, again, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(2)))
	if got := w.nonce(t, s.Address()); got != mined+1 {
		t.Errorf("%d transactions after it", got-mined)
	}
}

// While endpoints contradict each other on where the key is, such a mark stays, and nothing is taken for whole.
func TestMarkFarAboveTheChainBesideALie(t *testing.T) {
	w := newWorld(t)
	s, liar, m := w.marked(t, "second")
	w.RPC(t, nil, "anvil_setNonce", s.Address(), hexutil.Uint64(1000))
	w.Mine(t, 1)
	m.next = 1 << 20
	liar.On(countMethod, badrpc.Says("0x0"))
	for range 10 {
		if err := s.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := s.Unknown(t.Context()); err != nil || n == 0 || m.next != 1<<20 {
		t.Errorf("%d unknown, %v, the mark says %d", n, err, m.next)
	}
	if flying, err := s.InFlight(t.Context()); err != nil || len(flying) > 0 {
		t.Errorf("%d transactions are sent meanwhile, %v", len(flying), err)
	}
}

// An endpoint that always says that more are on their way has gas burnt for its first word, and no further: beside another one
// everything is known then.
func TestPendingForEverBurnsNoGas(t *testing.T) {
	for _, place := range []string{"first", "second", "only"} {
		t.Run(place, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			s, liar, m := w.marked(t, place)
			m.next = 1
			w.RPC(t, nil, "anvil_setNonce", s.Address(), "0x1")
			liar.On(countMethod, badrpc.About("pending", added(10)))
			for range 60 {
				_ = s.Sync(t.Context())
				time.Sleep(10 * time.Millisecond)
			}
			n, err := s.Unknown(t.Context())
			if err != nil || n > 0 && place != "only" {
				t.Errorf("%d unknown, %v", n, err)
			}
			if used := w.nonce(t, s.Address()) - 1; used > 16 {
				t.Errorf("%d transactions that do nothing", used)
			}
		})
	}
}

// TestShownNoncesAreWaitedFor: what the outbox does not know and a node shows, as after a restore, is waited for as long as a fee may be
// stuck: it is worth what it was signed for, and something that does nothing in its place costs gas.
func TestShownNoncesAreWaitedFor(t *testing.T) {
	for stuck, filled := range map[time.Duration]bool{time.Hour: false, 100 * time.Millisecond: true} {
		t.Run(stuck.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			s, liar, m := w.marked(t, "only")
			s.Stuck = stuck
			if err := m.RaiseNonce(t.Context(), s.Address(), 0, 1); err != nil {
				t.Fatal(err)
			}
			liar.On(countMethod, badrpc.About("pending", added(2)))
			for range 10 {
				_ = s.Sync(t.Context())
				time.Sleep(30 * time.Millisecond)
			}
			if got := w.nonce(t, s.Address()); (got > 0) != filled {
				t.Errorf("%d nonces are used of two that a node shows", got)
			}
		})
	}
}

// A gap is filled though an endpoint always says that something is on its way for it.
func TestGapIsFilledBesidePendingForEver(t *testing.T) {
	for _, place := range []string{"first", "second", "only"} {
		t.Run(place, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.Automine(t, false)
			if _, err := w.sender(t, w.Keys[0]).Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1))); err != nil {
				t.Fatal(err)
			}
			s, liar, _ := w.marked(t, place)
			s.Marks, s.Resend = nil, 100*time.Millisecond
			id, err := s.Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(2)))
			if err != nil {
				t.Fatal(err)
			}
			w.RPC(t, nil, "anvil_dropAllTransactions")
			w.Automine(t, true)
			liar.On(countMethod, badrpc.About("pending", added(5)))
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if _, err := s.Wait(ctx, id, 1); err != nil {
				t.Fatal(err)
			}
			if got := w.nonce(t, s.Address()); got != 2 {
				t.Errorf("nonce %d, want 2", got)
			}
		})
	}
}

// An answer that unpacks to more than is read of any is an error that names the endpoint, and the next one is asked.
func TestLongAnswerIsNotRead(t *testing.T) {
	long := false
	serve := func(bad bool) *httptest.Server {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var asked struct {
				ID json.RawMessage `json:"id"`
			}
			_ = json.NewDecoder(r.Body).Decode(&asked)
			w.Header().Set("Content-Type", "application/json")
			if !bad || !long {
				fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":"0x7a69"}`, asked.ID)
				return
			}
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			defer z.Close()
			fmt.Fprintf(z, `{"jsonrpc":"2.0","id":%s,"result":"0x`, asked.ID)
			zeros := []byte(strings.Repeat("0", 1<<20))
			for range 40 {
				if _, err := z.Write(zeros); err != nil {
					return
				}
			}
			_, _ = io.WriteString(z, `1"}`)
		}))
		t.Cleanup(server.Close)
		return server
	}
	one, two := serve(true), serve(false)
	alone, err := chain.Connect(t.Context(), one.URL, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	both, err := chain.Connect(t.Context(), one.URL+","+two.URL, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	long = true
	if _, err := alone.BlockNumber(t.Context()); !errors.Is(err, chain.ErrAnswer) || !strings.Contains(err.Error(), strings.TrimPrefix(one.URL, "http://")) {
		t.Errorf("an only one: %v", err)
	}
	if n, err := both.BlockNumber(t.Context()); err != nil || n != 31337 {
		t.Errorf("beside another one: %d, %v", n, err)
	}
}

type longWinded struct{}

func (longWinded) ChainId() string { return "0x7a69" }

func (longWinded) BlockNumber() string { return "0x" + strings.Repeat("0", 40<<20) + "1" }

// So is one over a WebSocket.
func TestLongAnswerOverAWebSocketIsNotRead(t *testing.T) {
	server := rpc.NewServer()
	if err := server.RegisterName("eth", longWinded{}); err != nil {
		t.Fatal(err)
	}
	host := httptest.NewServer(server.WebsocketHandler([]string{"*"}))
	t.Cleanup(func() { server.Stop(); host.Close() })
	backend, err := chain.Connect(t.Context(), "ws"+strings.TrimPrefix(host.URL, "http"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := backend.BlockNumber(t.Context()); err == nil {
		t.Errorf("block %d", n)
	} else {
		t.Log(err)
	}
}

// An endpoint that is slow to answer is asked after the others for a while, and what a transaction is sent by does not wait for
// it.
func TestSlowEndpointIsAskedLast(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s, slow, _ := w.marked(t, "first")
	late := badrpc.Delay(4200 * time.Millisecond)
	for _, method := range []string{"eth_getBalance", "eth_blockNumber", countMethod, "eth_getBlockByNumber"} {
		slow.On(method, late)
	}
	if _, err := s.Backend.BlockNumber(t.Context()); err != nil {
		t.Fatal(err)
	}
	asked, began := slow.Count("eth_blockNumber"), time.Now()
	if _, err := s.Backend.BlockNumber(t.Context()); err != nil || time.Since(began) > 3*time.Second || slow.Count("eth_blockNumber") != asked {
		t.Errorf("after %s, asked %d times, %v", time.Since(began), slow.Count("eth_blockNumber")-asked, err)
	}
	began = time.Now()
	if _, err := s.Backend.BalanceAt(t.Context(), s.Address(), nil); err != nil || time.Since(began) > 4*time.Second {
		t.Errorf("after %s, %v", time.Since(began), err)
	}
}
