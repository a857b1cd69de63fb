package provider

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// strewn is an allocator whose devices are where a test says.
type strewn struct {
	*gpu.HostAllocator
	mu       sync.Mutex
	where    map[common.Hash]error // of each lease; nil: here
	stuck    map[common.Hash]bool  // they cannot be taken back
	released map[common.Hash]int
}

func (s *strewn) Adopt(ctx context.Context, a gpu.Allocation) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.where[a.LeaseID]; err != nil {
		return err
	}
	return s.HostAllocator.Adopt(ctx, a)
}

func (s *strewn) Release(ctx context.Context, a gpu.Allocation) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.released[a.LeaseID]++
	if s.stuck[a.LeaseID] {
		return errors.New("the container does not stop")
	}
	return s.HostAllocator.Release(ctx, a)
}

// edit changes the database of a provider that is shut.
func (r *rig) edit(query string, args ...any) {
	r.Helper()
	db, err := database.Open(r.Context(), r.config.Database, "provider", leasestore.Migrations, "migrations/provider")
	if err != nil {
		r.Fatal(err)
	}
	err = db.Update(r.Context(), func(tx *sqlx.Tx) error { _, err := tx.Exec(tx.Rebind(query), args...); return err })
	if err := errors.Join(err, db.Close()); err != nil {
		r.Fatal(err)
	}
}

// idleLease is a lease that nobody runs, and what becomes of it.
type idleLease struct {
	state    string // or "held"
	where    error
	stuck    bool
	unknown  bool // more was signed of it than the database has
	want     string
	released int
	final    bool
	*tab
}

var (
	errOnAnotherHost = errors.New("its device is not on this host")
	errInALaterLease = fmt.Errorf("%w: 0x01", inventory.ErrTaken)
	everyIdleLease   = []idleLease{
		{state: "allocating", want: "ended", released: 1},
		{state: "allocating", stuck: true, want: "held", released: 1},
		{state: "active", want: "runs"},
		{state: "suspended", want: "runs"},
		{state: "ending", want: "ended", released: 1},
		{state: "ending", stuck: true, want: "held", released: 1},
		{state: "held", want: "ended", released: 1},
		{state: "held", stuck: true, want: "held", released: 1},
		{state: "active", where: errInALaterLease, want: "ended"},
		{state: "ending", where: errInALaterLease, want: "ended"},
		{state: "held", where: errInALaterLease, want: "ended"},
	}
	idleAlone = []idleLease{ // no other host has its devices
		{state: "active", where: errOnAnotherHost, want: "ended", released: 1, final: true},
		{state: "suspended", where: errOnAnotherHost, want: "ended", released: 1, final: true},
		{state: "ending", where: errOnAnotherHost, want: "ended", released: 1},
		{state: "held", where: errOnAnotherHost, want: "ended", released: 1},
	}
	idleBeside = []idleLease{ // they are left to the gateways of that host
		{state: "active", where: errOnAnotherHost, want: "active"},
		{state: "suspended", where: errOnAnotherHost, want: "suspended"},
		{state: "ending", where: errOnAnotherHost, want: "ending"},
		{state: "held", where: errOnAnotherHost, want: "held"},
		{state: "active", where: errOnAnotherHost, unknown: true, want: "active"},
	}
	idleWished = []idleLease{ // and what becomes of those where their renter wants them ended
		{want: "held", final: true}, {want: "held", final: true}, {want: "held"}, {want: "held"}, {want: "held"},
	}
)

// TestLeaseThatNobodyRuns: what a start, and a sweep, does with a lease is by its state and by where its devices are.
func TestLeaseThatNobodyRuns(t *testing.T) {
	t.Parallel()
	for name, leases := range map[string][]idleLease{"file": idleAlone, onPostgres: idleBeside} {
		t.Run(name, func(t *testing.T) {
			leases := append(leases[:len(leases):len(leases)], everyIdleLease...)
			allocator := &strewn{HostAllocator: hostGPUs(t, len(leases)),
				where: make(map[common.Hash]error), stuck: make(map[common.Hash]bool), released: make(map[common.Hash]int)}
			r := newRig(t, quiet, generousCredit, func(c *Config) {
				c.Source, c.Allocator, c.Terms.SuspendTimeout = testclock.GPUs(len(leases)), allocator, time.Hour
				c.Takeover = time.Hour // what is stuck is tried once
			})
			for i := range leases {
				l := &leases[i]
				l.tab = r.open(byte(i+1), 50_000, "")
				l.record()
			}
			r.shut()
			for _, l := range leases {
				allocator.where[l.lease.LeaseID], allocator.stuck[l.lease.LeaseID] = l.where, l.stuck
				l.strand()
			}
			r.start()
			for _, l := range leases {
				l.check(allocator)
			}
			if name != onPostgres {
				return
			}
			for i, end := range idleWished {
				l := leases[i]
				l.want, l.final = end.want, end.final
				if err := r.provider.gateway.Resolve(t.Context(), l.row(), "its renter wants it"); err != nil && !errors.Is(err, lease.ErrHeld) {
					t.Error(err)
				}
				l.check(allocator)
			}
		})
	}
}

// strand leaves the lease in the database as a process that died may.
func (l idleLease) strand() {
	l.Helper()
	state, held, command := l.state, 0, ""
	if state == "held" {
		state, held = "ended", 1
	}
	if l.unknown {
		command = leasestore.ErrRolledBack.Error()
	}
	l.edit(`UPDATE leases SET state = ?, held = ?, owner = CASE WHEN ? = 1 THEN '' ELSE owner END, command = ? WHERE id = ?`,
		state, held, held, command, l.lease.LeaseID.Hex())
}

func (l idleLease) check(allocator *strewn) {
	l.Helper()
	row := l.row()
	is := row.State
	switch {
	case l.provider.leases.Running(l.terms.ID()) != nil:
		is = "runs"
	case row.Held == 1:
		is = "held"
	}
	last, err := l.provider.store.Records.Last(l.Context(), l.lease.LeaseID)
	if err != nil {
		l.Fatal(err)
	}
	allocator.mu.Lock()
	defer allocator.mu.Unlock()
	if n := allocator.released[l.lease.LeaseID]; is != l.want || n != l.released || last.Final != l.final {
		l.Errorf("a lease that was %s, devices %v, stuck %t: it is %s (%s), taken back %d times, final %t; want %s, %d, %t",
			l.state, l.where, l.stuck, is, row.Reason, n, last.Final, l.want, l.released, l.final)
	}
}

// TestEndingLeaseOfALivingGateway: a lease that a gateway took back and could not write down so is ended by the same gateway later,
// and its device, which is in the next lease by then, stays there.
func TestEndingLeaseOfALivingGateway(t *testing.T) {
	command, calls := script(t, "")
	a, _ := fleet(t, quiet, generousCredit, func(c *Config) {
		host := hostGPUs(t, 2)
		host.ReleaseCommand = append(command, "release")
		c.Allocator, c.Takeover = host, time.Hour
	})
	lease := a.open(1, 200_000, "?gpus=2")
	lease.record()
	lease.release()
	next := a.open(2, 200_000, "?gpus=2")
	next.record()
	a.edit(`UPDATE leases SET state = 'ending', owner = ?, started_at = 1 WHERE id = ?`, a.provider.gateway.Identity(), lease.lease.LeaseID.Hex())
	waitFor(t, func() bool {
		if err := a.provider.gateway.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		return lease.row().State == wire.StateEnded
	})
	if row := lease.row(); strings.Count(calls(), "release") != 1 || row.Held != 0 || a.provider.leases.Running(next.terms.ID()) == nil {
		t.Errorf("the next renter lost its devices, held %d:\n%s", row.Held, calls())
	}
}

// takesBack is a provider on PostgreSQL that sweeps only when it is told to, and whose commands are written down.
func takesBack(t *testing.T, body string) (r *rig, command []string, calls func() string) {
	command, calls = script(t, body)
	return newRig(t, quiet, generousCredit, func(c *Config) {
		host := hostGPUs(t, 2)
		host.AllocateCommand, host.ReleaseCommand = append(command[:1:1], "allocate"), append(command[:1:1], "release")
		c.Database, c.Takeover, c.Allocator = pgtest.URL(t), time.Hour, host
	}), command, calls
}

// TestLeaseThatEndsDuringASweep: devices of a lease that ran when a sweep read it, and ended before its turn, are not taken back
// again.
func TestLeaseThatEndsDuringASweep(t *testing.T) {
	r, _, calls := takesBack(t, "")
	lease := r.open(1, 200_000, "")
	lease.record()
	read := lease.row()
	lease.release()
	waitFor(t, func() bool { return r.provider.leases.Running(lease.terms.ID()) == nil })
	if err := r.provider.gateway.Resolve(t.Context(), read, ""); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(calls(), "release"); n != 1 || lease.row().Term != read.Term {
		t.Errorf("they were taken back %d times, in term %d", n, lease.row().Term)
	}
}

// TestLeaseThatBeginsDuringASweep: a lease whose allocation takes long is left to begin.
func TestLeaseThatBeginsDuringASweep(t *testing.T) {
	r, command, calls := takesBack(t, `[ $1 != allocate ] || while [ ! -e $0.swept ]; do sleep 0.1; done`)
	var sweep sync.WaitGroup
	sweep.Go(func() {
		for t.Context().Err() == nil && !strings.Contains(calls(), "allocate") {
			time.Sleep(10 * time.Millisecond)
		}
		rows, err := r.provider.store.Leases.Unfinished(t.Context())
		if err != nil || len(rows) != 1 {
			t.Errorf("%d leases begin: %v", len(rows), err)
		}
		for _, row := range rows {
			if err := r.provider.gateway.Resolve(t.Context(), row, ""); err != nil {
				t.Error(err)
			}
		}
		if err := os.WriteFile(command[0]+".swept", nil, 0o600); err != nil {
			t.Error(err)
		}
	})
	lease := r.open(1, 200_000, "")
	sweep.Wait()
	lease.record()
	if strings.Contains(calls(), "release") {
		t.Errorf("its devices were taken back while it began:\n%s", calls())
	}
}

// TestTakeoverThatComesTooLate: a gateway that owned a lease for as long as a locked row let it wait, and is not believed to live
// by then, takes no devices back: another one may do so.
func TestTakeoverThatComesTooLate(t *testing.T) {
	r, _, calls := takesBack(t, "")
	lease := r.open(1, 200_000, "")
	lease.record()
	lease.release()
	waitFor(t, func() bool { return r.provider.leases.Running(lease.terms.ID()) == nil })
	db, err := sqlx.Open("pgx", r.config.Database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.MustExec(`UPDATE leases SET held = 1, owner = '' WHERE id = $1`, lease.lease.LeaseID.Hex())
	lock := db.MustBegin()
	lock.MustExec(`SELECT 1 FROM leases WHERE id = $1 FOR NO KEY UPDATE`, lease.lease.LeaseID.Hex())
	before, row := calls(), lease.row()
	var resolved sync.WaitGroup
	resolved.Go(func() {
		if err := r.provider.gateway.Resolve(t.Context(), row, ""); err != nil { // a start would fail
			t.Error(err)
		}
	})
	waitFor(t, func() bool {
		var waiting int
		err := db.Get(&waiting, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
			AND query LIKE 'UPDATE leases SET owner%'`)
		return err == nil && waiting > 0
	})
	r.provider.gateway.StandDown()
	if err := lock.Rollback(); err != nil {
		t.Fatal(err)
	}
	resolved.Wait()
	if calls() != before {
		t.Errorf("they were taken back by a gateway that is not believed to live:\n%s", calls())
	}
}
