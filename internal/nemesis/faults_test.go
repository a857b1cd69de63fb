package nemesis

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/fleet"
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
		{"the chain is away for each gateway in turn", w.chainAway},
		{"links to PostgreSQL break while leases change hands", w.wornBooks},
		{failingTakeovers, w.failTakeovers},
		{"renters' links break", w.wornRenters},
		{"PostgreSQL crashes", w.crashBooks},
		{"PostgreSQL is away for all", w.booksAway},
		{"PostgreSQL fails over to its standby", w.failOver},
		{"PostgreSQL's clock is set back", w.clockBack},
		{"a gateway's clock is set", w.setGatewayClock},
	}
	if len(w.hosts) == 0 { // a node keeps its own time
		return append(all, fault{"PostgreSQL's clock is set ahead", w.clockAhead})
	}
	return append(all, fault{"kill a node", w.killNode}, fault{"stop a node", w.stopNode},
		fault{"a node's clock is set", w.setNodeClock}, fault{"a node is cut off", w.nodeAway}, fault{"a node's disk is full", w.fullDisk})
}

func (w *world) one(choose func(int) int) *gateway { return w.gateways[choose(len(w.gateways))] }

func while(rng *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(rng.Int64N(int64(most-least)))
}

func (w *world) killGateway(rng *rand.Rand) {
	g := w.one(rng.IntN)
	w.tell("gateway %s", g.name)
	g.Kill()
	_ = pause(w.ctx, while(rng, 0, 2*term))
	g.Start()
}

// stopGateway: another one must take its leases, and it must notice that when it goes
// on.
func (w *world) stopGateway(rng *rand.Rand) {
	g := w.one(rng.IntN)
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
		(SELECT 1 FROM gateways g WHERE g.id = leases.owner AND g.expires - (extract(epoch FROM clock_timestamp()) * 1000)::bigint BETWEEN 1 AND $1)`,
		term.Milliseconds())
	return err == nil && orphans == 0, fmt.Sprintf("%d leases are run by nobody, %v", orphans, err)
}

// chainAway: whoever has an endpoint that answers must settle what was acknowledged.
func (w *world) chainAway(rng *rand.Rand) {
	for _, g := range w.gateways {
		w.tell("gateway %s", g.name)
		g.rpc.Freeze(true)
		_ = pause(w.ctx, while(rng, term, 2*term))
		before, err := w.db.Payee().Unsettled(w.ctx)
		if err != nil {
			w.Fatal(err)
		}
		kept := w.comes("what was acknowledged is settled by a gateway whose endpoint answers", func() (bool, string) { return w.fetched(before) })
		g.rpc.Freeze(false)
		if !kept {
			return
		}
		g.rpc.Cut(true) // now it knows that it cannot
		_ = pause(w.ctx, while(rng, 0, term))
		g.rpc.Cut(false)
	}
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
	running := w.running()
	ahead := w.ahead()
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
	w.tell("%s of it are paid in advance", ahead)
	_ = pause(w.ctx, ahead)
	w.comes("while PostgreSQL is away nobody is served beyond the credit", func() (bool, string) { return w.suspended(running) })
}

// ahead is how much of a lease's time is paid in advance, at most: renters pay for all
// that passes, also while nobody meters.
func (w *world) ahead() (most time.Duration) {
	var channels []string
	if err := w.db.View().SelectContext(w.ctx, &channels, `SELECT channel FROM leases WHERE state = 'active'`); err != nil {
		w.Fatal(err)
	}
	for _, id := range channels {
		s, err := w.db.Payee().Load(w.ctx, common.HexToHash(id))
		if err == nil && s.Accepted.Gt(&s.Spent) {
			most = max(most, time.Duration(s.Accepted.Uint64()-s.Spent.Uint64())*time.Duration(rate))
		}
	}
	return most
}

// running are the leases that are served and metered.
func (w *world) running() (leases []string) {
	if err := w.db.View().SelectContext(w.ctx, &leases, `SELECT id FROM leases WHERE state = 'active' AND EXISTS (SELECT 1 FROM records WHERE lease = leases.id)`); err != nil {
		w.Fatal(err)
	}
	return leases
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

// wornBooks: what fails for a moment ends no lease, whether it begins, ends or is
// taken over, again and again.
func (w *world) wornBooks(rng *rand.Rand) {
	for _, g := range w.gateways {
		g.books.Wear(0.02+0.04*rng.Float64(), rng.Uint64())
		defer g.books.Wear(0, 0)
	}
	for range 2 {
		for _, g := range w.gateways {
			g.Signal(syscall.SIGSTOP)
			_ = pause(w.ctx, while(rng, 3*term/2, 5*term/2))
			g.Signal(syscall.SIGCONT)
			_ = pause(w.ctx, while(rng, 0, term/2))
		}
	}
}

func (w *world) wornRenters(rng *rand.Rand) {
	for _, g := range w.gateways {
		g.renters.Wear(0.3*rng.Float64(), rng.Uint64())
		defer g.renters.Wear(0, 0)
	}
	_ = pause(w.ctx, while(rng, term, 2*term))
}

func (w *world) crashBooks(*rand.Rand) {
	if err := w.server.Crash(); err != nil {
		w.Error(err)
	}
}

// failOver goes to a standby that has every commit, once.
func (w *world) failOver(*rand.Rand) {
	if w.standby == nil {
		w.tell("there is no standby any more")
		return
	}
	for _, g := range w.gateways {
		g.books.Freeze(true)
		defer g.books.Freeze(false)
	}
	if err := w.server.FailOver(w.standby); err != nil {
		w.Error(err)
	}
	w.server, w.standby = w.standby, nil
	for _, c := range []*fleet.Cable{w.books, w.gateways[0].books, w.gateways[1].books} {
		c.Lead("unix", w.server.Socket())
	}
}

// clockAhead has the server's clock set ahead, as gateways see it: what runs out by it
// has run out. So one may take a lease whose owner believes in its own time. Renters
// that have not paid then pay, and the old owner must leave that to the new one.
func (w *world) clockAhead(*rand.Rand) {
	w.setStrike(true)
	defer w.setStrike(false)
	type leaseRow struct {
		ID, Channel, State string
		Term               int64
	}
	renters := make(map[string]*rental)
	for _, r := range w.allRentals() {
		renters[r.Terms.ID().Hex()] = r
	}
	var rows []leaseRow
	w.comes("a lease that is not paid is suspended", func() (bool, string) {
		rows = nil
		err := w.db.View().SelectContext(w.ctx, &rows, `SELECT id, channel, state, term FROM leases WHERE state IN ('active', 'suspended')`)
		rows = slices.DeleteFunc(rows, func(row leaseRow) bool { return renters[row.Channel] == nil }) // programs pay on
		active := slices.ContainsFunc(rows, func(row leaseRow) bool { return row.State == "active" })
		return err == nil && len(rows) > 0 && !active, fmt.Sprintf("%v (%v)", rows, err)
	})
	before := w.lostLeases()
	var wait sync.WaitGroup
	for _, row := range rows {
		wait.Go(func() {
			for until := time.Now().Add(term); time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
				var now int64
				if err := w.db.View().GetContext(w.ctx, &now, `SELECT term FROM leases WHERE id = $1`, row.ID); err != nil || now == row.Term {
					continue
				}
				w.mu.Lock()
				w.deposed = append(w.deposed, deposed{row.ID, row.Term, time.Now().UnixNano()})
				w.mu.Unlock()
				break
			}
			r, paid := renters[row.Channel], make(chan struct{})
			select {
			case r.errands <- func() { w.payAll(r, uint64(time.Since(r.Opened))/rate); close(paid) }:
				<-paid
			case <-time.After(term): // it has something else to do
			}
		})
	}
	for until := time.Now().Add(term); time.Now().Before(until) && w.lostLeases() == before; time.Sleep(term / 10) {
		w.moveClock(time.Hour)
	}
	wait.Wait()
	w.tell("%d leases were suspended, %d of them taken over", len(rows), w.lostLeases()-before)
}

// clockBack stops a gateway and has the server's clock set back, as gateways see it: another one must take its leases
// as soon as when no clock was set.
func (w *world) clockBack(rng *rand.Rand) {
	g := w.one(rng.IntN)
	w.tell("gateway %s is stopped", g.name)
	g.Signal(syscall.SIGSTOP)
	w.moveClock(-time.Hour)
	_ = pause(w.ctx, while(rng, 2*term, 3*term))
	w.comes("a gateway takes the leases of one that is stopped, though the server's clock was set back", w.living)
	g.Signal(syscall.SIGCONT)
}

// setGatewayClock: the wall clock of one process is wrong for a while, by up to what the
// clocks of gateways may differ.
func (w *world) setGatewayClock(rng *rand.Rand) {
	g := w.one(rng.IntN)
	w.setClock(g.Process, "gateway "+g.name, rng, func(ahead time.Duration) {
		answer, err := http.Get(g.URL + "/offer")
		if err != nil || runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
			return // it may be busy, or its clock cannot be set
		}
		answer.Body.Close()
		if says, err := http.ParseTime(answer.Header.Get("Date")); err != nil || time.Until(says)-ahead < -promise || time.Until(says)-ahead > promise {
			w.Errorf("gateway %s's clock was set ahead by %s, and it says %s (%v)", g.name, ahead, says, err)
		}
	})
}

func (w *world) setNodeClock(rng *rand.Rand) {
	w.setClock(w.hosts[0].Process, "the node", rng, func(time.Duration) {})
}

// setClock sets a process's wall clock and sets it right again, and restarts it before
// that, after it, or not at all: it can begin in the wrong time, or have written in it.
func (w *world) setClock(p *fleet.Process, name string, rng *rand.Rand, look func(ahead time.Duration)) {
	ahead := while(rng, time.Minute, 12*time.Hour)
	if rng.IntN(2) == 0 {
		ahead = -ahead
	}
	w.tell("%s is %s ahead", name, ahead.Round(time.Second))
	restart := rng.IntN(3)
	p.SetWall(ahead)
	look(ahead)
	_ = pause(w.ctx, while(rng, 0, term))
	if restart == 1 {
		p.Kill()
		p.Start()
	}
	_ = pause(w.ctx, while(rng, 0, 2*term))
	p.SetWall(0)
	if restart == 2 {
		p.Kill()
		p.Start()
	}
}

func (w *world) lostLeases() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.deposed)
}

// moveClock sets the server's clock ahead, or back, as gateways see it.
func (w *world) moveClock(ahead time.Duration) {
	for _, table := range []string{"gateways", "leaders", "claims", "reservations"} {
		if err := w.db.Update(w.ctx, func(tx *sqlx.Tx) error {
			_, err := tx.Exec(`UPDATE `+table+` SET expires = expires - $1`, ahead.Milliseconds())
			return err
		}); err != nil {
			w.Error(err)
		}
	}
}

func (w *world) killNode(rng *rand.Rand) {
	w.hosts[0].Kill()
	_ = pause(w.ctx, while(rng, 0, 2*term))
	w.hosts[0].Start()
	w.hosts[0].Ready()
}

func (w *world) stopNode(rng *rand.Rand) {
	w.hosts[0].Signal(syscall.SIGSTOP)
	_ = pause(w.ctx, while(rng, term, 3*term))
	w.hosts[0].Signal(syscall.SIGCONT)
}

// nodeAway: the node serves nobody beyond the credit.
func (w *world) nodeAway(rng *rand.Rand) {
	apart := w.hosts[0].Wire.Cut
	if rng.IntN(2) == 0 {
		apart = w.hosts[0].Wire.Freeze
	}
	running, ahead := w.running(), w.ahead()
	apart(true)
	defer apart(false)
	_ = pause(w.ctx, ahead)
	w.comes("a node that is cut off serves nobody beyond the credit", func() (bool, string) { return w.suspended(running) })
}

// fullDisk: no lease ends before that can be written, and none is billed afterwards.
func (w *world) fullDisk(rng *rand.Rand) {
	node := w.hosts[0]
	if err := fleet.LimitFiles(node.PID(), 0); err != nil {
		w.Fatal(err)
	}
	_ = pause(w.ctx, while(rng, term, 3*term))
	if rng.IntN(2) == 0 { // and somebody restarts it
		node.Kill()
		node.Start()
		node.Ready()
		return
	}
	if err := fleet.LimitFiles(node.PID(), -1); err != nil {
		w.Fatal(err)
	}
}
