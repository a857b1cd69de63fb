package provider

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402/x402client"
)

// tickRenter is a renter of ours that pays a provider of ours by ticks.
type tickRenter struct {
	site string // of the provider when it was met
	*payRig
	key      *channel.Key
	database string
	clock    metering.Clock
	line     *testrig.FaultyTransport
	wallet   *wallet.Wallet // nil while it is closed
	x        *x402client.Client
	rental   *x402client.Rental
	change   func(*wallet.Config) // of the next one that is opened; may be nil
	class    string
}

const tickPurse = 1_000_000

// resends is how often the client sends a payment again whose answer was lost.
const resends = 2

func newTickRenter(t *testing.T, r *payRig) *tickRenter { return newTickRenterOf(t, r, "") }

// newTickRenterOf rents GPUs of a class.
func newTickRenterOf(t *testing.T, r *payRig, class string) *tickRenter {
	t.Helper()
	private, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	n := &tickRenter{payRig: r, class: class, key: channel.NewKey(private), database: filepath.Join(t.TempDir(), "renter.db"), line: &testrig.FaultyTransport{}}
	r.chain.Mint(t, n.key.Address(), tickPurse)
	n.open()
	t.Cleanup(n.close)
	return n
}

// open makes the renter anew on its database, as after a crash.
func (n *tickRenter) open() {
	n.Helper()
	n.close()
	config := wallet.Config{
		Key: n.key, Chain: wallet.Chain{Backend: n.chain.Backend, Poll: 5 * time.Millisecond, ClockTolerance: time.Hour}, Token: n.config.Token, Database: n.database, Clock: n.clock,
		Caps: wallet.Caps{PricePerGPUHour: "10", PerLease: "0.05", PerDay: "1", PerPayee: "1"},
		Log:  slog.New(slog.DiscardHandler),
	}
	if n.change != nil {
		n.change(&config)
	}
	var err error
	if n.wallet, err = wallet.Open(n.Context(), config); err != nil {
		n.Fatal(err)
	}
	site := peer.SiteOf(n.server.URL)
	if n.site == "" {
		n.site = site
	}
	same := map[string]string{site: n.site} // a provider that is started again has another port
	if n.x, err = x402client.New(n.Context(), n.wallet, x402client.Options{MaxPrice: wallet.Unlimited, Transport: n.line, SameSite: same}); err != nil {
		n.Fatal(err)
	}
	if n.rental, err = n.x.RentClass(n.Context(), n.server.URL, n.class, 1); err != nil {
		n.Fatal(err)
	}
}

// close closes the wallet: a database belongs to one at a time.
func (n *tickRenter) close() {
	n.Helper()
	if n.wallet == nil {
		return
	}
	if err := n.wallet.Close(); err != nil {
		n.Fatal(err)
	}
	n.wallet = nil
}

func (n *tickRenter) tick() x402client.Tick {
	n.Helper()
	for tries := 0; ; tries++ {
		tick, err := n.rental.Tick(n.Context())
		if err == nil {
			return tick
		}
		// The lease used slack meanwhile, and more of it before the corrected voucher came.
		var p *wire.Problem
		if !errors.As(err, &p) || p.Status != http.StatusPaymentRequired || tries == 10 {
			n.Fatal(err)
		}
	}
}

// only is what the renter knows of its only channel.
func (n *tickRenter) only() x402client.Channel {
	n.Helper()
	all, err := n.x.Channels(n.Context())
	if err != nil || len(all) != 1 {
		n.Fatalf("%+v, %v", all, err)
	}
	return all[0]
}

// agrees holds the renter's books to the provider's. What the provider meters between two ticks, up to its slack, the
// renter learns with the next one.
func (n *tickRenter) agrees() {
	n.Helper()
	ours := n.only()
	theirs, err := x402Of(n.provider).Book.State(n.Context(), ours.ID)
	var most uint256.Int
	most.AddUint64(&ours.Charged, testMost)
	if err != nil || theirs.Spent.Lt(&ours.Charged) || theirs.Spent.Gt(&most) {
		n.Errorf("the renter has %s charged, the provider %s, %v", ours.Charged.Dec(), theirs.Spent.Dec(), err)
	}
	if theirs.Accepted.Gt(&ours.Signed) || theirs.Spent.Gt(&ours.Signed) {
		n.Errorf("the renter has %s signed, the provider accepted %s", ours.Signed.Dec(), theirs.Accepted.Dec())
	}
}

// usesUp waits until the renter's lease has used all that is signed for.
func (n *tickRenter) usesUp() {
	n.Helper()
	id := n.only().ID
	testrig.Eventually(n.T, "the lease is suspended", func() bool {
		l := n.provider.leases.Running(id)
		return l == nil || l.Status.State() == leasestore.Suspended
	})
}

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

// Of swiftRenter's clock a second takes 10 ms; its ticks are of 20 s and a slack of 10 s, at 10 base units a second.
const (
	swiftTimes = 100
	swiftMost  = 301
)

// swiftRenter is a tenant whose clock, and whose provider's, is swift.
func swiftRenter(t *testing.T, change ...func(*Config)) *tickRenter {
	t.Helper()
	clock := newSwift(swiftTimes)
	r, _ := meteredRig(t, Route{MaxTime: 5 * time.Second}, func(http.ResponseWriter, *http.Request) { time.Sleep(20 * time.Millisecond) },
		func(c *Config) {
			c.Source, c.Metering.Clock, c.PricePerGPUHour = sim.New(3, sim.Options{Clock: clock}), clock, "0.036"
			c.Terms.Credit, c.Metering.Tick, c.Metering.RecordEvery = 20*time.Second, 2*time.Second, 5*time.Second
			c.X402.Window, c.X402.Slack = 20*time.Second, 10*time.Second
			for _, f := range change {
				f(c)
			}
		})
	n := newTickRenter(t, r)
	n.clock, n.change = clock, func(c *wallet.Config) { c.Caps.PerLease = "0.5" }
	n.open()
	return n
}

// TestX402RestoredRenterTicksOn: a renter whose database is from a backup, and whose ticks since were for longer than any one
// tick and one late reading, goes on at the same lease. Nobody is accused, and what was used is paid once.
func TestX402RestoredRenterTicksOn(t *testing.T) {
	n := swiftRenter(t)
	n.tick()
	n.close()
	backup, err := os.ReadFile(n.database)
	if err != nil {
		t.Fatal(err)
	}
	n.open()
	const maxTick = time.Minute // the most that a client signs for
	var since time.Duration
	var lease common.Hash
	for since <= 2*(maxTick+wire.MaxGapOfTicks) {
		tick, err := n.patient()
		if err != nil {
			t.Fatal(err)
		}
		lease = tick.Lease
		since += time.Duration(tick.Record.Evidence.Nanos)
	}
	n.close()
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
func (n *tickRenter) patient() (tick x402client.Tick, err error) {
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
func (n *tickRenter) settles() {
	n.Helper()
	if _, err := n.rental.Close(n.Context()); err != nil {
		n.Fatal(err)
	}
	c := n.only()
	theirs, err := x402Of(n.provider).Book.State(n.Context(), c.ID)
	paid := theirs.Settled
	const late = 2*10*10 + 1 // two GPUs, MaxGap, 10 base units a second
	if err != nil || paid.Gt(&theirs.Spent) || paid.Gt(&c.Charged) || paid.Uint64()+late < theirs.Spent.Uint64() {
		n.Errorf("the renter has %s charged and %s signed; the provider %s used, %s accepted, %s claimed: %v",
			c.Charged.Dec(), c.Signed.Dec(), theirs.Spent.Dec(), theirs.Accepted.Dec(), paid.Dec(), err)
	}
	if got := n.chain.Tokens(n, n.key.Address()); got != tickPurse-paid.Uint64() {
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
	n := swiftRenter(t)
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
				if n.line.Cut = 1 + resends; round > 0 && random.IntN(2) == 0 {
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
func (n *tickRenter) makeRoom(gpus int) {
	n.Helper()
	all, err := n.x.Channels(n.Context())
	if err != nil || len(all) == 0 {
		return
	}
	id := all[0].ID
	if l := n.provider.leases.Running(id); l == nil || len(l.Allocation.Devices) == gpus {
		return
	}
	n.provider.leases.EndSoon(n.provider.leases.Running(id), "the test wants another")
	testrig.Eventually(n.T, "the lease ends", func() bool { return n.provider.leases.Running(id) == nil })
}

// does pays for one thing and reads all of the answer.
func (n *tickRenter) does(m purchase) error {
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

// TestX402AccountsOfAnEarlierVersion: a channel that an earlier version paid by ticks, which did not tell what was signed for
// ticks from all else, is paid on from what the provider says, and so is one from which nothing but ticks is new.
func TestX402AccountsOfAnEarlierVersion(t *testing.T) {
	n := swiftRenter(t)
	n.tick()
	err := n.wallet.DB.Update(t.Context(), func(tx *sqlx.Tx) error {
		done, err := tx.Exec(`UPDATE x402_slates SET document = json_remove(document, '$.ticked', '$.ceiling', '$.plain') WHERE json_extract(document, '$.ticked')`)
		if err != nil {
			return err
		}
		if n, err := done.RowsAffected(); err != nil || n != 1 {
			return fmt.Errorf("%d accounts were paid from by ticks: %w", n, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	n.makeRoom(0) // and with it ends what was used after the record
	if _, err := n.patient(); err != nil {
		t.Fatal(err)
	}
	other := newTickRenter(t, n.payRig)
	other.clock, other.change = n.clock, n.change
	other.open()
	other.line.Cut = 1 + resends
	if err := other.does(purchase{"/tick?gpus=1", 1}); !errors.Is(err, peer.ErrUnreachable) {
		t.Fatalf("%v, want %v", err, peer.ErrUnreachable)
	}
	if tick, err := other.patient(); err != nil || tick.Charged.IsZero() || tick.Lease == (common.Hash{}) {
		t.Errorf("the first tick: %+v, %v", tick, err)
	}
}

// TestX402HonestProviderOfARenterWhoseClockMissedTime: a renter's host is rebooted and its wall clock wakes up an hour behind,
// or its virtual machine is stopped, between two ticks or while one is under way, the first or a later one. The provider is
// accused of nothing, in the ticks that come then either, and is paid.
func TestX402HonestProviderOfARenterWhoseClockMissedTime(t *testing.T) {
	t.Parallel()
	between := func(miss func(n *tickRenter, f *testrig.FlawedClock, since metering.Instant)) func(*tickRenter, *testrig.FlawedClock) {
		return func(n *tickRenter, f *testrig.FlawedClock) {
			since := f.Clock.Now()
			testrig.Eventually(n.T, "time passes", func() bool { return f.Clock.Now().Boot > since.Boot+int64(6*time.Second) })
			miss(n, f, since)
		}
	}
	stoppedMeanwhile := func(n *tickRenter, f *testrig.FlawedClock) {
		since, once := f.Clock.Now(), sync.Once{}
		n.line.Alter = func(*http.Response) { once.Do(func() { f.Stand(since) }) }
	}
	rebootedMeanwhile := func(n *tickRenter, f *testrig.FlawedClock) {
		n.line.Short = 1
		if _, err := n.rental.Tick(n.Context()); !errors.Is(err, peer.ErrUnreachable) {
			n.Fatal(err)
		}
		f.Reboot()
		n.open()
	}
	for name, row := range map[string]struct {
		ticks int // before
		miss  func(*tickRenter, *testrig.FlawedClock)
	}{
		"stopped": {3, between(func(_ *tickRenter, f *testrig.FlawedClock, since metering.Instant) { f.Stand(since) })},
		"rebooted": {3, between(func(n *tickRenter, f *testrig.FlawedClock, _ metering.Instant) {
			f.Reboot()
			n.open()
		})},
		"stopped in a tick":          {3, stoppedMeanwhile},
		"stopped in the first tick":  {0, stoppedMeanwhile},
		"rebooted in a tick":         {3, rebootedMeanwhile},
		"rebooted in the first tick": {0, rebootedMeanwhile},
	} {
		t.Run(name, func(t *testing.T) {
			n := swiftRenter(t, func(c *Config) { c.Source = testrig.Earnest{Source: c.Source} })
			f, change := testrig.NewFlawedClock(n.clock), n.change
			n.clock, n.change = f, func(c *wallet.Config) {
				change(c)
				c.Tolerance = 20 * time.Second // an answer's way takes a hundred times as long
			}
			n.open()
			for range row.ticks {
				if _, err := n.patient(); err != nil {
					t.Fatal(err)
				}
			}
			row.miss(n, f)
			for i := range 4 {
				tick, err := n.patient()
				if err != nil {
					t.Fatalf("tick %d after it: %v", i+1, err)
				}
				if c := n.only().Charged; tick.Record.Owed.Lt(&c) {
					t.Errorf("%s charged, %s owed", c.Dec(), tick.Record.Owed.Dec())
				}
			}
			n.settles()
		})
	}
}
