package provider

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/internal/testclock"
)

// TestRestoredServerGivesNoGPUTwice: of leases that a server's database has forgotten, as where it was restored from before them, the
// gateways of their host take the devices back before the next renter gets them. Another database's leases are left alone.
func TestRestoredServerGivesNoGPUTwice(t *testing.T) {
	signed := filepath.Join(t.TempDir(), "signed")
	command, calls := script(t, "")
	shared := pgtest.URL(t)
	change := func(c *Config) {
		host := hostGPUs(t, 1)
		host.AllocateCommand, host.ReleaseCommand = append(command, "allocate"), append(command[:1:1], "release")
		c.Database, c.Records.HighWater, c.Takeover, c.Source, c.Allocator = shared, signed, 2*time.Second, testclock.GPUs(1), host
	}
	r := newRig(t, quiet, generousCredit, change)
	first := r.open(1, 300_000, "")
	first.record()
	r.shut()
	other := rigOn(t, r.chain, func(*rig) *channel.Key { return r.payer }, quiet, generousCredit, change, func(c *Config) { c.Database, c.Key = pgtest.URL(t), r.config.Key })
	if got := calls(); strings.Contains(got, "release") {
		t.Errorf("a gateway of another database takes back what is none of its leases':\n%s", got)
	}
	other.shut()
	db, err := store.OpenBare(t.Context(), shared)
	if err != nil {
		t.Fatal(err)
	}
	id := first.lease.LeaseID.Hex()
	err = db.Update(t.Context(), func(tx *sqlx.Tx) (err error) {
		for _, what := range []string{"lease_devices WHERE lease", "records WHERE lease", "leases WHERE id"} {
			_, failed := tx.Exec(`DELETE FROM `+what+` = $1`, id)
			err = errors.Join(err, failed)
		}
		return err
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	change(&r.config)
	r.start()
	r.payer = r.fund(t, 1_000_000)
	second := r.open(2, 300_000, "")
	got := calls()
	back, again := strings.Index(got, "release "+first.lease.Devices[0]+" "+id), strings.LastIndex(got, "allocate "+second.lease.Devices[0])
	if back < 0 || back > again || strings.Count(got, "release") != 1 {
		t.Errorf("the GPU of a lease that the database has forgotten is given to the next:\n%s", got)
	}
}
