// Package rig has what tests of either side run against: a chain with keys and tokens, hostile providers and sellers, servers
// and transports that fail. It imports neither the provider nor the clients, so that tests inside their packages may use it.
package rig

import (
	"crypto/ecdsa"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/internal/chaintest"
)

// Market is a chain, a payer with 1000 tokens and somebody to pay.
type Market struct {
	*chaintest.Chain
	Payer *ecdsa.PrivateKey
	Payee *ecdsa.PrivateKey
	ahead atomic.Int64 // of now, ns
}

// Pass lets time pass on the chain and on the market's own clock, which is Now.
func (m *Market) Pass(t testing.TB, d time.Duration) {
	m.ahead.Add(int64(d))
	m.AdvanceTime(t, d)
}

// Now is the real time and all that Pass let pass.
func (m *Market) Now() time.Time { return time.Now().Add(time.Duration(m.ahead.Load())) }

// Thousand is 1000 tokens in base units of a token with six decimals.
const Thousand = 1_000_000_000

// NewMarket starts a chain of its own for the test.
func NewMarket(t testing.TB) *Market {
	t.Helper()
	m := &Market{Chain: chaintest.Anvil(t)}
	m.Payer, m.Payee = m.Keys[0], m.Keys[1]
	m.Mint(t, m.PayerAddress(), Thousand)
	return m
}

// PayerAddress is the address of Payer.
func (m *Market) PayerAddress() common.Address { return crypto.PubkeyToAddress(m.Payer.PublicKey) }

// PayeeAddress is the address of Payee.
func (m *Market) PayeeAddress() common.Address { return crypto.PubkeyToAddress(m.Payee.PublicKey) }

// Newcomer is a payer with tokens and not one wei.
func (m *Market) Newcomer(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	m.Mint(t, crypto.PubkeyToAddress(key.PublicKey), Thousand)
	return key
}

// Dusty is a payer with tokens and one wei.
func (m *Market) Dusty(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key := m.Newcomer(t)
	m.RPC(t, nil, "anvil_setBalance", crypto.PubkeyToAddress(key.PublicKey), "0x1")
	return key
}

// NewX402Market is a market whose chain has x402's contracts.
func NewX402Market(t testing.TB) *Market {
	t.Helper()
	m := NewMarket(t)
	m.PlaceBatchSettlement(t)
	return m
}

// PassToMidnight moves the clocks to shortly after the next midnight (UTC): a day of the caps begins.
func (m *Market) PassToMidnight(t testing.TB) {
	t.Helper()
	now := m.Now()
	m.Pass(t, now.UTC().Truncate(24*time.Hour).Add(24*time.Hour+time.Minute).Sub(now))
}
