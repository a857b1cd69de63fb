package rig

import (
	"context"
	"crypto/ecdsa"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// Seller sells answers for x402 over HTTP on a real chain, honestly until a test
// tells it otherwise. Each answer costs up to SellerPrice and is charged half.
type Seller struct {
	*Market
	t        testing.TB
	Contract *chain.BatchSettlement
	Key      *ecdsa.PrivateKey
	Server   *httptest.Server
	Offer    x402.Requirements

	Mu      sync.Mutex
	Asked   int                   // requests, paid or not
	Paid    []x402.PaymentPayload // that came
	Base    uint64                // charged
	Newest  *x402.Voucher         // accepted
	Receipt func(*x402.SettleResponse)
	// Instead answers a paid request in the seller's place, if it returns true.
	Instead func(s *Seller, w http.ResponseWriter, p x402.PaymentPayload) bool
}

// The amounts of a seller, in base units: what an answer costs at most, what it is charged, the least deposit.
const (
	SellerPrice   = 1000
	SellerCharge  = SellerPrice / 2
	SellerDeposit = 10_000
)

// NewSeller serves a seller until the test ends.
func NewSeller(t testing.TB, m *Market) *Seller {
	t.Helper()
	s := &Seller{t: t, Market: m}
	var err error
	if s.Contract, err = chain.NewBatchSettlement(t.Context(), m.Backend); err != nil {
		t.Fatal(err)
	}
	if s.Key, err = crypto.GenerateKey(); err != nil { // each seller is somebody else, so that its channels are its own
		t.Fatal(err)
	}
	payee := wire.Address(crypto.PubkeyToAddress(s.Key.PublicKey))
	least := wire.NewAmount(*uint256.NewInt(SellerDeposit))
	s.Offer = x402.Requirements{
		Network: 31337, Amount: wire.NewAmount(*uint256.NewInt(SellerPrice)), Asset: wire.Address(m.Token), PayTo: payee, MaxTimeoutSeconds: 300,
		Extra: x402.Extra{Name: "Test USD", Version: "1", ReceiverAuthorizer: payee, WithdrawDelay: 900, MinDeposit: &least},
	}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Server.Close)
	return s
}

// ServeHTTP sells an answer.
func (s *Seller) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	s.Asked++
	p, err := x402.ParsePaymentPayload(r.Header)
	if err != nil {
		s.Refuse(w, x402.FirstError, s.Offer)
		return
	}
	s.Paid = append(s.Paid, p)
	if s.Instead != nil && s.Instead(s, w, p) {
		return
	}
	s.serve(w, p)
}

func (s *Seller) serve(w http.ResponseWriter, p x402.PaymentPayload) {
	if p.Payload.Voucher.MaxClaimableAmount.Uint64() != s.Base+SellerPrice {
		s.Correct(w, s.Base, s.Newest)
		return
	}
	s.Bank(p)
	voucher := p.Payload.Voucher
	s.Base, s.Newest = s.Base+SellerCharge, &voucher
	s.Confirm(w, SellerCharge)
}

// Bank sends a payment's deposit.
func (s *Seller) Bank(p x402.PaymentPayload) {
	if p.Payload.Deposit == nil {
		return
	}
	call := s.Contract.DepositCall(p.Payload.Config.Terms(p.Accepted.Network), common.Hash(p.Payload.Deposit.Authorization.Salt),
		chain.Authorization{Authorization: p.Payload.Authorization(), Signature: p.Payload.Deposit.Authorization.Signature[:]})
	s.Transact(s.t, s.Payee, call.To, call.Data)
}

// Confirm answers with a receipt, as a test wants it.
func (s *Seller) Confirm(w http.ResponseWriter, charge uint64) {
	charged, total := wire.NewAmount(*uint256.NewInt(charge)), wire.NewAmount(*uint256.NewInt(s.Base))
	receipt := x402.SettleResponse{
		Success: true, Network: 31337, ChargedAmount: &charged, ChannelState: &x402.ChannelState{ChargedCumulativeAmount: &total},
	}
	if s.Receipt != nil {
		s.Receipt(&receipt)
	}
	if err := receipt.Set(w.Header()); err != nil {
		s.t.Error(err)
	}
	_, _ = io.WriteString(w, "served")
}

// Refuse answers 402 with an offer.
func (s *Seller) Refuse(w http.ResponseWriter, reason string, offer x402.Requirements) {
	err := x402.PaymentRequired{Error: reason, Resource: x402.Resource{URL: s.Server.URL}, Accepts: []x402.Requirements{offer}}.Set(w.Header())
	if err != nil {
		s.t.Error(err)
	}
	w.WriteHeader(http.StatusPaymentRequired)
}

// Correct is a corrective 402.
func (s *Seller) Correct(w http.ResponseWriter, base uint64, shown *x402.Voucher) {
	offer, total := s.Offer, wire.NewAmount(*uint256.NewInt(base))
	offer.Extra.ChannelState = &x402.ChannelState{ChargedCumulativeAmount: &total}
	if shown != nil {
		offer.Extra.VoucherState = &x402.VoucherState{SignedMaxClaimable: shown.MaxClaimableAmount, Signature: shown.Signature}
	}
	s.Refuse(w, string(x402.CodeCumulativeMismatch), offer)
}

// Claim claims all that the seller charged.
func (s *Seller) Claim(terms channel.Terms) {
	voucher := s.Newest.Voucher()
	call, err := s.Contract.SettlementCall(context.Background(), []channel.State{{
		ID: terms.ID(), Terms: terms, Deposit: channel.MaxAmount(), Accepted: voucher.Cumulative, Spent: *uint256.NewInt(s.Base), Signature: voucher.Signature,
	}})
	if err != nil {
		s.t.Error(err)
	}
	s.RPC(s.t, nil, "anvil_setBalance", terms.Payee, "0xde0b6b3a7640000")
	s.Transact(s.t, s.Key, call.To, call.Data)
}

// Forge is a voucher for the channel that somebody else signed.
func (s *Seller) Forge(p x402.PaymentPayload, key *ecdsa.PrivateKey, amount uint64) *x402.Voucher {
	v, err := s.Contract.Domain().Sign(context.Background(), channel.NewKey(key), common.Hash(p.Payload.Voucher.ChannelID), *uint256.NewInt(amount))
	if err != nil {
		s.t.Error(err)
	}
	w, err := x402.VoucherOf(v)
	if err != nil {
		s.t.Error(err)
	}
	return &w
}

// Refund gives back what was not claimed.
func (s *Seller) Refund(terms channel.Terms) {
	call, err := s.Contract.RefundCall(context.Background(), channel.State{ID: terms.ID(), Terms: terms}, channel.MaxAmount())
	if err != nil {
		s.t.Error(err)
	}
	s.Transact(s.t, s.Key, call.To, call.Data)
}
