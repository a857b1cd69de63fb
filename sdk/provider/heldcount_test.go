package provider

import (
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/internal/pgtest"
)

// TestReleaseThatFailsAgainIsCounted: what a lease that ended without GPUs has in the table all the same, as where the answer to that write was lost, is
// released, and counted while that fails.
func TestReleaseThatFailsAgainIsCounted(t *testing.T) {
	address := pgtest.URL(t)
	change, calls, fails := handingOver(t, &address)
	r := newRig(t, change)
	first := r.open(1, 300_000, "")
	first.record()
	first.release()
	id := first.lease.LeaseID.Hex()
	fails(true)
	before := strings.Count(calls(), "release")
	err := r.provider.db.Update(t.Context(), func(tx *sqlx.Tx) error {
		_, err := tx.Exec(`INSERT INTO lease_devices (device, lease) VALUES ($1, $2)`, first.lease.Devices[0], id)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a release that fails", func() bool { return strings.Count(calls(), "release") > before+1 })
	var h health
	fetched(t, r.provider.Health(), &h)
	if free := *r.provider.free(""); free == 0 && h.Held != 1 {
		t.Errorf("the GPU is not free, its release fails again and again, and %d leases are held: %s", h.Held, h.Status)
	}
}
