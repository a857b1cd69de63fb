package rental

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/internal/sqlfault"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// TestRecordsAfter: the records of one lease from a number on, no more than were asked for; a disk that fails is no empty list.
func TestRecordsAfter(t *testing.T) {
	dir := t.TempDir()
	disk := sqlfault.At(t, dir)
	db, err := database.Open(t.Context(), filepath.Join(dir, "renter.db"), "renter", wallet.Migrations, "migrations/renter")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	store, row := Store{Store: wallet.Store{DB: db}}, Row{Phase: PhaseRunning}
	id, lease := row.Terms.ID(), common.Hash{2}
	if err := store.Create(t.Context(), row); err != nil {
		t.Fatal(err)
	}
	record, err := json.Marshal(metering.SignedRecord{Signature: make([]byte, 65)})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.DB.Update(t.Context(), func(tx *sqlx.Tx) error {
		for n, of := range []common.Hash{lease, lease, lease, {3}} {
			if _, err := tx.Exec(`INSERT INTO rental_records (channel, lease, sequence, record) VALUES (?, ?, ?, ?)`, id.Hex(), of.Hex(), n+1, string(record)); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		after      uint64
		most, want int
	}{{0, 10, 3}, {1, 10, 2}, {0, 2, 2}, {3, 10, 0}} {
		var records []metering.SignedRecord
		disk.Told(t, func() (err error) {
			records, err = store.RecordsAfter(t.Context(), id, lease, c.after, c.most)
			return err
		})
		if len(records) != c.want {
			t.Errorf("%d records after %d, want %d", len(records), c.after, c.want)
		}
	}
}
