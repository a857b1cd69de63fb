package provider

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/sdk/internal/gateways"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/nodelink"
	"github.com/gpupay/gpupay/sdk/internal/remote"
	"github.com/gpupay/gpupay/sdk/internal/spool"
	"github.com/gpupay/gpupay/sdk/wire"
)

// spoken is what a node keeps of what it was told of a lease.
func (o *outpost) spoken(id common.Hash) spool.Row {
	o.Helper()
	row, err := o.disk.Get(o.Context(), o.disk.DB.View(), id)
	if err != nil {
		o.Fatal(err)
	}
	return row
}

// speak says something of a lease to the node, in a term; a negative one is left out, as by a gateway from before.
func (o *outpost) speak(path string, term int64, body string) int {
	o.Helper()
	if term >= 0 {
		body = fmt.Sprintf(`{"term":%d,%s`, term, body[1:])
	}
	return o.knock("POST", path, []byte(body)).StatusCode
}

// editSpool changes the spool of a node that is stopped.
func (o *outpost) editSpool(query string) {
	o.Helper()
	spool, err := spool.Open(o.Context(), o.config.Database)
	if err != nil {
		o.Fatal(err)
	}
	defer spool.DB.Close()
	if err := spool.DB.Update(o.Context(), func(tx *sqlx.Tx) error { _, err := tx.Exec(query); return err }); err != nil {
		o.Fatal(err)
	}
}

// beginning is what a node hears at the beginning of a lease on a tab's channel.
func (t *tab) beginning(id common.Hash, written int64) string {
	t.Helper()
	offer, err := t.provider.store.Offers.Get(t.Context(), common.HexToHash(t.row().Offer))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(map[string]any{"leaseId": id, "terms": t.terms, "offer": json.RawMessage(offer.Document), "gpus": 1,
		"owedBefore": "0", "accepted": "0", "deposit": "100000", "writtenAt": written})
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// TestOldTermIsNotHeard: a gateway of an older term than one that a node has heard of raises no voucher there, takes no record,
// ends no lease and begins none, also after the node was restarted. One from before there were terms is believed, and a spool from
// before a take-over learns of it from whoever runs the lease.
func TestOldTermIsNotHeard(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, quiet, generousCredit, o.link)
	lease := r.open(1, 100_000, "")
	lease.record()
	id := lease.lease.LeaseID
	path := "/leases/" + id.Hex()
	begin := lease.beginning(id, lease.row().StartedAt)
	r.shut() // from here on the gateways are ours
	o.await(id, 3)
	sync := func(accepted, after int) string {
		return fmt.Sprintf(`{"accepted":"%d","deposit":"%d","after":%d}`, accepted, 100_000+accepted, after)
	}
	restored := func() { o.editSpool(`UPDATE spool SET owner_term = 1`) }
	for _, step := range []struct {
		what  string
		first func() // while the node is down
		path  string
		term  int64
		body  string
		code  int
		want  string // accepted, delivered
	}{
		{"who began it", nil, "/sync", 1, sync(1, 1), 200, "1, 1"},
		{"who took it over", nil, "/sync", 2, sync(2, 2), 200, "2, 2"},
		{"who began it, awake again", nil, "/sync", 1, sync(9, 3), 409, "2, 2"},
		{"the same, of records that nobody has", nil, "/sync", 1, sync(9, 1_000_000), 409, "2, 2"},
		{"the same, at its end", nil, "/end", 1, `{"reason":"it was long asleep"}`, 409, "2, 2"},
		{"the same, after its end", nil, "/end", 1, `{"reason":"it was long asleep","closed":true}`, 409, "2, 2"},
		{"the same, at its beginning", nil, "", 1, begin, 409, "2, 2"},
		{"the owner", nil, "/sync", 2, sync(3, 2), 200, "3, 2"},
		{"who began it, after a restart of the node", func() {}, "/sync", 1, sync(9, 3), 409, "3, 2"},
		{"who takes it over by asking again", nil, "", 4, begin, 200, "3, 2"},
		{"the last owner", nil, "/sync", 2, sync(9, 3), 409, "3, 2"},
		{"a gateway from before", nil, "/sync", -1, sync(4, 2), 200, "4, 2"},
		{"the owner, at a spool of yesterday", restored, "/sync", 4, sync(5, 3), 200, "5, 3"},
		{"the last owner, at the same", nil, "/end", 2, `{"reason":"it was long asleep"}`, 409, "5, 3"},
		{"the owner ends it", nil, "/end", 4, `{"reason":"its renter gave it back"}`, 200, "5, 3"},
		{"the last owner begins it anew", nil, "", 2, begin, 409, "5, 3"},
		{"the next one begins it anew", nil, "", 5, begin, 410, "5, 3"},
	} {
		if step.first != nil {
			o.stop()
			step.first()
			o.start()
		}
		at := path + step.path
		if step.path == "" {
			at = "/leases"
		}
		code := o.speak(at, step.term, step.body)
		row := o.spoken(id)
		if got := fmt.Sprintf("%s, %d", row.Accepted, row.Delivered); code != step.code || got != step.want {
			t.Errorf("%s: answered %d, and the node has %s; want %d and %s", step.what, code, got, step.code, step.want)
		}
		if lease, _ := o.spooled(id); (lease.State == wire.StateEnded) != (lease.Reason == "its renter gave it back") {
			t.Errorf("%s: the lease is %s: %s", step.what, lease.State, lease.Reason)
		}
	}
}

// TestLateBeginningEndsNoNewerLease: a gateway that was stopped while it began a lease, and asks its node for it when its renter has
// begun another one on the channel, ends that one not; the next lease of the channel does.
func TestLateBeginningEndsNoNewerLease(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, quiet, generousCredit, o.link)
	lease := r.open(1, 100_000, "")
	lease.record()
	id, written := lease.lease.LeaseID, lease.row().StartedAt
	late, next := common.Hash{1}, common.Hash{2}
	lateBegin, nextBegin := lease.beginning(late, written-1), lease.beginning(next, written+1)
	r.shut()
	code := o.speak("/leases", 1, lateBegin)
	row, before := o.spooled(id)
	if code != 409 || row.State == wire.StateEnded {
		t.Errorf("answered %d, and the lease that runs is %s: %s", code, row.State, row.Reason)
	}
	o.await(id, len(before)+1) // it is metered on
	code = o.speak("/leases", 1, nextBegin)
	if row, _ := o.spooled(id); code != 200 || row.State != wire.StateEnded {
		t.Errorf("the next one: answered %d, and the one before is %s", code, row.State)
	}
}

// TestGatewayLetsGoOfWhatItsNodeRefuses: a gateway that was stopped while another one took its lease over lets go of it where the
// node refuses what it says, and ends nothing. One whose database is a copy from before the take-over takes the lease up again in a
// newer term, once.
func TestGatewayLetsGoOfWhatItsNodeRefuses(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, quiet, generousCredit, o.link, func(c *Config) { c.Database, c.Takeover = pgtest.URL(t), time.Hour })
	rented := r.open(1, 100_000, "")
	rented.record()
	id, row := rented.lease.LeaseID, rented.row()
	n, path := r.provider.nodes, "/leases/"+id.Hex()+"/sync"
	hears := func(term int64) {
		t.Helper()
		if code := o.speak(path, term, `{"accepted":"0","deposit":"100000","after":0}`); code != 200 {
			t.Fatalf("answered %d", code)
		}
	}
	asleep := func() *lease.Lease {
		t.Helper()
		s, err := r.provider.payee.State(t.Context(), rented.terms.ID())
		if err != nil {
			t.Fatal(err)
		}
		l, err := gateways.Image(t.Context(), &r.provider.leases, row, s)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	syncs, ends := asleep(), asleep()
	r.sql(`UPDATE leases SET term = term + 1, owner = 'another' WHERE id = ?`, id.Hex())
	hears(row.Term + 1)
	waitFor(t, func() bool { return r.provider.leases.Running(rented.terms.ID()) == nil })
	a, err := row.Allocated()
	if err != nil {
		t.Fatal(err)
	}
	for what, does := range map[string]func() error{
		"sync":      func() error { _, err := syncs.Remote.(*remote.Lease).Sync(t.Context()); return err },
		"collect":   func() error { return ends.Remote.Collect(t.Context(), lease.Stop{Reason: "it was long asleep"}) },
		"release":   func() error { return n.Release(t.Context(), a) },
		"take over": func() error { return n.TakeOver(t.Context(), n.Client("north"), row) },
		"end": func() error {
			return n.End(t.Context(), n.Client("north"), id, nodelink.End{Reason: "it was long asleep", Fence: nodelink.InTerm(row.Term)})
		},
	} {
		if err := does(); !errors.Is(err, leasestore.ErrNotOwner) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if there, _ := o.spooled(id); !syncs.Fence.Lost.Load() || !ends.Fence.Lost.Load() || there.State != wire.StateActive || rented.row().Term != row.Term+1 {
		t.Errorf("it has let go: %t, %t; at its node the lease is %s, in the table in term %d", syncs.Fence.Lost.Load(), ends.Fence.Lost.Load(), there.State, rented.row().Term)
	}

	r.sql(`UPDATE leases SET term = 1, owner = ?, started_at = started_at - 100000000000 WHERE id = ?`, r.provider.gateway.Identity(), id.Hex())
	hears(7)
	sweeps := func() {
		t.Helper()
		if err := r.provider.gateway.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, func() bool {
		sweeps()
		return o.spoken(id).Term > 7 && rented.row().Term == o.spoken(id).Term
	})
	before, _ := o.spooled(id)
	waitFor(t, func() bool { return rented.row().Sequence > before.Sequence })
	row = rented.row()
	hears(50)
	if _, err := asleep().Remote.(*remote.Lease).Sync(t.Context()); !errors.Is(err, &nodelink.Deposed) || errors.Is(err, leasestore.ErrNotOwner) || rented.row().Term != row.Term {
		t.Errorf("a node that names ever newer terms: %v, in term %d", err, rented.row().Term)
	}
}
