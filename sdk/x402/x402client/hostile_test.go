package x402client

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

func wireUnits(n uint64) wire.Amount { return wire.NewAmount(*uint256.NewInt(n)) }

// TestX402RenterRefusesOffers: what is not to be paid is not paid: no second request, no channel, no signature.
func TestX402RenterRefusesOffers(t *testing.T) {
	m := testrig.NewX402Market(t)
	for _, row := range []struct {
		name string
		bend func(*x402.Requirements)
		want error
	}{
		{"another chain", func(o *x402.Requirements) { o.Network = 8453 }, chain.ErrChainID},
		{"another asset", func(o *x402.Requirements) { o.Asset = wire.Address{1} }, wallet.ErrToken},
		{"price over MaxPrice", func(o *x402.Requirements) { o.Amount = wireUnits(testrig.SellerPrice + 1) }, wallet.ErrPrice},
		{"withdraw delay of 30 days", func(o *x402.Requirements) { o.Extra.WithdrawDelay = 30 * 24 * 3600 }, wallet.ErrEscrow},
		{"withdraw delay past any", func(o *x402.Requirements) { o.Extra.WithdrawDelay = 1<<40 - 1 }, wallet.ErrEscrow},
		{"withdraw delay too short for the contract", func(o *x402.Requirements) { o.Extra.WithdrawDelay = 899 }, channel.ErrTerms},
		{"pays nobody", func(o *x402.Requirements) { o.PayTo = wire.Address{} }, channel.ErrTerms},
		{"no receiver authorizer", func(o *x402.Requirements) { o.Extra.ReceiverAuthorizer = wire.Address{} }, channel.ErrTerms},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newStall(t, m)
			row.bend(&s.Offer)
			x := s.client(stallCaps, stallOptions)
			if _, err := s.get(x); !errors.Is(err, row.want) || !errors.Is(err, ErrNotOffered) {
				t.Errorf("%v, want %v", err, row.want)
			}
			if s.Asked != 1 || s.only(x).ID != (common.Hash{}) {
				t.Errorf("%d requests, %+v", s.Asked, s.only(x))
			}
		})
	}
	t.Run("minimum deposit over the cap", func(t *testing.T) {
		s := newStall(t, m)
		x := s.client(wallet.Caps{PricePerGPUHour: "1", PerLease: "0.009999", PerDay: "1", PerPayee: "1"}, stallOptions)
		if _, err := s.get(x); !errors.Is(err, wallet.ErrDeposit) || len(s.Paid) != 0 {
			t.Errorf("%v, %d payments", err, len(s.Paid))
		}
	})
	t.Run("minimum deposit over what we said", func(t *testing.T) {
		s := newStall(t, m)
		x := s.client(stallCaps, Options{MaxPrice: "0.001", Deposit: "0.009999"})
		if _, err := s.get(x); !errors.Is(err, wallet.ErrDeposit) || len(s.Paid) != 0 {
			t.Errorf("%v, %d payments", err, len(s.Paid))
		}
	})
	t.Run("another contract at the escrow's address", func(t *testing.T) {
		s := newStall(t, m)
		var snapshot string
		m.RPC(t, &snapshot, "evm_snapshot")
		defer m.RPC(t, nil, "evm_revert", snapshot)
		m.RPC(t, nil, "anvil_setCode", channel.BatchSettlementEscrow, "0x00")
		if _, err := s.tryClient(stallCaps, stallOptions); !errors.Is(err, chain.ErrNotEscrow) && !errors.Is(err, chain.ErrNoContract) {
			t.Errorf("%v, want %v", err, chain.ErrNotEscrow)
		}
	})
	for name, header := range map[string]string{"huge header": strings.Repeat("A", 1<<19), "garbage header": "e30", "no offers": "e30="} {
		t.Run(name, func(t *testing.T) {
			s := newStall(t, m)
			x := s.client(stallCaps, stallOptions)
			s.Server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set(x402.HeaderRequired, header)
				w.WriteHeader(http.StatusPaymentRequired)
			})
			if _, err := s.get(x); !errors.Is(err, ErrNotOffered) {
				t.Errorf("%v, want %v", err, ErrNotOffered)
			}
		})
	}
}

// TestX402RenterCatchesServers: a server that served once lies about the channel. Each lie costs at most what was signed
// before it; what it was caught at is kept, and nothing more is paid.
func TestX402RenterCatchesServers(t *testing.T) {
	m := testrig.NewX402Market(t)
	stranger, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name    string
		want    error // nil: no lie that can be proved, the answer is handed on
		paid    int   // payments with the lie
		signed  uint64
		charged uint64
		instead func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool
		receipt func(*x402.SettleResponse)
	}{
		{"charge over the price", ErrOvercharged, 1, 1500, 500, nil, func(r *x402.SettleResponse) {
			r.ChargedAmount = ptr(wireUnits(testrig.SellerPrice + 1))
		}},
		{"charge over the price that adds up", ErrOvercharged, 1, 1500, 500, nil, func(r *x402.SettleResponse) {
			r.ChargedAmount, r.ChannelState.ChargedCumulativeAmount = ptr(wireUnits(testrig.SellerPrice+1)), ptr(wireUnits(1501))
		}},
		{"total that does not add up", nil, 1, 1500, 500, nil, func(r *x402.SettleResponse) {
			r.ChannelState.ChargedCumulativeAmount = ptr(wireUnits(1499))
		}},
		{"charged more than was signed", ErrForged, 1, 1500, 500, func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
			s.Correct(w, 1501, &p.Payload.Voucher)
			return true
		}, nil},
		{"a stranger's voucher", ErrForged, 1, 1500, 500, func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
			s.Correct(w, 1400, s.Forge(p, stranger, 5000))
			return true
		}, nil},
		{"our signature under another amount", ErrForged, 1, 1500, 500, func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
			v := p.Payload.Voucher
			v.MaxClaimableAmount = wireUnits(5000)
			s.Correct(w, 4000, &v)
			return true
		}, nil},
		{"charged for this request and not served", ErrLostAnswer, 1, 1500, 1500, func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
			s.Correct(w, 1500, &p.Payload.Voucher)
			return true
		}, nil},
		{"charged all that was signed before, and served", nil, 2, 2000, 1500, func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
			if len(s.Paid) == 2 {
				s.Base = testrig.SellerPrice
				s.Correct(w, testrig.SellerPrice, s.Newest)
				return true
			}
			return false
		}, nil},
		{"endless corrections with no voucher", nil, 2, 1500, 0, func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
			s.Correct(w, uint64(len(s.Paid)), nil)
			return true
		}, nil},
		{"endless corrections, always another base", nil, 2, 1500, 2, func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
			s.Correct(w, uint64(len(s.Paid)-1), s.Newest)
			return true
		}, nil},
		{"correction to what is known", nil, 1, 1500, 500, func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
			s.Correct(w, s.Base, s.Newest)
			return true
		}, nil},
		{"correction to less than was claimed", nil, 1, 1500, 500, func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
			s.Claim(p.Payload.Config.Terms(p.Accepted.Network))
			s.Correct(w, s.Base-1, s.Newest)
			return true
		}, nil},
		{"endless first 402", nil, 1, 1500, 500, func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
			s.Refuse(w, x402.FirstError, s.Offer)
			return true
		}, nil},
		{"endless lack of balance", nil, 1, 1500, 500, func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
			s.Refuse(w, string(x402.CodeCumulativeExceedsBalance), s.Offer)
			return true
		}, nil},
		{"price raised when it is paid", nil, 1, 1500, 500, func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
			dearer := s.Offer
			dearer.Amount = wireUnits(10 * testrig.SellerPrice)
			s.Refuse(w, string(x402.CodeNoMatch), dearer)
			return true
		}, nil},
		{"price raised by a correction", nil, 2, 2000, 1000, func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
			if len(s.Paid) == 2 {
				s.Base = testrig.SellerPrice
				offer, total := s.Offer, wireUnits(testrig.SellerPrice)
				offer.Amount = wireUnits(10 * testrig.SellerPrice)
				offer.Extra.ChannelState = &x402.ChannelState{ChargedCumulativeAmount: &total}
				offer.Extra.VoucherState = &x402.VoucherState{SignedMaxClaimable: s.Newest.MaxClaimableAmount, Signature: s.Newest.Signature}
				s.Refuse(w, string(x402.CodeCumulativeMismatch), offer)
				return true
			}
			s.Refuse(w, x402.FirstError, s.Offer)
			return true
		}, nil},
		{"corrections about another channel", nil, 1, 1500, 500, func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
			ours := s.Offer.PayTo
			s.Offer.PayTo = wire.Address{9}
			s.Correct(w, 700, s.Newest)
			s.Offer.PayTo = ours
			return true
		}, nil},
		{"served without a receipt", nil, 1, 1500, 500, func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
			return true
		}, nil},
		{"a receipt that is garbage", nil, 1, 1500, 500, func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
			w.Header().Set(x402.HeaderResponse, strings.Repeat("Z", 100_000))
			return true
		}, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newStall(t, m)
			x := s.client(stallCaps, stallOptions)
			s.buy(x)
			s.Instead, s.Receipt = row.instead, row.receipt
			_, err := s.get(x)
			if !errors.Is(err, row.want) {
				t.Errorf("%v, want %v", err, row.want)
			}
			c := s.only(x)
			if n := len(s.Paid) - 1; n != row.paid || c.Signed.Uint64() != row.signed || c.Charged.Uint64() != row.charged {
				t.Errorf("%d payments, signed %s, charged %s, want %d, %d, %d", n, c.Signed.Dec(), c.Charged.Dec(), row.paid, row.signed, row.charged)
			}
			caught := row.want != nil && row.want != ErrLostAnswer
			var d *wallet.Dispute
			if errors.As(err, &d) != caught || (c.Dispute != "") != caught || len(s.evidence(x)) != count(caught) {
				t.Errorf("dispute %q, %d pieces of evidence", c.Dispute, len(s.evidence(x)))
			}
			s.Instead, s.Receipt = nil, nil
			x = s.client(stallCaps, stallOptions) // it is remembered
			before := len(s.Paid)
			if _, err := s.get(x); errors.As(err, &d) != caught || (len(s.Paid) > before) == caught {
				t.Errorf("afterwards: %v, %d payments", err, len(s.Paid)-before)
			}
		})
	}
}

func ptr[T any](v T) *T { return &v }

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestX402RenterStopsAtCaps: each cap stands before the key, and what was signed and deposited stays under it.
func TestX402RenterStopsAtCaps(t *testing.T) {
	m := testrig.NewX402Market(t)
	for _, row := range []struct {
		name string
		caps wallet.Caps
		want int // answers that can be bought
	}{
		{"per channel", wallet.Caps{PricePerGPUHour: "1", PerLease: "0.011", PerDay: "1", PerPayee: "1"}, 0},
		{"per day", wallet.Caps{PricePerGPUHour: "1", PerLease: "0.05", PerDay: "0.0125", PerPayee: "1"}, 2*testrig.SellerDeposit/testrig.SellerPrice - 1},
		{"per payee", wallet.Caps{PricePerGPUHour: "1", PerLease: "0.05", PerDay: "1", PerPayee: "0.0125"}, 2*testrig.SellerDeposit/testrig.SellerPrice - 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newStall(t, m)
			x := s.client(row.caps, stallOptions)
			bought := 0
			var err error
			for err == nil && bought < 30 {
				if _, err = s.get(x); err == nil {
					bought++
				}
			}
			var capped *channel.CapError
			if row.want > 0 && (!errors.As(err, &capped) || capped.Cap != row.name || bought != row.want) {
				t.Errorf("%d bought, then %v", bought, err)
			}
			if row.want == 0 && (!errors.Is(err, wallet.ErrDeposit) || bought != 2*testrig.SellerDeposit/testrig.SellerPrice-1) {
				t.Errorf("%d bought, then %v", bought, err)
			}
			if len(s.Paid) != bought {
				t.Errorf("%d payments left for %d answers", len(s.Paid), bought)
			}
		})
	}
}

// TestX402RenterStaysWithItsHost: an answer that points elsewhere takes neither the payment nor the payer along.
func TestX402RenterStaysWithItsHost(t *testing.T) {
	s := newStall(t, testrig.NewX402Market(t))
	evil := newStall(t, s.Market)
	x := s.client(stallCaps, stallOptions)
	s.Instead = func(_ *testrig.Seller, w http.ResponseWriter, _ x402.PaymentPayload) bool {
		w.Header().Set("Location", evil.Server.URL)
		w.WriteHeader(http.StatusTemporaryRedirect)
		return true
	}
	if resp, err := s.get(x); err != nil || resp.StatusCode != http.StatusTemporaryRedirect || evil.Asked != 0 {
		t.Errorf("%v, %v: the other host was asked %d times", resp, err, evil.Asked)
	}
	front := httptest.NewServer(http.RedirectHandler(evil.Server.URL, http.StatusFound))
	defer front.Close()
	resp, err := x.Client().Get(front.URL)
	if err != nil || resp.StatusCode != http.StatusFound || evil.Asked != 0 {
		t.Errorf("%v, %v: the other host was asked %d times", resp, err, evil.Asked)
	}
	if err == nil {
		resp.Body.Close()
	}
}

// TestX402RedirectsArePaidOnce: a server that redirects to itself what was paid for, says that it charged for it or keeps that
// to itself, and shows its base with the next answer, has one voucher of each call, also of an http.Client with other ideas.
func TestX402RedirectsArePaidOnce(t *testing.T) {
	m := testrig.NewX402Market(t)
	for _, row := range []struct {
		name string
		says bool // that it charged
		own  bool // http.Client
		want error
	}{
		{name: "a receipt"}, {name: "the base with the next answer"},
		{"a receipt, and a client that follows", true, true, wallet.ErrPrice}, {"the base, and a client that follows", false, true, wallet.ErrPrice},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newStall(t, m)
			x := s.client(stallCaps, stallOptions)
			s.Instead = func(_ *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
				if most := p.Payload.Voucher.MaxClaimableAmount.Uint64(); most != s.Base+testrig.SellerPrice {
					s.Correct(w, s.Base, s.Newest)
					return true
				}
				s.Bank(p)
				s.Base, s.Newest = s.Base+testrig.SellerPrice, &p.Payload.Voucher
				w.Header().Set("Location", s.Server.URL)
				if row.says {
					charged := wireUnits(testrig.SellerPrice)
					_ = x402.SettleResponse{Success: true, Network: 31337, ChargedAmount: &charged}.Set(w.Header())
				}
				w.WriteHeader(http.StatusFound)
				return true
			}
			client := x.Client()
			if row.own {
				client = &http.Client{Transport: x}
			}
			for call := uint64(1); call <= 2; call++ {
				resp, err := client.Get(s.Server.URL)
				if !errors.Is(err, row.want) || err == nil && resp.StatusCode != http.StatusFound {
					t.Errorf("%v, %v, want %v", resp, err, row.want)
				}
				if err == nil {
					resp.Body.Close()
				}
				if signed := s.only(x).Signed; signed.Uint64() > call*testrig.SellerPrice {
					t.Errorf("%d calls: %s signed, at most %d", call, signed.Dec(), call*testrig.SellerPrice)
				}
			}
		})
	}
	s := newStall(t, m) // what costs nothing is followed, and then paid
	x := s.client(stallCaps, stallOptions)
	s.Server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path != "/there" {
			http.Redirect(w, q, "/there", http.StatusFound)
			return
		}
		s.ServeHTTP(w, q)
	})
	if s.buy(x); len(s.Paid) != 1 {
		t.Errorf("%d payments behind a redirect", len(s.Paid))
	}
}

// TestX402RefundIsSeenOnTheChain: a server's word that it gave money back is not enough. Its word that it does not is handed on.
func TestX402RefundIsSeenOnTheChain(t *testing.T) {
	s := newStall(t, testrig.NewX402Market(t))
	x := s.client(stallCaps, stallOptions)
	s.buy(x)
	s.Instead = func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
		if p.Payload.Type != x402.TypeRefund || p.Payload.Voucher.MaxClaimableAmount.Uint64() != testrig.SellerCharge {
			t.Errorf("asked for a refund with %+v", p.Payload)
		}
		s.Confirm(w, 0)
		return true
	}
	if r, err := x.Refund(t.Context(), s.Server.URL, ""); !errors.Is(err, peer.ErrRefused) || !r.Amount.IsZero() {
		t.Errorf("%+v, %v", r, err)
	}
	s.Instead = nil // it knows of no refunds, and says so by its usual answer to another amount
	if _, err := x.Refund(t.Context(), s.Server.URL, ""); !errors.Is(err, peer.ErrRefused) || !strings.Contains(err.Error(), string(x402.CodeCumulativeMismatch)) {
		t.Errorf("%v, and not why", err)
	}
	if _, err := x.Refund(t.Context(), s.Server.URL, "0"); err == nil {
		t.Error("a refund of nothing was asked for")
	}
	for _, p := range s.Paid {
		if most := p.Payload.Voucher.MaxClaimableAmount; most.Uint64() > testrig.SellerPrice {
			t.Errorf("signed for %s to get a refund", most.Dec())
		}
	}
}

// TestX402PendingWithdrawalIsNotPaidInto: neither from nor into a channel that is on its way back.
func TestX402PendingWithdrawalIsNotPaidInto(t *testing.T) {
	s := newStall(t, testrig.NewX402Market(t))
	x := s.client(stallCaps, stallOptions)
	for range 17 {
		s.buy(x)
	}
	call := s.Contract.InitiateWithdrawCall(s.only(x).Terms, *uint256.NewInt(1)) // by another program with our key
	s.Transact(t, s.Payer, call.To, call.Data)
	paid := len(s.Paid)
	s.get(x) // covered by what is there
	s.get(x)
	if _, err := s.get(x); !errors.Is(err, channel.ErrClosing) {
		t.Errorf("%v, want %v", err, channel.ErrClosing)
	}
	if kept, err := x.accounts().Load(t.Context(), s.only(x).ID); err != nil || kept.Deposit != nil {
		t.Errorf("a deposit was signed: %+v, %v", kept, err)
	}
	if len(s.Paid) != paid+2 || s.Tokens(t, s.PayerAddress()) != testrig.Thousand-testrig.SellerDeposit {
		t.Errorf("%d payments, and a deposit", len(s.Paid)-paid)
	}
}
