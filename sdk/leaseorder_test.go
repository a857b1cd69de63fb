package sdk

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
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
		row := leasestore.Row{ID: id.Hex(), Channel: at.Hex(), SecretHash: hashSecret(id.Hex()), Allocation: "{}", OwedBefore: "0",
			State: wire.StateAllocating, StartedAt: clock.Add(-back).UnixNano()}
		if err := s.Leases.Insert(t.Context(), row); err != nil {
			t.Fatal(err)
		}
		newest, ok, err := s.Leases.Newest(t.Context(), at)
		if err != nil || !ok || newest.ID != row.ID || !sameSecret(id.Hex(), newest.SecretHash) {
			t.Errorf("lease %d, by a clock %s back: the newest is %s (%v)", i, back, newest.ID, err)
		}
		if err := s.Leases.SetEnded(t.Context(), id, 0, "", false); err != nil {
			t.Fatal(err)
		}
	}
}

// A lease's view takes no voucher back that it was told of, whichever state comes last: of two that came together, the
// older may.
func TestViewKeepsTheNewestVoucher(t *testing.T) {
	l := &lease{}
	older, newer := *uint256.NewInt(100), *uint256.NewInt(200)
	deposit := *uint256.NewInt(1000)
	l.observe(channel.State{Accepted: newer, Deposit: deposit})
	l.pays(channel.State{Accepted: older})
	l.observe(channel.State{Accepted: older, Deposit: *uint256.NewInt(500)}) // a re-org took a deposit, and no voucher
	if v := l.look(); v.accepted != newer || v.deposit.Uint64() != 500 {
		t.Errorf("accepted %s, deposit %s", v.accepted.Dec(), v.deposit.Dec())
	}
}
