package provider

import (
	"errors"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/placement"
	"github.com/gpupay/gpupay/sdk/internal/remote"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestNoShareIsServedByWhatIsSettled: a lease at a node whose payer has used up its credit begins, and goes on, only by vouchers
// that a settlement fetches, and the node hears of no others.
func TestNoShareIsServedByWhatIsSettled(t *testing.T) {
	const row = 500
	o := newOutpost(t)
	r := newRig(t, o.link, func(c *Config) { c.Settlement.LeastRow = *uint256.NewInt(row) })
	first := r.open(1, 100_000, "")
	first.status(leasestore.Suspended)
	first.release()
	if debt := r.owes(first); debt < 1000 {
		t.Fatalf("%d is owed", debt)
	}
	r.config.Terms.Credit = time.Second // less than it owes
	r.restart()

	resp := r.do("GET", "", r.openCredential(r.payer, r.terms(r.payer.Address(), 2), 100_000, row))
	lease := &tab{rig: r, key: r.payer, terms: r.terms(r.payer.Address(), 2)}
	lease.attach(resp)
	id := lease.lease.LeaseID
	o.wait(id, leasestore.Suspended)
	if err := r.provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { s := lease.state(); return s.Settled.Uint64() == row })
	another := func(accepted uint64) (remote.Portion, error) { // on the same channel
		s := lease.state()
		s.Accepted, s.Spent = *uint256.NewInt(accepted), *uint256.NewInt(row)
		return r.provider.nodes.MakeRoom(t.Context(), placement.Request{Request: gpu.Request{LeaseID: randomHash(), GPUs: 1}, Channel: s, Offer: r.provider.Offer()})
	}
	if _, err := another(2*row - 1); !errors.Is(err, &wire.InsufficientBalance) {
		t.Errorf("a voucher that no settlement fetches: %v", err)
	}
	if p, err := another(2 * row); err != nil || !p.Tell.IsZero() {
		t.Errorf("a voucher that one fetches: a share of %s (%v)", p.Tell.Dec(), err)
	}
	lease.pay(2*row - 1)
	time.Sleep(500 * time.Millisecond) // it is in touch ten times meanwhile
	if told := o.accepted(id); told != row {
		t.Errorf("the node was told %d, of which a settlement fetches %d", told, row)
	}
	lease.pay(2 * row)
	waitFor(t, func() bool { return o.accepted(id) == 2*row })
}
