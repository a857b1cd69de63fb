package renter

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk"
	"github.com/gpupay/gpupay/sdk/audit"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
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
	l := &Rental{}
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
		got, ok := l.row.knows(wire.Lease{OwedBefore: wire.NewAmount(begins)})
		if ok != known || got != left {
			t.Fatalf("%s owed and %d carried: a lease that begins with %s carries %d, %t, want %d, %t", owed.Dec(), carried, begins.Dec(), got, ok, left, known)
		}
		owed, carried = begins, left
		l.row.OwedBefore, l.row.Carried, l.row.Lease, l.offer = begins, left, common.Hash{1}, offer
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
			l.row.Checker = &metering.CheckerState{Nanos: nanos, Owed: owed, Final: true}
		}
		if err := l.turnOver(); err != nil {
			t.Fatal(err)
		}
		if l.row.OwedBefore != owed || l.row.Carried != carried || l.row.Checker != nil || l.row.Lease != (common.Hash{}) {
			t.Fatalf("the next lease begins with %s and %d, want %s and %d", l.row.OwedBefore.Dec(), l.row.Carried, owed.Dec(), carried)
		}
	}
}

// TestManyShortLeasesAreNotFree: at a price of one base unit for half a second, as
// with a token of two decimals, leases of less than that are charged for their time
// together; both sides' bundles hold together, and agree.
func TestManyShortLeasesAreNotFree(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, func(c *sdk.ProviderConfig) { c.PricePerGPUHour = "0.0072" })
	r := openRenter(t, renterConfig(t, m, m.Payer))
	l, err := r.Rent(t.Context(), server.URL, Options{Deposit: "0.1", PayEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	var used uint256.Int
	for leases := 0; leases < 5 || used.Lt(uint256.NewInt(3)); leases++ {
		time.Sleep(250 * time.Millisecond) // GPU time
		if _, err := l.release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := l.Reopen(t.Context()); err != nil {
			t.Fatal(err)
		}
		records, err := r.Records(t.Context(), l.ID())
		if err != nil {
			t.Fatal(err)
		}
		var nanos uint64
		for _, rec := range records {
			if rec.Final {
				nanos += rec.Nanos
			}
		}
		if used, err = l.price.Charge(nanos); err != nil {
			t.Fatal(err)
		}
		if l.row.OwedBefore != used {
			t.Fatalf("%d leases used %d ns, which is %s base units; %s are charged", leases+1, nanos, used.Dec(), l.row.OwedBefore.Dec())
		}
	}
	if _, err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	payers, err := r.Export(t.Context(), l.ID())
	if err != nil {
		t.Fatal(err)
	}
	payees, err := server.Config.Handler.(*sdk.Provider).Export(t.Context(), l.ID())
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range []*audit.Bundle{payers, payees} {
		if err := audit.Failures(audit.Verify(t.Context(), b, m.Backend)); err != nil {
			t.Errorf("kept by the %s: %v", b.Keeper, err)
		}
	}
	if err := audit.Failures(audit.Compare(payers, payees).Checks); err != nil {
		t.Error(err)
	}
}
