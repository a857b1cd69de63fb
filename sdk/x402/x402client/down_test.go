package x402client

import (
	"errors"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/verify"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/ticks"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Of a pair's ticks one is of 600 ms of GPU time, and its voucher covers 1.6 s beside it. A base unit is a millisecond.
const (
	pairWindow = 300 * time.Millisecond
	pairSlack  = 800 * time.Millisecond
	pairGap    = 100 * time.Millisecond
)

// pairTenant is a tenant of two GPUs on a host that can be broken, and a clock of its own.
func pairTenant(t *testing.T) (*tenant, *sim.Source, *nap) {
	t.Helper()
	var host *sim.Source
	n := newTenant(t, newPayRig(t, func(c *provider.Config) {
		c.X402.Window, c.X402.Slack, c.Metering.MaxGap = pairWindow, pairSlack, pairGap
		host = c.Source.(*sim.Source)
	}))
	clock := &nap{}
	n.clock = clock
	n.openPair()
	return n, host, clock
}

func (n *tenant) openPair() {
	n.Helper()
	n.open()
	var err error
	if n.rental, err = n.x.Rent(n.Context(), n.Server.URL, 2); err != nil {
		n.Fatal(err)
	}
}

// usesUp waits until a tenant's lease has used all that is signed for.
func (n *tenant) usesUp() {
	n.Helper()
	id := n.account().ID
	testrig.Eventually(n.T, "the lease is suspended", func() bool {
		state := n.LeaseState(id)
		return state == wire.StateSuspended || state == wire.StateEnded
	})
}

// totals are for how long the GPUs of a tenant's pair ran, the one that ran the longest first.
func (n *tenant) totals() (most, least time.Duration) {
	n.Helper()
	devices := n.account().Ticking.Checker.Devices
	if len(devices) != 2 {
		n.Fatalf("%+v", devices)
	}
	a, b := time.Duration(devices[0].Total), time.Duration(devices[1].Total)
	return max(a, b), min(a, b)
}

// TestX402OneOfTwoGPUsDown: while one of two GPUs is down the other runs for twice as long on what was signed for. An honest
// provider is paid for that and accused of nothing, whether it was down from the lease's beginning on or later, the renter was
// away, its clocks parted or it lost its database, and when the GPU works again.
func TestX402OneOfTwoGPUsDown(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		before int // ticks, until the GPU breaks
		away   func(*tenant, *nap)
	}{
		"from the beginning on": {0, func(_ *tenant, c *nap) { c.pass(15 * time.Minute) }},
		"later":                 {2, func(_ *tenant, c *nap) { c.pass(15 * time.Minute) }},
		"while our host stood":  {1, func(n *tenant, c *nap) { n.clock.(*testrig.FlawedClock).Stand(c.Now()); c.pass(time.Hour) }},
		"our host was rebooted": {1, func(n *tenant, _ *nap) { n.clock.(*testrig.FlawedClock).Reboot(); n.openPair() }},
		"our database is lost": {1, func(n *tenant, _ *nap) {
			if err := n.Provider.Settle(n.Context()); err != nil {
				n.Fatal(err)
			}
			n.database += ".new"
			n.openPair()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			n, host, clock := pairTenant(t)
			n.clock = testrig.NewFlawedClock(clock)
			n.openPair()
			for range row.before {
				n.tick()
			}
			host.Inject(sim.Fault{Device: 1, Kind: sim.Lost, For: 5 * time.Second})
			n.tick()
			n.usesUp()
			row.away(n, clock)
			for range 2 {
				n.tick()
			}
			most, least := n.totals()
			if most < least+pairSlack {
				t.Errorf("the GPUs ran for %s and %s: one of them was to be down", most, least)
			}
			for was := least; least == was; _, least = n.totals() { // it works again
				n.tick()
			}
			n.usesUp()
			clock.pass(time.Minute)
			n.tick()
			if _, err := n.rental.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			c := n.only()
			if got := n.Tokens(t, n.key.Address()); got != tenantPurse-c.Deposit.Uint64() || c.Deposit != c.Charged {
				t.Errorf("the renter has %d tokens, %s were charged of %s", got, c.Charged.Dec(), c.Deposit.Dec())
			}
		})
	}
}

// TestX402TimeOfAllGPUs: of a renter's absence a provider of two GPUs is paid for as much time of both together as was signed
// for, though either might have run for it alone, in however many ticks, and for no more of either than passed.
func TestX402TimeOfAllGPUs(t *testing.T) {
	t.Parallel()
	for name, away := range map[string]time.Duration{"away": 15 * time.Minute, "away for less than one GPU could run": 1200 * time.Millisecond, "not away": 0} {
		t.Run(name, func(t *testing.T) {
			n, host, clock := pairTenant(t)
			if away == 0 {
				host.Inject(sim.Fault{Device: 1, Kind: sim.Lost, For: time.Hour})
			}
			n.tick()
			ours := n.account()
			signed, err := n.x.payer.State(t.Context(), ours.ID)
			if err != nil {
				t.Fatal(err)
			}
			covers := signed.Signed.Uint64() - ours.Ticking.Checker.Owed.Uint64()
			clock.pass(away)
			clock.stop() // and the provider bills on
			var billed uint64
			var tick Tick
			for range 10 {
				if tick, err = n.rental.Tick(t.Context()); err != nil {
					break
				}
				billed += tick.Charged.Uint64()
			}
			var d *wallet.Dispute
			if !errors.As(err, &d) || !errors.Is(err, verify.ErrClock) {
				t.Errorf("%v, want a dispute about the clock", err)
			}
			passed := time.Duration(clock.Now().Boot - ours.Ticking.Checker.Start.Boot)
			if most, _ := n.totals(); most > passed+ticks.Tolerance {
				t.Errorf("a GPU is billed for %s, %s passed", most, passed)
			}
			if billed > covers+2*uint64((pairGap+ticks.Tolerance).Milliseconds()) {
				t.Errorf("%d ms were billed in the absence, and the voucher covered %d", billed, covers)
			}
		})
	}
}
