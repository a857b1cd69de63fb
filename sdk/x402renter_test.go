package sdk

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// stall sells answers for x402 over HTTP on a real chain, honestly until a test
// tells it otherwise. Each answer costs up to stallPrice and is charged half.
type stall struct {
	*testing.T
	*market
	contract *chain.BatchSettlement
	key      *ecdsa.PrivateKey
	server   *httptest.Server
	offer    x402.Requirements
	database string
	renter   *Renter // the newest

	mu      sync.Mutex
	asked   int                   // requests, paid or not
	paid    []x402.PaymentPayload // that came
	base    uint64                // charged
	newest  *x402.Voucher         // accepted
	receipt func(*x402.SettleResponse)
	// instead answers a paid request in the stall's place, if it returns true.
	instead func(s *stall, w http.ResponseWriter, p x402.PaymentPayload) bool
}

const (
	stallPrice   = 1000
	stallCharge  = stallPrice / 2
	stallDeposit = 10_000
)

func newStall(t *testing.T, m *market) *stall {
	t.Helper()
	s := &stall{T: t, market: m, database: filepath.Join(t.TempDir(), "renter.db")}
	var err error
	if s.contract, err = chain.NewBatchSettlement(t.Context(), m.Backend); err != nil {
		t.Fatal(err)
	}
	if s.key, err = crypto.GenerateKey(); err != nil { // each stall is somebody else, so that its channels are its own
		t.Fatal(err)
	}
	payee := wire.Address(crypto.PubkeyToAddress(s.key.PublicKey))
	least := wire.NewAmount(*uint256.NewInt(stallDeposit))
	s.offer = x402.Requirements{
		Network: 31337, Amount: wire.NewAmount(*uint256.NewInt(stallPrice)), Asset: wire.Address(m.Token), PayTo: payee, MaxTimeoutSeconds: 300,
		Extra: x402.Extra{Name: "Test USD", Version: "1", ReceiverAuthorizer: payee, WithdrawDelay: 900, MinDeposit: &least},
	}
	s.server = httptest.NewServer(s)
	t.Cleanup(s.server.Close)
	return s
}

func newX402Market(t *testing.T) *market {
	t.Helper()
	m := newMarket(t)
	m.PlaceBatchSettlement(t)
	return m
}

// ServeHTTP is the stall.
func (s *stall) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	p, err := x402.ParsePaymentPayload(r.Header)
	if err != nil {
		s.refuse(w, x402.FirstError, s.offer)
		return
	}
	s.paid = append(s.paid, p)
	if s.instead != nil && s.instead(s, w, p) {
		return
	}
	s.serve(w, p)
}

func (s *stall) serve(w http.ResponseWriter, p x402.PaymentPayload) {
	if p.Payload.Voucher.MaxClaimableAmount.Uint64() != s.base+stallPrice {
		s.correct(w, s.base, s.newest)
		return
	}
	s.bank(p)
	voucher := p.Payload.Voucher
	s.base, s.newest = s.base+stallCharge, &voucher
	s.confirm(w, stallCharge)
}

// bank sends a payment's deposit.
func (s *stall) bank(p x402.PaymentPayload) {
	if p.Payload.Deposit == nil {
		return
	}
	call := s.contract.DepositCall(p.Payload.Config.Terms(p.Accepted.Network), common.Hash(p.Payload.Deposit.Authorization.Salt),
		chain.Authorization{Authorization: p.Payload.Authorization(), Signature: p.Payload.Deposit.Authorization.Signature[:]})
	s.Transact(s.T, s.payee, call.To, call.Data)
}

// confirm answers with a receipt, as a test wants it.
func (s *stall) confirm(w http.ResponseWriter, charge uint64) {
	charged, total := wire.NewAmount(*uint256.NewInt(charge)), wire.NewAmount(*uint256.NewInt(s.base))
	receipt := x402.SettleResponse{
		Success: true, Network: 31337, ChargedAmount: &charged, ChannelState: &x402.ChannelState{ChargedCumulativeAmount: &total},
	}
	if s.receipt != nil {
		s.receipt(&receipt)
	}
	if err := receipt.Set(w.Header()); err != nil {
		s.Error(err)
	}
	_, _ = io.WriteString(w, "served")
}

func (s *stall) refuse(w http.ResponseWriter, reason string, offer x402.Requirements) {
	err := x402.PaymentRequired{Error: reason, Resource: x402.Resource{URL: s.server.URL}, Accepts: []x402.Requirements{offer}}.Set(w.Header())
	if err != nil {
		s.Error(err)
	}
	w.WriteHeader(http.StatusPaymentRequired)
}

// correct is a corrective 402.
func (s *stall) correct(w http.ResponseWriter, base uint64, shown *x402.Voucher) {
	offer, total := s.offer, wire.NewAmount(*uint256.NewInt(base))
	offer.Extra.ChannelState = &x402.ChannelState{ChargedCumulativeAmount: &total}
	if shown != nil {
		offer.Extra.VoucherState = &x402.VoucherState{SignedMaxClaimable: shown.MaxClaimableAmount, Signature: shown.Signature}
	}
	s.refuse(w, string(x402.CodeCumulativeMismatch), offer)
}

// client is a renter of ours with tokens and not one wei.
func (s *stall) client(caps Caps, options X402Options) *X402Client {
	s.Helper()
	x, err := s.tryClient(caps, options)
	if err != nil {
		s.Fatal(err)
	}
	return x
}

func (s *stall) tryClient(caps Caps, options X402Options) (*X402Client, error) {
	s.Helper()
	if s.renter != nil { // a database belongs to one renter at a time
		if err := s.renter.Close(); err != nil {
			s.Fatal(err)
		}
	}
	r, err := NewRenter(s.Context(), RenterConfig{
		Key: channel.NewKey(s.payer), Backend: s.Backend, Token: s.Token, Database: s.database, Caps: caps,
		Poll: 5 * time.Millisecond, Patience: 50 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		s.Fatal(err)
	}
	s.renter = r
	s.Cleanup(func() { r.Close() })
	return r.X402(s.Context(), options)
}

var (
	stallCaps    = Caps{PricePerGPUHour: "1", PerLease: "0.05", PerDay: "1", PerPayee: "1"}
	stallOptions = X402Options{MaxPrice: "0.001"}
)

func (s *stall) get(x *X402Client) (*http.Response, error) {
	req, err := http.NewRequestWithContext(s.Context(), http.MethodGet, s.server.URL, nil)
	if err != nil {
		s.Fatal(err)
	}
	resp, err := x.Client().Do(req)
	if err == nil {
		resp.Body.Close()
	}
	return resp, err
}

// buy must be served.
func (s *stall) buy(x *X402Client) {
	s.Helper()
	if resp, err := s.get(x); err != nil || resp.StatusCode != http.StatusOK {
		s.Fatalf("%v, %v", resp, err)
	}
}

// only is the one channel that the client knows; zero if it knows none.
func (s *stall) only(x *X402Client) X402Channel {
	s.Helper()
	all, err := x.Channels(s.Context())
	if err != nil || len(all) > 1 {
		s.Fatalf("channels: %+v, %v", all, err)
	}
	if len(all) == 0 {
		return X402Channel{}
	}
	return all[0]
}

// evidence is what was kept about the only channel.
func (s *stall) evidence(x *X402Client) []Evidence {
	s.Helper()
	kept, err := x.w.Evidence(s.Context(), s.only(x).ID)
	if err != nil {
		s.Fatal(err)
	}
	return kept
}

// TestX402StallIsHonest: the stall of the hostile tests serves whoever pays it, so that what they find is the renter's
// doing and not the stall's.
func TestX402StallIsHonest(t *testing.T) {
	s := newStall(t, newX402Market(t))
	x := s.client(stallCaps, stallOptions)
	for range 5 {
		s.buy(x)
	}
	if c := s.only(x); c.Charged.Uint64() != 5*stallCharge || c.Signed.Uint64() != 4*stallCharge+stallPrice || c.Deposit.Uint64() != stallDeposit {
		t.Errorf("%+v", c)
	}
	if s.asked != 10 || len(s.paid) != 5 || s.Tokens(t, s.payerAddress()) != thousand-stallDeposit {
		t.Errorf("%d requests, %d payments", s.asked, len(s.paid))
	}
	if err := x402.Match(s.paid[4].Accepted, s.offer); err != nil {
		t.Error(err)
	}
}

// TestX402AfterCrash: whatever a crash keeps from being kept, the next request is served and paid for once.
func TestX402AfterCrash(t *testing.T) {
	s := newStall(t, newX402Market(t))
	x := s.client(stallCaps, stallOptions)
	s.buy(x)

	t.Run("signed and not sent", func(t *testing.T) {
		if _, err := x.payer.Pay(context.Background(), s.only(x).ID, *uint256.NewInt(stallCharge + stallPrice)); err != nil {
			t.Fatal(err)
		}
		x = s.client(stallCaps, stallOptions)
		s.buy(x)
		if c := s.only(x); c.Charged.Uint64() != 2*stallCharge || c.Signed.Uint64() != stallCharge+stallPrice {
			t.Errorf("%+v", c)
		}
	})
	t.Run("answered and not booked", func(t *testing.T) {
		row := slate{}
		if known, err := x.slates().load(t.Context(), s.only(x).ID); err != nil {
			t.Fatal(err)
		} else {
			row = *known
		}
		s.buy(x)
		if err := x.slates().save(t.Context(), &row); !errors.Is(err, errStale) {
			t.Fatal("an old slate overwrote a newer one:", err)
		}
		if newer, err := x.slates().load(t.Context(), row.ID); err != nil {
			t.Fatal(err)
		} else {
			row.version = newer.version
		}
		if err := x.slates().save(t.Context(), &row); err != nil { // as it was before the answer
			t.Fatal(err)
		}
		x = s.client(stallCaps, stallOptions)
		s.buy(x)
		if c := s.only(x); c.Charged.Uint64() != 4*stallCharge {
			t.Errorf("%+v", c)
		}
	})
	t.Run("deposit signed and not sent", func(t *testing.T) {
		for s.base+stallPrice <= stallDeposit {
			s.buy(x)
		}
		s.instead = func(s *stall, w http.ResponseWriter, _ x402.PaymentPayload) bool {
			w.WriteHeader(http.StatusBadGateway) // it never got there
			return true
		}
		if resp, err := s.get(x); err != nil || resp.StatusCode != http.StatusBadGateway {
			t.Fatal(resp, err)
		}
		first := s.paid[len(s.paid)-1].Payload
		s.instead = nil
		x = s.client(stallCaps, stallOptions)
		s.buy(x)
		second := s.paid[len(s.paid)-1].Payload
		if first.Deposit == nil || second.Deposit == nil || *first.Deposit != *second.Deposit || first.Voucher != second.Voucher {
			t.Errorf("the deposit was signed twice: %+v, %+v", first.Deposit, second.Deposit)
		}
		if c := s.only(x); c.Deposit.Uint64() != 2*stallDeposit || s.Tokens(t, s.payerAddress()) != thousand-2*stallDeposit {
			t.Errorf("%+v", c)
		}
	})
}

// TestX402DepositExpires: a deposit that the server never sent is not signed again while it could still be sent, and is
// once it cannot.
func TestX402DepositExpires(t *testing.T) {
	s := newStall(t, newX402Market(t))
	x := s.client(stallCaps, stallOptions)
	s.instead = func(s *stall, w http.ResponseWriter, _ x402.PaymentPayload) bool {
		failed := x402.SettleResponse{ErrorReason: string(x402.CodeDepositFailed), Network: 31337}
		_ = failed.Set(w.Header())
		w.WriteHeader(http.StatusPaymentRequired)
		return true
	}
	for range 3 {
		if resp, err := s.get(x); err != nil || resp.StatusCode != http.StatusPaymentRequired {
			t.Fatal(resp, err)
		}
	}
	s.AdvanceTime(t, 301*time.Second)
	x.w.Now = func() time.Time { return time.Now().Add(301 * time.Second) }
	s.instead = nil
	s.buy(x)
	for i, p := range s.paid {
		same := p.Payload.Deposit != nil && p.Payload.Deposit.Authorization == s.paid[0].Payload.Deposit.Authorization
		if same != (i < 3) {
			t.Errorf("payment %d: the first deposit again: %t", i, same)
		}
	}
	if last := s.paid[len(s.paid)-1].Payload; last.Deposit == nil || s.Tokens(t, s.payerAddress()) != thousand-stallDeposit {
		t.Errorf("the last payment was %+v", last)
	}
	if c := s.only(x); c.Deposit.Uint64() != stallDeposit || c.Signed.Uint64() != stallPrice {
		t.Errorf("%+v", c)
	}
}
