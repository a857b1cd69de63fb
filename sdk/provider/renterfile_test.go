package provider

import (
	"encoding/json"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/sdk/wire"
)

// rentalOnDisk is what the database of a renter says of a rental.
type rentalOnDisk struct {
	Lease   common.Hash
	Binding *wire.MeterBinding
	Access  json.RawMessage
}

// readRental reads a rental in the database of a renter, also of one that runs.
func readRental(t *testing.T, path string, id common.Hash) (row rentalOnDisk) {
	t.Helper()
	var document []byte
	inRenterFile(t, path, func(db *sqlx.DB) error {
		return db.Get(&document, `SELECT document FROM rentals WHERE channel = ?`, id.Hex())
	})
	if err := json.Unmarshal(document, &row); err != nil {
		t.Fatal(err)
	}
	return row
}

// changeRental changes a field of a rental, a path of JSON, in the database of a renter that is closed.
func changeRental(t *testing.T, path string, id common.Hash, field string, value any) {
	t.Helper()
	inRenterFile(t, path, func(db *sqlx.DB) error {
		changed, err := db.Exec(`UPDATE rentals SET document = json_set(document, ?, ?) WHERE channel = ?`, field, value, id.Hex())
		if err != nil {
			return err
		}
		if n, err := changed.RowsAffected(); err != nil || n != 1 {
			t.Errorf("%d rentals changed, %v", n, err)
		}
		return nil
	})
}

// inRenterFile works on the database of a renter as another program would.
func inRenterFile(t *testing.T, path string, do func(*sqlx.DB) error) {
	t.Helper()
	db, err := sqlx.Open("sqlite3", "file:"+path+"?_busy_timeout=10000")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := do(db); err != nil {
		t.Fatal(err)
	}
}
