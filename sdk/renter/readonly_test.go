package renter_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/database"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// TestReadingMigratesNothing: what only reads a database changes no byte of it, and refuses one whose tables are another
// version's, older or newer, with what to do.
func TestReadingMigratesNothing(t *testing.T) {
	read := map[string]func(context.Context, string) error{
		"export": func(ctx context.Context, path string) error {
			_, err := renter.ExportFile(ctx, path, common.Hash{1})
			return err
		},
		"rentals": func(ctx context.Context, path string) error { _, err := renter.RentalsFile(ctx, path); return err },
	}
	for _, age := range []struct {
		component, change string
		want              error
	}{
		{"", "", nil},
		{"channel", "UPDATE migrations SET version = version + 100 WHERE component = 'channel'", store.ErrNewer},
		{"renter", "UPDATE migrations SET version = version + 100 WHERE component = 'renter'", store.ErrNewer},
		{"channel", "DELETE FROM migrations WHERE component = 'channel' AND version > 1", store.ErrOlder},
		{"renter", "DELETE FROM migrations WHERE component = 'renter' AND version > 1", store.ErrOlder},
	} {
		path := filepath.Join(t.TempDir(), "renter.db")
		db, err := database.Open(t.Context(), path, "renter", wallet.Migrations, "migrations/renter")
		if err == nil {
			_, err = chain.OpenStore(t.Context(), db)
		}
		if err == nil && age.change != "" {
			err = db.Update(t.Context(), func(tx *sqlx.Tx) error { _, err := tx.Exec(age.change); return err })
		}
		if err = errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
		before := testrig.CopyFiles(t, path)
		for name, do := range read {
			err := do(t.Context(), path)
			if age.want == nil {
				if err != nil && !errors.Is(err, channel.ErrUnknown) {
					t.Errorf("%s: %v", name, err)
				}
			} else if !errors.Is(err, age.want) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), age.component) {
				t.Errorf("%s, %v wanted: %v", name, age.want, err)
			}
			if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, before[path]) {
				t.Errorf("%s changed the file (%v)", name, err)
			}
		}
	}
	for name, do := range read {
		missing := filepath.Join(t.TempDir(), "none.db")
		if err := do(t.Context(), missing); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s of nothing: %v", name, err)
		}
		if _, err := os.Stat(missing); err == nil {
			t.Errorf("%s made a file", name)
		}
		empty := filepath.Join(t.TempDir(), "empty.db")
		if err := os.WriteFile(empty, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := do(t.Context(), empty); err == nil {
			t.Errorf("%s reads a file that is no database of ours", name)
		}
	}
}
