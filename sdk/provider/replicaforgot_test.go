package provider

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/sdk/wire"
)

// forget deletes a lease from the database, as a fail-over to a server does that was behind when it began.
func (t *tab) forget() {
	t.Helper()
	t.forgetBehind(func(*sqlx.Tx) error { return nil })
}

// forgetBehind is forget of a server that knows something else instead.
func (t *tab) forgetBehind(knows func(*sqlx.Tx) error) {
	t.Helper()
	forgetLease(t.T, t.provider, t.lease.LeaseID.Hex(), knows)
}

func forgetLease(t *testing.T, p *Server, id string, knows func(*sqlx.Tx) error) {
	t.Helper()
	err := p.db.Update(t.Context(), func(tx *sqlx.Tx) error {
		var held string // its gateway, which meters on, writes no record in between
		if err := tx.Get(&held, `SELECT id FROM leases WHERE id = $1 FOR UPDATE`, id); err != nil {
			return err
		}
		for _, what := range []string{"lease_devices WHERE lease", "records WHERE lease", "leases WHERE id"} {
			if _, err := tx.Exec(`DELETE FROM `+what+` = $1`, id); err != nil {
				return err
			}
		}
		return knows(tx)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestForgottenLeaseIsReleased: the devices of a lease that the database has forgotten are taken back by the gateway that
// runs it, whether it hears of that by a look or was cut off meanwhile, and the next renter has them alone.
func TestForgottenLeaseIsReleased(t *testing.T) {
	t.Parallel()
	for name, cutOff := range map[string]bool{"by a look": false, "after it was cut off": true} {
		t.Run(name, func(t *testing.T) {
			command, calls := script(t, "")
			a, b := fleet(t, generousCredit, func(c *Config) {
				host := hostGPUs(t, 2)
				host.ReleaseCommand = append(command, "release")
				c.Allocator, c.Log = host, slog.New(slog.DiscardHandler)
			})
			lease := a.open(1, 300_000, "")
			lease.record()
			old := a.provider.leases.Running(lease.terms.ID())
			if cutOff {
				a.provider.gateway.StandDown()
			}
			lease.forget()
			released := "release " + lease.lease.Devices[0] + " " + lease.lease.LeaseID.Hex()
			waitFor(t, func() bool { return strings.Contains(calls(), released) })
			select {
			case <-old.Done:
			case <-time.After(time.Minute):
				t.Fatal("it runs on")
			}
			second := b.open(2, 300_000, "?gpus=2")
			if l := b.provider.leases.Running(second.terms.ID()); l == nil || len(l.Allocation.Devices) != 2 {
				t.Errorf("the devices are not free: %+v", l)
			}
		})
	}
}

// TestForgottenRecordsAreWrittenAgain: a database that is exchanged for one which is a record or two behind has them again
// from the gateway that signed them, without a hole, and the lease goes on.
func TestForgottenRecordsAreWrittenAgain(t *testing.T) {
	a, _ := fleet(t, func(c *Config) { c.Terms.Credit, c.Log = time.Minute, slog.New(slog.DiscardHandler) })
	lease := a.open(1, 300_000, "")
	for range 4 {
		lease.record()
	}
	id := lease.lease.LeaseID.Hex()
	old := a.provider.leases.Running(lease.terms.ID())
	for _, behind := range []int{1, 2} {
		var newest int64
		err := a.provider.db.Update(t.Context(), func(tx *sqlx.Tx) error {
			err := tx.Get(&newest, `UPDATE leases SET sequence = sequence - $1, pending = '' WHERE id = $2 RETURNING sequence`, behind, id)
			if err != nil {
				return err
			}
			_, err = tx.Exec(`DELETE FROM records WHERE lease = $1 AND sequence > $2`, id, newest)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		waitFor(t, func() bool { return lease.row().Sequence > newest+int64(behind)+2 })
	}
	if l := a.provider.leases.Running(lease.terms.ID()); l != old || lease.row().State != wire.StateActive {
		t.Errorf("it does not go on: %+v", lease.row())
	}
	records, err := a.provider.store.Records.After(t.Context(), lease.lease.LeaseID, 0, 10_000)
	if err != nil {
		t.Fatal(err)
	}
	for i, rec := range records {
		if rec.Sequence != uint64(i)+1 {
			t.Fatalf("record %d is number %d", i+1, rec.Sequence)
		}
	}
}
