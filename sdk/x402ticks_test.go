package sdk

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// swift is a clock on which time passes many times as fast as on the system's, so that minutes of GPU time are metered, and
// may be checked, in a moment.
type swift struct {
	times int64
	start metering.Instant
}

func newSwift(times int64) swift { return swift{times, metering.System.Now()} }

func (s swift) Now() metering.Instant {
	now := metering.System.Now()
	now.Boot += (s.times - 1) * (now.Boot - s.start.Boot)
	now.Mono += (s.times - 1) * (now.Mono - s.start.Mono)
	now.Wall += (s.times - 1) * (now.Wall - s.start.Wall)
	return now
}

func (s swift) After(d time.Duration) <-chan time.Time { return time.After(d / time.Duration(s.times)) }
func (s swift) BootID() string                         { return "swift" }

// Of swiftTenant's clock a second takes 10 ms; its ticks are of 20 s and a slack of 10 s, at 10 base units a second.
const (
	swiftTimes = 100
	swiftMost  = 301
)

// swiftTenant is a tenant whose clock, and whose provider's, is swift.
func swiftTenant(t *testing.T, change ...func(*ProviderConfig)) *tenant {
	t.Helper()
	clock := newSwift(swiftTimes)
	r, _ := meteredRig(t, MeteredRoute{MaxTime: 5 * time.Second}, func(http.ResponseWriter, *http.Request) { time.Sleep(20 * time.Millisecond) },
		func(c *ProviderConfig) {
			c.Source, c.Clock, c.PricePerGPUHour = sim.New(3, sim.Options{Clock: clock}), clock, "0.036"
			c.Credit, c.Tick, c.RecordEvery = 20*time.Second, 2*time.Second, 5*time.Second
			c.X402.Window, c.X402.Slack = 20*time.Second, 10*time.Second
			for _, f := range change {
				f(c)
			}
		})
	n := newTenant(t, r)
	n.clock, n.change = clock, func(c *RenterConfig) { c.Caps.PerLease = "0.5" }
	n.open()
	return n
}

// TestX402RestoredRenterTicksOn: a renter whose database is from a backup, and whose ticks since were for longer than any one
// tick and one late reading, goes on at the same lease. Nobody is accused, and what was used is paid once.
func TestX402RestoredRenterTicksOn(t *testing.T) {
	n := swiftTenant(t)
	n.tick()
	if err := n.x.w.Close(); err != nil {
		t.Fatal(err)
	}
	n.x = nil
	backup, err := os.ReadFile(n.database)
	if err != nil {
		t.Fatal(err)
	}
	n.open()
	var since time.Duration
	for since <= 2*(maxTick+wire.MaxGapOfTicks) {
		tick, err := n.patient()
		if err != nil {
			t.Fatal(err)
		}
		since += time.Duration(tick.Record.Evidence.Nanos)
	}
	lease := n.slate().Ticking.Lease
	if err := n.x.w.Close(); err != nil {
		t.Fatal(err)
	}
	n.x = nil
	for _, rest := range []string{"-wal", "-shm"} {
		_ = os.Remove(n.database + rest)
	}
	if err := os.WriteFile(n.database, backup, 0o600); err != nil {
		t.Fatal(err)
	}
	n.open()
	for range 4 {
		if tick, err := n.patient(); err != nil || tick.Lease != lease {
			t.Fatalf("lease %s, after %s: %v", tick.Lease, lease, err)
		}
	}
	n.settles()
}

// patient is a tick that is asked for again while a lease uses what the one before it reserved, and so is charged more than
// was said a moment ago. Nobody else's time passes as fast.
func (n *tenant) patient() (tick X402Tick, err error) {
	for range 50 {
		var d *wallet.Dispute
		if tick, err = n.rental.Tick(n.Context()); err == nil || errors.As(err, &d) {
			return tick, err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return tick, err
}

// settles ends a tenant's channel by a refund of all. What was used of it is paid, once: what was charged ahead is back, and what
// a lease read late is the provider's loss, with the base unit of a voucher that is never charged.
func (n *tenant) settles() {
	n.Helper()
	if _, err := n.rental.Close(n.Context()); err != nil {
		n.Fatal(err)
	}
	c := n.only()
	theirs, err := n.provider.x402.book.State(n.Context(), c.ID)
	paid := theirs.Settled
	const late = 2*10*10 + 1 // two GPUs, MaxGap, 10 base units a second
	if err != nil || paid.Gt(&theirs.Spent) || paid.Gt(&c.Charged) || paid.Uint64()+late < theirs.Spent.Uint64() {
		n.Errorf("the renter has %s charged and %s signed; the provider %s used, %s accepted, %s claimed: %v",
			c.Charged.Dec(), c.Signed.Dec(), theirs.Spent.Dec(), theirs.Accepted.Dec(), paid.Dec(), err)
	}
	if got := n.chain.Tokens(n, n.key.Address()); got != tenantPurse-paid.Uint64() {
		n.Errorf("the renter has %d tokens, %s were paid", got, paid.Dec())
	}
}

// purchase is something that is paid from a channel on which ticks are paid too.
type purchase struct {
	path string // of the request; empty for a tick
	gpus int    // of the lease that it wants; 0 for one that wants none to run
}

var purchases = []purchase{
	{"", 1}, {"", 1}, {"", 1}, {"/tick?gpus=1", 1}, {"/tick?gpus=2", 2}, {"/lease?gpus=1", 1}, {"/lease?gpus=2", 2}, {"/infer", 0},
}

// TestX402MixedRequests: ticks, requests for several GPUs, streams and metered requests are paid from one channel in any
// order, leases end in between, and one answer is lost at any place, or does not come whole. An honest provider is never
// accused, ticks go on, and what was used is paid once.
func TestX402MixedRequests(t *testing.T) {
	n := swiftTenant(t)
	seed := rand.Uint64()
	for round := range uint64(5) {
		random := rand.New(rand.NewPCG(seed, round))
		var done []string
		say := func(what string, args ...any) { done = append(done, fmt.Sprintf(what, args...)) }
		steps := 8
		lost := random.IntN(steps)
		if round == 0 {
			steps, lost = 2, 1
		}
		for i := range steps {
			m := purchases[random.IntN(len(purchases))]
			if round == 0 { // costs more than the tick before it reserved
				m = []purchase{{"", 1}, {"/tick?gpus=2", 2}}[i]
			}
			n.makeRoom(m.gpus)
			if i == lost {
				if n.line.Cut = 1 + lostTries; round > 0 && random.IntN(2) == 0 {
					n.line.Cut, n.line.Short = 0, 1
				}
			}
			err := n.does(m)
			say("%+v, lost %t: %v", m, i == lost, err)
			n.line.Cut, n.line.Short = 0, 0
			var d *wallet.Dispute
			if errors.As(err, &d) || err != nil && i != lost && !(m.path == "" && strings.Contains(err.Error(), "402")) {
				t.Fatalf("seed %d, round %d:\n%s", seed, round, strings.Join(done, "\n"))
			}
			if random.IntN(3) == 0 {
				time.Sleep(time.Duration(random.IntN(150)) * time.Millisecond)
			}
		}
		n.makeRoom(1)
		if _, err := n.patient(); err != nil {
			t.Fatalf("seed %d, round %d:\n%s\nthen a tick: %v", seed, round, strings.Join(done, "\n"), err)
		}
		n.settles()
	}
}

// makeRoom ends the channel's lease unless it has so many GPUs.
func (n *tenant) makeRoom(gpus int) {
	n.Helper()
	all, err := n.x.slates().list(n.Context())
	if err != nil || len(all) == 0 {
		return
	}
	id := all[0].ID
	if l := n.provider.running(id); l == nil || len(l.allocation.Devices) == gpus {
		return
	}
	n.provider.endSoon(n.provider.running(id), "the test wants another")
	testrig.Eventually(n.T, "the lease ends", func() bool { return n.provider.running(id) == nil })
}

// does pays for one thing and reads all of the answer.
func (n *tenant) does(m purchase) error {
	if m.path == "" {
		_, err := n.rental.Tick(n.Context())
		return err
	}
	resp, err := n.x.Client().Get(n.server.URL + m.path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return err
}

// TestX402SlatesOfAnEarlierVersion: a channel that an earlier version paid by ticks, which did not tell what was signed for
// ticks from all else, is paid on from what the provider says, and so is one from which nothing but ticks is new.
func TestX402SlatesOfAnEarlierVersion(t *testing.T) {
	n := swiftTenant(t)
	n.tick()
	s := n.slate()
	s.Ticked, s.Ceiling, s.Plain = false, uint256.Int{}, uint256.Int{}
	if err := n.x.slates().save(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	n.makeRoom(0) // and with it ends what was used after the record
	if _, err := n.patient(); err != nil {
		t.Fatal(err)
	}
	other := newTenant(t, n.payRig)
	other.clock, other.change = n.clock, n.change
	other.open()
	other.line.Cut = 1 + lostTries
	if err := other.does(purchase{"/tick?gpus=1", 1}); !errors.Is(err, peer.ErrUnreachable) {
		t.Fatalf("%v, want %v", err, peer.ErrUnreachable)
	}
	if tick, err := other.patient(); err != nil || tick.Charged.IsZero() || other.slate().Ticking == nil {
		t.Errorf("the first tick: %+v, %v", tick, err)
	}
}
