package provider

import (
	"errors"
	"log/slog"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/internal/cluster"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/nodelink"
	"github.com/gpupay/gpupay/sdk/wire"
)

// onClock is a gateway's configuration for tests that set the server's clock.
func onClock(address string, takeover time.Duration) func(*Config) {
	return func(c *Config) {
		c.Database, c.Takeover, c.Terms.Credit, c.Log = address, takeover, time.Hour, slog.New(slog.DiscardHandler)
	}
}

// gatewayBeside is a second gateway of a rig's host.
func gatewayBeside(t *testing.T, a *rig, change func(*Config)) *rig {
	return rigOn(t, a.chain, func(*rig) *channel.Key { return a.payer }, change)
}

// kill ends a gateway that says nothing to its database any more.
func (r *rig) kill(line *wirecut) {
	r.Helper()
	line.set(true)
	r.server.CloseClientConnections()
	r.server.Close()
	r.stop()
	<-r.ran
	r.provider.Close()
	r.server = nil
}

// leads reports whether a gateway's work as the leader is under way.
func (r *rig) leads() bool { return r.provider.settlement.atWork.Load() != nil }

// leader is who leads, and since how many changes.
func (r *rig) leader() (row struct {
	Owner string
	Term  int64
}) {
	r.Helper()
	if err := r.provider.db.View().Get(&row, `SELECT owner, term FROM leaders`); err != nil {
		r.Fatal(err)
	}
	return row
}

func noOthers([]cluster.Kept) error { return nil }

func noRoute(common.Hash) bool { return false }

// TestServerClockSetBackKeepsNothingOfTheDead: what a gateway left that died, its lease, its lead, its claims and what
// it kept of the GPUs, others have soon, also where the server's clock was set back by an hour since.
func TestServerClockSetBackKeepsNothingOfTheDead(t *testing.T) {
	direct, set := pgtest.Clock(t)
	address, line := through(t, direct)
	a := newRig(t, onClock(address, 4*time.Second))
	lease := a.open(1, 500_000, "")
	last := lease.record()
	waitFor(t, a.leads)
	b := gatewayBeside(t, a, onClock(direct, 4*time.Second))
	const ttl = 3 * time.Second
	left := a.provider.store
	ok, err := left.Locks.Try(t.Context(), "close", "dead", ttl)
	if err = errors.Join(err, cluster.Reservations{DB: left.DB}.Keep(t.Context(), cluster.Reservation{ID: "dead", Pool: a.provider.capacity("").Pool(), Channel: "dead", GPUs: 1}, ttl, noOthers),
		a.provider.gateway.Devices().Keep(t.Context(), common.Hash{1}, []string{"ELSEWHERE"}, noRoute, ttl)); err != nil || !ok {
		t.Fatal(ok, err)
	}
	a.kill(line)
	set(-time.Hour)
	began := time.Now()
	waitFor(t, func() bool { return b.provider.leases.Running(lease.terms.ID()) != nil })
	waitFor(t, b.leads)
	waitFor(t, func() bool {
		kept, err := b.provider.reserved[""].Others(t.Context(), common.Hash{})
		return err == nil && len(kept) == 0
	})
	waitFor(t, func() bool {
		held, err := b.provider.gateway.Devices().Held(t.Context())
		return err == nil && len(held) == 1 // the lease's own
	})
	waitFor(t, func() bool {
		ok, err := b.provider.store.Locks.Try(t.Context(), "close", "living", ttl)
		return err == nil && ok
	})
	t.Logf("all of it after %s", time.Since(began).Round(10*time.Millisecond))
	there := lease.at(b)
	cred := there.credential(wire.ActionVoucher, 0)
	cred.Payload.LeaseSecret = lease.lease.Secret
	there.attach(b.do("GET", "", cred))
	waitFor(t, func() bool { return owedIn(there.record()) > owedIn(last) })
	final := lease.at(b).release()
	if s, err := b.provider.payee.State(t.Context(), lease.terms.ID()); err != nil || !final.Final || s.Spent != final.Owed {
		t.Errorf("charged %s, the final record says %s, %v", s.Spent.Dec(), final.Owed.Dec(), err)
	}
}

// TestServerClockSetBackRobsNobody: gateways that live keep their leases, their lead, their claims and what they keep of
// the GPUs when the server's clock is set back by an hour. When it is set right again, which looks as if all of them had been
// silent for an hour, their lease goes on at one of them, and nothing is billed twice.
func TestServerClockSetBackRobsNobody(t *testing.T) {
	direct, set := pgtest.Clock(t)
	const takeover, ttl = 4 * time.Second, time.Minute
	a := newRig(t, onClock(direct, takeover))
	opened := time.Now()
	lease := a.open(1, 500_000, "")
	lease.record()
	waitFor(t, a.leads)
	b := gatewayBeside(t, a, onClock(direct, takeover))
	row, led := lease.row(), a.leader()
	ok, err := a.provider.store.Locks.Try(t.Context(), "close", "living", ttl)
	if err = errors.Join(err, cluster.Reservations{DB: a.provider.db}.Keep(t.Context(), cluster.Reservation{ID: "living", Pool: a.provider.capacity("").Pool(), Channel: "living", GPUs: 1}, ttl, noOthers)); err != nil || !ok {
		t.Fatal(ok, err)
	}
	set(-time.Hour)
	for began := time.Now(); time.Since(began) < 2*takeover; time.Sleep(50 * time.Millisecond) {
		if now := lease.row(); now.Term != row.Term || now.Owner != row.Owner || b.provider.leases.Running(lease.terms.ID()) != nil {
			t.Fatalf("the lease was taken from a gateway that lives: %q in term %d, it was %q in %d", now.Owner, now.Term, row.Owner, row.Term)
		}
		if now := a.leader(); now != led {
			t.Fatalf("the lead was taken from a gateway that lives: %v, it was %v", now, led)
		}
		if ok, err := b.provider.store.Locks.Try(t.Context(), "close", "another", ttl); err != nil || ok {
			t.Fatalf("the claim of a gateway that lives was taken: %v", err)
		}
		if kept, err := b.provider.reserved[""].Others(t.Context(), common.Hash{}); err != nil || len(kept) != 1 {
			t.Fatalf("what a gateway that lives keeps was taken: %v, %v", kept, err)
		}
		lease.record()
	}
	b.provider.gateway.TryAgain()
	set(0)
	time.Sleep(2 * takeover)
	waitFor(t, func() bool {
		now := lease.row()
		return now.State == wire.StateActive && (now.Owner == a.provider.gateway.Identity() && a.provider.leases.Running(lease.terms.ID()) != nil) !=
			(now.Owner == b.provider.gateway.Identity() && b.provider.leases.Running(lease.terms.ID()) != nil)
	})
	final := lease.release()
	if s, err := b.provider.payee.State(t.Context(), lease.terms.ID()); err != nil || !final.Final || s.Spent != final.Owed {
		t.Errorf("charged %s, the final record says %s, %v", s.Spent.Dec(), final.Owed.Dec(), err)
	}
	if elapsed := time.Since(opened); final.Nanos > uint64(elapsed) {
		t.Errorf("%s are billed in %s", time.Duration(final.Nanos), elapsed)
	}
}

// TestGatewayTakesItsOwnLeasesBack: a gateway that could not reach the server for longer than Takeover goes on with its
// leases when it can, also where the server's clock was set back meanwhile: its old name, by which they are not its own, lives no more.
func TestGatewayTakesItsOwnLeasesBack(t *testing.T) {
	direct, set := pgtest.Clock(t)
	address, line := through(t, direct)
	a := newRig(t, onClock(address, 4*time.Second))
	lease := a.open(1, 500_000, "")
	lease.record()
	old, before := a.provider.leases.Running(lease.terms.ID()), a.provider.gateway.Identity()
	line.set(true)
	select {
	case <-old.Done:
	case <-time.After(time.Minute):
		t.Fatal("the lease goes on")
	}
	set(-time.Hour)
	line.set(false)
	began := time.Now()
	waitFor(t, func() bool { return a.provider.leases.Running(lease.terms.ID()) != nil })
	t.Logf("it has it back after %s", time.Since(began).Round(10*time.Millisecond))
	var ttl int64
	if err := a.provider.db.View().Get(&ttl, `SELECT ttl FROM gateways WHERE id = $1`, before); err != nil || ttl != 0 {
		t.Errorf("its old name lives on for %d ms: %v", ttl, err)
	}
	lease.again()
	lease.record()
	if final := lease.release(); !final.Final {
		t.Errorf("released: %+v", final.Record)
	}
}

// TestServerClockSetBackAfterAGoodEnd: what a gateway gave back as it stopped is free at once, whatever the server's clock
// does then.
func TestServerClockSetBackAfterAGoodEnd(t *testing.T) {
	direct, set := pgtest.Clock(t)
	const takeover = 30 * time.Second
	a := newRig(t, onClock(direct, takeover))
	lease := a.open(1, 500_000, "")
	lease.record()
	waitFor(t, a.leads)
	a.shut()
	set(-time.Hour)
	began := time.Now()
	b := gatewayBeside(t, a, onClock(direct, takeover))
	waitFor(t, func() bool { return b.provider.leases.Running(lease.terms.ID()) != nil && b.leads() })
	if took := time.Since(began); took > takeover-5*time.Second {
		t.Errorf("what was given back was taken after %s", took)
	}
}

// TestServerClockSetBackAndAnX402Request: a channel that a dead gateway served is served by another one soon.
func TestServerClockSetBackAndAnX402Request(t *testing.T) {
	direct, set := pgtest.Clock(t)
	r := newPayRig(t, func(c *Config) {
		onClock(direct, 4*time.Second)(c)
		c.Records.HighWater = filepath.Join(t.TempDir(), "signed")
	})
	b := r.buyer("/tick")
	if ok, err := r.provider.store.Locks.Try(t.Context(), "x402 "+b.terms.ID().Hex(), "dead", 3*time.Second); err != nil || !ok {
		t.Fatal(ok, err)
	}
	set(-time.Hour)
	paid := b.depositing(b.next(), 20_000)
	served := make(chan *http.Response, 1)
	go func() { served <- b.pay(paid) }()
	select {
	case resp := <-served:
		b.take(resp)
	case <-time.After(time.Minute):
		t.Error("a channel that a dead gateway served is served by nobody")
		set(0)
		<-served
	}
}

func openTables(t *testing.T, address string) *store.DB {
	t.Helper()
	db, err := database.Open(t.Context(), address, "provider", leasestore.Migrations, "migrations/provider")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// TestNodesOfAClockThatWasSetBack: a node that no gateway names any more keeps nobody of another kind out, and no GPU its
// own, for longer than it does when no clock was set back.
func TestNodesOfAClockThatWasSetBack(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"file", onPostgres} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			now, clock := time.Now(), func(time.Duration) {}
			address := filepath.Join(t.TempDir(), "provider.db")
			if name == onPostgres {
				address, clock = pgtest.Clock(t)
			}
			s := nodelink.Enlistments{DB: openTables(t, address)}
			at := func(ahead time.Duration, node, model string) (refused string) {
				t.Helper()
				clock(ahead)
				heard := map[string][]metering.Device{node: {{UUID: sim.UUID(0), Name: model, MemoryBytes: 1}}}
				why, err := s.Enlist(t.Context(), now.Add(ahead), []string{node}, heard)
				if err != nil {
					t.Fatal(err)
				}
				return why.Refused[node]
			}
			if why := at(0, "gone", "One GPU"); why != "" {
				t.Fatal(why)
			}
			if why := at(-time.Hour, "another", "Another GPU"); why == "" {
				t.Error("a node whose gateway may name it soon was forgotten")
			}
			if why := at(-time.Hour+nodelink.EnlistedFor+time.Second, "another", "Another GPU"); why != "" {
				t.Error(why)
			}
			if why := at(-2*time.Hour, "another", "Another GPU"); why != "" {
				t.Error(why)
			}
		})
	}
}
