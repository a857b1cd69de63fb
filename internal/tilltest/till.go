// Package tilltest runs a payee on a real chain for tests: its channels, its settler and its watcher, on one database file.
package tilltest

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/settle"
)

// A Till is a payee on a real chain: its channels, its settler and its watcher, on one database file.
type Till struct {
	*chaintest.Chain
	T        *testing.T
	Contract *chain.Escrow
	Payer    *channel.Key
	Key      *channel.Key
	Others   *chain.Sender // of somebody who opens channels and settles for nobody
	path     string
	DB       *store.DB
	Txs      *chain.Store
	Payee    *channel.Payee
	Sender   *chain.Sender
	Settler  *settle.Settler
	Watcher  *settle.Watcher
	mu       sync.Mutex
	Changes  []channel.State
	payments []settle.Settlement
}

// Poll is how often everything here looks.
const Poll = 20 * time.Millisecond

// New starts a chain, and on it a payee whose parts run when the test says so.
func New(t *testing.T) *Till {
	t.Helper()
	c := chaintest.Anvil(t)
	k := &Till{Chain: c, T: t, Payer: channel.NewKey(c.Keys[0]), Key: channel.NewKey(c.Keys[1]), path: filepath.Join(t.TempDir(), "till.db")}
	c.Mint(t, k.Payer.Address(), 1_000_000)
	other, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "others.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	txs, err := chain.OpenStore(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	k.Others = &chain.Sender{Backend: c.Backend, Key: channel.NewKey(c.Keys[2]), Store: txs, Poll: Poll}
	k.Start(c.Backend)
	return k
}

// Start makes the payee's side on its database file, as a program does when it begins.
func (k *Till) Start(backend chain.Backend) {
	k.T.Helper()
	ctx := k.T.Context()
	var err error
	if k.Contract, err = chain.NewEscrow(ctx, backend, k.Escrow); err != nil {
		k.T.Fatal(err)
	}
	if k.DB, err = store.Open(ctx, k.path); err != nil {
		k.T.Fatal(err)
	}
	k.T.Cleanup(func() { _ = k.DB.Close() })
	if k.Txs, err = chain.OpenStore(ctx, k.DB); err != nil {
		k.T.Fatal(err)
	}
	k.Payee = &channel.Payee{Store: k.DB.Payee(), Domain: k.Contract.Domain(), Contracts: chain.Contracts{Backend: backend}}
	k.Sender = &chain.Sender{Backend: backend, Key: k.Key, Store: k.Txs, Poll: Poll, Resend: 200 * time.Millisecond, Unseen: 200 * time.Millisecond}
	k.Settler = &settle.Settler{Payee: k.Payee, Contract: k.Contract, Sender: k.Sender, Policy: settle.Policy{Interval: Poll}, OnSettled: k.paid}
	k.Watcher = &settle.Watcher{Payee: k.Payee, Contract: k.Contract, Confirmations: 3, Poll: Poll, Store: k.Txs, OnChange: k.changed}
}

// Restart closes the database under everything and begins anew.
func (k *Till) Restart(backend chain.Backend) {
	k.T.Helper()
	if err := k.DB.Close(); err != nil {
		k.T.Fatal(err)
	}
	k.Start(backend)
}

func (k *Till) paid(s settle.Settlement) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.payments = append(k.payments, s)
}

func (k *Till) changed(_, now channel.State) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.Changes = append(k.Changes, now)
}

// Settlements are what the settler has reported.
func (k *Till) Settlements() []settle.Settlement {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]settle.Settlement(nil), k.payments...)
}

// Run runs a part until the returned function is called, or the test ends.
func (k *Till) Run(part func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(k.T.Context())
	done := make(chan error, 1)
	go func() { done <- part(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				k.T.Errorf("ended with %v", err)
			}
		})
	}
	k.T.Cleanup(stop)
	return stop
}

// Send submits a call and waits until it is mined.
func (k *Till) Send(s *chain.Sender, call chain.Call) *chain.Result {
	k.T.Helper()
	ctx, cancel := context.WithTimeout(k.T.Context(), 20*time.Second)
	defer cancel()
	id, err := s.Submit(ctx, call)
	if err != nil {
		k.T.Fatal(err)
	}
	result, err := s.Wait(ctx, id, 1)
	if err != nil {
		k.T.Fatal(err)
	}
	return result
}

// Terms are those of a channel of the payer with the payee.
func (k *Till) Terms(salt byte) channel.Terms {
	return channel.Terms{ChainID: k.Contract.ChainID(), Escrow: k.Escrow, Payer: k.Payer.Address(), Payee: k.Key.Address(), Token: k.Token, Salt: common.BytesToHash([]byte{salt})}
}

// Authorize signs the payer's ERC-3009 authorization.
func (k *Till) Authorize(value uint64, nonce common.Hash) chain.Authorization {
	k.T.Helper()
	token, err := chain.NewToken(k.T.Context(), k.Backend, k.Token)
	if err != nil {
		k.T.Fatal(err)
	}
	separator, err := token.DomainSeparator(k.T.Context())
	if err != nil {
		k.T.Fatal(err)
	}
	a, err := chain.SignAuthorization(k.T.Context(), k.Payer, separator, channel.Authorization{From: k.Payer.Address(), To: k.Escrow, Value: *uint256.NewInt(value), ValidBefore: 1 << 40, Nonce: nonce})
	if err != nil {
		k.T.Fatal(err)
	}
	return a
}

// Open opens a channel on the chain and registers it with its whole deposit.
func (k *Till) Open(salt byte, deposit uint64) channel.Terms {
	k.T.Helper()
	terms := k.Terms(salt)
	k.Send(k.Others, k.Contract.OpenAuthorizedCall(terms, k.Authorize(deposit, channel.OpenNonce(terms.Payer, terms))))
	k.Register(terms)
	return terms
}

// Register has the payee know a channel as the chain has it.
func (k *Till) Register(terms channel.Terms) {
	k.T.Helper()
	view, err := k.Contract.View(k.T.Context(), terms.ID(), nil)
	if err != nil {
		k.T.Fatal(err)
	}
	if _, err := k.Payee.Register(k.T.Context(), terms, view); err != nil {
		k.T.Fatal(err)
	}
}

// TopUp adds the payer's money to a channel, by somebody else's transaction.
func (k *Till) TopUp(terms channel.Terms, amount uint64, salt byte) {
	k.T.Helper()
	s := common.BytesToHash([]byte{salt})
	nonce := channel.TopUpNonce(terms.ID(), *uint256.NewInt(amount), k.Payer.Address(), s)
	k.Send(k.Others, k.Contract.TopUpAuthorizedCall(terms, s, k.Authorize(amount, nonce)))
}

// RequestClose starts the grace period of a channel, by somebody else's transaction.
func (k *Till) RequestClose(terms channel.Terms) {
	k.T.Helper()
	nonce, err := k.Contract.CloseRequests(k.T.Context(), terms.ID())
	if err != nil {
		k.T.Fatal(err)
	}
	signature, err := k.Payer.Sign(k.T.Context(), k.Contract.Domain().RequestCloseDigest(terms.ID(), nonce, 1<<40))
	if err != nil {
		k.T.Fatal(err)
	}
	k.Send(k.Others, k.Contract.RequestCloseAuthorizedCall(terms, 1<<40, signature))
}

// Accept takes the payer's voucher.
func (k *Till) Accept(terms channel.Terms, cumulative uint64) {
	k.T.Helper()
	v, err := k.Contract.Domain().Sign(k.T.Context(), k.Payer, terms.ID(), *uint256.NewInt(cumulative))
	if err != nil {
		k.T.Fatal(err)
	}
	if _, err := k.Payee.Accept(k.T.Context(), v); err != nil {
		k.T.Fatal(err)
	}
}

// State is what the payee has of a channel.
func (k *Till) State(terms channel.Terms) channel.State {
	k.T.Helper()
	s, err := k.Payee.State(k.T.Context(), terms.ID())
	if err != nil {
		k.T.Fatal(err)
	}
	return s
}

// Eventually polls until f is true.
func (k *Till) Eventually(what string, f func() bool) {
	k.T.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(Poll) {
		if f() {
			return
		}
	}
	k.T.Fatalf("not within a minute: %s", what)
}

// Balance is what the payee must have in tokens.
func (k *Till) Balance(want uint64) {
	k.T.Helper()
	if got := k.Tokens(k.T, k.Key.Address()); got != want {
		k.T.Errorf("payee has %d, want %d", got, want)
	}
}

// Check has the watcher look once.
func (k *Till) Check() {
	k.T.Helper()
	if err := k.Watcher.Check(k.T.Context()); err != nil {
		k.T.Fatal(err)
	}
}

// Is reports whether an amount is n base units.
func Is(v uint256.Int, n uint64) bool { return v.Eq(uint256.NewInt(n)) }
