package leasestore

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestFaultsOfTheDatabaseAreSaid: what could not be read or written is an error, and no answer that somebody acts on.
func TestFaultsOfTheDatabaseAreSaid(t *testing.T) {
	t.Parallel()
	id := common.Hash{1}
	for name, f := range map[string]struct {
		spoil []string
		call  func(ctx context.Context, s Store) error
	}{
		"devices of an ended lease": {[]string{`ALTER TABLE leases RENAME TO gone`}, func(ctx context.Context, s Store) error {
			_, err := s.Leases.GiveUp(ctx, "0x01")
			return err
		}},
		"offers that renters have shown": {[]string{`ALTER TABLE shown_records RENAME TO gone`}, func(ctx context.Context, s Store) error {
			return s.ForgetOffers(ctx, time.Now())
		}},
		"rests of a clock that was set back": {[]string{
			`INSERT INTO device_rests VALUES ('GPU-1', 1, 1000, 1000, -1, 99999999999999, 1000)`,
			`CREATE TRIGGER full BEFORE UPDATE ON device_rests BEGIN SELECT RAISE(ABORT, 'the disk is full'); END`,
		}, func(ctx context.Context, s Store) error { return s.Rests.Redate(ctx) }},
		"an offer": {[]string{`ALTER TABLE offers RENAME TO gone`}, func(ctx context.Context, s Store) error {
			return s.Offers.Put(ctx, wire.SignedOffer{Hash: id, Document: []byte("{}")})
		}},
		"what a lease before left": {nil, func(ctx context.Context, s Store) error {
			if err := s.Leases.Insert(ctx, Row{ID: common.Hash{2}.Hex(), Channel: id.Hex(), OwedBefore: "?", State: string(Ended), Allocation: "{}", GPUs: 1}); err != nil {
				t.Error(err)
			}
			_, _, err := s.Carry(ctx, channel.State{ID: id})
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := openRests(t, filepath.Join(t.TempDir(), "p.db"))
			for _, statement := range f.spoil {
				err := db.Update(t.Context(), func(tx *sqlx.Tx) error { _, err := tx.Exec(statement); return err })
				if err != nil {
					t.Fatal(err)
				}
			}
			if f.call(t.Context(), New(db)) == nil {
				t.Error("no error")
			}
		})
	}
}
