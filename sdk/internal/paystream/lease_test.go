package paystream

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestRentalCarries: what a rental's books carry from one lease to the next is what wire.CarriesTo and its offer's Uncharged say,
// whatever the leases used and whether they have a record.
func TestRentalCarries(t *testing.T) {
	private, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	random, key := rand.New(rand.NewPCG(14, 251)), channel.NewKey(private)
	l := new(Lease)
	l.Channel = new(rental.Channel)
	var owed uint256.Int
	var carried uint64
	for range 200 {
		offer, err := wire.SignOffer(t.Context(), key, wire.Offer{Version: 1,
			Escrow: wire.Address{1}, Token: wire.Address{2}, ChainID: 1, Payee: wire.Address(key.Address()), Meter: wire.Address(key.Address()),
			Amount: wire.NewAmount(*uint256.NewInt(1 + random.Uint64N(1<<12))), Unit: string(metering.Hour),
			Credit: 100, Tick: 50, RecordEvery: 100, MaxGap: 1000, Simulated: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		begins := owed
		if carried >= metering.Fractions {
			begins.AddUint64(&begins, 1)
		}
		left, known := wire.CarriesTo(owed, begins, carried)
		got, ok := l.Row.Knows(wire.Lease{OwedBefore: wire.NewAmount(begins)})
		if ok != known || got != left {
			t.Fatalf("%s owed and %d carried: a lease that begins with %s carries %d, %t, want %d, %t", owed.Dec(), carried, begins.Dec(), got, ok, left, known)
		}
		owed, carried = begins, left
		l.Row.OwedBefore, l.Row.Carried, l.Row.Lease, l.Offer = begins, left, common.Hash{1}, offer
		if random.IntN(5) > 0 {
			nanos := random.Uint64N(uint64(10 * time.Second))
			price, err := offer.Price()
			if err != nil {
				t.Fatal(err)
			}
			if owed, err = (metering.Lease{Price: price, OwedBefore: begins}).Owed(nanos); err != nil {
				t.Fatal(err)
			}
			more, err := offer.Uncharged(nanos, true)
			if err != nil {
				t.Fatal(err)
			}
			carried += more
			l.Row.Checker = &verify.State{Nanos: nanos, Owed: owed, Final: true}
		}
		if err := l.TurnOver(); err != nil {
			t.Fatal(err)
		}
		if l.Row.OwedBefore != owed || l.Row.Carried != carried || l.Row.Checker != nil || l.Row.Lease != (common.Hash{}) {
			t.Fatalf("the next lease begins with %s and %d, want %s and %d", l.Row.OwedBefore.Dec(), l.Row.Carried, owed.Dec(), carried)
		}
	}
}

// TestUnansweredVoucher: a renter waits for a receipt as long as for an answer, and then attaches again.
func TestUnansweredVoucher(t *testing.T) {
	l := new(Lease)
	l.Channel = new(rental.Channel)
	l.sent, l.delivered = *uint256.NewInt(20), *uint256.NewInt(10)
	l.sentAt = l.awake.Now()
	for waited := time.Duration(0); waited <= peer.AnswerTimeout; waited += time.Second {
		l.awake.Count(time.Second)
	}
	if !l.unanswered() {
		t.Error("it waits on")
	}
	if l.delivered = l.sent; l.unanswered() {
		t.Error("it waits for what it has")
	}
	l.delivered, l.sentAt = *uint256.NewInt(10), l.awake.Now()
	if l.unanswered() {
		t.Error("it does not wait")
	}
	if l.belowMinDelta(*uint256.NewInt(20)) != true || l.belowMinDelta(*uint256.NewInt(21)) {
		t.Error("what is on its way is offered again, or what is more is not")
	}
}

// TestUnderAStep: a voucher under the least step that was shown, or asked for, and is not counted by the provider, is due with the
// next record; what it counts is believed where that is less than what was signed.
func TestUnderAStep(t *testing.T) {
	n := func(v uint64) uint256.Int { return *uint256.NewInt(v) }
	held := func(v uint64) *wire.HeldVoucher { return &wire.HeldVoucher{CumulativeAmount: wire.NewAmount(n(v))} }
	l := new(Lease)
	l.Channel = new(rental.Channel)
	if got := l.taken(n(150), held(100)); got != n(150) {
		t.Errorf("without a least step %s are counted", got.Dec())
	}
	l.Row.MinDelta = n(100)
	for _, c := range []struct {
		held *wire.HeldVoucher
		want uint64
	}{{held(100), 100}, {held(150), 150}, {held(200), 150}, {nil, 0}} {
		if got := l.taken(n(150), c.held); got != n(c.want) {
			t.Errorf("of 150 %s are counted where the provider shows %+v", got.Dec(), c.held)
		}
	}
	l.delivered, l.asked, l.credit = n(100), n(150), n(1000)
	if !l.urgent() {
		t.Error("what was asked for waits")
	}
	if l.sent = n(150); l.due() {
		t.Error("what is on its way is due")
	}
	if l.sent.Clear(); !l.due() {
		t.Error("what was refused is not due")
	}
}
