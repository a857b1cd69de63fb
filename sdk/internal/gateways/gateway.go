// Package gateways is one gateway among several that share a database, and the directory of a provider's leases wherever they run:
// what a gateway takes over from one that died, what it shows of leases elsewhere, what it does with leases that it had to let go, and
// how the one that leads settles for all. It knows no scheme by which leases are paid.
package gateways

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/cluster"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/settle"
)

// Config is what a gateway needs of its provider.
type Config struct {
	DB        *store.DB
	Payee     *channel.Payee
	Allocator gpu.Allocator
	Log       *slog.Logger

	Takeover       time.Duration // how long others wait for this gateway before they take its leases
	Tick           time.Duration
	CallTimeout    time.Duration // of an allocator's command
	SuspendTimeout time.Duration // how long a lease that does not pay has its devices
	Credit         time.Duration

	// Identify fails where the database is another provider's.
	Identify func(ctx context.Context) error
	// Owing lists the channels on which some payers owe something.
	Owing func(ctx context.Context, payers ...common.Address) ([]channel.State, error)
	// Takes reports whether leases on channels of these terms are paid at this gateway. Others leave theirs to those that take them.
	Takes func(channel.Terms) bool
	// Notice tells a lease that runs here what requests at other gateways reserved.
	Notice func(ctx context.Context, l *lease.Lease) error

	// Endpoint of the chain is this gateway's, and held against the others'.
	Endpoint chain.Backend
	// Lead names what is led: one gateway leads for one payee on one contract.
	Lead string
	// Service settles, and writes through a database only, which lets it write while this gateway leads.
	Service func(db *store.DB, txs *chain.Store) *settle.Service
	// AtWork hears what settles here: nil when this gateway leads no more.
	AtWork func(*settle.Service)
}

// Gateway is one gateway's part among several that share a database. Any of them takes vouchers, shows streams and passes a renter's
// wish to end a lease on; one of them, its owner, meters a lease and writes its records. docs/replicas.md says how they keep out of
// each other's way.
type Gateway struct {
	Config
	*Member
	Settlement *Settlement

	leases  *lease.Manager
	changed func(channel.State) // hears of a channel that the chain changed
	shown   replicas
	refused refusals
}

// New is a gateway whose leases a directory has. It takes part when it has joined.
func New(c Config, d *Directory) *Gateway {
	g := &Gateway{Config: c, leases: d.Manager, changed: d.Changed, Member: newMember(c.DB, c.Takeover)}
	g.shown.life = d.Lifetime
	g.Settlement = newSettlement(g)
	d.Gateway = g
	return g
}

// Poll is how long a gateway waits between two looks at what others wrote.
func (g *Gateway) Poll() time.Duration { return min(g.Tick, time.Second, g.Takeover/4) }

// Devices are those in use at any gateway.
func (g *Gateway) Devices() cluster.Devices { return cluster.Devices{DB: g.DB} }

// Join makes the gateway one of them: it says that it lives, takes up what nobody runs, and goes on doing both.
func (g *Gateway) Join(ctx context.Context) error {
	if a, ok := g.Allocator.(inventory.Keeper); ok { // also where it is embedded
		a.Inventory().Share(g.Devices())
	}
	g.saw(time.Now()) // nothing runs here yet that it could be late for
	if err := g.heartbeat(ctx); err != nil {
		return fmt.Errorf("joining the gateways of this database: %w", err)
	}
	if err := g.Identify(ctx); err != nil { // again: from here on no other provider's is let in
		return err
	}
	if err := g.warn(ctx); err != nil {
		return fmt.Errorf("leases of a database that may have been restored: %w", err)
	}
	if err := g.Sweep(ctx); err != nil {
		return fmt.Errorf("leases that nobody runs: %w", err)
	}
	g.every(g.Takeover/4, "saying that this gateway lives", g.heartbeat)
	g.every(g.Takeover/4, "looking whether the database server's clock was set back", g.restamp)
	g.every(g.Takeover/4, "telling the other gateways of the newest block", g.Settlement.Heads.Tell)
	g.every(g.Poll(), "looking at the leases", g.look)
	g.every(g.Takeover/4, "taking up leases that nobody runs", g.Sweep)
	g.every(hopeless, "taking back what forgotten leases have", g.leases.Forgotten.TakeBack) // what cannot be is said each time
	return g.leases.Forgotten.TakeBack(ctx)
}

// warn has leases ended, whoever runs them, of which this gateway has signed more than the database knows.
func (g *Gateway) warn(ctx context.Context) error {
	rows, err := g.leases.Store.Leases.Unfinished(ctx)
	if err != nil {
		return err
	}
	for _, row := range rows {
		id := common.HexToHash(row.ID)
		mark, err := g.leases.Deps.Marks.Get(ctx, g.leases.MeterKey.Address(), id)
		if err == nil && mark.Sequence > uint64(row.Sequence)+1 {
			err = g.leases.Store.Leases.Command(ctx, id, leasestore.ErrRolledBack.Error())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// restamp is cluster.Restamp, and tells the operator of a clock that was set back.
func (g *Gateway) restamp(ctx context.Context) error {
	behind, err := cluster.Restamp(ctx, g.DB)
	if behind >= time.Second {
		g.Log.Warn("the database server's clock was set back: what gateways left that died ends later than usual", "by at least", behind)
	}
	return err
}

// every does something again and again until the provider stops.
func (g *Gateway) every(pause time.Duration, what string, do func(context.Context) error) {
	g.leases.Go(func(ctx context.Context) {
		for chain.Pause(ctx, pause) == nil {
			if err := do(ctx); err != nil && ctx.Err() == nil {
				g.Log.Warn(what, "error", err)
			}
		}
	})
}

// heartbeat is the member's, which has this gateway stand down when its time is over.
func (g *Gateway) heartbeat(ctx context.Context) error { return g.beat(ctx, g.StandDown) }

// StandDown lets go of every lease: the database was not written, or not read, for so long that others may have taken them. Under
// another name this gateway may take up what they have not.
func (g *Gateway) StandDown() {
	stopped := func() bool { return g.leases.Lifetime().Err() != nil }
	g.rename(stopped)
	running := slices.DeleteFunc(g.leases.All(), func(l *lease.Lease) bool { return l.Guarded.Swap(true) })
	if !stopped() && len(running) > 0 {
		g.Log.Error("the database was not written, or not read, for too long: other gateways may run this one's leases now", "leases", len(running), "takeover", g.Takeover)
	}
	for _, l := range running {
		l.Relinquish()
		g.watchOver(l)
	}
}

// Leave hands what runs here to the other gateways, when nothing does any more.
func (g *Gateway) Leave() {
	if err := g.leave(); err != nil {
		g.Log.Warn("the other gateways will notice only after a while that this one is gone", "error", err)
	}
}
