package provider

import (
	"errors"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/pgtest"
)

// TestHealthTellsOfForgottenLeases: a lease that the database has forgotten, and whose GPU cannot be taken back, is in health and metrics
// until it is.
func TestHealthTellsOfForgottenLeases(t *testing.T) {
	t.Parallel()
	for _, server := range []bool{false, true} {
		t.Run(map[bool]string{false: "file", true: "server"}[server], func(t *testing.T) {
			fresh, _, fails := handing(t)
			signed, address := filepath.Join(t.TempDir(), "signed"), filepath.Join(t.TempDir(), "provider.db")
			if server {
				address = pgtest.URL(t)
			}
			change := func(c *Config) {
				generousCredit(c)
				c.Allocator, c.Log, c.Database, c.Records.HighWater, c.Takeover = fresh(), slog.New(slog.DiscardHandler), address, signed, 2*time.Second
			}
			r := newRig(t, change)
			lease := r.open(1, 300_000, "")
			lease.record()
			says := func(held int, status, metric string) {
				t.Helper()
				var h health
				code, _ := fetched(t, r.provider.Health(), &h)
				if _, metrics := fetched(t, r.provider.Metrics(), nil); code != http.StatusOK || h.Held != held || !strings.HasPrefix(h.Status, status) || !strings.Contains(metrics, metric) {
					t.Errorf("%d %+v, and no %s in the metrics; want %d held, %s", code, h, metric, held, status)
				}
			}
			says(0, "ok", "gpupay_held_leases 0\n")
			r.shut()
			forgetAt(t, address, lease.lease.LeaseID)
			fails(true)
			change(&r.config)
			r.start()
			says(1, "degraded", "gpupay_held_leases 1\n")
			r.shut()
			fails(false)
			change(&r.config)
			r.start()
			says(0, "ok", "gpupay_held_leases 0\n")
		})
	}
}

// forgetAt has a database on which nobody works forget a lease.
func forgetAt(t *testing.T, address string, lease common.Hash) {
	t.Helper()
	db, err := store.OpenBare(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(t.Context(), func(tx *sqlx.Tx) (err error) {
		tables := []string{"records WHERE lease", "leases WHERE id"}
		if db.Shared() {
			tables = append([]string{"lease_devices WHERE lease"}, tables...)
		}
		for _, what := range tables {
			_, failed := tx.Exec(tx.Rebind(`DELETE FROM `+what+` = ?`), lease.Hex())
			err = errors.Join(err, failed)
		}
		return err
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}
