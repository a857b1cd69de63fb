package provider

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/sdk/gpu"
)

// mortal is an allocator whose containers die, and that says when it suspended one.
type mortal struct {
	*gpu.HostAllocator
	dead, suspended atomic.Bool
}

func (m *mortal) Alive(context.Context, gpu.Allocation) error {
	if m.dead.Load() {
		return gpu.ErrDead
	}
	return nil
}

func (m *mortal) Suspend(context.Context, gpu.Allocation) error {
	m.suspended.Store(true)
	return nil
}

// TestDeadLeaseWhileATableIsLocked: a lease that is said to be dead is billed no more, and so its devices are suspended also while no
// write of the database gets through: it may be alive after all.
func TestDeadLeaseWhileATableIsLocked(t *testing.T) {
	t.Parallel()
	for _, table := range []string{"records", "leases"} {
		t.Run(table, func(t *testing.T) {
			address, a := pgtest.URL(t), &mortal{HostAllocator: hostGPUs(t, 2)}
			r := newRig(t, quiet, generousCredit, func(c *Config) {
				c.Database, c.Allocator, c.Commands.AliveEvery = address+"&lock_timeout=5min", a, 50*time.Millisecond
			})
			lease := r.open(1, 500_000, "")
			lease.record()
			db, err := sqlx.Open("pgx", address)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			lock := db.MustBegin()
			lock.MustExec(`LOCK TABLE ` + table + ` IN ACCESS EXCLUSIVE MODE`)
			a.dead.Store(true)
			for end := time.Now().Add(20 * time.Second); !a.suspended.Load(); time.Sleep(20 * time.Millisecond) {
				if time.Now().After(end) { // a query ends by itself after 30 s
					t.Error("its renter has the devices, and is not billed")
					break
				}
			}
			if err := lock.Rollback(); err != nil {
				t.Error(err)
			}
		})
	}
}
