package sdk

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestTableThatIsLockedForLong: somebody holds a table for longer than a gateway may be silent, as ALTER TABLE and VACUUM FULL
// do. The lease is suspended when its credit is used up, it is not ended, nothing of it is taken back, no more than the credit
// is charged, and it goes on when the table is free and it is paid.
func TestTableThatIsLockedForLong(t *testing.T) {
	for _, table := range []string{"gateways", "leases", "records"} { // of payee_channels see SECURITY.md, "Known and not mended yet"
		t.Run(table, func(t *testing.T) {
			address := pgtest.URL(t)
			command, calls := script(t, "")
			r := newRig(t, func(c *ProviderConfig) {
				host := hostGPUs(t, 2)
				host.SuspendCommand, host.ResumeCommand, host.ReleaseCommand = append(command, "suspend"), append(command[:1:1], "resume"), append(command[:1:1], "release")
				c.Database, c.Takeover, c.Allocator, c.Log = address, time.Second, host, slog.New(slog.DiscardHandler)
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
			waitFor(t, func() bool { return strings.Contains(calls(), "suspend") })
			if err := lock.Rollback(); err != nil {
				t.Fatal(err)
			}
			most, err := r.provider.price.Charge(uint64(r.config.Credit + r.provider.config.MaxGap))
			if err != nil {
				t.Fatal(err)
			}
			waitFor(t, func() bool { // whoever has it reads and writes again
				s, err := r.provider.payee.State(t.Context(), lease.terms.ID())
				if err != nil || r.provider.running(lease.terms.ID()) == nil {
					return false
				}
				if s.Accepted.IsZero() && s.Spent.Gt(&most) {
					t.Fatalf("%s is charged, the credit is worth %s", s.Spent.Dec(), most.Dec())
				}
				lease.pay(s.Spent.Uint64())
				return lease.row().State == wire.StateActive
			})
			if got := calls(); strings.Contains(got, "release") || !strings.Contains(got, "resume") {
				t.Errorf("after\n%s", got)
			}
		})
	}
}
