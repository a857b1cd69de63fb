package provider

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestLeaseThatDidNotBeginCostsNothing: a lease that its node began, and its gateway could not, as its disk failed, is charged to nobody: its
// renter was told nothing of it, would begin the next one with more owed than it knows, and take an honest provider for a cheat.
func TestLeaseThatDidNotBeginCostsNothing(t *testing.T) {
	t.Parallel()
	for name, refused := range map[string]string{
		"one read fails":   "",
		"and writes do":    `NEW.allocation = '{}'`, // that it did not begin
		"its end is later": `NEW.state = 'ended'`,
		"its end stops":    `NEW.state = 'ending'`,
	} {
		t.Run(name, func(t *testing.T) {
			o := newOutpost(t)
			r := newRig(t, quiet, o.link, generousCredit, func(c *Config) { c.Commands.Timeout = 2 * time.Second }) // so often strays are looked for
			owing, begun := r.provider.leases.Owing, atomic.Bool{}
			r.provider.leases.Owing = func(ctx context.Context, payer common.Address) ([]channel.State, error) {
				if begun.Swap(true) {
					return owing(ctx, payer)
				}
				if refused == "" {
					return nil, errors.New("disk I/O error")
				}
				err := r.provider.db.Update(ctx, func(tx *sqlx.Tx) error {
					_, err := tx.Exec(`CREATE TRIGGER fails BEFORE UPDATE ON leases WHEN ` + refused + ` BEGIN SELECT RAISE(ABORT, 'disk I/O error'); END`)
					return err
				})
				return nil, errors.Join(errors.New("disk I/O error"), err)
			}
			next := &tab{rig: r, key: r.payer, terms: r.terms(r.payer.Address(), 1)}
			if resp := r.do("GET", "", r.openCredential(r.payer, next.terms, 300_000, 0)); resp.StatusCode != http.StatusInternalServerError {
				t.Fatal(resp.Status)
			}
			row, ok, err := r.provider.store.Leases.Newest(t.Context(), next.terms.ID())
			if err != nil || !ok {
				t.Fatal(ok, err)
			}
			id := common.HexToHash(row.ID)
			if refused != "" {
				o.await(id, 1)
				r.sql(`DROP TRIGGER fails`)
			}
			eventually(t, "it has ended, here and at its node", func() bool { return o.collected(r, id) })
			if row, err = r.provider.store.Leases.ByID(t.Context(), row.ID); err != nil || row.Sequence != 0 || row.Reason != "it could not be begun" {
				t.Errorf("%d records, ended because %q: %v", row.Sequence, row.Reason, err)
			}
			resp := next.comeBack(0)
			if resp.StatusCode != http.StatusOK {
				t.Fatal(resp.Status, wire.ParseProblem(resp))
			}
			next.attach(resp)
			if s, err := r.provider.payee.State(t.Context(), next.terms.ID()); err != nil || !next.lease.OwedBefore.IsZero() || next.lease.LeaseID == id {
				t.Errorf("the next lease begins with %s owed, and the channel is charged %s: %v", next.lease.OwedBefore.Dec(), s.Spent.Dec(), err)
			}
		})
	}
}

// TestStrayThatRanIsBilled: a lease at a node that its gateway let go of, and that nobody runs, ends with what it used taken over and charged.
func TestStrayThatRanIsBilled(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, quiet, o.link, generousCredit, func(c *Config) { c.Commands.Timeout = 2 * time.Second })
	lease := r.open(1, 300_000, "")
	first := lease.record()
	r.provider.leases.Running(lease.terms.ID()).Relinquish()
	o.goesOn(lease.lease.LeaseID, first.Nanos)
	eventually(t, "it is collected", func() bool { return o.collected(r, lease.lease.LeaseID) })
	if last := o.told(r, lease.lease.LeaseID); !last.Final || last.Nanos <= first.Nanos {
		t.Errorf("billed are %d ns, final %t; its renter heard of %d before", last.Nanos, last.Final, first.Nanos)
	}
}

// TestLeaseThatDidNotBeginIsNotTakenUp: a lease of which its renter was told that it could not begin, and whose end could not be written, is ended
// by the next process, and costs nothing.
func TestLeaseThatDidNotBeginIsNotTakenUp(t *testing.T) {
	r := newRig(t, quiet, generousCredit)
	r.provider.leases.Owing = func(context.Context, common.Address) ([]channel.State, error) {
		r.sql(`CREATE TRIGGER fails BEFORE UPDATE ON leases BEGIN SELECT RAISE(ABORT, 'disk I/O error'); END`)
		return nil, errors.New("disk I/O error")
	}
	terms := r.terms(r.payer.Address(), 1)
	if resp := r.do("GET", "", r.openCredential(r.payer, terms, 300_000, 0)); resp.StatusCode != http.StatusInternalServerError {
		t.Fatal(resp.Status)
	}
	r.sql(`DROP TRIGGER fails`)
	r.restart()
	row, ok, err := r.provider.store.Leases.Newest(t.Context(), terms.ID())
	if err != nil || !ok || row.State != wire.StateEnded || row.Reason != "it could not be begun" || row.Sequence != 0 || row.Held != 0 {
		t.Errorf("%s because %q, %d records: %v", row.State, row.Reason, row.Sequence, err)
	}
	(&tab{rig: r, key: r.payer, terms: terms}).attachNow()
}

// TestForgottenRecordsOfANode: a database that has lost the newest records of a lease which a node meters, as after a fail-over to a server that is
// behind, has them from the node once more: the lease is taken up again, goes on, and each is there.
func TestForgottenRecordsOfANode(t *testing.T) {
	o := newOutpost(t)
	address := pgtest.URL(t)
	r := newRig(t, quiet, o.link, generousCredit, func(c *Config) { c.Database, c.Takeover, c.Commands.Timeout = address, 4*time.Second, time.Second })
	lease := r.open(1, 500_000, "")
	for range 5 {
		lease.record()
	}
	err := r.provider.db.Update(t.Context(), func(tx *sqlx.Tx) error {
		_, err := tx.Exec(`DELETE FROM records WHERE sequence > 2`)
		if err == nil {
			_, err = tx.Exec(`UPDATE leases SET sequence = 2`)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the records that were lost, and more", func() bool {
		var n int64
		err := r.provider.db.View().GetContext(t.Context(), &n, `SELECT count(*) FROM records`)
		row := r.row(lease.lease.LeaseID)
		return err == nil && (row.State != wire.StateActive || n > 8 && row.Sequence == n)
	})
	if row := r.row(lease.lease.LeaseID); row.State != wire.StateActive {
		t.Errorf("the lease is %s: %s", row.State, row.Reason)
	}
}
