package provider

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// The newest lease of a channel is the one that began last, also where the clock was set back in between: the secret of an
// ended one attaches to nothing.
func TestNewestLeaseAfterAClockSetBack(t *testing.T) {
	db, err := database.Open(t.Context(), filepath.Join(t.TempDir(), "provider.db"), "provider", leasestore.Migrations, "migrations/provider")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	s := leasestore.New(db)
	at := common.Hash{7}
	clock := time.Now()
	for i, back := range []time.Duration{0, time.Hour, 2 * time.Hour, 0} {
		id := common.Hash{byte(i + 1)}
		row := leasestore.Row{ID: id.Hex(), Channel: at.Hex(), SecretHash: id.Hex(), Allocation: "{}", OwedBefore: "0",
			State: wire.StateAllocating, StartedAt: clock.Add(-back).UnixNano()}
		if err := s.Leases.Insert(t.Context(), row); err != nil {
			t.Fatal(err)
		}
		newest, ok, err := s.Leases.Newest(t.Context(), at)
		if err != nil || !ok || newest.ID != row.ID || newest.SecretHash != row.SecretHash {
			t.Errorf("lease %d, by a clock %s back: the newest is %s (%v)", i, back, newest.ID, err)
		}
		if err := s.Leases.SetEnded(t.Context(), id, 0, "", false); err != nil {
			t.Fatal(err)
		}
	}
}
