package chain_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/settle"
)

// TestTwoSettlersShareAStore: the settlers of two contracts look in turn, with one outbox and one store, as a provider's do
// that takes x402. Each settles what is old, however often the other looks in between.
func TestTwoSettlersShareAStore(t *testing.T) {
	d := newDesk(t)
	clock := newSteps()
	session := &settle.Settler{
		Payee: &channel.Payee{Store: d.payee.Store, Domain: d.escrow.Domain()}, Contract: d.escrow, Sender: d.sender,
		Policy: settle.Policy{Interval: deskPoll}, Now: clock.now,
	}
	d.settler.Now = clock.now
	claimed := d.fund(1, 1000)
	d.serve(claimed, 500, 400)
	lease := d.open(t, d.others, 2, 1000)
	view := d.view(t, lease)
	if _, err := session.Payee.Register(t.Context(), lease, view); err != nil {
		t.Fatal(err)
	}
	vouchered := d.world.voucher(t, lease, 300).Voucher()
	if _, err := session.Payee.Accept(t.Context(), vouchered); err != nil {
		t.Fatal(err)
	}
	d.during(session.Run)
	d.during(d.settler.Run)
	settled := func() bool {
		s, err := session.Payee.State(t.Context(), lease.ID())
		if err != nil {
			t.Fatal(err)
		}
		x := d.kept(claimed)
		return s.Settled.Eq(uint256.NewInt(300)) && x.Settled.Eq(uint256.NewInt(400))
	}
	for range 11 { // the default is to wait for an hour
		time.Sleep(5 * deskPoll)
		clock.step(5 * time.Minute)
		if settled() {
			t.Fatal("settled before its time")
		}
	}
	time.Sleep(5 * deskPoll)
	clock.step(6 * time.Minute)
	d.until("both are settled", settled)
}

// steps is a clock that goes when the test says so.
type steps struct {
	begun time.Time
	gone  atomic.Int64
}

func newSteps() *steps { return &steps{begun: time.Now().Round(0)} } // without the monotonic part: as after a restart

func (s *steps) now() time.Time        { return s.begun.Add(time.Duration(s.gone.Load())) }
func (s *steps) step(by time.Duration) { s.gone.Add(int64(by)) }
