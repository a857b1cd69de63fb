package store_test

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/pgtest"
)

// Whatever a change does, the database itself keeps what was accepted and what was charged from falling.
func TestLastGuard(t *testing.T) {
	for name, url := range map[string]string{"file": filepath.Join(t.TempDir(), "guard.db"), "postgres": pgtest.URL(t)} {
		t.Run(name, func(t *testing.T) {
			db, err := store.Open(t.Context(), url)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			terms := channel.Terms{ChainID: 1, Payer: [20]byte{1}, Payee: [20]byte{2}, Token: [20]byte{3}, Escrow: [20]byte{4}}
			s := channel.State{ID: terms.ID(), Terms: terms, Status: channel.Open, Deposit: *uint256.NewInt(100)}
			if _, err := db.Payee().Create(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			set := func(accepted, spent uint64) error {
				_, err := db.Payee().Update(t.Context(), s.ID, func(s *channel.State) error {
					s.Accepted, s.Spent = *uint256.NewInt(accepted), *uint256.NewInt(spent)
					return nil
				})
				return err
			}
			if err := set(50, 60); err != nil {
				t.Fatal(err)
			}
			for _, lower := range [][2]uint64{{49, 60}, {50, 59}, {0, 0}} {
				if err := set(lower[0], lower[1]); !errors.Is(err, channel.ErrLower) {
					t.Errorf("accepted %d, spent %d: %v, want %v", lower[0], lower[1], err, channel.ErrLower)
				}
			}
			kept, err := db.Payee().Load(t.Context(), s.ID)
			if err != nil || kept.Accepted.Uint64() != 50 || kept.Spent.Uint64() != 60 {
				t.Errorf("accepted %s, spent %s, %v", kept.Accepted.Dec(), kept.Spent.Dec(), err)
			}
		})
	}
}
