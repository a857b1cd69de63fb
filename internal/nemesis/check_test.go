package nemesis

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/fleet"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
)

// views are the channels as the chain has them.
func (w *world) views(ids []common.Hash) (map[common.Hash]channel.ChainView, error) {
	escrow, err := chain.NewEscrow(w.ctx, w.chain.Backend, w.chain.Escrow)
	if err != nil {
		return nil, err
	}
	list, err := escrow.Views(w.ctx, ids)
	if err != nil {
		return nil, err
	}
	all := make(map[common.Hash]channel.ChainView, len(ids))
	for i, id := range ids {
		all[id] = list[i]
	}
	return all, nil
}

// settled waits until the chain has paid what is accepted.
func (w *world) settled() {
	w.comes("everything that was accepted is settled", func() (bool, string) {
		left, err := w.db.Payee().Unsettled(w.ctx)
		if err != nil || len(left) > 0 {
			return false, fmt.Sprintf("%d channels are not, %v", len(left), err)
		}
		return true, ""
	})
}

// check holds what everybody saw against each other.
func (w *world) check() {
	all := w.allRentals()
	ids := make([]common.Hash, len(all))
	for i, r := range all {
		ids[i] = r.Terms.ID()
	}
	views, err := w.views(ids)
	if err != nil {
		w.Fatal(err)
	}
	served := w.checkDevices()
	var paid, kept uint64
	for _, r := range all {
		view := views[r.Terms.ID()]
		paid += view.Settled.Uint64()
		if !view.Finalized {
			kept += view.Deposit.Uint64() - view.Settled.Uint64()
		}
		w.checkMoney(r, view)
		w.checkLease(r, served)
	}
	for _, u := range w.users {
		paid += u.check(w)
	}
	if got := w.chain.Tokens(w.T, w.payee()); got != paid {
		w.breaks("the payee has %d, its channels settled %d", got, paid)
	}
	if got := w.chain.Tokens(w.T, w.chain.Escrow); got != kept {
		w.breaks("the escrow holds %d, its channels hold %d", got, kept)
	}
	var sent uint64
	if err := w.db.View().GetContext(w.ctx, &sent, `SELECT count(*) FROM chain_tx`); err != nil {
		w.Fatal(err)
	}
	if nonce, err := w.chain.Backend.NonceAt(w.ctx, w.payee(), nil); err != nil || nonce != sent {
		w.breaks("%d transactions in the outbox, %d on the chain (%v)", sent, nonce, err)
	}
}

// checkMoney: nothing acknowledged is lost, nothing is paid that was not signed, and
// what the payer put in is settled, refunded or still there.
func (w *world) checkMoney(r *rental, view channel.ChainView) {
	id := r.Terms.ID()
	s, err := w.db.Payee().Load(w.ctx, id)
	if err != nil {
		w.breaks("channel %s: %v", id, err)
		return
	}
	switch settled := view.Settled.Uint64(); {
	case s.Accepted.LtUint64(r.acked):
		w.breaks("channel %s: acknowledged %d, kept %s", id, r.acked, s.Accepted.Dec())
	case settled < r.acked:
		w.breaks("channel %s: acknowledged %d, settled %d", id, r.acked, settled)
	case settled > r.signed: // more than was acknowledged may be: an answer is lost where its voucher is not
		w.breaks("channel %s: signed %d, settled %d", id, r.signed, settled)
	case view.Settled != s.Accepted: // also behind a close, which leaves no accepted voucher out
		w.breaks("channel %s: accepted %s, settled %d", id, s.Accepted.Dec(), settled)
	case view.Finalized != r.closed:
		w.breaks("channel %s: closed %t, finalized %t", id, r.closed, view.Finalized)
	}
	want := uint64(0)
	if view.Finalized {
		want = fleet.Deposit - view.Settled.Uint64()
	}
	if left := w.chain.Tokens(w.T, r.Terms.Payer); left != want {
		w.breaks("channel %s: its payer has %d, not %d", id, left, want)
	}
	// Without a final record the renter knows only what it signed; checkLease has the gateways' own.
	if r.Final.Final && s.Spent != r.Final.Owed {
		w.breaks("channel %s: charged %s, the final record says %s", id, s.Spent.Dec(), r.Final.Owed.Dec())
	}
}

// reasons are those for which a lease may end whose renter asked for it, where it has no
// final record: its node was away, or the answer with it was lost.
var reasons = []string{"released by the renter", "closed by the renter", "its final record was written"}

// checkPaid: no lease ends whose renter has not asked for it.
func (w *world) checkPaid() {
	var ended []struct{ ID, Channel, Reason string }
	if err := w.db.View().SelectContext(w.ctx, &ended, `SELECT id, channel, reason FROM leases WHERE state IN ('ending', 'ended')`); err != nil {
		w.breaks("what has ended cannot be read: %v", err)
	}
	renters := make(map[string]*rental)
	for _, r := range w.allRentals() {
		renters[r.Terms.ID().Hex()] = r
	}
	for _, l := range ended {
		r := renters[l.Channel]
		if r == nil || r.askedFor() || slices.Contains(unborn, l.Reason) {
			continue // a program asks by itself
		}
		w.breaks("lease %s of channel %s, whose renter did not ask for that, has ended: %q", l.ID, l.Channel, l.Reason)
	}
}

// unborn are reasons for which a lease ends before its renter has it.
var unborn = []string{"not allocated", "not started", "it was not allocated yet"}

// checkLease: one chain of records, up to the one that the renter was given; nothing
// is billed that was not served; and no lease ends whose renter pays.
func (w *world) checkLease(r *rental, served map[string]service) {
	id := r.Terms.ID()
	var leases []struct{ ID, State, Reason string }
	db := w.db.View()
	if err := db.SelectContext(w.ctx, &leases, db.Rebind(`SELECT id, state, reason FROM leases WHERE channel = ?`), id.Hex()); err != nil {
		w.Fatal(err)
	}
	var owed uint256.Int
	if r.over && !r.Final.Final && len(w.hosts) == 0 { // who ends a lease while its node is away gets the newest that is known
		w.breaks("channel %s: its renter has no final record", id)
	}
	for _, l := range leases {
		var rows []string
		if err := db.SelectContext(w.ctx, &rows, db.Rebind(`SELECT record FROM records WHERE lease = ? ORDER BY sequence`), l.ID); err != nil {
			w.Fatal(err)
		}
		records, err := fleet.Records(metering.Domain(r.Terms.ChainID, r.Terms.Escrow), rows)
		if err != nil {
			w.breaks("channel %s: %v", id, err)
		}
		final := len(records) > 0 && records[len(records)-1].Final // whoever goes on with its end may give another reason
		asked := r.released && (final || slices.Contains(reasons, l.Reason))
		born := len(records) > 0 || !slices.Contains(unborn, l.Reason)
		if born && !asked || l.State != "ended" {
			w.breaks("lease %s of channel %s, which paid, is %s: %q", l.ID, id, l.State, l.Reason)
		}
		if len(records) == 0 {
			continue
		}
		last := records[len(records)-1]
		if len(w.hosts) == 0 && last.Owed.Gt(&owed) { // of what a node tells late no more is charged than until the end that was asked for
			owed = last.Owed
		}
		if last.LeaseID == r.Final.LeaseID && r.Final.Final && last.Record != r.Final.Record {
			w.breaks("channel %s: the renter's final record is not the newest", id)
		}
		if s := served[strings.ToLower(l.ID)]; int64(last.Nanos) > s.nanos {
			w.breaks("lease %s: billed for %d ms, served for %d ms:%s", l.ID, last.Nanos/1e6, s.nanos/1e6, s.story)
		}
	}
	if s, err := w.db.Payee().Load(w.ctx, id); len(w.hosts) == 0 && (err != nil || s.Spent != owed) {
		w.breaks("channel %s: charged %s, its newest record says %s (%v)", id, s.Spent.Dec(), owed.Dec(), err)
	}
}

// service is for how long a lease had its devices.
type service struct {
	nanos int64
	since int64 // it has them now; 0: it does not
	gone  bool  // given back
	story string
}

// served adds up what the devices saw.
func (s *service) saw(e Event) {
	s.story += fmt.Sprintf(" %s/%d", e.Verb, e.Term)
	if e.Fenced {
		s.story += " fenced"
		return
	}
	s.story += fmt.Sprintf("@%d", e.At/1e6%1e6)
	if s.since != 0 && e.Verb != "resume" {
		s.nanos += e.At - s.since
		s.since = 0
	}
	if s.since == 0 && (e.Verb == "allocate" || e.Verb == "resume") {
		s.since = e.At
	}
	s.gone = s.gone || e.Verb == "release"
}

// deposed is an owner that lost a lease while its devices were suspended, before
// anything came that they could be resumed for.
type deposed struct {
	lease string
	term  int64
	since int64 // unix nanoseconds
}

// checkDevices: a device is in one lease at a time, and does nothing for it when it was
// taken from it.
func (w *world) checkDevices() map[string]service {
	events, err := Events(w.folder)
	if err != nil {
		w.Fatal(err)
	}
	holder, leases := make(map[string]string), make(map[string]*service)
	for _, e := range events {
		s := leases[e.Lease]
		if s == nil {
			s = &service{}
			leases[e.Lease] = s
		}
		if s.gone && (e.Verb == "allocate" || e.Verb == "resume") && !e.Fenced {
			w.breaks("lease %s: %s after its devices were taken back:%s", e.Lease, e.Verb, s.story)
		}
		s.saw(e)
		for _, d := range w.deposed {
			if e.Lease == d.lease && e.Verb == "resume" && e.Term <= d.term && e.At > d.since {
				w.breaks("lease %s: an owner of term %d resumes it, which was told to by what came after another one had it:%s", d.lease, e.Term, s.story)
			}
		}
		for _, device := range e.Devices {
			other := holder[device]
			switch {
			case e.Fenced: // it did nothing
			case other != "" && other != e.Lease:
				w.breaks("%s of lease %s: device %s is in lease %s", e.Verb, e.Lease, device, other)
			case e.Verb == "allocate":
				holder[device] = e.Lease
			case e.Verb == "release": // again where nobody has it since: that it worked is lost with who knew it
				delete(holder, device)
			}
		}
	}
	all := make(map[string]service, len(leases))
	for lease, s := range leases {
		all[strings.ToLower(lease)] = *s
	}
	return all
}
