package x402client

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
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
	n := newTenant(t, newPayRig(t, func(c *sdk.ProviderConfig) {
		c.X402.Window, c.X402.Slack, c.MaxGap = pairWindow, pairSlack, pairGap
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
			if !errors.As(err, &d) || !errors.Is(err, metering.ErrClock) {
				t.Errorf("%v, want a dispute about the clock", err)
			}
			passed := time.Duration(clock.Now().Boot - ours.Ticking.Checker.Start.Boot)
			if most, _ := n.totals(); most > passed+tickTolerance {
				t.Errorf("a GPU is billed for %s, %s passed", most, passed)
			}
			if billed > covers+2*uint64((pairGap+tickTolerance).Milliseconds()) {
				t.Errorf("%d ms were billed in the absence, and the voucher covered %d", billed, covers)
			}
		})
	}
}

// TestX402ClocksOfAnHonestLease: whichever GPUs of a lease are down at whatever times, and however long its renter is away, an
// honest provider's time is within both clocks; and what they allow after an
// absence is no more than was signed for, to the base unit, and one late reading of each GPU.
func TestX402ClocksOfAnHonestLease(t *testing.T) {
	const late, unit = int64(pairGap), int64(time.Millisecond) // a base unit of time
	private, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	key := channel.NewKey(private)
	offer, err := wire.SignOffer(t.Context(), key, wire.Offer{Version: 1, ChainID: 1, Escrow: wire.Address{1}, Token: wire.Address{2},
		Payee: wire.Address(key.Address()), Meter: wire.Address(key.Address()), Amount: wireUnits(1000), Unit: "gpu_second",
		Credit: 10, Tick: 1000, MaxGap: late / unit, RecordEvery: 5000})
	if err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 1))
		gpus := 1 + random.IntN(4)
		ran, at := make([]int64, gpus), metering.Instant{Boot: 1, Mono: 1, Wall: 1}
		sum := func() (all int64) {
			for _, n := range ran {
				all += n
			}
			return all
		}
		pass := func(d int64) { at.Boot, at.Mono, at.Wall = at.Boot+d, at.Mono+d, at.Wall+d }
		// run lets some of the GPUs use so much together, and no longer than that.
		run := func(money, most int64) {
			up := random.Perm(gpus)[:1+random.IntN(gpus)]
			each := min(most, max(0, money)/int64(len(up)))
			for _, i := range up {
				ran[i] += each
				if each < most {
					ran[i] += min(most-each, random.Int64N(late+1))
				}
			}
		}
		l := &tickLease{Offer: offer.Document, Devices: make([]string, gpus), Checker: metering.CheckerState{BootID: "b", Start: at}}
		l.Together = l.each()
		b, prior := &ledger{}, int64(0)
		for range 20 {
			away := random.Int64N(int64(5 * time.Second))
			if l.Checker.Sequence == 0 {
				away = 0
			}
			run(prior*unit-sum(), away)
			pass(away)
			ask := int64(gpus) * int64(pairWindow+pairSlack) / unit
			p := &pendingTick{Asked: at, Boot: "b", Prior: *uint256.NewInt(uint64(prior)), Most: *uint256.NewInt(uint64(sum()/unit + 1 + ask))}
			b.account.Tick = p
			took := random.Int64N(int64(2 * time.Second))
			run(int64(p.Most.Uint64())*unit-sum(), took)
			asked := *l
			b.forfeit(&asked, metering.Price{}, at, "b")
			if all := int64(gpus) * (at.Boot - asked.Together.Start.Boot); l.Checker.Sequence > 0 && all > max(int64(l.Checker.Nanos), prior*unit)+int64(gpus)*(late+1)+unit {
				t.Fatalf("seed %d: %s of %d GPUs may be billed when a tick is asked for, %s were signed for", seed, time.Duration(all), gpus, time.Duration(prior*unit))
			}
			pass(took)
			b.forfeit(l, metering.Price{}, at, "b")
			s := &l.Checker
			s.Sequence, s.Nanos, s.Owed = s.Sequence+1, uint64(sum()), *uint256.NewInt(uint64(sum() / unit))
			s.Devices = nil
			for _, n := range ran {
				s.Devices = append(s.Devices, metering.CheckedDevice{Total: n})
			}
			s.Elapsed, l.Together.Elapsed = at.Boot-s.Start.Boot, at.Boot-l.Together.Start.Boot
			if l.ran() > s.Elapsed+1 || l.ranTogether() > l.Together.Elapsed+1 {
				t.Fatalf("seed %d: %d GPUs ran for %v, one may have run for %s and each for %s", seed, gpus, ran, time.Duration(s.Elapsed), time.Duration(l.Together.Elapsed))
			}
			prior = max(prior, int64(p.Most.Uint64()))
		}
	}
}
