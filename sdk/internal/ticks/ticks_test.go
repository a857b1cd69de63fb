package ticks

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/internal/billed"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestX402FirstRecord: a lease that has not run yet is taken, and one whose first record says more new time than time is
// caught. What it may have cost before the tick is what was charged.
func TestX402FirstRecord(t *testing.T) {
	price, err := units.PerHour("3.60", 6)
	if err != nil {
		t.Fatal(err)
	}
	ask := Ask{GPUs: 1, Price: price}
	c := &Channel{Book: &Book{Tick: &Pending{Boot: "b", Asked: metering.Instant{Boot: 5e9, Mono: 5e9, Wall: 5e9}, Base: *uint256.NewInt(1000)}}}
	lease := func(nanos uint64, added int64, before uint64) (*Lease, error) {
		rec := metering.SignedRecord{Record: metering.Record{Sequence: 1, Nanos: nanos, OwedBefore: *uint256.NewInt(before)}, Evidence: metering.Evidence{Nanos: added}}
		return c.lease(wire.Tick{Devices: []string{"GPU-1"}, Record: &rec}, ask)
	}
	for _, row := range []struct {
		nanos  uint64
		added  int64
		before uint64
		want   error
	}{
		{0, 0, 1000, nil},
		{1e9, 1e9, 1000, nil},
		{2e9, 1e9, 0, nil},             // a second before the tick: 1000 base units
		{2e9, 1e9, 1, peer.ErrDemand},  // and one more
		{0, 0, 1001, peer.ErrDemand},   // more than was charged
		{0, 1, 0, verify.ErrBackwards}, // new time that is none
	} {
		l, err := lease(row.nanos, row.added, row.before)
		if !errors.Is(err, row.want) || (l == nil) != (row.want != nil) {
			t.Errorf("%+v: %+v, %v", row, l, err)
		}
	}
	ask.Offer.MaxGap = 500 // a lease before it may have read its GPUs so late: 500 base units
	for before, want := range map[uint64]error{1500: nil, 1501: peer.ErrDemand} {
		if _, err := lease(0, 0, before); !errors.Is(err, want) {
			t.Errorf("%d owed: %v, want %v", before, err, want)
		}
	}
	c.Tick.Base.Clear() // nothing was before it
	if _, err := lease(0, 0, 1); !errors.Is(err, peer.ErrDemand) {
		t.Errorf("the first of all: %v", err)
	}
}

// TestX402IdleAllowance: what idle time may count is what was signed and not charged, per GPU, and one reading, however
// little the price and however long the gap that the offer allows; it is never more than passed.
func TestX402IdleAllowance(t *testing.T) {
	price := metering.Price{Amount: *uint256.NewInt(3600), Unit: metering.Hour}
	for _, row := range []struct {
		signed, owed uint64
		gpus         int
		want         time.Duration
	}{{10, 4, 1, 6 * time.Second}, {10, 4, 2, 3 * time.Second}, {4, 4, 1, 0}, {4, 5, 1, 0}, {1 << 60, 0, 1, MaxTick}} {
		if got := covered(*uint256.NewInt(row.signed), *uint256.NewInt(row.owed), price, row.gpus); got != row.want {
			t.Errorf("%+v: %s", row, got)
		}
	}
	for _, row := range []struct {
		name                string
		ran, idle, elapsed  time.Duration // of the lease so far, and what its elapsed clock says at the last record
		bootAsked, bootLast string
		missed              time.Duration // by our boot clock, and not by the wall
		want                time.Duration // that the lease may have run when the tick is asked for
	}{
		{"no pause", 10 * time.Second, 0, 10 * time.Second, "a", "a", 0, 10 * time.Second},
		{"a short pause", 10 * time.Second, time.Second, 10 * time.Second, "a", "a", 0, 11 * time.Second},
		{"a long pause", 10 * time.Second, time.Hour, 10 * time.Second, "a", "a", 0, 15 * time.Second},
		{"over a reboot", 10 * time.Second, time.Hour, 10 * time.Second, "b", "a", 0, 15 * time.Second},
		{"over a reboot, and no time passed by the wall", 10 * time.Second, 0, 10 * time.Second, "b", "a", 0, 15 * time.Second},
		{"over a reboot, an hour behind", 10 * time.Second, -time.Hour, 10 * time.Second, "b", "a", 0, 15 * time.Second},
		{"our machine was stopped", 10 * time.Second, 0, 10 * time.Second, "a", "a", time.Minute, 15 * time.Second},
		{"it was not", 10 * time.Second, 0, 10 * time.Second, "a", "a", 20 * time.Millisecond, 10 * time.Second},
		{"our wall clock was set back", 10 * time.Second, 0, 10 * time.Second, "a", "a", -time.Hour, 10 * time.Second},
		{"it ran ahead of our clock", 11 * time.Second, time.Hour, 10 * time.Second, "a", "a", 0, 15 * time.Second},
	} {
		asked := metering.Instant{Boot: int64(24 * time.Hour), Mono: int64(24 * time.Hour), Wall: time.Now().UnixNano()}
		began := int64(row.elapsed + row.idle)
		l := &Lease{Devices: []string{"GPU-a"}, Checker: verify.State{
			BootID: row.bootLast, Sequence: 1, Elapsed: int64(row.elapsed), Owed: *uint256.NewInt(10),
			Start:   metering.Instant{Boot: asked.Boot - began, Mono: asked.Mono - began, Wall: asked.Wall - began - int64(row.missed)},
			Devices: []verify.Device{{UUID: "GPU-a", Total: int64(row.ran)}},
		}}
		b := &Book{Tick: &Pending{Prior: *uint256.NewInt(15), Asked: asked, Boot: row.bootAsked}}
		b.forfeit(l, price, asked, row.bootAsked)
		got := time.Duration(asked.Boot - l.Checker.Start.Boot)
		if wall := time.Duration(asked.Wall - l.Checker.Start.Wall); got != row.want || (wall-got).Abs() > 20*time.Millisecond {
			t.Errorf("%s: %s, %s on the wall", row.name, got, wall)
		}
	}
}

// TestX402SinceTheNewestRecord: by the monotonic clock while the machine runs, by the wall after a reboot, and never less
// than nothing.
func TestX402SinceTheNewestRecord(t *testing.T) {
	l := &Lease{Checker: verify.State{BootID: "a", Start: metering.Instant{Boot: 1000, Wall: 50_000}, Elapsed: 300}}
	for _, c := range []struct {
		boot  string
		asked metering.Instant
		want  int64
	}{
		{"a", metering.Instant{Boot: 1500, Wall: 99_999}, 200},
		{"a", metering.Instant{Boot: 1200, Wall: 99_999}, 0},
		{"b", metering.Instant{Boot: 10, Wall: 50_700}, 400},
		{"", metering.Instant{Boot: 1500, Wall: 50_700}, 400},
		{"b", metering.Instant{Boot: 9999, Wall: 50_100}, 0},
	} {
		if got := l.each().since(&Pending{Asked: c.asked, Boot: c.boot}, 0); got != c.want {
			t.Errorf("boot %q, asked at %+v: %d, want %d", c.boot, c.asked, got, c.want)
		}
	}
}

// TestX402BooksBeforeItWrites: of two channels' ticks that bill one GPU for one time the second is refused while the first is
// still to be written.
func TestX402BooksBeforeItWrites(t *testing.T) {
	var ledger billed.Ledger
	rec := metering.SignedRecord{Evidence: metering.Evidence{Devices: []metering.DeviceEvidence{{
		Device: metering.Device{UUID: "GPU-1", BootID: "a"}, To: metering.Instant{Mono: int64(time.Second)}, Nanos: metering.Nanos{Allocated: int64(time.Second)}, Total: int64(time.Second),
	}}}}
	for i, want := range []error{nil, wallet.ErrLetTwice} {
		c := &Channel{Book: new(Book), ID: common.Hash{byte(i + 1)}, Clock: testclock.Process(), Billed: &ledger}
		if _, err := c.bookOnce(new(Lease), rec); !errors.Is(err, want) {
			t.Errorf("channel %d: %v, want %v", i+1, err, want)
		}
	}
}

// TestX402ClocksOfAnHonestLease: whichever GPUs of a lease are down at whatever times, and however long its renter is away, an
// honest provider's time is within both clocks; and what they allow after an
// absence is no more than was signed for, to the base unit, and one late reading of each GPU.
func TestX402ClocksOfAnHonestLease(t *testing.T) {
	const late, unit = int64(100 * time.Millisecond), int64(time.Millisecond) // a base unit of time
	private, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	key := channel.NewKey(private)
	offer, err := wire.SignOffer(t.Context(), key, wire.Offer{Version: 1, ChainID: 1, Escrow: wire.Address{1}, Token: wire.Address{2},
		Payee: wire.Address(key.Address()), Meter: wire.Address(key.Address()), Amount: wire.NewAmount(*uint256.NewInt(1000)), Unit: "gpu_second",
		Credit: 10, Tick: 1000, MaxGap: late / unit, RecordEvery: 5000})
	if err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 1))
		gpus := 1 + random.IntN(4)
		ran, at := make([]int64, gpus), metering.Instant{Boot: 1, Mono: 1, Wall: 1}
		sum := func() (all int64) {
			for _, n := range ran {
				all += n
			}
			return all
		}
		pass := func(d int64) { at.Boot, at.Mono, at.Wall = at.Boot+d, at.Mono+d, at.Wall+d }
		// run lets some of the GPUs use so much together, and no longer than that.
		run := func(money, most int64) {
			up := random.Perm(gpus)[:1+random.IntN(gpus)]
			each := min(most, max(0, money)/int64(len(up)))
			for _, i := range up {
				ran[i] += each
				if each < most {
					ran[i] += min(most-each, random.Int64N(late+1))
				}
			}
		}
		l := &Lease{Offer: offer.Document, Devices: make([]string, gpus), Checker: verify.State{BootID: "b", Start: at}}
		l.Together = l.each()
		b, prior := new(Book), int64(0)
		for range 20 {
			away := random.Int64N(int64(5 * time.Second))
			if l.Checker.Sequence == 0 {
				away = 0
			}
			run(prior*unit-sum(), away)
			pass(away)
			ask := int64(gpus) * int64(1100*time.Millisecond) / unit
			p := &Pending{Asked: at, Boot: "b", Prior: *uint256.NewInt(uint64(prior)), Most: *uint256.NewInt(uint64(sum()/unit + 1 + ask))}
			b.Tick = p
			took := random.Int64N(int64(2 * time.Second))
			run(int64(p.Most.Uint64())*unit-sum(), took)
			asked := *l
			b.forfeit(&asked, metering.Price{}, at, "b")
			if all := int64(gpus) * (at.Boot - asked.Together.Start.Boot); l.Checker.Sequence > 0 && all > max(int64(l.Checker.Nanos), prior*unit)+int64(gpus)*(late+1)+unit {
				t.Fatalf("seed %d: %s of %d GPUs may be billed when a tick is asked for, %s were signed for", seed, time.Duration(all), gpus, time.Duration(prior*unit))
			}
			pass(took)
			b.forfeit(l, metering.Price{}, at, "b")
			s := &l.Checker
			s.Sequence, s.Nanos, s.Owed = s.Sequence+1, uint64(sum()), *uint256.NewInt(uint64(sum() / unit))
			s.Devices = nil
			for _, n := range ran {
				s.Devices = append(s.Devices, verify.Device{Total: n})
			}
			s.Elapsed, l.Together.Elapsed = at.Boot-s.Start.Boot, at.Boot-l.Together.Start.Boot
			if l.ran() > s.Elapsed+1 || l.ranTogether() > l.Together.Elapsed+1 {
				t.Fatalf("seed %d: %d GPUs ran for %v, one may have run for %s and each for %s", seed, gpus, ran, time.Duration(s.Elapsed), time.Duration(l.Together.Elapsed))
			}
			prior = max(prior, int64(p.Most.Uint64()))
		}
	}
}
