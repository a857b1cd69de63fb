package x402client

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/x402account"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/x402"
)

// stall is a seller with a client of ours, which keeps its database.
type stall struct {
	*testing.T
	*testrig.Seller
	database string
	wallet   *wallet.Wallet // the newest
}

func newStall(t *testing.T, m *testrig.Market) *stall {
	t.Helper()
	return &stall{T: t, Seller: testrig.NewSeller(t, m), database: filepath.Join(t.TempDir(), "renter.db")}
}

// client is a renter of ours with tokens and not one wei.
func (s *stall) client(caps wallet.Caps, options Options) *Client {
	s.Helper()
	x, err := s.tryClient(caps, options)
	if err != nil {
		s.Fatal(err)
	}
	return x
}

func (s *stall) tryClient(caps wallet.Caps, options Options) (*Client, error) {
	s.Helper()
	if s.wallet != nil { // a database belongs to one wallet at a time
		if err := s.wallet.Close(); err != nil {
			s.Fatal(err)
		}
	}
	w, err := wallet.Open(s.Context(), wallet.Config{
		Key: channel.NewKey(s.Payer), Chain: wallet.Chain{Backend: s.Backend, Poll: 5 * time.Millisecond}, Token: s.Token, Database: s.database, Caps: caps,
		Patience: 50 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		s.Fatal(err)
	}
	s.wallet = w
	s.Cleanup(func() { w.Close() })
	return New(s.Context(), w, options)
}

var (
	stallCaps    = wallet.Caps{PricePerGPUHour: "1", PerLease: "0.05", PerDay: "1", PerPayee: "1"}
	stallOptions = Options{MaxPrice: "0.001"}
)

func (s *stall) get(x *Client) (*http.Response, error) {
	req, err := http.NewRequestWithContext(s.Context(), http.MethodGet, s.Server.URL, nil)
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
func (s *stall) buy(x *Client) {
	s.Helper()
	if resp, err := s.get(x); err != nil || resp.StatusCode != http.StatusOK {
		s.Fatalf("%v, %v", resp, err)
	}
}

// only is the one channel that the client knows; zero if it knows none.
func (s *stall) only(x *Client) Channel {
	s.Helper()
	all, err := x.Channels(s.Context())
	if err != nil || len(all) > 1 {
		s.Fatalf("channels: %+v, %v", all, err)
	}
	if len(all) == 0 {
		return Channel{}
	}
	return all[0]
}

// evidence is what was kept about the only channel.
func (s *stall) evidence(x *Client) []wallet.Evidence {
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
	s := newStall(t, testrig.NewX402Market(t))
	x := s.client(stallCaps, stallOptions)
	for range 5 {
		s.buy(x)
	}
	if c := s.only(x); c.Charged.Uint64() != 5*testrig.SellerCharge || c.Signed.Uint64() != 4*testrig.SellerCharge+testrig.SellerPrice || c.Deposit.Uint64() != testrig.SellerDeposit {
		t.Errorf("%+v", c)
	}
	if s.Asked != 10 || len(s.Paid) != 5 || s.Tokens(t, s.PayerAddress()) != testrig.Thousand-testrig.SellerDeposit {
		t.Errorf("%d requests, %d payments", s.Asked, len(s.Paid))
	}
	if err := x402.Match(s.Paid[4].Accepted, s.Offer); err != nil {
		t.Error(err)
	}
}

// TestX402PaysOnlyItself: a request that carries a payment already is refused, and whoever asked hears why.
func TestX402PaysOnlyItself(t *testing.T) {
	t.Parallel()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1:1", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(x402.HeaderSignature, "paid")
	if _, err := new(Client).RoundTrip(req); err == nil || !strings.Contains(err.Error(), x402.HeaderSignature) {
		t.Errorf("%v", err)
	}
}

// TestX402AfterCrash: whatever a crash keeps from being kept, the next request is served and paid for once.
func TestX402AfterCrash(t *testing.T) {
	s := newStall(t, testrig.NewX402Market(t))
	x := s.client(stallCaps, stallOptions)
	s.buy(x)

	t.Run("signed and not sent", func(t *testing.T) {
		if _, err := x.payer.Pay(context.Background(), s.only(x).ID, *uint256.NewInt(testrig.SellerCharge + testrig.SellerPrice)); err != nil {
			t.Fatal(err)
		}
		x = s.client(stallCaps, stallOptions)
		s.buy(x)
		if c := s.only(x); c.Charged.Uint64() != 2*testrig.SellerCharge || c.Signed.Uint64() != testrig.SellerCharge+testrig.SellerPrice {
			t.Errorf("%+v", c)
		}
	})
	t.Run("answered and not booked", func(t *testing.T) {
		row := x402account.Account{}
		if known, err := x.accounts().Load(t.Context(), s.only(x).ID); err != nil {
			t.Fatal(err)
		} else {
			row = *known
		}
		s.buy(x)
		if err := x.accounts().Save(t.Context(), &row); !errors.Is(err, x402account.ErrStale) {
			t.Fatal("an old account overwrote a newer one:", err)
		}
		newer, err := x.accounts().Load(t.Context(), row.ID)
		if err != nil {
			t.Fatal(err)
		}
		newer.Deposit, newer.Book = row.Deposit, row.Book // as it was before the answer
		if err := x.accounts().Save(t.Context(), newer); err != nil {
			t.Fatal(err)
		}
		x = s.client(stallCaps, stallOptions)
		s.buy(x)
		if c := s.only(x); c.Charged.Uint64() != 4*testrig.SellerCharge {
			t.Errorf("%+v", c)
		}
	})
	t.Run("deposit signed and not sent", func(t *testing.T) {
		for s.Base+testrig.SellerPrice <= testrig.SellerDeposit {
			s.buy(x)
		}
		s.Instead = func(s *testrig.Seller, w http.ResponseWriter, _ x402.PaymentPayload) bool {
			w.WriteHeader(http.StatusBadGateway) // it never got there
			return true
		}
		if resp, err := s.get(x); err != nil || resp.StatusCode != http.StatusBadGateway {
			t.Fatal(resp, err)
		}
		first := s.Paid[len(s.Paid)-1].Payload
		s.Instead = nil
		x = s.client(stallCaps, stallOptions)
		s.buy(x)
		second := s.Paid[len(s.Paid)-1].Payload
		if first.Deposit == nil || second.Deposit == nil || *first.Deposit != *second.Deposit || first.Voucher != second.Voucher {
			t.Errorf("the deposit was signed twice: %+v, %+v", first.Deposit, second.Deposit)
		}
		if c := s.only(x); c.Deposit.Uint64() != 2*testrig.SellerDeposit || s.Tokens(t, s.PayerAddress()) != testrig.Thousand-2*testrig.SellerDeposit {
			t.Errorf("%+v", c)
		}
	})
}

// TestX402DepositExpires: a deposit that the server never sent is not signed again while it could still be sent, and is
// once it cannot.
func TestX402DepositExpires(t *testing.T) {
	s := newStall(t, testrig.NewX402Market(t))
	x := s.client(stallCaps, stallOptions)
	s.Instead = func(s *testrig.Seller, w http.ResponseWriter, _ x402.PaymentPayload) bool {
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
	s.Instead = nil
	s.buy(x)
	for i, p := range s.Paid {
		same := p.Payload.Deposit != nil && p.Payload.Deposit.Authorization == s.Paid[0].Payload.Deposit.Authorization
		if same != (i < 3) {
			t.Errorf("payment %d: the first deposit again: %t", i, same)
		}
	}
	if last := s.Paid[len(s.Paid)-1].Payload; last.Deposit == nil || s.Tokens(t, s.PayerAddress()) != testrig.Thousand-testrig.SellerDeposit {
		t.Errorf("the last payment was %+v", last)
	}
	if c := s.only(x); c.Deposit.Uint64() != testrig.SellerDeposit || c.Signed.Uint64() != testrig.SellerPrice {
		t.Errorf("%+v", c)
	}
}
