package remote

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// providerDB is the database of a gateway that has run no lease.
func providerDB(t *testing.T) *store.DB {
	t.Helper()
	db, err := database.Open(t.Context(), filepath.Join(t.TempDir(), "provider.db"), "provider", leasestore.Migrations, "migrations/provider")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// TestShareOfALeaseThatAnotherClockEnded: a lease that ended keeps its part of the credit until its node was heard, and not a
// moment longer, whatever the clock of the gateway that ended it said: ten minutes ahead of ours or behind.
func TestShareOfALeaseThatAnotherClockEnded(t *testing.T) {
	db := providerDB(t)
	shares := &Shares{Store: leasestore.New(db), Owing: func(context.Context, ...common.Address) ([]channel.State, error) { return nil, nil }}
	payer := common.Address{1}
	lets := func(id byte, share uint64) Claimant {
		t.Helper()
		q := Claimant{Lease: common.Hash{id}, Channel: common.Hash{id}, Payer: payer, Credit: *uint256.NewInt(1000)}
		row := leasestore.Row{ID: q.Lease.Hex(), Channel: q.Channel.Hex(), Allocation: "{}", OwedBefore: "0", State: wire.StateAllocating, StartedAt: time.Now().UnixNano()}
		if err := errors.Join(shares.Store.Leases.Insert(t.Context(), row), shares.begin(t.Context(), q, *uint256.NewInt(share))); err != nil {
			t.Fatal(err)
		}
		return q
	}
	ended, ours := lets(1, 900), lets(2, 0)
	for _, ahead := range []time.Duration{-10 * time.Minute, 0, 10 * time.Minute} {
		for held, want := range map[bool]uint64{true: 100, false: 1000} {
			err := db.Update(t.Context(), func(tx *sqlx.Tx) error {
				_, err := tx.Exec(`UPDATE leases SET state = 'ended', held = ?, ended_at = ? WHERE id = ?`, held, time.Now().Add(ahead).Unix(), ended.Lease.Hex())
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			p, err := ours.portion(t.Context(), db.View(), "", nil, uint256.Int{})
			if err != nil || p.Tell.Uint64() != want {
				t.Errorf("ended by a clock %s ahead, its node not heard %t: the other lease has %s of the credit, want %d, %v", ahead, held, p.Tell.Dec(), want, err)
			}
		}
	}
}

// TestShareLacksWhatNoSettlementFetches: what a payer's other channels hold and no settlement fetches is off the share of its leases on
// nodes.
func TestShareLacksWhatNoSettlementFetches(t *testing.T) {
	db := providerDB(t)
	n := func(v uint64) uint256.Int { return *uint256.NewInt(v) }
	crumb := channel.State{ID: common.Hash{1}, Deposit: n(1000), Accepted: n(99), Spent: n(99), Status: channel.Open}
	worth := channel.State{ID: common.Hash{2}, Deposit: n(1000), Accepted: n(100), Spent: n(130), Status: channel.Open}
	for own, want := range map[common.Hash]uint64{{3}: 1000 - 99 - 30, {1}: 1000 - 30, {2}: 1000 - 99} {
		q := Claimant{Lease: common.Hash{9}, Channel: own, Payer: common.Address{1}, Credit: n(1000)}
		p, err := q.portion(t.Context(), db.View(), "", []channel.State{crumb, worth}, n(100))
		if err != nil || p.Tell.Uint64() != want {
			t.Errorf("a lease on channel %s hears of %s, want %d: %v", own, p.Tell.Dec(), want, err)
		}
	}
}
