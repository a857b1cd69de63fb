package x402client

import (
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/ticks"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/x402"
)

var doorCaps = wallet.Caps{PricePerGPUHour: "10", PerLease: "50", PerDay: "50", PerPayee: "50"}

// claimsAll is a mill that answers other requests, and refunds, by what is worth most to it: it claims all that was ever signed, and
// counts that as charged. Where mute, it answers no tick.
func (m *mill) claimsAll(mute bool) {
	serve := m.s.Instead
	m.s.Instead = func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
		refund, v := p.Payload.Type == x402.TypeRefund, p.Payload.Voucher
		if !refund && !m.other && !mute {
			return serve(s, w, p)
		}
		s.Bank(p)
		if !refund && (s.Newest == nil || s.Newest.MaxClaimableAmount.Lt(&v.MaxClaimableAmount.Int)) && !m.other {
			s.Newest = &v // of a tick that is not answered
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		all := s.Newest.MaxClaimableAmount.Uint64()
		terms := p.Payload.Config.Terms(p.Accepted.Network)
		if s.Base = all; refund && m.settled != all {
			s.Claim(terms)
			m.settled = all
		}
		switch {
		case refund && v.MaxClaimableAmount.Uint64() >= all:
			s.Refund(terms)
			s.Confirm(w, 0)
		case m.other && v.MaxClaimableAmount.Uint64() >= all:
			s.Newest = &v
			s.Confirm(w, 0)
		default:
			s.Correct(w, all, s.Newest)
		}
		return true
	}
}

// TestX402NoDoorTakesTheCeiling: whoever meters ticks, and takes what they were signed for at another request, with refunds, or
// from who asks for another number of GPUs, has no more signed than what passed and one tick;
// of a tick that it did not answer it has another one when it has claimed the first, and is caught at that.
func TestX402NoDoorTakesTheCeiling(t *testing.T) {
	for name, door := range map[string]struct {
		mute  bool
		ticks uint64 // whose ceilings may be signed
		open  func(*mill, *Client, int) *Rental
	}{
		"another request": {false, 1, func(m *mill, x *Client, _ int) *Rental {
			m.other, m.s.Offer.Amount = true, wireUnits(10)
			if resp, err := x.Client().Get(m.URL + "/answer"); err == nil {
				resp.Body.Close()
			}
			m.other, m.s.Offer.Amount = false, wireUnits(testrig.MillAsk)
			return m.rent(x, 1)
		}},
		"a refund": {false, 1, func(m *mill, x *Client, _ int) *Rental {
			rental := m.rent(x, 1)
			_, _ = rental.Close(m.t.Context())
			return rental
		}},
		"a refund of a tick that is not answered": {true, 2, func(m *mill, x *Client, _ int) *Rental {
			rental := m.rent(x, 1)
			_, _ = rental.Close(m.t.Context())
			return rental
		}},
		"another number of GPUs": {true, 1, func(m *mill, x *Client, round int) *Rental { return m.rent(x, 1+round%2) }},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMill(t, false, func(uint64, uint64) time.Duration { return 50 * time.Millisecond })
			m.claimsAll(door.mute)
			x := m.s.client(doorCaps, Options{MaxPrice: wallet.Unlimited})
			rental, began := m.rent(x, 1), time.Now()
			for round := range 6 {
				_, err := rental.Tick(t.Context())
				if rental = door.open(m, x, round+1); round == 0 && err != nil && !door.mute {
					t.Fatal(err)
				}
			}
			passed := uint64((time.Since(began) + ticks.Tolerance).Milliseconds())
			if c := m.s.only(x); c.Signed.IsZero() || c.Signed.Uint64() > passed+door.ticks*testrig.MillAsk+100 { // ten for each other request
				t.Errorf("%s signed, %d ms passed, a tick is of %d", c.Signed.Dec(), passed, testrig.MillAsk)
			}
		})
	}
}

func (m *mill) rent(x *Client, gpus int) *Rental {
	m.t.Helper()
	rental, err := x.Rent(m.t.Context(), m.URL, gpus)
	if err != nil {
		m.t.Fatal(err)
	}
	return rental
}

// TestX402FalseClaimAtARefund: an only endpoint says at a refund that more was claimed than was signed for, or says it of a channel
// that this database does not know. Nothing is signed for that, and a provider that answers no tick has one voucher.
func TestX402FalseClaimAtARefund(t *testing.T) {
	const lie, stallLie = 300_000, 3000
	t.Run("at a refund", func(t *testing.T) {
		s := newStall(t, testrig.NewX402Market(t))
		x := s.client(stallCaps, stallOptions)
		s.buy(x)
		s.Instead = func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
			if p.Payload.Type != x402.TypeRefund {
				return false
			}
			terms := p.Payload.Config.Terms(p.Accepted.Network)
			s.Claim(terms)
			s.Refund(terms)
			rewrite(t, s.Chain, s.Contract, terms.ID(), 16, stallLie, func(v channel.ChainView) uint256.Int { return v.Deposit })
			rewrite(t, s.Chain, s.Contract, terms.ID(), 0, stallLie, func(v channel.ChainView) uint256.Int { return v.Settled })
			s.Confirm(w, 0)
			return true
		}
		if _, err := x.Refund(t.Context(), s.Server.URL, ""); err != nil {
			t.Fatal(err)
		}
		_, _ = s.get(x)
		for _, p := range s.Paid {
			if v := p.Payload.Voucher.MaxClaimableAmount; v.Uint64() > 2*testrig.SellerPrice { // what was signed, and another price
				t.Errorf("%s was signed", v.Dec())
			}
		}
	})
	t.Run("of a channel that is not known", func(t *testing.T) {
		m := newMill(t, false, func(uint64, uint64) time.Duration { return 50 * time.Millisecond })
		x := m.s.client(doorCaps, Options{MaxPrice: wallet.Unlimited})
		if _, err := m.rent(x, 1).Tick(t.Context()); err != nil {
			t.Fatal(err)
		}
		var before string
		m.s.RPC(t, &before, "evm_snapshot")
		rewrite(t, m.s.Chain, m.s.Contract, m.s.only(x).ID, 0, lie, func(v channel.ChainView) uint256.Int { return v.Settled })
		m.s.database, m.s.Paid = filepath.Join(t.TempDir(), "new.db"), nil
		x = m.s.client(doorCaps, Options{MaxPrice: wallet.Unlimited})
		vouchers := map[string]bool{}
		m.s.Instead = m.counts(vouchers)
		rental := m.rent(x, 1)
		for i := range 8 {
			if _, _ = rental.Tick(t.Context()); i == 0 {
				m.s.RPC(t, nil, "evm_revert", before) // it said so once
			}
		}
		if len(vouchers) > 2 { // a channel that was on the chain before is once taken for what it says
			t.Errorf("%d vouchers for no record: %v", len(vouchers), vouchers)
		}
	})
}

// counts answers no tick, and counts each as charged when it is there.
func (m *mill) counts(vouchers map[string]bool) func(*testrig.Seller, http.ResponseWriter, x402.PaymentPayload) bool {
	return func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
		v := p.Payload.Voucher
		vouchers[v.MaxClaimableAmount.Dec()] = true
		if s.Bank(p); s.Newest == nil || s.Newest.MaxClaimableAmount.Lt(&v.MaxClaimableAmount.Int) {
			s.Newest = &v
		}
		s.Correct(w, s.Newest.MaxClaimableAmount.Uint64(), s.Newest)
		return true
	}
}
