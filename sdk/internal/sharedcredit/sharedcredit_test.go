package sharedcredit

import (
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/metering"
)

// TestCreditTakenBinds: what others took of a credit binds until the channel's own GPUs can have earned it, and not the
// later and lesser moment.
func TestCreditTakenBinds(t *testing.T) {
	const second = int64(time.Second)
	at := func(s int64) metering.Instant { return metering.Instant{Boot: s * second, Wall: s * second} }
	price := metering.Price{Amount: *uint256.NewInt(1000), Unit: metering.Second}
	use := Use{price: price, gpus: 2}
	use.take(Taken{Amount: *uint256.NewInt(9000), At: at(10)})
	use.take(Taken{Amount: *uint256.NewInt(4000), At: at(11)}) // 7000 of the first are left
	for s, want := range map[int64]uint64{9: 8999, 10: 8999, 12: 4995, 15: 0, 1 << 30: 0} {
		if left := use.Left(at(s), 0); left.Uint64() != want {
			t.Errorf("after %d s: %s left, want %d", s-10, left.Dec(), want)
		}
	}
	use.take(Taken{Amount: *uint256.NewInt(6000), At: at(12)})
	if left := use.Left(at(12), 0); left.Uint64() != 5999 {
		t.Errorf("%s left of what was taken last", left.Dec())
	}
}
