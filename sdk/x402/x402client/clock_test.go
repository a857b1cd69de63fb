package x402client

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/ticks"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// nap is a clock that can be set ahead and stopped, as the system's is over a renter's pause.
type nap struct {
	metering.Clock
	mu      sync.Mutex
	ahead   int64
	stopped *metering.Instant
}

func (n *nap) Now() metering.Instant {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopped != nil {
		return *n.stopped
	}
	now := testclock.Process().Now()
	now.Boot, now.Mono, now.Wall = now.Boot+n.ahead, now.Mono+n.ahead, now.Wall+n.ahead
	return now
}

func (n *nap) BootID() string { return "nap" }

// pass lets time pass in which nothing is asked for.
func (n *nap) pass(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ahead += int64(d)
}

// stop stops the clock: whatever is billed from now on did not happen.
func (n *nap) stop() {
	at := n.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stopped = &at
}

func idleRig(t *testing.T) (*tenant, *nap) {
	t.Helper()
	n := newTenant(t, newPayRig(t, func(c *provider.Config) {
		c.X402.Window, c.X402.Slack, c.Metering.MaxGap = time.Second, 80*time.Millisecond, 300*time.Millisecond
	}))
	clock := &nap{}
	n.clock = clock
	n.open()
	return n, clock
}

// TestX402IdleTimeIsNotBilled: however long a renter was away, a provider may bill no more of it than the voucher before
// still covered and one late reading. What happens after the renter has asked is billed as it passes.
func TestX402IdleTimeIsNotBilled(t *testing.T) {
	n, clock := idleRig(t)
	for range 2 {
		n.tick()
		clock.pass(15 * time.Minute) // an honest provider has suspended the lease
	}
	n.tick()
	ours := n.account()
	signed, err := n.x.payer.State(n.Context(), ours.ID)
	if err != nil {
		t.Fatal(err)
	}
	// At 1000 base units a second, a base unit is a millisecond. A tick that the machine was too busy to meter in full
	// leaves the more of its voucher to the next.
	covers := signed.Signed.Uint64() - ours.Ticking.Checker.Owed.Uint64()
	clock.pass(15 * time.Minute)
	clock.stop() // and another bills a second of it
	var billed uint64
	for range 10 {
		var d *wallet.Dispute
		tick, err := n.rental.Tick(t.Context())
		if errors.As(err, &d) && errors.Is(err, verify.ErrClock) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		billed += tick.Charged.Uint64()
	}
	if billed > covers+300+250 { // a late reading, and two clocks' drift
		t.Errorf("%d ms of idle time were billed, and the voucher covered %d", billed, covers)
	}
}

// TestX402StrangersUnitKeepsTheClock: money that somebody else put into the channel shows no lease of before: a record is
// held to our clock all the same, also where the money covers the request.
func TestX402StrangersUnitKeepsTheClock(t *testing.T) {
	rig := newPayRig(t)
	for _, amount := range []uint64{1, 20_000} {
		n := newTenant(t, rig)
		b, err := n.rental.request(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		gift(t, n.Chain, n.contract, b.id, amount)
		clock := &nap{}
		clock.pass(time.Hour) // the record begins before it was asked for, by our clock
		clock.stop()
		n.clock = clock
		n.open()
		var d *wallet.Dispute
		for range 10 { // a tick that the machine was too busy to meter may be within the tolerance
			if _, err = n.rental.Tick(t.Context()); err != nil {
				break
			}
		}
		if !errors.Is(err, verify.ErrClock) || !errors.As(err, &d) {
			t.Errorf("%d of a stranger: %v", amount, err)
		}
	}
}

// TestX402FoundForOneRecord: after a lost database the first record may begin before it was asked for; the second may not.
func TestX402FoundForOneRecord(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	n.tick()
	if err := n.Provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.database += ".new"
	n.open()
	b, err := n.rental.request(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := b.load(t.Context()); err != nil || !b.account.Found {
		t.Fatalf("something was claimed: %+v, %v", b.account, err)
	}
	n.tick()
	if s := n.account(); s.Found || s.Ticking == nil {
		t.Errorf("%+v", s)
	}
}

// TestX402TickErrorWithReceipt: a tick that is answered by an error and a receipt is answered: one that charged is a lie, and
// one that charged nothing is not asked for again.
func TestX402TickErrorWithReceipt(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	n.line.Alter = func(resp *http.Response) {
		receipt, err := x402.ParseSettleResponse(resp.Header)
		if err != nil {
			t.Error(err)
		}
		receipt.ChargedAmount, receipt.ChannelState = ptr(wireUnits(0)), nil
		if err := receipt.Set(resp.Header); err != nil {
			t.Error(err)
		}
		resp.StatusCode, resp.Status = http.StatusInternalServerError, "500 Internal Server Error"
	}
	var d *wallet.Dispute
	if _, err := n.rental.Tick(t.Context()); err == nil || errors.As(err, &d) || n.account().Tick != nil {
		t.Errorf("nothing was charged: %v, pending %+v", err, n.account().Tick)
	}
	n = newTenant(t, n.payRig)
	n.line.Alter = func(resp *http.Response) {
		resp.StatusCode, resp.Status = http.StatusInternalServerError, "500 Internal Server Error"
	}
	if _, err := n.rental.Tick(t.Context()); !errors.As(err, &d) {
		t.Errorf("charged for an error: %v", err)
	}
	paid := len(n.line.Paid)
	if _, err := n.rental.Tick(t.Context()); !errors.As(err, &d) || len(n.line.Paid) != paid {
		t.Errorf("%v, %d payments more", err, len(n.line.Paid)-paid)
	}
}

// TestX402ExpiredOffer: no lease is begun under an offer that has expired, at the start or later.
func TestX402ExpiredOffer(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	n.x.w.Now = func() time.Time { return time.Now().Add(48 * time.Hour) }
	if _, err := n.rental.Tick(t.Context()); !errors.Is(err, peer.ErrOffer) || len(n.line.Paid) != 0 {
		t.Errorf("%v, %d payments", err, len(n.line.Paid))
	}
	if _, err := n.x.Rent(t.Context(), n.Server.URL, 1); !errors.Is(err, peer.ErrOffer) {
		t.Errorf("rented: %v", err)
	}
}

// generous is an Allocator that lets one GPU to everybody.
type generous struct{ uuid string }

func (g generous) Allocate(context.Context, gpu.Request) (gpu.Allocation, error) {
	return gpu.Allocation{Devices: []string{g.uuid}, Access: json.RawMessage(`{}`)}, nil
}
func (generous) Suspend(context.Context, gpu.Allocation) error { return nil }
func (generous) Resume(context.Context, gpu.Allocation) error  { return nil }
func (generous) Release(context.Context, gpu.Allocation) error { return nil }

// bootless names no boot of its host.
type bootless struct{ metering.Source }

func (s bootless) Devices(ctx context.Context) ([]metering.Device, error) {
	devices, err := s.Source.Devices(ctx)
	for i := range devices {
		devices[i].BootID = ""
	}
	return devices, err
}

func (s bootless) Read(ctx context.Context, uuid string) (metering.Reading, error) {
	r, err := s.Source.Read(ctx, uuid)
	r.BootID = ""
	return r, err
}

// overbooked is a tenant of a payee that lets one GPU twice: by two providers with a database each, the other at a URL of its own.
func overbooked(t *testing.T) (n *tenant, elsewhere string) {
	t.Helper()
	return overbookedOf(t, testrig.Earnest{Source: testclock.GPUs(2)})
}

func overbookedOf(t *testing.T, source metering.Source) (n *tenant, elsewhere string) {
	t.Helper()
	devices, err := source.Devices(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	greedy := func(c *provider.Config) {
		c.Source, c.Allocator = source, generous{devices[0].UUID}
		c.X402.Window = 2 * time.Second // most of what two ticks at once take, also on a slow machine
	}
	first := newPayRig(t, greedy)
	return newTenant(t, first), payRigOn(t, first.Market, greedy).Server.URL
}

// TestX402OneGPUIsPaidOnce: a GPU that is let to one renter twice for the same time is paid once.
func TestX402OneGPUIsPaidOnce(t *testing.T) {
	n, elsewhere := overbooked(t)
	n.tick() // funded before the other provider sends anything: of two that take one nonce, one waits until the other's is final
	n.paidOnce(elsewhere)
}

// paidOnce lets a second channel tick beside the first until a GPU was billed twice.
func (n *tenant) paidOnce(elsewhere string) {
	n.Helper()
	second, err := New(n.Context(), n.wallet, Options{MaxPrice: wallet.Unlimited, Salt: common.Hash{1}})
	if err != nil {
		n.Fatal(err)
	}
	other, err := second.Rent(n.Context(), elsewhere, 1)
	if err != nil {
		n.Fatal(err)
	}
	errs := make(chan error, 2)
	for range 10 {
		for _, r := range []*Rental{n.rental, other} {
			go func() {
				_, err := r.Tick(n.Context())
				errs <- err
			}()
		}
		if err = errors.Join(<-errs, <-errs); err != nil {
			break
		}
	}
	var d *wallet.Dispute
	if !errors.As(err, &d) || !errors.Is(err, wallet.ErrLetTwice) {
		n.Errorf("paid twice: %v", err)
	}
}

// bootOf is the system's clock, as a host shows it that names a boot, or none.
type bootOf struct {
	metering.Clock
	name string
	past int64 // ns of monotonic time that are not in it
}

func (b bootOf) BootID() string { return b.name }
func (b bootOf) Now() metering.Instant {
	at := b.Clock.Now()
	at.Boot, at.Mono = at.Boot-b.past, at.Mono-b.past
	return at
}

// TestOurClockFindsOneGPULetTwice: where a payee names no boot, a GPU that is let twice is found on the renter's own clock,
// also where that renter's system names no boot, and after it was rebooted in the lease.
func TestOurClockFindsOneGPULetTwice(t *testing.T) {
	t.Parallel()
	clock := testclock.Process() // the GPUs' as well: on a faster one of ours two slow leases have the time of one
	booted := clock.Now().Boot - int64(time.Second)
	for name, clocks := range map[string][]metering.Clock{
		"of a system that names no boot": {bootOf{clock, "", 0}},
		"rebooted":                       {bootOf{clock, "first", 0}, bootOf{clock, "second", booted}},
		"of another process":             {bootOf{clock, "", 0}, bootOf{clock, "", booted}},
	} {
		t.Run(name, func(t *testing.T) {
			n, elsewhere := overbookedOf(t, bootless{testrig.Earnest{Source: testclock.GPUs(2)}})
			n.change = func(c *wallet.Config) { c.Tolerance = ticks.Tolerance }
			var lease common.Hash
			for _, n.clock = range clocks {
				n.open()
				if was := lease; was != (common.Hash{}) && n.tick().Lease != was {
					t.Fatal("the lease did not go on")
				}
				lease = n.tick().Lease
			}
			n.paidOnce(elsewhere)
		})
	}
}

// TestOneGPUInASessionAndOverX402: a GPU that is let in a session and over x402 at once is paid once, also where the session
// is only on disk.
func TestOneGPUInASessionAndOverX402(t *testing.T) {
	n, elsewhere := overbooked(t)
	if err := n.wallet.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := renter.New(t.Context(), renter.Config{
		Key: n.key, Chain: wallet.Chain{Backend: n.Backend, Poll: 5 * time.Millisecond, ClockTolerance: time.Hour}, Token: n.Token, Database: n.database, Caps: tenantCaps,
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	n.use(r.Wallet())
	n.tick()
	session, err := r.Rent(t.Context(), elsewhere, renter.Options{Deposit: "0.02"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- session.Run(ctx) }()
	for end := time.Now().Add(10 * time.Second); len(r.Wallet().Billed.Spans(session.Terms().Payee, session.ID())) == 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	for range 3 { // refused, or paid before the session's records of that time came: then those are refused
		if _, err = n.rental.Tick(t.Context()); err != nil {
			break
		}
	}
	cancel()
	err = errors.Join(err, <-done)
	var d *wallet.Dispute
	if !errors.As(err, &d) || !errors.Is(err, wallet.ErrLetTwice) {
		t.Errorf("one GPU in a session and over x402: %v", err)
	}
	n.open()
	payee := session.Terms().Payee
	spans := n.wallet.Billed.Spans(payee, session.ID())
	if len(spans) == 0 {
		t.Fatal("nothing was billed in the session, or it is forgotten")
	}
	if err := n.wallet.Billed.Book(payee, common.Hash{1}, spans, 0); !errors.Is(err, wallet.ErrLetTwice) {
		t.Errorf("what a session was billed for is forgotten: %v", err)
	}
	if err := n.wallet.Billed.Book(payee, common.Hash{1}, n.account().Spans, 0); !errors.Is(err, wallet.ErrLetTwice) {
		t.Errorf("what ticks were billed for is forgotten: %v", err)
	}
}

// TestX402LateReadings: a provider that takes x402 makes no offer of readings so late that a renter would not pay for them, and a
// renter pays for no ticks under such an offer.
func TestX402LateReadings(t *testing.T) {
	r := newPayRig(t)
	n := newTenant(t, r)
	r.Stop()
	r.Config.Metering.MaxGap = wire.MaxGapOfTicks + time.Millisecond
	if p, err := provider.New(t.Context(), r.Config); err == nil || !strings.Contains(err.Error(), "MaxGap (10.001s) must be at most 10s") {
		t.Errorf("a provider: %v", err)
		if err == nil {
			_ = p.Close()
		}
	}
	r.Config.X402 = nil
	r.Start()
	if _, err := n.x.Rent(t.Context(), n.Server.URL, 1); !errors.Is(err, peer.ErrOffer) || !strings.Contains(err.Error(), "10.001s late") {
		t.Errorf("a renter: %v", err)
	}
}

// TestX402SharedDevices: ticks pay for whole devices, and a renter begins none under an offer by which they are shared.
func TestX402SharedDevices(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	v := testrig.NewHostile(t, n.Market, func(o *wire.Offer) {
		o.Version, o.Share, o.Devices = 2, &wire.Share{GPUs: 1, Slots: 8}, []wire.OfferDevices{{Model: "H100", MemoryBytes: 1, Count: 1}}
	})
	if _, err := n.x.Rent(t.Context(), v.Server.URL, 1); !errors.Is(err, peer.ErrOffer) || !strings.Contains(err.Error(), "shared by slots") {
		t.Error(err)
	}
}
