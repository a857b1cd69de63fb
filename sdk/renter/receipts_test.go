package renter_test

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/internal/peer"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestHostileReceipts: whatever a provider answers vouchers with in the stream, it gets them for what was checked and
// prepaid, and no others.
func TestHostileReceipts(t *testing.T) {
	m := testrig.NewMarket(t)
	double := func(amount uint256.Int) uint256.Int { amount.Lsh(&amount, 1); return amount }
	for _, test := range []struct {
		name string
		paid func(*testrig.Stream, uint256.Int)
		want error // nil: the renter goes on
	}{
		{name: "no receipt", paid: func(*testrig.Stream, uint256.Int) {}},
		{name: "a receipt for more", paid: func(p *testrig.Stream, amount uint256.Int) { p.Receipt(double(amount), nil) }},
		{name: "a receipt for nothing", paid: func(p *testrig.Stream, _ uint256.Int) { p.Receipt(uint256.Int{}, nil) }},
		{name: "each receipt many times", paid: func(p *testrig.Stream, amount uint256.Int) {
			for range 20 {
				p.Receipt(amount, nil)
			}
		}},
		{name: "refused, each", paid: func(p *testrig.Stream, _ uint256.Int) {
			p.Send(0, wire.EventProblem, wire.Unavailable.With("not now"))
		}},
		{name: "a problem that is none", paid: func(p *testrig.Stream, _ uint256.Int) {
			p.Raw(wire.Event{Name: wire.EventProblem, Data: []byte("\x1b[2Jno")})
		}},
		{name: "a receipt that is cut off", want: peer.ErrProtocol, paid: func(p *testrig.Stream, amount uint256.Int) {
			p.Receipt(amount, func(b []byte) []byte { return b[:11] })
		}},
		{name: "a receipt that is too long", want: peer.ErrProtocol, paid: func(p *testrig.Stream, amount uint256.Int) {
			p.Receipt(amount, func(b []byte) []byte { return append(b, 0) })
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			const prepay = 100 * time.Millisecond
			v := testrig.NewHostile(t, m, nil)
			var came atomic.Int64
			v.Script = func(p *testrig.Stream) { p.Honest(1000) }
			v.Paid = func(p *testrig.Stream, amount uint256.Int) {
				came.Add(1)
				test.paid(p, amount)
			}
			config := renterrig.Config(t, m, m.Payer)
			config.Chain.ClockTolerance, config.Caps.PerDay = 1000*time.Hour, wallet.Unlimited // the chain's clock runs ahead in this test
			r := renterrig.Open(t, config)
			l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1", PayEvery: 60 * time.Millisecond, Prepay: prepay})
			if err != nil {
				t.Fatal(err)
			}
			done := renterrig.Background(t.Context(), l)
			if test.want != nil {
				if err := <-done; !errors.Is(err, test.want) {
					t.Fatalf("%v, want %v", err, test.want)
				}
				checkPaid(t, r, v, l.ID(), prepay)
				leave(t, m, l)
				return
			}
			testrig.Eventually(t, "five vouchers in the stream", func() bool { return came.Load() >= 5 })
			got, most := v.Highest(), worth(t, v, prepay)
			owed := l.Snapshot().Owed
			if most.Add(&most, &owed); got.Gt(&most) {
				t.Errorf("the provider has a voucher over %s, checked and prepaid is %s", got.Dec(), most.Dec())
			}
			leave(t, m, l)
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
}

func worth(t *testing.T, v *testrig.Hostile, d time.Duration) uint256.Int {
	t.Helper()
	charge, err := v.Price.Charge(uint64(d))
	if err != nil {
		t.Fatal(err)
	}
	return charge
}
