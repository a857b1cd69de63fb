package x402server

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

// meteredBooks are a channel's books as its metered requests leave them, one final
// record after the other.
type meteredBooks struct {
	*testing.T
	path  string
	desk  *Accounts
	store leasestore.Store
	terms channel.Terms
	price metering.Price
	count int
}

func (b *meteredBooks) open() {
	b.Helper()
	db, err := database.Open(b.Context(), b.path, "provider", leasestore.Migrations, "migrations/provider")
	if err != nil {
		b.Fatal(err)
	}
	notes, err := OpenJournal(b.Context(), db)
	if err != nil {
		b.Fatal(err)
	}
	b.desk, b.store = &Accounts{DB: db, Journal: notes}, leasestore.New(db)
}

func (b *meteredBooks) close() {
	b.Helper()
	if err := b.desk.DB.Close(); err != nil {
		b.Fatal(err)
	}
}

func (b *meteredBooks) spent() uint256.Int {
	b.Helper()
	s, err := b.desk.DB.Payee().Load(b.Context(), b.terms.ID())
	if err != nil {
		b.Fatal(err)
	}
	return s.Spent
}

// request is one that used so much and reserved room beyond what its record states.
func (b *meteredBooks) request(nanos, room uint64, again bool) {
	b.Helper()
	ctx, d := b.Context(), b.desk
	before := b.spent()
	charge, err := b.price.Charge(nanos)
	if err != nil {
		b.Fatal(err)
	}
	b.count++
	rec := metering.SignedRecord{Record: metering.Record{
		LeaseID: common.BigToHash(uint256.NewInt(uint64(b.count)).ToBig()), ChannelID: b.terms.ID(), Sequence: 1, Nanos: nanos, Final: true, OwedBefore: before,
	}}
	rec.Owed.Add(&before, &charge)
	reserved := rec.Owed
	reserved.AddUint64(&reserved, room)
	if err := d.DB.Update(ctx, func(tx *sqlx.Tx) error { return d.Journal.Set(tx, b.terms.ID(), "reserved", reserved) }); err != nil {
		b.Fatal(err)
	}
	if err := b.store.Leases.Insert(ctx, leasestore.Row{ID: rec.LeaseID.Hex(), Channel: b.terms.ID().Hex(), OwedBefore: before.Dec(), State: wire.StateActive, Allocation: "{}", GPUs: 1}); err != nil {
		b.Fatal(err)
	}
	closing := func(tx *sqlx.Tx, rec metering.SignedRecord) error {
		_, err := d.Carry(tx, b.price, rec)
		return err
	}
	for range map[bool]int{false: 1, true: 2}[again] { // a commit whose answer was lost is made once more
		if err := b.store.Records.Append(ctx, 0, rec, usage.State{}, &closing); err != nil {
			b.Fatal(err)
		}
	}
	if spent := b.spent(); spent.Gt(&reserved) {
		b.Fatalf("charged %s, %s was reserved", spent.Dec(), reserved.Dec())
	}
}

// TestTimeCostsTheSameInPieces: whatever the price and however a time is split into
// requests, it costs what it costs in one, across restarts and commits that are made
// twice. Where a request has reserved no more than it used, the next one pays.
func TestTimeCostsTheSameInPieces(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 402))
	for round := range 8 {
		b := &meteredBooks{T: t, path: filepath.Join(t.TempDir(), strconv.Itoa(round)+".db"), terms: channel.Terms{Payer: common.Address{1}, Scheme: channel.BatchSettlement}}
		b.price = metering.Price{Amount: *uint256.NewInt(random.Uint64N(1 << (1 + random.IntN(24)))), Unit: []metering.Unit{metering.Second, metering.Minute, metering.Hour}[round%3]}
		b.open()
		if _, err := b.desk.DB.Payee().Create(t.Context(), channel.State{ID: b.terms.ID(), Terms: b.terms, Status: channel.Open, Deposit: channel.MaxAmount()}); err != nil {
			t.Fatal(err)
		}
		var total uint64
		for range 40 {
			nanos := random.Uint64N(uint64(50 * time.Millisecond))
			if random.IntN(8) == 0 {
				nanos = 0
			}
			total += nanos
			if b.request(nanos, random.Uint64N(3), random.IntN(4) == 0); random.IntN(10) == 0 {
				b.close()
				b.open()
			}
		}
		whole, err := b.price.Charge(total)
		if err != nil {
			t.Fatal(err)
		}
		if spent := b.spent(); spent.Gt(&whole) {
			t.Errorf("%d ns at %s per %s cost %s in pieces, %s in one", total, b.price.Amount.Dec(), b.price.Unit, spent.Dec(), whole.Dec())
		}
		b.request(0, 1<<40, false) // what found no room before
		if spent := b.spent(); spent != whole {
			t.Errorf("%d ns at %s per %s cost %s in pieces, %s in one", total, b.price.Amount.Dec(), b.price.Unit, spent.Dec(), whole.Dec())
		}
		b.close()
	}
}
