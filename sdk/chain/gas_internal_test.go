package chain

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/gpupay/gpupay/channel/store"
)

// What a call is given: the larger of two estimates unless it is out of proportion, no less than it takes, and more than what failed.
func TestGasOfACall(t *testing.T) {
	call := Call{Kind: Settle, Channels: make([]common.Hash, 1)}
	least, dear := boundsOf(call)
	for _, c := range []struct {
		estimates []uint64
		failed    uint64
		from, to  uint64
	}{
		{[]uint64{80_000}, 0, 130_000, 130_000},
		{[]uint64{80_000, 90_000}, 0, 142_500, 142_500},
		{[]uint64{1}, 0, least, least},
		{[]uint64{1, 80_000}, 0, 130_000, 130_000},
		{[]uint64{80_000, 1 << 40}, 0, dear, 2 * dear},
		{[]uint64{1 << 40, 80_000}, 0, dear, 2 * dear},
		{[]uint64{2_000_000}, 0, 2_530_000, 2_530_000},            // an account that is a contract
		{[]uint64{2_000_000, 2_100_000}, 0, 2_530_000, 2_700_000}, // by both
		{[]uint64{1}, 130_000, 260_000, 260_000},                  // it ran out of gas
		{[]uint64{1, 2_000_000}, dear, 2_530_000, 2_530_000},      // the one who says much was right
		{[]uint64{80_000}, 100 * dear, dear, dear},                // no further than it can take
		{[]uint64{80_000, 80_000}, 10_000, 130_000, 130_000},
	} {
		if gas := gasFor(call, c.estimates, c.failed); gas < c.from || gas > c.to {
			t.Errorf("estimates %d, failed with %d: %d", c.estimates, c.failed, gas)
		}
	}
}

// What failed is found by its channel and kind, for a while.
func TestFailedWith(t *testing.T) {
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s, err := OpenStore(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for n, gas := range []uint64{70_000, 90_000, 300_000} {
		tx := Tx{ID: newTxID(), Nonce: uint64(n), Call: Call{Kind: Settle, Channels: []common.Hash{{1}}}, Gas: gas, State: Final, Hash: common.Hash{byte(n + 1)}, CreatedAt: now,
			Succeeded: gas == 300_000, Attempts: []Attempt{{Signed: types.NewTx(&types.DynamicFeeTx{Nonce: uint64(n)})}}}
		if err := s.insert(t.Context(), tx); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		kind    Kind
		channel byte
		since   time.Time
		want    uint64
	}{{Settle, 1, now.Add(-time.Hour), 90_000}, {Settle, 2, now.Add(-time.Hour), 0}, {Close, 1, now.Add(-time.Hour), 0}, {Settle, 1, now.Add(time.Hour), 0}} {
		call := Call{Kind: c.kind, Channels: []common.Hash{{9}, {c.channel}}}
		if gas, err := s.failedWith(t.Context(), call, c.since); err != nil || gas != c.want {
			t.Errorf("%s of channel %d: %d, %v, want %d", c.kind, c.channel, gas, err, c.want)
		}
	}
}
