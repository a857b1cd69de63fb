package settle_test

import (
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
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
	k.Eventually("what is worth it is settled", func() bool { s := k.State(more); return is(s.Settled, 100) })
	if s := k.State(dust); !s.Settled.IsZero() && len(k.Settlements()) > 1 {
		t.Errorf("dust took a transaction of its own: settled %s", s.Settled.Dec())
	}

	small := k.Open(3, 1000)
	k.Accept(small, 1)
	k.Mine(t, 3)
	k.RequestClose(small)
	k.Check()
	k.Eventually("what is closing is settled, however little", func() bool { s := k.State(small); return is(s.Settled, 1) })
}

// TestDustIsUrgentNoMore: a lease that ended with dust is urgent until that was looked at. What comes to it later waits as its policy
// has it.
func TestDustIsUrgentNoMore(t *testing.T) {
	k := newTill(t)
	k.Settler.Policy.Dust = *uint256.NewInt(100)
	terms := k.Open(1, 1000)
	once := func() {
		t.Helper()
		if err := k.Settler.Once(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	k.Accept(terms, 99)
	k.Settler.Urgent(terms.ID())
	once()
	k.Accept(terms, 100)
	once()
	if s := k.State(terms); !s.Settled.IsZero() {
		t.Errorf("%s is settled at once, for what was urgent as dust", s.Settled.Dec())
	}
	k.Settler.Urgent(terms.ID())
	once()
	if s := k.State(terms); !is(s.Settled, 100) {
		t.Errorf("%s is settled of what is urgent and no dust", s.Settled.Dec())
	}
}

// Channels that are not worth their row ride along in no batch and are not settled for closing; with more they are.
func TestCrumbsCostNoGas(t *testing.T) {
	k := newTill(t)
	k.Settler.Policy.LeastRow = *uint256.NewInt(100)
	k.Settler.Policy.MaxAge = time.Millisecond
	worth, edge := k.Open(1, 1000), k.Open(2, 1000)
	crumbs := []channel.Terms{k.Open(3, 1000), k.Open(4, 1000), k.Open(5, 1000)}
	for _, crumb := range crumbs {
		k.Accept(crumb, 99)
	}
	k.Accept(worth, 500)
	k.Accept(edge, 100)
	k.Mine(t, 3)
	k.RequestClose(crumbs[0])
	k.Check()
	look := func() {
		t.Helper()
		for range 2 { // what is first seen begins to wait
			if err := k.Settler.Once(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * k.Settler.Policy.MaxAge)
		}
	}
	look()
	settlements := k.Settlements()
	if len(settlements) != 1 || len(settlements[0].Channels) != 2 || !is(settlements[0].Paid, 600) {
		t.Fatalf("%d settlements, the first of %+v", len(settlements), settlements)
	}
	k.Accept(crumbs[1], 100)
	look()
	if s := k.State(crumbs[1]); !is(s.Settled, 100) {
		t.Errorf("what grew has %s settled", s.Settled.Dec())
	}
	if s := k.State(crumbs[0]); !s.Settled.IsZero() {
		t.Errorf("a row was paid for %s", s.Settled.Dec())
	}
}

// What a contract set aside is paid out when it is no Dust, and however little it is when all is settled on demand.
func TestDustInTheContractWaits(t *testing.T) {
	k := newTill(t)
	k.Settler.Policy.Dust = *uint256.NewInt(100)
	terms := k.Open(1, 1000)
	credit := func(upTo uint64) { // what the token does not let through is set aside
		t.Helper()
		k.Accept(terms, upTo)
		resume := k.PauseToken(t)
		_ = k.Settler.Settle(t.Context(), terms.ID())
		resume()
	}
	once := func(held, paid uint64) {
		t.Helper()
		k.Settler.Recall()
		if err := k.Settler.Once(t.Context()); err != nil {
			t.Fatal(err)
		}
		if have := k.Tokens(t, k.Key.Address()); have != paid || !is(k.Settler.Held(), held) {
			t.Fatalf("%d were paid out and %v are held, want %d and %d", have, k.Settler.Held(), paid, held)
		}
	}
	credit(60)
	once(60, 0)
	credit(100)
	once(0, 100)
	credit(130)
	once(30, 100)
	if err := k.Settler.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	once(0, 130)
}
