package chain_test

import (
	"context"
	"crypto/ecdsa"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/sdk/chain"
)

// world is a chain with an escrow, a payer with tokens and a payee, each with a sender of its own.
type world struct {
	*chaintest.Chain
	escrow *chain.Escrow
	token  *chain.Token
	payer  *channel.Key
	payee  *channel.Key
}

func newWorld(t *testing.T, args ...string) *world {
	t.Helper()
	c := chaintest.Anvil(t, args...)
	escrow, err := chain.NewEscrow(t.Context(), c.Backend, c.Escrow)
	if err != nil {
		t.Fatal(err)
	}
	token, err := chain.NewToken(t.Context(), c.Backend, c.Token)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{Chain: c, escrow: escrow, token: token, payer: channel.NewKey(c.Keys[0]), payee: channel.NewKey(c.Keys[1])}
	c.Mint(t, w.payer.Address(), 1_000_000_000)
	return w
}

// onPostgres names the tests that run against PostgreSQL too.
const onPostgres = "postgres"

// file is a store in a directory of the test's own, or on a server.
func file(t *testing.T) string {
	t.Helper()
	if strings.Contains(t.Name(), onPostgres) {
		return pgtest.URL(t)
	}
	return filepath.Join(t.TempDir(), "gpupay.db")
}

func openStore(t *testing.T, path string) (*chain.Store, *store.DB) {
	t.Helper()
	db, err := store.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	s, err := chain.OpenStore(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	return s, db
}

func (w *world) sender(t *testing.T, key *ecdsa.PrivateKey) *chain.Sender {
	t.Helper()
	s, _ := openStore(t, file(t))
	return &chain.Sender{Backend: w.Backend, Key: channel.NewKey(key), Store: s, Poll: 20 * time.Millisecond}
}

// send submits a call and waits until it is mined.
func send(t *testing.T, s *chain.Sender, call chain.Call) *chain.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	id, err := s.Submit(ctx, call)
	if err != nil {
		t.Fatalf("submitting %s: %v", call, err)
	}
	result, err := s.Wait(ctx, id, 1)
	if err != nil {
		t.Fatalf("waiting for %s: %v", call, err)
	}
	return result
}

func (w *world) terms(salt byte) channel.Terms {
	return channel.Terms{
		ChainID: w.escrow.ChainID(), Escrow: w.escrow.Address(), Payer: w.payer.Address(), Payee: w.payee.Address(),
		Token: w.Token, Salt: common.BytesToHash([]byte{salt}),
	}
}

// authorize signs the payer's ERC-3009 authorization for a nonce.
func (w *world) authorize(t *testing.T, value uint64, nonce common.Hash) chain.Authorization {
	t.Helper()
	separator, err := w.token.DomainSeparator(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a, err := chain.SignAuthorization(t.Context(), w.payer, separator, channel.Authorization{
		From: w.payer.Address(), To: w.escrow.Address(), Value: *uint256.NewInt(value), ValidBefore: 1 << 40, Nonce: nonce,
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// open opens a channel gaslessly and returns its terms.
func (w *world) open(t *testing.T, s *chain.Sender, salt byte, deposit uint64) channel.Terms {
	t.Helper()
	terms := w.terms(salt)
	send(t, s, w.escrow.OpenAuthorizedCall(terms, w.authorize(t, deposit, channel.OpenNonce(terms.Payer, terms))))
	return terms
}

func (w *world) voucher(t *testing.T, terms channel.Terms, cumulative uint64) channel.State {
	t.Helper()
	v, err := w.escrow.Domain().Sign(t.Context(), w.payer, terms.ID(), *uint256.NewInt(cumulative))
	if err != nil {
		t.Fatal(err)
	}
	return channel.State{ID: terms.ID(), Terms: terms, Accepted: v.Cumulative, Signature: v.Signature}
}

func (w *world) view(t *testing.T, terms channel.Terms) channel.ChainView {
	t.Helper()
	v, err := w.escrow.View(t.Context(), terms.ID(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func addressOf(k *ecdsa.PrivateKey) common.Address { return crypto.PubkeyToAddress(k.PublicKey) }
