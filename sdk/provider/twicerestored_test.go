package provider

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// TestWrongBackupFirst: a wrong backup is put back, from before a lease, whose GPU is taken back; then the right one, in which the lease runs.
// Its renter is billed for no GPU that was taken from it.
func TestWrongBackupFirst(t *testing.T) {
	fresh, calls, _ := handing(t)
	r := newRig(t, quiet, generousCredit, func(c *Config) { c.Allocator = fresh() })
	r.shut()
	read := func() []byte {
		t.Helper()
		data, err := os.ReadFile(r.config.Database)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	put := func(data []byte) {
		t.Helper()
		lose(t, r.config.Database)
		if err := os.WriteFile(r.config.Database, data, 0o600); err != nil {
			t.Fatal(err)
		}
		r.config.Allocator = fresh()
	}
	wrong := read()
	r.config.Allocator = fresh()
	r.start()
	first := r.open(1, 300_000, "")
	first.record()
	r.shut()
	right := read()
	put(wrong)
	r.start()
	r.shut()
	if !strings.Contains(calls(), "release "+first.lease.Devices[0]+" "+first.lease.LeaseID.Hex()) {
		t.Fatalf("it was not taken back:\n%s", calls())
	}
	put(right)
	r.start()
	time.Sleep(2 * time.Second)
	row, err := r.provider.store.Leases.ByID(t.Context(), first.lease.LeaseID.Hex())
	last, failed := r.provider.store.Records.Last(t.Context(), first.lease.LeaseID)
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	if l := r.provider.leases.Running(first.terms.ID()); l != nil {
		t.Errorf("it is %s and billed, %s by record %d, for a GPU that was taken back:\n%s", row.State, last.Owed.Dec(), last.Sequence, calls())
	}
}
