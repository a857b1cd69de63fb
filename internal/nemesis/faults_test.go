package nemesis

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
)

// fault is one thing that the nemesis does. It is over when do returns.
type fault struct {
	name string
	do   func(rng *rand.Rand)
}

// faults are what can be done to this fleet.
func (w *world) faults() []fault {
	all := []fault{
		{"kill a gateway", w.killGateway},
		{"stop a gateway past its terms", w.stopGateway},
		{"the chain is away for one gateway", w.chainAway},
		{"PostgreSQL is away for all", w.booksAway},
	}
	return all
}

func (w *world) one(rng *rand.Rand) *gateway { return w.gateways[rng.IntN(len(w.gateways))] }

func while(rng *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(rng.Int64N(int64(most-least)))
}

func (w *world) killGateway(rng *rand.Rand) {
	g := w.one(rng)
	w.tell("gateway %s", g.name)
	g.Kill()
	_ = pause(w.ctx, while(rng, 0, 2*term))
	g.Start()
}

// stopGateway: another one must take its leases, and it must notice that when it goes
// on.
func (w *world) stopGateway(rng *rand.Rand) {
	g := w.one(rng)
	w.tell("gateway %s", g.name)
	g.Signal(syscall.SIGSTOP)
	_ = pause(w.ctx, while(rng, term, 2*term))
	w.comes("a gateway takes the leases of one that is stopped", w.living)
	g.Signal(syscall.SIGCONT)
}

// living reports whether all leases are run by gateways that live.
func (w *world) living() (bool, string) {
	var orphans int
	err := w.db.View().GetContext(w.ctx, &orphans, `SELECT count(*) FROM leases WHERE state <> 'ended' AND NOT EXISTS
		(SELECT 1 FROM gateways g WHERE g.id = leases.owner AND g.expires > (extract(epoch FROM clock_timestamp()) * 1000)::bigint)`)
	return err == nil && orphans == 0, fmt.Sprintf("%d leases are run by nobody, %v", orphans, err)
}

// chainAway: whoever has an endpoint that answers must settle what was acknowledged.
func (w *world) chainAway(rng *rand.Rand) {
	g := w.one(rng)
	apart := g.rpc.Cut
	if rng.IntN(2) == 0 {
		apart = g.rpc.Freeze
	}
	w.tell("gateway %s", g.name)
	before, err := w.db.Payee().Unsettled(w.ctx)
	if err != nil {
		w.Fatal(err)
	}
	apart(true)
	defer apart(false)
	_ = pause(w.ctx, while(rng, term, 2*term))
	w.comes("what was acknowledged is settled by a gateway whose endpoint answers", func() (bool, string) { return w.fetched(before) })
}

// fetched reports whether the chain has what was accepted once.
func (w *world) fetched(before []channel.State) (bool, string) {
	ids := make([]common.Hash, len(before))
	for i, s := range before {
		ids[i] = s.ID
	}
	if len(ids) == 0 {
		return true, ""
	}
	views, err := w.views(ids)
	if err != nil {
		return false, err.Error()
	}
	var left []string
	for _, s := range before {
		if view := views[s.ID]; view.Settled.Lt(&s.Accepted) {
			left = append(left, fmt.Sprintf("%s of %s on channel %s", view.Settled.Dec(), s.Accepted.Dec(), s.ID))
		}
	}
	return len(left) == 0, strings.Join(left, ", ")
}

// booksAway: nobody meters, and nobody may be served for longer than the credit.
func (w *world) booksAway(rng *rand.Rand) {
	var running []string
	if err := w.db.View().SelectContext(w.ctx, &running, `SELECT id FROM leases WHERE state = 'active' AND EXISTS (SELECT 1 FROM records WHERE lease = leases.id)`); err != nil {
		w.Fatal(err)
	}
	frozen := rng.IntN(2) == 0
	for _, g := range w.gateways {
		if frozen {
			g.books.Freeze(true)
			defer g.books.Freeze(false)
		} else {
			g.books.Cut(true)
			defer g.books.Cut(false)
		}
	}
	w.comes("while PostgreSQL is away nobody is served beyond the credit", func() (bool, string) { return w.suspended(running) })
}

// suspended reports whether no lease of some has its devices.
func (w *world) suspended(leases []string) (bool, string) {
	events, err := Events(w.folder)
	if err != nil {
		return false, err.Error()
	}
	serves := make(map[string]*service)
	for _, e := range events {
		if serves[e.Lease] == nil {
			serves[e.Lease] = &service{}
		}
		serves[e.Lease].saw(e)
	}
	var left []string
	for _, id := range leases {
		if s := serves[id]; s != nil && s.since != 0 {
			left = append(left, id+":"+s.story)
		}
	}
	return len(left) == 0, strings.Join(left, "; ")
}
