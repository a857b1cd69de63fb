package sdk

import (
	"errors"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/wire/x402"
)

// TestX402ChargedForNothing: a provider that says of each voucher that all of it is charged, and serves nothing, gets one
// voucher of a Run, and is caught at the second.
func TestX402ChargedForNothing(t *testing.T) {
	for _, served := range []bool{false, true} { // before it takes to it
		m := newMill(t, false, func(uint64, uint64) time.Duration { return 50 * time.Millisecond })
		x := m.s.client(Caps{PricePerGPUHour: "10", PerLease: "5", PerDay: "50", PerPayee: "50"}, X402Options{MaxPrice: Unlimited})
		rental, err := x.Rent(t.Context(), m.server.URL, 1)
		if err != nil {
			t.Fatal(err)
		}
		if served {
			if _, err := rental.Tick(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		vouchers := map[uint64]bool{}
		m.s.instead = func(s *stall, w http.ResponseWriter, p x402.PaymentPayload) bool {
			most := p.Payload.Voucher.MaxClaimableAmount.Uint64()
			if vouchers[most] {
				w.WriteHeader(http.StatusNotFound)
				return true
			}
			vouchers[most] = true
			s.bank(p)
			s.correct(w, most, &p.Payload.Voucher)
			return true
		}
		if err := rental.Run(t.Context(), func(X402Tick) { t.Error("a tick") }); !errors.Is(err, ErrLostAnswer) || len(vouchers) != 1 {
			t.Errorf("Run ended with %v after %d vouchers", err, len(vouchers))
		}
		if _, err := rental.Tick(t.Context()); !errors.Is(err, ErrLostAnswer) || len(vouchers) != 1 {
			t.Errorf("asked for the same tick: %v, %d vouchers", err, len(vouchers))
		}
		var d *Dispute
		if _, err := rental.Tick(t.Context()); !errors.As(err, &d) || len(vouchers) != 2 {
			t.Errorf("asked to pay again: %v, %d vouchers", err, len(vouchers))
		}
	}
}

// TestX402LostTickAtANewPrice: a tick that is asked for again is charged at most what its own voucher was for, however much
// the next one may cost by then.
func TestX402LostTickAtANewPrice(t *testing.T) {
	m := newMill(t, false, func(uint64, uint64) time.Duration { return 50 * time.Millisecond })
	x := m.s.client(Caps{PricePerGPUHour: "10", PerLease: "5", PerDay: "50", PerPayee: "50"}, X402Options{MaxPrice: Unlimited})
	rental, err := x.Rent(t.Context(), m.server.URL, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rental.Tick(t.Context()); err != nil {
		t.Fatal(err)
	}
	const small = 3000
	m.s.offer.Amount = wireAmount(small)
	var gone atomic.Int32
	m.s.instead = func(*stall, http.ResponseWriter, x402.PaymentPayload) bool { gone.Add(1); panic(http.ErrAbortHandler) }
	if _, err := rental.Tick(t.Context()); !errors.Is(err, ErrGone) {
		t.Fatalf("%v, want %v", err, ErrGone)
	}
	if time.Sleep(100 * time.Millisecond); gone.Load() == 0 { // a client may ask twice where its line broke
		t.Fatal("the tick was not asked for")
	}
	m.s.offer.Amount = wireAmount(millAsk)
	m.s.instead = func(s *stall, w http.ResponseWriter, p x402.PaymentPayload) bool {
		receipt := x402.SettleResponse{Success: true, Network: 31337, ChargedAmount: ptr(wireAmount(small + 1))}
		if err := receipt.Set(w.Header()); err != nil {
			t.Error(err)
		}
		return true
	}
	if _, err := rental.Tick(t.Context()); !errors.Is(err, ErrOvercharged) {
		t.Errorf("%v, want %v", err, ErrOvercharged)
	}
	if all, err := x.Channels(t.Context()); err != nil || len(all) != 1 || all[0].Charged.Gt(&all[0].Signed) {
		t.Errorf("charged more than was signed: %+v, %v", all, err)
	}
}

// TestX402RaisedBaseIsTimeThatPassed: a provider that meters little in a new lease at every tick, and says before the next
// that all of the voucher before is charged, has no more signed than the time that passed, and one ceiling.
func TestX402RaisedBaseIsTimeThatPassed(t *testing.T) {
	m := newMill(t, false, func(uint64, uint64) time.Duration { time.Sleep(60 * time.Millisecond); return 50 * time.Millisecond })
	x := m.s.client(Caps{PricePerGPUHour: "10", PerLease: "5", PerDay: "50", PerPayee: "50"}, X402Options{MaxPrice: Unlimited})
	rental, err := x.Rent(t.Context(), m.server.URL, 1)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for range 8 {
		if _, err := rental.Tick(t.Context()); err != nil {
			t.Log(err)
		}
		if m.s.newest != nil {
			m.s.base = m.s.newest.MaxClaimableAmount.Uint64()
		}
	}
	all, err := x.Channels(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatalf("%+v, %v", all, err)
	}
	var most uint256.Int
	most.SetUint64(uint64((time.Since(began) + tickTolerance).Milliseconds()) + millAsk)
	if all[0].Signed.Gt(&most) || all[0].Signed.IsZero() {
		t.Errorf("signed %s, %s is what passed and one tick", all[0].Signed.Dec(), most.Dec())
	}
}
