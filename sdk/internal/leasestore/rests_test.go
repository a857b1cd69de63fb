package leasestore

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/usage"
	"github.com/gpupay/gpupay/sdk/internal/cluster"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

const gpuName = "GPU-1"

// restGateway is what of a gateway has to do with rests. Its clock says what the test says, and goes on by itself.
type restGateway struct {
	*testing.T
	inventory.Quarantine
	inventory.Sharing
	ahead time.Duration // of the machine's clock
}

// gatewayWith has a book, and a wall clock that is off.
func gatewayWith(t *testing.T, book inventory.RestBook, off time.Duration) *restGateway {
	return process(t, book, off, false)
}

// process is gatewayWith, or what is alone on a file.
func process(t *testing.T, book inventory.RestBook, off time.Duration, alone bool) *restGateway {
	g := &restGateway{T: t, ahead: off}
	g.Quarantine.SetClock(func() time.Time { return time.Now().Add(g.ahead) })
	g.Sharing = inventory.Sharing{Book: book, Sick: []*inventory.Quarantine{&g.Quarantine}, Alone: alone, Log: slog.New(slog.DiscardHandler)}
	g.Pass(t.Context())
	return g
}

// lets is that the GPU goes into a new lease there.
func (g *restGateway) lets(want bool, when string) {
	g.Helper()
	fit, err := g.Fit(g.Context(), nil, func() []string { return []string{gpuName} })
	if err != nil || (len(fit) == 1) != want {
		g.Errorf("%s: it is let: %t, %v", when, len(fit) == 1, err)
	}
}

func openRests(t *testing.T, address string) *store.DB {
	t.Helper()
	db, err := database.Open(t.Context(), address, "provider", Migrations, "migrations/provider")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// eachDatabase runs a test over a file and over a server.
func eachDatabase(t *testing.T, test func(t *testing.T, db *store.DB)) {
	t.Run("file", func(t *testing.T) { test(t, openRests(t, filepath.Join(t.TempDir(), "p.db"))) })
	t.Run("postgres", func(t *testing.T) { test(t, openRests(t, pgtest.URL(t))) })
}

// TestRestsBesideOtherClocks: two gateways whose clocks are two hours apart have a device rest for equally long, also when it fails
// again at the other one, and let it at once when one of them meters it.
func TestRestsBesideOtherClocks(t *testing.T) {
	eachDatabase(t, func(t *testing.T, db *store.DB) {
		book := New(db).Rests
		a, b := gatewayWith(t, book, -time.Hour), gatewayWith(t, book, time.Hour)
		both := func(want bool, when string) {
			t.Helper()
			b.Pass(t.Context())
			a.Pass(t.Context())
			b.Pass(t.Context())
			a.lets(want, when+", at a")
			b.lets(want, when+", at b")
		}
		pass := func(span time.Duration) { a.ahead += span; b.ahead += span }
		a.Fails(gpuName)
		both(false, "after a failure")
		pass(50 * time.Second)
		both(false, "in its first minute")
		b.Heals(gpuName)
		both(true, "when it is metered")
		b.Fails(gpuName)
		both(false, "after a second failure")
		pass(110 * time.Second)
		both(false, "in its first two minutes")
		pass(11 * time.Second)
		both(true, "after them")
		a.Fails(gpuName)
		both(false, "after a third failure")
		b.Heals(gpuName)
		both(false, "when one that failed again is metered")
		pass(230 * time.Second)
		both(false, "in its first four minutes")
		pass(11 * time.Second)
		both(true, "after them")
		next := gatewayWith(t, book, 0) // since the database's clock has hardly moved on
		next.lets(false, "in the next process")
		next.ahead += 4 * time.Minute
		next.lets(true, "in the next process, four minutes later")
	})
}

// TestHealEndsNoYoungerFailure: what a gateway heals is the failure that it knew. One that it had not heard of is not ended by it, at no
// gateway, nor is a longer rest by a failure whose gateway did not know of it.
func TestHealEndsNoYoungerFailure(t *testing.T) {
	eachDatabase(t, func(t *testing.T, db *store.DB) {
		book := New(db).Rests
		a, b := gatewayWith(t, book, 0), gatewayWith(t, book, 0)
		pass := func() {
			a.Pass(t.Context())
			b.Pass(t.Context())
			a.Pass(t.Context())
		}
		a.Fails(gpuName)
		pass()
		a.ahead += 2 * time.Minute
		a.Fails(gpuName) // for two minutes, and b has not heard of it
		a.Pass(t.Context())
		b.Heals(gpuName)
		b.lets(true, "before it hears of the failure")
		b.Pass(t.Context())
		b.lets(false, "when it has heard of it")
		a.Pass(t.Context())
		a.lets(false, "after the heal of the failure before")

		late := gatewayWith(t, deaf{book}, 0)
		late.Fails(gpuName) // for a minute, by what it knows
		late.Pass(t.Context())
		b.Pass(t.Context())
		b.ahead += 100 * time.Second
		b.lets(false, "after a failure whose gateway did not know of the one before")
	})
}

// deaf is a book that is written and not read.
type deaf struct{ inventory.RestBook }

func (d deaf) All(context.Context) ([]inventory.Rest, error) { return nil, nil }

// TestRestsWhileTheBookIsAway: what fails meanwhile rests where that is known, and is told when the book is back; so is that one was
// well again.
func TestRestsWhileTheBookIsAway(t *testing.T) {
	eachDatabase(t, func(t *testing.T, db *store.DB) {
		away := &goneBook{RestBook: New(db).Rests}
		a, b := gatewayWith(t, away, 0), gatewayWith(t, New(db).Rests, 0)
		away.gone = true
		a.Fails(gpuName)
		a.Pass(t.Context())
		a.lets(false, "while the book is away")
		away.gone = false
		a.ahead += 30 * time.Second
		a.Pass(t.Context())
		b.Pass(t.Context())
		b.lets(false, "when it is back")
		b.ahead += 40 * time.Second
		b.lets(true, "when the rest is over that began while it was away")
		away.gone = true
		a.Heals(gpuName)
		a.Pass(t.Context())
		away.gone = false
		a.Pass(t.Context())
		next := gatewayWith(t, New(db).Rests, 0)
		next.lets(true, "when it was healed while the book was away")
	})
}

// goneBook is one that cannot be written. That one which is away cannot be read either is no worse.
type goneBook struct {
	inventory.RestBook
	gone bool
}

func (g *goneBook) Put(ctx context.Context, news []inventory.Rest) ([]inventory.Rest, error) {
	if g.gone {
		return nil, errors.New("away")
	}
	return g.RestBook.Put(ctx, news)
}

// TestRestsAfterARestore: gateways that know that a GPU is sick have it rest also where the database was put back to when it was well, or to
// before it was known, and tell the database again: the next gateway has it rest as well.
func TestRestsAfterARestore(t *testing.T) {
	eachDatabase(t, func(t *testing.T, db *store.DB) {
		book := New(db).Rests
		a, b := gatewayWith(t, book, 0), gatewayWith(t, book, 0)
		pass := func() {
			for range 2 {
				a.Pass(t.Context())
				b.Pass(t.Context())
			}
			a.Pass(t.Context())
		}
		write := func(query string, values ...any) {
			t.Helper()
			err := db.Update(t.Context(), func(tx *sqlx.Tx) error {
				_, err := tx.Exec(tx.Rebind(query), values...)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		a.Fails(gpuName)
		pass()
		a.Heals(gpuName)
		pass()
		var before struct{ Version, Span, Rest, Healed, Expires, TTL int64 }
		if err := db.View().GetContext(t.Context(), &before, `SELECT version, span, rest, healed, expires, ttl FROM device_rests`); err != nil {
			t.Fatal(err)
		}
		a.Fails(gpuName)
		pass()
		for when, restore := range map[string]func(){
			"a row of before": func() {
				write(`UPDATE device_rests SET version = ?, span = ?, rest = ?, healed = ?, expires = ?, ttl = ?`,
					before.Version, before.Span, before.Rest, before.Healed, before.Expires, before.TTL)
			},
			"no row": func() { write(`DELETE FROM device_rests`) },
		} {
			restore()
			pass()
			a.lets(false, "at a, "+when)
			b.lets(false, "at b, "+when)
			next := gatewayWith(t, book, 0)
			next.lets(false, "at the next one, "+when)
			next.ahead += 110 * time.Second
			next.lets(false, "at the next one to the end, "+when)
		}
	})
}

// TestHealOutlivesAnothersLastFailure: what a gateway says last of a GPU whose lease has gone over to another one does not count for good:
// that one, which meters the GPU, heals it again.
func TestHealOutlivesAnothersLastFailure(t *testing.T) {
	eachDatabase(t, func(t *testing.T, db *store.DB) {
		book := New(db).Rests
		a, b := gatewayWith(t, book, 0), gatewayWith(t, book, 0)
		watch := inventory.NewWatch([]string{gpuName}, 10*time.Second, []*inventory.Quarantine{&b.Quarantine})
		meters := func() {
			in := usage.Interval{Class: usage.Allocated, Nanos: int64(time.Second)}
			watch.Saw(metering.Reading{Device: gpuName, Seen: gpuName, Health: metering.Healthy}, in, metering.System)
		}
		pass := func(span time.Duration) {
			a.ahead, b.ahead = a.ahead+span, b.ahead+span
			a.Pass(t.Context())
			b.Pass(t.Context())
			a.Pass(t.Context())
		}
		a.Fails(gpuName)
		pass(20 * time.Second)
		a.Fails(gpuName) // its last
		meters()         // at b, which heals it
		b.Pass(t.Context())
		a.Pass(t.Context()) // at its end
		pass(0)
		b.lets(false, "when b hears of the last failure")
		for range 30 {
			pass(time.Second)
			meters()
		}
		pass(0)
		a.lets(true, "at a, metered by b for half a minute")
		b.lets(true, "at b, metered by it for half a minute")
		pass(5 * time.Hour)
		b.Fails(gpuName)
		pass(61 * time.Second)
		b.lets(true, "a minute after the first failure in five hours")
	})
}

// TestRestsRunOut: a row that is over is deleted, one of before the clock was set back has no longer to go than it was written for.
func TestRestsRunOut(t *testing.T) {
	address, set := pgtest.Clock(t)
	db := openRests(t, address)
	book := New(db).Rests
	put := func(device string) {
		t.Helper()
		if has, err := book.Put(t.Context(), []inventory.Rest{{Device: device, Span: time.Minute, Left: time.Minute}}); err != nil || len(has) != 1 {
			t.Fatal(has, err)
		}
	}
	left := func() time.Duration {
		t.Helper()
		all, err := book.All(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatal(all, err)
		}
		return all[0].Left
	}
	put(gpuName)
	set(-time.Hour)
	if got := left(); got != time.Minute {
		t.Errorf("the clock was set back: it rests for %s", got)
	}
	if _, err := cluster.Restamp(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	set(-time.Hour + 40*time.Second)
	if got := left(); got > 20*time.Second || got < 10*time.Second {
		t.Errorf("40 s after that was seen it rests for %s", got)
	}
	put(gpuName)
	set(-time.Hour + 80*time.Second)
	if got := left(); got > 20*time.Second || got < 10*time.Second {
		t.Errorf("40 s later it rests for %s", got)
	}
	set(restKept - 2*time.Hour)
	if got := left(); got != 0 {
		t.Errorf("a day later it rests for %s", got)
	}
	set(restKept + time.Minute)
	if all, err := book.All(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("what is over is read: %v, %v", all, err)
	}
	put("GPU-2")
	var rows int
	err := book.db.Update(t.Context(), func(tx *sqlx.Tx) error { return tx.Get(&rows, `SELECT count(*) FROM device_rests`) })
	if err != nil || rows != 1 {
		t.Errorf("there are %d rows, %v", rows, err)
	}
}
