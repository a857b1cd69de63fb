package provider

import (
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel/store"
)

// TestBackupOfAnAllocation: a backup is from when a lease was being allocated. Its renter has had the GPU since. When it is restored the GPU is
// taken back by its name before the next renter gets it, and where that fails it goes to nobody, also after another restart. So it is where
// a gateway of another host, which knows of no GPU of it, has ended the lease before this one started.
func TestBackupOfAnAllocation(t *testing.T) {
	t.Parallel()
	for _, state := range []string{"allocating", "ended"} {
		t.Run(state, func(t *testing.T) { backupOfAnAllocation(t, state) })
	}
}

func backupOfAnAllocation(t *testing.T, state string) {
	fresh, calls, fails := handing(t)
	change := func(c *Config) {
		generousCredit(c)
		c.Allocator, c.Log = fresh(), slog.New(slog.DiscardHandler)
	}
	r := newRig(t, change)
	first := r.open(1, 300_000, "")
	first.record()
	id := first.lease.LeaseID.Hex()
	r.shut()
	db, err := store.OpenBare(t.Context(), r.config.Database)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(t.Context(), func(tx *sqlx.Tx) (err error) {
		for _, what := range []string{`UPDATE leases SET state = '` + state + `', held = 0, allocation = '{}', sequence = 0, pending = '' WHERE id = ?`, `DELETE FROM records WHERE lease = ?`} {
			_, failed := tx.Exec(what, id)
			err = errors.Join(err, failed)
		}
		return err
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	fails(true)
	for range 2 {
		change(&r.config)
		r.start()
		r.payer = r.fund(t, 1_000_000)
		resp := r.do("GET", "", r.openCredential(r.payer, r.terms(r.payer.Address(), 2), 300_000, 0))
		resp.Body.Close()
		if has := r.balance(r.payer.Address()); resp.StatusCode == http.StatusOK || has != 1_000_000 {
			t.Errorf("%s, and who wants a GPU that could not be taken back has %d left of 1000000", resp.Status, has)
		}
		r.shut()
	}
	fails(false)
	change(&r.config)
	r.start()
	second := r.nextRenter(3)
	taken, given := "release "+first.lease.Devices[0]+" "+id, "allocate "+first.lease.Devices[0]+" "+second.lease.LeaseID.Hex()
	if got := calls(); strings.Count(got, taken) < 3 || !strings.Contains(got[strings.LastIndex(got, taken):], given) {
		t.Errorf("the GPU is not taken back by its name at each start, and given to the next renter then:\n%s", got)
	}
}
