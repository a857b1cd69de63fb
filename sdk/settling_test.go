package sdk_test

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
	"github.com/gpupay/gpupay/sdk"
	"github.com/gpupay/gpupay/sdk/chain"
)

// A till is a payee on a real chain: its channels, its settler and its watcher, on one database file.
type till struct {
	*chaintest.Chain
	t        *testing.T
	escrow   *chain.Escrow
	payer    *channel.Key
	key      *channel.Key
	others   *chain.Sender // of somebody who opens channels and settles for nobody
	path     string
	db       *store.DB
	txs      *chain.Store
	payee    *channel.Payee
	sender   *chain.Sender
	settler  *sdk.Settler
	watcher  *sdk.Watcher
	mu       sync.Mutex
	changes  []channel.State
	payments []sdk.Settlement
}

const poll = 20 * time.Millisecond

func newTill(t *testing.T) *till {
	t.Helper()
	c := chaintest.Anvil(t)
	k := &till{Chain: c, t: t, payer: channel.NewKey(c.Keys[0]), key: channel.NewKey(c.Keys[1]), path: filepath.Join(t.TempDir(), "till.db")}
	c.Mint(t, k.payer.Address(), 1_000_000)
	other, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "others.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	txs, err := chain.OpenStore(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	k.others = &chain.Sender{Backend: c.Backend, Key: channel.NewKey(c.Keys[2]), Store: txs, Poll: poll}
	k.start(c.Backend)
	return k
}

// start makes the payee's side on its database file, as a program does when it begins.
func (k *till) start(backend chain.Backend) {
	k.t.Helper()
	ctx := k.t.Context()
	var err error
	if k.escrow, err = chain.NewEscrow(ctx, backend, k.Escrow); err != nil {
		k.t.Fatal(err)
	}
	if k.db, err = store.Open(ctx, k.path); err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { _ = k.db.Close() })
	if k.txs, err = chain.OpenStore(ctx, k.db); err != nil {
		k.t.Fatal(err)
	}
	k.payee = &channel.Payee{Store: k.db.Payee(), Domain: k.escrow.Domain(), Contracts: chain.Contracts{Backend: backend}}
	k.sender = &chain.Sender{Backend: backend, Key: k.key, Store: k.txs, Poll: poll, Resend: 200 * time.Millisecond}
	k.settler = &sdk.Settler{Payee: k.payee, Contract: k.escrow, Sender: k.sender, Policy: sdk.SettlementPolicy{Interval: poll}, OnSettled: k.paid}
	k.watcher = &sdk.Watcher{Payee: k.payee, Contract: k.escrow, Confirmations: 3, Poll: poll, Store: k.txs, OnChange: k.changed}
}

// restart closes the database under everything and begins anew.
func (k *till) restart(backend chain.Backend) {
	k.t.Helper()
	if err := k.db.Close(); err != nil {
		k.t.Fatal(err)
	}
	k.start(backend)
}

func (k *till) paid(s sdk.Settlement) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.payments = append(k.payments, s)
}

func (k *till) changed(_, now channel.State) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.changes = append(k.changes, now)
}

func (k *till) settlements() []sdk.Settlement {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]sdk.Settlement(nil), k.payments...)
}

// run runs a part until the returned function is called, or the test ends.
func (k *till) run(part func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(k.t.Context())
	done := make(chan error, 1)
	go func() { done <- part(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				k.t.Errorf("ended with %v", err)
			}
		})
	}
	k.t.Cleanup(stop)
	return stop
}

func (k *till) send(s *chain.Sender, call chain.Call) *chain.Result {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(k.t.Context(), 20*time.Second)
	defer cancel()
	id, err := s.Submit(ctx, call)
	if err != nil {
		k.t.Fatal(err)
	}
	result, err := s.Wait(ctx, id, 1)
	if err != nil {
		k.t.Fatal(err)
	}
	return result
}

func (k *till) terms(salt byte) channel.Terms {
	return channel.Terms{ChainID: k.escrow.ChainID(), Escrow: k.Escrow, Payer: k.payer.Address(), Payee: k.key.Address(), Token: k.Token, Salt: common.BytesToHash([]byte{salt})}
}

func (k *till) authorize(value uint64, nonce common.Hash) chain.Authorization {
	k.t.Helper()
	token, err := chain.NewToken(k.t.Context(), k.Backend, k.Token)
	if err != nil {
		k.t.Fatal(err)
	}
	separator, err := token.DomainSeparator(k.t.Context())
	if err != nil {
		k.t.Fatal(err)
	}
	a, err := chain.SignAuthorization(k.t.Context(), k.payer, separator, channel.Authorization{From: k.payer.Address(), To: k.Escrow, Value: *uint256.NewInt(value), ValidBefore: 1 << 40, Nonce: nonce})
	if err != nil {
		k.t.Fatal(err)
	}
	return a
}

// open opens a channel on the chain and registers it with its whole deposit.
func (k *till) open(salt byte, deposit uint64) channel.Terms {
	k.t.Helper()
	terms := k.terms(salt)
	k.send(k.others, k.escrow.OpenAuthorizedCall(terms, k.authorize(deposit, channel.OpenNonce(terms.Payer, terms))))
	k.register(terms)
	return terms
}

func (k *till) register(terms channel.Terms) {
	k.t.Helper()
	view, err := k.escrow.View(k.t.Context(), terms.ID(), nil)
	if err != nil {
		k.t.Fatal(err)
	}
	if _, err := k.payee.Register(k.t.Context(), terms, view); err != nil {
		k.t.Fatal(err)
	}
}

func (k *till) topUp(terms channel.Terms, amount uint64, salt byte) {
	k.t.Helper()
	s := common.BytesToHash([]byte{salt})
	nonce := channel.TopUpNonce(terms.ID(), *uint256.NewInt(amount), k.payer.Address(), s)
	k.send(k.others, k.escrow.TopUpAuthorizedCall(terms, s, k.authorize(amount, nonce)))
}

func (k *till) requestClose(terms channel.Terms) {
	k.t.Helper()
	nonce, err := k.escrow.CloseRequests(k.t.Context(), terms.ID())
	if err != nil {
		k.t.Fatal(err)
	}
	signature, err := k.payer.Sign(k.t.Context(), k.escrow.Domain().RequestCloseDigest(terms.ID(), nonce, 1<<40))
	if err != nil {
		k.t.Fatal(err)
	}
	k.send(k.others, k.escrow.RequestCloseAuthorizedCall(terms, 1<<40, signature))
}

// accept takes the payer's voucher.
func (k *till) accept(terms channel.Terms, cumulative uint64) {
	k.t.Helper()
	v, err := k.escrow.Domain().Sign(k.t.Context(), k.payer, terms.ID(), *uint256.NewInt(cumulative))
	if err != nil {
		k.t.Fatal(err)
	}
	if _, err := k.payee.Accept(k.t.Context(), v); err != nil {
		k.t.Fatal(err)
	}
}

func (k *till) state(terms channel.Terms) channel.State {
	k.t.Helper()
	s, err := k.payee.State(k.t.Context(), terms.ID())
	if err != nil {
		k.t.Fatal(err)
	}
	return s
}

// within polls until f is true.
func (k *till) within(d time.Duration, what string, f func() bool) {
	k.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(poll) {
		if f() {
			return
		}
	}
	k.t.Fatalf("not within %s: %s", d, what)
}

func (k *till) balance(want uint64) {
	k.t.Helper()
	if got := k.Tokens(k.t, k.key.Address()); got != want {
		k.t.Errorf("payee has %d, want %d", got, want)
	}
}

func is(v uint256.Int, n uint64) bool { return v.Eq(uint256.NewInt(n)) }
