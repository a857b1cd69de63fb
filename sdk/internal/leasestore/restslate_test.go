package leasestore

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"path/filepath"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
)

// changeRests changes rows behind everybody's back.
func changeRests(t *testing.T, db *store.DB, query string, values ...any) {
	t.Helper()
	err := db.Update(t.Context(), func(tx *sqlx.Tx) error { _, err := tx.Exec(tx.Rebind(query), values...); return err })
	if err != nil {
		t.Fatal(err)
	}
}

func forgetRests(t *testing.T, db *store.DB) { changeRests(t, db, `DELETE FROM device_rests`) }

// ages has time pass for the rows, by the clock of who keeps the database; where it is negative that is set back.
func ages(t *testing.T, db *store.DB, by time.Duration) {
	t.Helper()
	changeRests(t, db, `UPDATE device_rests SET expires = expires - ?`, by.Milliseconds())
}

// cutBook is the book of a gateway that is cut off from its database.
type cutBook struct {
	inventory.RestBook
	cut bool
}

func (c *cutBook) Put(ctx context.Context, news []inventory.Rest) ([]inventory.Rest, error) {
	if c.cut {
		return nil, errors.New("cut off")
	}
	return c.RestBook.Put(ctx, news)
}

func (c *cutBook) All(ctx context.Context) ([]inventory.Rest, error) {
	if c.cut {
		return nil, errors.New("cut off")
	}
	return c.RestBook.All(ctx)
}

// TestLateFailureBeginsNoRest: two gateways hear a GPU fail in the same moment, and one of them is cut off from the database for the hour that this
// has the GPU rest. What it writes when it is back is an hour old: nobody withholds the GPU for another hour.
func TestLateFailureBeginsNoRest(t *testing.T) {
	eachDatabase(t, func(t *testing.T, db *store.DB) {
		for _, well := range []bool{false, true} {
			t.Run(fmt.Sprintf("the other one meters it meanwhile %t", well), func(t *testing.T) {
				forgetRests(t, db)
				line := &cutBook{RestBook: New(db).Rests}
				a, b := gatewayWith(t, New(db).Rests, 0), gatewayWith(t, line, 0)
				pass := func(by time.Duration) {
					t.Helper()
					a.ahead, b.ahead = a.ahead+by, b.ahead+by
					ages(t, db, by)
					for range 2 {
						a.Pass(t.Context())
						b.Pass(t.Context())
					}
				}
				for range 7 { // until it rests for an hour each time
					a.Fails(gpuName)
					pass(61 * time.Minute)
				}
				line.cut = true
				a.Fails(gpuName)
				b.Fails(gpuName)
				pass(time.Minute)
				if well {
					a.Heals(gpuName)
					pass(0)
				}
				pass(58 * time.Minute)
				a.lets(false, "in its hour")
				line.cut = false
				pass(0)
				pass(2 * time.Minute)
				a.lets(true, "an hour and a minute after the last failure, at a")
				b.lets(true, "an hour and a minute after the last failure, at b")
				gatewayWith(t, New(db).Rests, 0).lets(true, "at the next one")
				pass(50 * time.Minute)
				a.lets(true, "an hour and 51 minutes after the last failure, at a")
			})
		}
	})
}

// randomRests are gateways to which anything happens.
type randomRests struct {
	*testing.T
	*rand.Rand
	db    *store.DB
	all   []*restGateway
	log   []string      // what happened: when, what, and to which
	now   time.Duration // since the beginning
	last  time.Duration // failure
	saved []savedRest
	at    time.Duration // it was saved
}

type savedRest struct{ Version, Span, Rest, Healed, Expires, TTL int64 }

func (r *randomRests) advance(by time.Duration) {
	r.now += by
	for _, g := range r.all {
		g.ahead += by
	}
	ages(r.T, r.db, by)
}

// restore has the database saved, or put back to what was saved.
func (r *randomRests) restore() {
	r.Helper()
	if r.saved == nil || r.Intn(2) == 0 {
		r.saved, r.at = []savedRest{}, r.now
		if err := r.db.View().Select(&r.saved, `SELECT version, span, rest, healed, expires, ttl FROM device_rests`); err != nil {
			r.Fatal(err)
		}
		return
	}
	forgetRests(r.T, r.db)
	for _, s := range r.saved {
		changeRests(r.T, r.db, `INSERT INTO device_rests (device, version, span, rest, healed, expires, ttl) VALUES (?, ?, ?, ?, ?, ?, ?)`, gpuName, s.Version, s.Span, s.Rest, s.Healed, s.Expires-(r.now-r.at).Milliseconds(), s.TTL)
	}
}

func (r *randomRests) step() {
	i, what := r.Intn(len(r.all)), r.Intn(10)
	g := r.all[i]
	r.log = append(r.log, fmt.Sprintf("%s:%d:%d", r.now.Round(time.Second), what, i))
	switch what {
	case 0, 1:
		g.Fails(gpuName)
		r.last = r.now
	case 2:
		g.Heals(gpuName)
	case 3, 4, 5:
		g.Pass(r.Context())
	case 6:
		r.advance(time.Duration(r.Int63n(int64(10 * time.Second))))
	case 7:
		r.advance(time.Duration(r.Int63n(int64(40 * time.Minute))))
	case 8:
		r.all[i] = gatewayWith(r.T, New(r.db).Rests, g.ahead)
	case 9:
		r.restore()
	}
}

func (r *randomRests) passOn() {
	for _, g := range r.all {
		g.Pass(r.Context())
	}
}

// lasts is that nobody withholds the GPU for longer than an hour after the last failure.
func (r *randomRests) lasts() {
	r.Helper()
	for i, g := range r.all {
		if fit, _ := g.Fit(r.Context(), nil, func() []string { return []string{gpuName} }); r.now-r.last > 61*time.Minute && len(fit) == 0 {
			r.Fatalf("gateway %d withholds it %s after the last failure:\n%v", i, r.now-r.last, r.log)
		}
	}
}

// TestRestsAtRandom: whatever gateways hear of a GPU, in whatever order they pass it on, restart, and have their database put back: nobody
// withholds it for longer than an hour and a little after the last failure, and nobody lets it while it fails and all have passed that on.
func TestRestsAtRandom(t *testing.T) {
	for seed := int64(80); seed < 100; seed++ { // of 93 and 98 a gateway writes a failure late
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := &randomRests{T: t, Rand: rand.New(rand.NewSource(seed)), db: openRests(t, filepath.Join(t.TempDir(), "p.db")), last: -48 * time.Hour}
			for range 3 {
				r.all = append(r.all, gatewayWith(t, New(r.db).Rests, 0))
			}
			for range 60 {
				r.step()
				r.lasts()
			}
			r.all[r.Intn(3)].Fails(gpuName)
			r.last = r.now
			for range 3 {
				r.passOn()
			}
			for _, g := range r.all {
				g.lets(false, "when it failed this moment")
			}
			for range 20 {
				r.advance(5 * time.Minute)
				r.passOn()
				r.lasts()
			}
		})
	}
}

// TestStaleRestAfterTheClockWasSetBack: a GPU that rests for an hour each time healed two hours ago. Then the clock of its file's host is set
// back by a day, as where it boots without the time. The process that starts does not know how long ago that was: it rests once more
// at most, and at no process that starts later.
func TestStaleRestAfterTheClockWasSetBack(t *testing.T) {
	db := openRests(t, filepath.Join(t.TempDir(), "p.db"))
	book := New(db).Rests
	a := process(t, book, 0, true)
	for range 8 { // until it rests for an hour
		a.Fails(gpuName)
		a.Pass(t.Context())
		a.ahead += 61 * time.Minute
	}
	a.Fails(gpuName)
	a.Heals(gpuName)
	a.Pass(t.Context())
	a.ahead += 2 * time.Hour
	ages(t, db, 2*time.Hour)
	a.lets(true, "two hours later")
	process(t, book, 0, true).lets(true, "two hours later, in the next process")
	ages(t, db, -24*time.Hour)
	a.Pass(t.Context())
	a.lets(true, "when the clock was set back, in the process that runs")
	next := process(t, book, 0, true)
	ages(t, db, 61*time.Minute)
	next.ahead += 61 * time.Minute
	next.lets(true, "when the clock was set back, an hour after the next process began")
	for range 3 {
		process(t, book, 0, true).lets(true, "when the clock was set back, in processes after that")
		ages(t, db, time.Minute)
	}
	rests := func() (rows int) {
		if err := db.View().Get(&rows, `SELECT count(*) FROM device_rests`); err != nil {
			t.Fatal(err)
		}
		return rows
	}
	ages(t, db, restKept)
	last := process(t, book, 0, true)
	last.Fails("GPU-2")
	last.Pass(t.Context())
	if rows := rests(); rows != 1 {
		t.Errorf("a day later there are %d rows, and not the one of another GPU alone", rows)
	}
}
