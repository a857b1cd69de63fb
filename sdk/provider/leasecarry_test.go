package provider

import (
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/usage"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// payerBooks are what a renter's rules make of the same leases: wire.CarriesTo and an offer's Uncharged.
type payerBooks struct {
	owed    uint256.Int
	carried uint64
}

// leaseBooks are one channel's books of both sides, as its session leases leave them.
type leaseBooks struct {
	*testing.T
	store  leasestore.Store
	renter payerBooks
	terms  channel.Terms
	key    channel.Signer
	count  int
}

func (b *leaseBooks) state() channel.State {
	b.Helper()
	s, err := b.store.DB.Payee().Load(b.Context(), b.terms.ID())
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// offer publishes an offer at a price.
func (b *leaseBooks) offer(price metering.Price) wire.SignedOffer {
	b.Helper()
	o, err := wire.SignOffer(b.Context(), b.key, wire.Offer{Version: 1,
		Escrow: wire.Address{1}, Token: wire.Address{2}, ChainID: 1, Payee: wire.Address(b.key.Address()), Meter: wire.Address(b.key.Address()),
		Amount: wire.NewAmount(price.Amount), Unit: string(price.Unit), Credit: 100, Tick: 50, RecordEvery: 100, MaxGap: 1000, Simulated: true,
	})
	if err == nil {
		err = b.store.Offers.Put(b.Context(), o)
	}
	if err != nil {
		b.Fatal(err)
	}
	return o
}

// lease is one that used so much; without a record at all where recorded is false.
func (b *leaseBooks) lease(o wire.SignedOffer, nanos uint64, recorded bool) {
	b.Helper()
	ctx := b.Context()
	begins, carried, err := b.store.Carry(ctx, b.state())
	if err != nil {
		b.Fatal(err)
	}
	b.count++
	id := common.BigToHash(uint256.NewInt(uint64(b.count)).ToBig())
	left, ok := wire.CarriesTo(b.renter.owed, begins, b.renter.carried)
	if !ok {
		b.Fatalf("lease %d begins with %s owed, the renter's records say %s and %d parts", b.count, begins.Dec(), b.renter.owed.Dec(), b.renter.carried)
	}
	b.renter = payerBooks{begins, left}
	if err := b.store.Leases.Insert(ctx, leasestore.Row{ID: id.Hex(), Channel: b.terms.ID().Hex(), Offer: o.Hash.Hex(), OwedBefore: begins.Dec(), Carried: int64(carried),
		State: wire.StateEnded, Allocation: "{}", GPUs: 1}); err != nil {
		b.Fatal(err)
	}
	if recorded {
		price, err := o.Price()
		if err != nil {
			b.Fatal(err)
		}
		rec := metering.SignedRecord{Signature: make([]byte, 65), Record: metering.Record{
			LeaseID: id, ChannelID: b.terms.ID(), OfferHash: o.Hash, Sequence: 1, Nanos: nanos, Final: true, OwedBefore: begins}}
		if rec.Owed, err = (metering.Lease{Price: price, OwedBefore: begins}).Owed(nanos); err != nil {
			b.Fatal(err)
		}
		if err := b.store.Records.Append(ctx, 0, rec, usage.State{}, nil); err != nil {
			b.Fatal(err)
		}
		uncharged, err := o.Uncharged(nanos, true)
		if err != nil {
			b.Fatal(err)
		}
		b.renter = payerBooks{rec.Owed, left + uncharged}
	}
}

// forget takes the newest lease out of the provider's books, as a restore does; what
// the renter shows of it is charged.
func (b *leaseBooks) forget() {
	b.Helper()
	s := b.state()
	err := b.store.DB.Update(b.Context(), func(tx *sqlx.Tx) error {
		id := common.BigToHash(uint256.NewInt(uint64(b.count)).ToBig()).Hex()
		_, err := tx.Exec(tx.Rebind(`DELETE FROM records WHERE lease = ?`), id)
		if err == nil {
			_, err = tx.Exec(tx.Rebind(`DELETE FROM leases WHERE id = ?`), id)
		}
		if err == nil && s.Spent.Lt(&b.renter.owed) {
			err = b.store.DB.Charge(b.Context(), tx, s.ID, b.renter.owed)
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
}

// TestTimeCostsTheSameInLeases: however a time is split into a channel's leases, at
// whatever prices, it costs what it costs in one, but for what is less than a base
// unit when the last of them ends. Both sides find the same, also where leases have no
// record and where a provider has forgotten some: then it costs less.
func TestTimeCostsTheSameInLeases(t *testing.T) {
	random := rand.New(rand.NewPCG(14, 250))
	for round := range 8 {
		forgetful := round%2 == 1
		db, err := database.Open(t.Context(), filepath.Join(t.TempDir(), strconv.Itoa(round)+".db"), "provider", leasestore.Migrations, "migrations/provider")
		if err != nil {
			t.Fatal(err)
		}
		b := &leaseBooks{T: t, store: leasestore.New(db), terms: channel.Terms{Payer: common.Address{1}}, key: testKey(t)}
		if _, err := db.Payee().Create(t.Context(), channel.State{ID: b.terms.ID(), Terms: b.terms, Status: channel.Open, Deposit: channel.MaxAmount()}); err != nil {
			t.Fatal(err)
		}
		unit := []metering.Unit{metering.Minute, metering.Hour}[round/2%2]
		var parts uint256.Int // nanoseconds times price: what was used, exactly
		for range 4 {
			price := metering.Price{Amount: *uint256.NewInt(1 + random.Uint64N(1<<(1+random.IntN(12)))), Unit: unit}
			o := b.offer(price)
			for range 10 {
				nanos, recorded := random.Uint64N(uint64(10*time.Second)), random.IntN(5) > 0
				b.lease(o, nanos, recorded)
				if recorded {
					var used uint256.Int
					parts.Add(&parts, used.Mul(&price.Amount, uint256.NewInt(nanos)))
				}
				if forgetful && random.IntN(6) == 0 {
					b.forget()
				}
			}
		}
		b.lease(b.offer(metering.Price{Unit: unit}), 1, true) // what was carried to here
		var whole uint256.Int
		whole.Div(&parts, uint256.NewInt(unit.Nanos()))
		if spent := b.state().Spent; spent.Gt(&whole) || !forgetful && spent != whole {
			t.Errorf("round %d: %s is charged, in one lease it would be %s", round, spent.Dec(), whole.Dec())
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
