package sdk

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
	"weak"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering/sim"
)

// TestEndedLeasesAreCollected: nothing of a lease that has ended stays in memory, also before it is settled.
func TestEndedLeasesAreCollected(t *testing.T) {
	r := newRig(t, quiet, func(c *ProviderConfig) { c.AliveEvery = time.Hour })
	var ended []weak.Pointer[lease]
	for salt := range byte(5) {
		tab := r.open(salt+1, 50_000, "")
		tab.record()
		ended = append(ended, weak.Make(r.provider.running(tab.terms.ID())))
		final := tab.release()
		tab.pay(final.Owed.Uint64())
		tab.body.Close()
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		runtime.GC()
		left := 0
		for _, l := range ended {
			if l.Value() != nil {
				left++
			}
		}
		if left <= 1 { // who reads devices may hold on to the last until it reads another
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d ended leases are in memory", left, len(ended))
		}
	}
}

// TestPrune: what is closed and settled is deleted after it is in the archive; what runs, is unsettled, is young, is
// disputed or could not be archived is not.
func TestPrune(t *testing.T) {
	for _, name := range []string{"file", onPostgres} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, quiet, func(c *ProviderConfig) {
				c.Archive, c.Source, c.Credit = t.TempDir(), sim.New(4, sim.Options{}), time.Minute
			})
			tabs := make(map[string]*tab)
			for i, name := range []string{"closed", "runs", "unsettled", "disputed"} {
				tabs[name] = r.open(byte(i+1), 100_000, "")
				tabs[name].record()
			}
			for _, name := range []string{"closed", "disputed", "unsettled"} {
				final := tabs[name].release()
				if name == "unsettled" {
					tabs[name].pay(final.Owed.Uint64())
					continue
				}
				tabs[name].close(final.Owed.Uint64())
			}
			gone := tabs["closed"]
			r.sql(`INSERT INTO shown_records (lease, sequence, channel, record, shown_at) VALUES (?, 99, ?, '{}', 1)`,
				common.Hash{1}.Hex(), tabs["disputed"].terms.ID().Hex())
			later := time.Now().Add(time.Hour)
			if n, err := r.provider.Prune(t.Context(), time.Now().Add(-time.Hour), r.provider.archive); n != 0 || err != nil {
				t.Errorf("%d young ones are pruned, %v", n, err)
			}
			full := errors.New("the disk is full")
			if n, err := r.provider.Prune(t.Context(), later, func(*Bundle) error { return full }); n != 0 || !errors.Is(err, full) {
				t.Errorf("%d are pruned without an archive, %v", n, err)
			}
			if n, err := r.provider.Prune(t.Context(), later, r.provider.archive); n != 1 || err != nil {
				t.Errorf("%d are pruned, want 1, %v", n, err)
			}
			text, err := os.ReadFile(filepath.Join(r.config.Archive, gone.terms.ID().Hex()+".json"))
			if err != nil {
				t.Fatal(err)
			}
			var b Bundle
			if err := json.Unmarshal(text, &b); err != nil || len(b.Leases) != 1 || len(b.Leases[0].Records) == 0 {
				t.Errorf("the archive has %+v, %v", b, err)
			}
			for name, tab := range tabs {
				var n int
				if err := r.provider.db.View().Get(&n, r.provider.db.View().Rebind(`SELECT count(*) FROM records JOIN leases ON id = lease WHERE channel = ?`), tab.terms.ID().Hex()); err != nil || (n == 0) != (name == "closed") {
					t.Errorf("%s: %d records are left, %v", name, n, err)
				}
			}
			if n, err := r.provider.Prune(t.Context(), later, r.provider.archive); n != 0 || err != nil {
				t.Errorf("%d are pruned again, %v", n, err)
			}
		})
	}
}

// TestPruneSparesALeaseThatBegins: a channel that was quiet is used again while its records are archived.
func TestPruneSparesALeaseThatBegins(t *testing.T) {
	for _, name := range []string{"file", onPostgres} {
		t.Run(name, func(t *testing.T) {
			r := newPayRig(t)
			b := r.buyer("/tick")
			b.open(100_000)
			b.idle()
			if err := r.provider.Settle(t.Context()); err != nil {
				t.Fatal(err)
			}
			n, err := r.provider.Prune(t.Context(), time.Now().Add(time.Hour), func(*Bundle) error {
				b.again()
				return nil
			})
			if n != 0 || err != nil {
				t.Errorf("%d are pruned, %v", n, err)
			}
			if _, ok, err := r.provider.store.newest(t.Context(), b.terms.ID()); !ok || err != nil {
				t.Fatalf("the lease's row is gone, %v", err)
			}
			if r.provider.running(b.terms.ID()) != nil {
				b.idle()
			}
			eventually(t, "its GPU is free again", func() bool { return *r.provider.free() == 2 })
		})
	}
}
