package provider

import (
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestTableThatIsLockedForLong: somebody holds a table for longer than a gateway may be silent, as ALTER TABLE and VACUUM FULL
// do. The lease is suspended when its credit is used up, it is not ended, nothing of it is taken back, no more than the credit
// is charged, and it goes on when the table is free and it is paid.
func TestTableThatIsLockedForLong(t *testing.T) {
	t.Parallel()
	for _, table := range []string{"gateways", "leases", "payee_channels", "records"} {
		t.Run(table, func(t *testing.T) {
			address := pgtest.URL(t) + "&lock_timeout=1min" // no server gives up for us
			command, calls := script(t, "")
			r := newRig(t, func(c *Config) {
				host := hostGPUs(t, 2)
				host.SuspendCommand, host.ResumeCommand, host.ReleaseCommand = append(command, "suspend"), append(command[:1:1], "resume"), append(command[:1:1], "release")
				c.Database, c.Takeover, c.Allocator, c.Log = address, 2*time.Second, host, slog.New(slog.DiscardHandler)
			})
			lease := r.open(1, 500_000, "")
			waitFor(t, func() bool { return lease.row().Sequence > 0 }) // its stream ends where the gateway is slow and stands down
			db, err := sqlx.Open("pgx", address)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			lock := db.MustBegin()
			lock.MustExec(`LOCK TABLE ` + table + ` IN ACCESS EXCLUSIVE MODE`)
			served := testclock.Stopwatch()
			waitFor(t, func() bool { return strings.Contains(calls(), "suspend") })
			if took := served(); took > r.config.Takeover+r.config.Terms.Credit+15*time.Second { // the store gives up after 30 s
				t.Errorf("it was served for %s, of a credit of %s", took, r.config.Terms.Credit)
			}
			if err := lock.Rollback(); err != nil {
				t.Fatal(err)
			}
			most, err := r.provider.rates[""].Price.Charge(uint64(r.config.Terms.Credit + r.provider.config.Metering.MaxGap))
			if err != nil {
				t.Fatal(err)
			}
			waitFor(t, func() bool { // whoever has it reads and writes again
				s, err := r.provider.payee.State(t.Context(), lease.terms.ID())
				if err != nil || r.provider.leases.Running(lease.terms.ID()) == nil {
					return false
				}
				if s.Accepted.IsZero() && s.Spent.Gt(&most) {
					t.Fatalf("%s is charged, the credit is worth %s", s.Spent.Dec(), most.Dec())
				}
				lease.pay(s.Spent.Uint64())
				return lease.row().State == wire.StateActive && strings.Contains(calls(), "resume") // it may not be written yet that it is suspended
			})
			if got := calls(); strings.Contains(got, "release") {
				t.Errorf("after\n%s", got)
			}
		})
	}
}

// TestLeaseThatIsTakenAndNotRun: whoever takes a lease over and cannot read what was written of it meters nothing. Its devices are
// suspended when its credit is used up, by who let it go or, where that one died, by who took it, and it goes on when it can be read.
func TestLeaseThatIsTakenAndNotRun(t *testing.T) {
	t.Parallel()
	for _, dies := range []bool{false, true} {
		t.Run(map[bool]string{false: "it was let go", true: "its gateway died"}[dies], func(t *testing.T) {
			direct := pgtest.URL(t)
			address, line := through(t, direct)
			var calls func() string // of the gateway that takes it
			var watched atomic.Bool
			change := func(c *Config) {
				var command []string
				command, calls = script(t, "")
				host := hostGPUs(t, 2)
				host.SuspendCommand, host.ResumeCommand, host.ReleaseCommand = append(command, "suspend"), append(command[:1:1], "resume"), append(command[:1:1], "release")
				c.Database, c.Takeover, c.Terms.Credit, c.Allocator = address, 3*time.Second, 6*time.Second, host
				c.Log = slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) {
					watched.Store(watched.Load() || strings.Contains(string(b), "nobody meters a lease and its credit is used up"))
					return len(b), nil
				}), nil))
			}
			a := newRig(t, change)
			taker := a
			if dies {
				taker = rigOn(t, a.chain, func(*rig) *channel.Key { return a.payer }, change, func(c *Config) { c.Database = direct })
			}
			lease := a.open(1, 500_000, "")
			lease.record()
			db, err := sqlx.Open("pgx", direct)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			db.MustExec(`ALTER TABLE records RENAME TO hidden`)
			if dies {
				a.kill(line)
			} else {
				a.provider.gateway.StandDown()
			}
			waitFor(t, func() bool { return strings.Contains(calls(), "suspend") && (dies || watched.Load()) })
			db.MustExec(`ALTER TABLE hidden RENAME TO records`)
			waitFor(t, func() bool { return taker.provider.leases.Running(lease.terms.ID()) != nil })
			waitFor(t, func() bool { return strings.Contains(calls(), "resume") })
			if got := calls(); strings.Contains(got, "release") {
				t.Errorf("after\n%s", got)
			}
		})
	}
}
