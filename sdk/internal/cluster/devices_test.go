package cluster

import (
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/pgtest"
)

// TestForgottenLeaseHasItsDevices: a lease without a row has its devices for as long as it is told of, beside those that have rows, and not
// after it was freed.
func TestForgottenLeaseHasItsDevices(t *testing.T) {
	db, err := store.Open(t.Context(), pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	err = db.Update(t.Context(), func(tx *sqlx.Tx) error {
		_, err := tx.Exec(`CREATE TABLE leases (id TEXT PRIMARY KEY);
			CREATE TABLE lease_devices (device TEXT PRIMARY KEY, lease TEXT NOT NULL REFERENCES leases (id));
			CREATE TABLE reservations (id TEXT PRIMARY KEY, pool TEXT NOT NULL, channel TEXT NOT NULL, gpus INTEGER NOT NULL, expires BIGINT NOT NULL, ttl BIGINT NOT NULL)`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	devices, lease := Devices{db}, common.Hash{1}
	these := func(map[string]common.Hash) ([]string, error) { return []string{"GPU-a", "GPU-b"}, nil }
	for range 2 {
		if _, err := devices.Reserve(t.Context(), lease, these); err != nil {
			t.Fatal(err)
		}
		held, err := devices.Held(t.Context())
		if err != nil || len(held) != 2 || held["GPU-a"] != lease {
			t.Fatalf("%v are held: %v", held, err)
		}
		if err := db.Update(t.Context(), func(tx *sqlx.Tx) error { _, err := tx.Exec(`UPDATE reservations SET expires = 0`); return err }); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := devices.Reserve(t.Context(), lease, these); err != nil {
		t.Fatal(err)
	}
	if err := devices.Free(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	if held, err := devices.Held(t.Context()); err != nil || len(held) > 0 {
		t.Errorf("%v are held: %v", held, err)
	}
}
