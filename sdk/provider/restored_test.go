package provider

import (
	"net/http"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/wire"
)

// image stops the provider, copies its database and the file of high-water marks, and starts it again.
func (r *rig) image() testrig.Files {
	r.Helper()
	r.shut()
	defer r.start()
	return testrig.CopyFiles(r.T, r.config.Database, r.config.Database+".signed")
}

// comeBack is a renter that shows nothing of what it had, and pays with a voucher that is public.
func (t *tab) comeBack(public uint64) *http.Response {
	t.Helper()
	cred := t.credential(wire.ActionVoucher, public)
	cred.Payload.Salt = &t.terms.Salt
	var err error
	if cred.Payload.Proof, err = wire.Prove(t.Context(), t.key, t.terms, cred.Challenge.ID, "attach"); err != nil {
		t.Fatal(err)
	}
	return t.do("GET", "", cred)
}

func (t *tab) state() channel.State {
	t.Helper()
	s, err := t.provider.payee.State(t.Context(), t.terms.ID())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (t *tab) accepted() uint64 { s := t.state(); return s.Accepted.Uint64() }

func (t *tab) spent() uint64 { s := t.state(); return s.Spent.Uint64() }

// payAll pays what the lease's records state until it has paid so much.
func (t *tab) payAll(atLeast uint64) (paid uint64) {
	t.Helper()
	for paid < atLeast {
		if paid = owedIn(t.record()); paid > 0 {
			t.pay(paid)
		}
	}
	return paid
}

// TestRestoredBeforeASettlement: a provider whose machine is restored from before a settlement serves nothing for what was
// settled since, whose voucher is public: the renter has its credit, as any, and pays for the rest anew.
func TestRestoredBeforeASettlement(t *testing.T) {
	t.Parallel()
	for _, since := range []string{"it ran on", "it ended", "another one began", "it was closed"} {
		t.Run(since, func(t *testing.T) {
			r := newRig(t, quiet, func(c *Config) { c.Terms.Credit, c.Terms.SuspendTimeout = 5*time.Second, 2*time.Second })
			lease := r.open(1, 500_000, "")
			lease.payAll(300)
			old := r.image()
			lease.again()
			paid := lease.payAll(lease.accepted() + 1500)
			if since != "it ran on" {
				lease.release()
			}
			if since == "another one began" {
				lease.attach(lease.comeBack(paid))
				paid = lease.payAll(paid + 500)
			}
			if since == "it was closed" {
				lease.close(paid)
			} else if err := r.provider.Settle(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.shut()
			old.Restore(t)
			r.start()
			if s := lease.state(); s.Spent.Uint64() < paid {
				t.Errorf("%d was settled, and %s is charged before anybody is served", paid, s.Spent.Dec())
			}
			if since == "it ran on" {
				if state := r.row(lease.lease.LeaseID).State; state != wire.StateEnded {
					t.Errorf("the lease that the copy has is %s: it would sign records again", state)
				}
			}
			resp := lease.comeBack(paid)
			if since == "it was closed" {
				if resp.StatusCode == http.StatusOK {
					t.Error("a channel that is closed is served")
				}
				return
			}
			lease.attach(resp)
			if before := lease.lease.OwedBefore.Uint64(); before < paid && lease.lease.State != wire.StateEnded {
				t.Errorf("a lease begins at %d, %d was settled", before, paid)
			}
			if lease.lease.State != wire.StateEnded {
				lease.status(leasestore.Ended) // unpaid
			}
			if s := lease.state(); s.Spent.Uint64() > paid+5000 {
				t.Errorf("%s was served, %d is paid and the credit is 5000", s.Spent.Dec(), paid)
			}
		})
	}
}

// TestSettledByThePayer: a payer that settles a voucher which it has not shown pays it once. It buys nothing, its lease ends,
// and the next voucher counts by what it adds.
func TestSettledByThePayer(t *testing.T) {
	r := newRig(t, quiet)
	lease := r.open(1, 500_000, "")
	paid := lease.payAll(300)
	const ahead = 50_000
	r.send(2, r.provider.escrow.SettleCall(lease.terms, *uint256.NewInt(ahead), lease.sign(lease.key, lease.terms, ahead)))
	lease.status(leasestore.Ended)
	waitFor(t, func() bool { return lease.spent() == ahead })
	if owed := lease.state().Owed(); !owed.IsZero() {
		t.Errorf("%s is owed of what the chain has paid", owed.Dec())
	}
	lease.attach(lease.comeBack(ahead + 700))
	if before := lease.lease.OwedBefore.Uint64(); before != ahead {
		t.Errorf("the next lease begins at %d, %d was settled and %d used", before, ahead, paid)
	}
	final := owedIn(lease.release())
	lease.pay(max(final, ahead+701))
	lease.close(max(final, ahead+701))
	if got := r.balance(r.config.Key.Address()); got != max(final, ahead+701) {
		t.Errorf("the payee has %d of %d", got, final)
	}
}

// TestRestoredAndReorganized: the settlement that a restored database did not know is undone by a re-org. What was charged
// for it stays charged, the same voucher pays it, and it is paid once.
func TestRestoredAndReorganized(t *testing.T) {
	a := newAnvilRig(t)
	lease := a.open(1, 500_000, "")
	lease.payAll(300)
	lease.release()
	old := a.image()
	lease.attach(lease.comeBack(lease.accepted()))
	paid := lease.payAll(lease.accepted() + 1500)
	final := owedIn(lease.release())
	paid = max(paid, final)
	lease.pay(paid)
	before := a.anvil.Head(t)
	if err := a.provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.shut()
	old.Restore(t)
	a.start()
	waitFor(t, func() bool { s := lease.state(); return s.Settled.Uint64() == paid && s.Spent.Uint64() == paid })
	if owed := lease.state().Owed(); !owed.IsZero() {
		t.Errorf("%s is owed of what the chain has paid", owed.Dec())
	}
	a.undo(before)
	waitFor(t, func() bool { s := lease.state(); return s.Settled.IsZero() })
	if s := lease.state(); s.Spent.Uint64() != paid {
		t.Errorf("charged %s, %d was served", s.Spent.Dec(), paid)
	}
	lease.pay(paid)
	if left := lease.state().Available(); !left.IsZero() {
		t.Errorf("%s can be used of what was used before", left.Dec())
	}
	lease.closeProven(paid)
	if got := a.balance(a.config.Key.Address()); got != paid {
		t.Errorf("the payee has %d, was paid %d", got, paid)
	}
}

// undo replaces all blocks after one by empty ones, and drops their transactions.
func (a *anvilRig) undo(after uint64) {
	a.Helper()
	a.anvil.RPC(a.T, nil, "anvil_reorg", a.anvil.Head(a.T)-after, []any{})
	a.anvil.RPC(a.T, nil, "anvil_dropAllTransactions")
	a.anvil.Mine(a.T, 1)
}

func (t *tab) closeProven(amount uint64) {
	t.Helper()
	cred := t.credential(wire.ActionClose, amount)
	var err error
	if cred.Payload.Proof, err = wire.Prove(t.Context(), t.key, t.terms, cred.Challenge.ID, wire.ActionClose); err != nil {
		t.Fatal(err)
	}
	if resp := t.do("POST", "", cred); resp.StatusCode != http.StatusOK {
		t.Fatal(wire.ParseProblem(resp))
	}
}
