package provider

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/internal/lease"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
)

// pair is a provider and a renter of the SDK that are stopped and started together.
type pair struct {
	*rig
	front    *front
	renter   *renter.Client
	rental   *renter.Rental
	database string // of the renter
}

func newPair(t *testing.T) *pair {
	return newPairWith(t, renter.Options{Deposit: "0.3", PayEvery: 50 * time.Millisecond}, func(c *Config) { c.Terms.SuspendTimeout = time.Second })
}

func newPairWith(t *testing.T, options renter.Options, change func(*Config)) *pair {
	r := newRig(t, quiet, change)
	p := &pair{rig: r, front: newFront(t), database: filepath.Join(t.TempDir(), "renter.db")}
	p.front.provider.Store(r.provider)
	p.renter = r.renter(t, p.database)
	var err error
	if p.rental, err = p.renter.Rent(t.Context(), p.front.URL, options); err != nil {
		t.Fatal(err)
	}
	return p
}

// goOn has the lease run for so many records more.
func (p *pair) goOn(records uint64) {
	p.Helper()
	ctx, stop := context.WithCancel(p.Context())
	done := renterrig.Background(ctx, p.rental)
	awaitRecord(p.T, p.rental, p.rental.Snapshot().Sequence+records)
	stop()
	<-done
}

// end has the provider end a lease, unless it has: of a renter that starves it was not paid in time.
func (p *pair) end(id common.Hash) error {
	if l := p.provider.leases.Running(id); l != nil {
		return l.End(p.Context(), lease.Stop{Reason: "a test ends it"})
	}
	return nil
}

func (p *pair) down() {
	p.Helper()
	if err := p.renter.Close(); err != nil {
		p.Fatal(err)
	}
	p.front.provider.Store(nil)
	p.front.CloseClientConnections()
	p.shut()
}

func (p *pair) up() {
	p.Helper()
	p.start()
	p.front.provider.Store(p.provider)
	p.renter = p.rig.renter(p.T, p.database)
}

// TestRestoredFromYesterday: the machine of either side is restored from before the lease ran on, ended, was settled or was
// closed. An honest other side loses nothing, and neither does the one restored: exactly what the newest record says is paid,
// the rest of the deposit comes back, and nobody is accused.
func TestRestoredFromYesterday(t *testing.T) {
	t.Parallel()
	for _, side := range []string{"provider", "renter"} {
		for _, since := range []string{"ran on", "ended", "settled", "closed"} {
			t.Run(side+", lease "+since, func(t *testing.T) {
				p := newPair(t)
				id := p.rental.ID()
				p.goOn(3)
				p.down()
				paths := []string{p.config.Database, p.config.Database + ".signed"}
				if side == "renter" {
					paths = []string{p.database}
				}
				old := testrig.CopyFiles(t, paths...)
				p.up()
				var err error
				if p.rental, err = p.renter.Resume(t.Context(), id); err != nil {
					t.Fatal(err)
				}
				p.goOn(5)
				switch since {
				case "ended":
					if err := p.end(id); err != nil {
						t.Fatal(err)
					}
				case "settled":
					if err := p.provider.Settle(t.Context()); err != nil {
						t.Fatal(err)
					}
				case "closed":
					if _, err := p.rental.Close(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				p.down()
				old.Restore(t)
				p.up()
				p.checkRestored(since, side)
			})
		}
	}
}

// checkRestored has the renter end what it has and looks at all accounts.
func (p *pair) checkRestored(since, side string) {
	p.Helper()
	id := p.rental.ID()
	before := p.rental.Snapshot()
	rental, err := p.renter.Resume(p.Context(), id)
	if err == nil {
		p.rental = rental
		ctx, cancel := context.WithTimeout(p.Context(), 30*time.Second)
		defer cancel()
		if _, err := rental.Close(ctx); err != nil {
			p.Errorf("closing: %v", err)
		}
		before = rental.Snapshot()
	} else if since != "closed" {
		p.Fatalf("resuming: %v", err)
	}
	earned, left := p.balance(p.config.Key.Address()), p.balance(p.payer.Address())
	used := before.Owed
	if side == "renter" { // it may not remember
		s, err := p.provider.payee.State(p.Context(), id)
		if err != nil {
			p.Fatal(err)
		}
		used = s.Spent
	}
	if earned != used.Uint64() {
		p.Errorf("the payee has %d, the newest record says %s", earned, used.Dec())
	}
	if earned+left != 1_000_000 {
		p.Errorf("the payer has %d back, the payee %d", left, earned)
	}
	if kept, err := p.renter.Evidence(p.Context(), id); err != nil || len(kept) != 0 {
		p.Errorf("the renter accuses an honest provider: %v, %v", kept, err)
	}
	b, err := p.provider.Export(p.Context(), id)
	if err != nil || side == "renter" && len(b.Evidence) != 0 {
		p.Errorf("the provider keeps %+v (%v)", b, err)
	}
}
