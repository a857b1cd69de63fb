package sdk

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
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
	db, err := database.Open(r.Context(), r.config.Database, "provider", providerMigrations, "migrations/provider")
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
	onAnotherHost  = errors.New("its device is not on this host")
	inALaterLease  = fmt.Errorf("%w: 0x01", inventory.ErrTaken)
	everyIdleLease = []idleLease{
		{state: "allocating", want: "ended", released: 1},
		{state: "allocating", stuck: true, want: "held", released: 1},
		{state: "active", want: "runs"},
		{state: "suspended", want: "runs"},
		{state: "ending", want: "ended", released: 1},
		{state: "ending", stuck: true, want: "held", released: 1},
		{state: "held", want: "ended", released: 1},
		{state: "held", stuck: true, want: "held", released: 1},
		{state: "active", where: inALaterLease, want: "ended"},
		{state: "ending", where: inALaterLease, want: "ended"},
		{state: "held", where: inALaterLease, want: "ended"},
	}
	idleAlone = []idleLease{ // no other host has its devices
		{state: "active", where: onAnotherHost, want: "ended", released: 1, final: true},
		{state: "suspended", where: onAnotherHost, want: "ended", released: 1, final: true},
		{state: "ending", where: onAnotherHost, want: "ended", released: 1},
		{state: "held", where: onAnotherHost, want: "ended", released: 1},
	}
	idleBeside = []idleLease{ // they are left to the gateways of that host
		{state: "active", where: onAnotherHost, want: "active"},
		{state: "suspended", where: onAnotherHost, want: "suspended"},
		{state: "ending", where: onAnotherHost, want: "ending"},
		{state: "held", where: onAnotherHost, want: "held"},
		{state: "active", where: onAnotherHost, unknown: true, want: "active"},
	}
	idleWished = []idleLease{ // and what becomes of those where their renter wants them ended
		{want: "held", final: true}, {want: "held", final: true}, {want: "held"}, {want: "held"}, {want: "held"},
	}
)

// TestLeaseThatNobodyRuns: what a start, and a sweep, does with a lease is by its state and by where its devices are.
func TestLeaseThatNobodyRuns(t *testing.T) {
	for name, leases := range map[string][]idleLease{"file": idleAlone, onPostgres: idleBeside} {
		t.Run(name, func(t *testing.T) {
			leases := append(leases[:len(leases):len(leases)], everyIdleLease...)
			allocator := &strewn{HostAllocator: hostGPUs(t, len(leases)),
				where: make(map[common.Hash]error), stuck: make(map[common.Hash]bool), released: make(map[common.Hash]int)}
			r := newRig(t, quiet, generousCredit, func(c *ProviderConfig) {
				c.Source, c.Allocator, c.SuspendTimeout = testclock.GPUs(len(leases)), allocator, time.Hour
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
				if err := r.provider.replicas.resolve(t.Context(), l.row(), "its renter wants it"); err != nil && !errors.Is(err, errHeld) {
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
		command = errRolledBack.Error()
	}
	l.edit(`UPDATE leases SET state = ?, held = ?, owner = CASE WHEN ? = 1 THEN '' ELSE owner END, command = ? WHERE id = ?`,
		state, held, held, command, l.lease.LeaseID.Hex())
}

func (l idleLease) check(allocator *strewn) {
	l.Helper()
	row := l.row()
	is := row.State
	switch {
	case l.provider.running(l.terms.ID()) != nil:
		is = "runs"
	case row.Held == 1:
		is = "held"
	}
	last, err := l.provider.store.last(l.Context(), l.lease.LeaseID)
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
	a, _ := fleet(t, quiet, generousCredit, func(c *ProviderConfig) {
		host := hostGPUs(t, 2)
		host.ReleaseCommand = append(command, "release")
		c.Allocator = host
	})
	lease := a.open(1, 200_000, "?gpus=2")
	lease.record()
	lease.release()
	next := a.open(2, 200_000, "?gpus=2")
	next.record()
	a.edit(`UPDATE leases SET state = 'ending', owner = ?, started_at = 1 WHERE id = ?`, a.provider.replicas.identity(), lease.lease.LeaseID.Hex())
	waitFor(t, func() bool {
		if err := a.provider.replicas.sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		return lease.row().State == wire.StateEnded
	})
	if row := lease.row(); strings.Count(calls(), "release") != 1 || row.Held != 0 || a.provider.running(next.terms.ID()) == nil {
		t.Errorf("the next renter lost its devices, held %d:\n%s", row.Held, calls())
	}
}
