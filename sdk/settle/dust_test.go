package settle_test

import (
	"testing"
	"time"

	"github.com/holiman/uint256"
)

// Dust waits though its lease ended, costs no gas, and is fetched with what makes it worth a transaction, or when its payer
// wants out.
func TestDustWaits(t *testing.T) {
	k := newTill(t)
	k.Settler.Policy.Dust = *uint256.NewInt(100)
	dust, more := k.Open(1, 1000), k.Open(2, 1000)
	k.Accept(dust, 99)
	k.Run(k.Settler.Run)
	k.Settler.Urgent(dust.ID())
	k.Accept(more, 100)
	k.Settler.Urgent(more.ID())
	k.Within(20*time.Second, "what is worth it is settled", func() bool { s := k.State(more); return is(s.Settled, 100) })
	if s := k.State(dust); !s.Settled.IsZero() && len(k.Settlements()) > 1 {
		t.Errorf("dust took a transaction of its own: settled %s", s.Settled.Dec())
	}

	small := k.Open(3, 1000)
	k.Accept(small, 1)
	k.Mine(t, 3)
	k.RequestClose(small)
	k.Check()
	k.Within(20*time.Second, "what is closing is settled, however little", func() bool { s := k.State(small); return is(s.Settled, 1) })
}
