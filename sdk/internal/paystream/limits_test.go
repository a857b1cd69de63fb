package paystream

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/slots"
	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	"github.com/gpupay/gpupay/sdk/internal/sharedcredit"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

const (
	creditSeconds = 20
	tick          = time.Second
)

// market is an honest provider of slots, read once a tick of a simulated clock, and one payer's leases there.
type market struct {
	*testing.T
	random  *rand.Rand
	clock   *sim.Clock
	source  *sim.Source
	meter   *slots.Meter
	offer   wire.Offer
	price   metering.Price
	wallet  *wallet.Wallet
	credits sharedcredit.Credits
	leases  []*rented
	cut     int // requests that were ended at the credit
	last    int64
	aside   int // of them, on leases that owed less than a quarter of it
}

// rented is a lease: what its provider has of it, and its renter's side.
type rented struct {
	checks
	accepted uint256.Int
	running  map[uint64]bool
	broken   []uint64 // that the renter has not heard of yet
}

func openWallet(t *testing.T) *wallet.Wallet {
	db, err := database.Open(t.Context(), filepath.Join(t.TempDir(), "renter.db"), "renter", wallet.Migrations, "migrations/renter")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return &wallet.Wallet{DB: db, Store: wallet.Store{DB: db}, Now: time.Now, Log: slog.New(slog.DiscardHandler)}
}

func newMarket(t *testing.T, w *wallet.Wallet, seed uint64, leases int, most uint32) *market {
	m := &market{T: t, random: rand.New(rand.NewPCG(seed, 1)), clock: sim.NewClock(), wallet: w, price: metering.Price{Amount: *uint256.NewInt(1000), Unit: metering.Second}}
	share := metering.Share{GPUs: 1 + m.random.Uint32N(2), Slots: 2 + m.random.Uint32N(4)}
	m.offer = wire.Offer{Credit: creditSeconds, Tick: tick.Milliseconds(), Share: &wire.Share{GPUs: share.GPUs, Slots: share.Slots, MaxSeconds: most}}
	m.source = sim.New(int(share.GPUs), sim.Options{Clock: m.clock})
	var devices []string
	for i := range share.GPUs {
		devices = append(devices, sim.UUID(int(i)))
	}
	var err error
	if m.meter, err = slots.New(slots.Config{Share: share, Devices: devices, Tick: tick, MaxGap: 3 * tick}); err != nil {
		t.Fatal(err)
	}
	for i := range leases {
		m.lease(common.Hash{byte(seed >> 8), byte(seed), byte(i), byte(most)})
	}
	m.pass(tick)
	m.pass(tick)
	return m
}

func (m *market) lease(id common.Hash) {
	l := &rented{running: make(map[uint64]bool)}
	l.Channel = new(rental.Channel)
	l.Wallet, l.Store, l.ID, l.Payer = m.wallet, rental.Store{Store: m.wallet.Store}, id, &channel.Payer{Store: m.wallet.DB.Payer()}
	l.Row = rental.Row{Phase: rental.PhaseRunning, Deposit: *uint256.NewInt(1_000_000_000)}
	l.Requests = newRequests(&l.Ledger, m.clock)
	credit, err := m.price.Charge(m.offer.Credit * uint64(time.Second))
	if err == nil {
		err = m.meter.Begin(id, slots.State{})
	}
	if err != nil {
		m.Fatal(err)
	}
	l.Requests.agree(m.offer, int(m.offer.Share.GPUs), m.price, credit, m.credits.With(channel.Terms{}))
	l.Show(m.Context())
	l.Requests.hears(uint256.Int{}, l.Row.Deposit)
	m.credits.With(channel.Terms{}).Count(id, l.Requests)
	m.leases = append(m.leases, l)
}

// pass lets time pass and has the provider look at the credit: it ends all of the payer's requests where two ticks more could go over it.
func (m *market) pass(d time.Duration) {
	m.clock.Advance(d)
	for i := range m.offer.Share.GPUs {
		r, err := m.source.Read(m.Context(), sim.UUID(int(i)))
		if err == nil {
			err = m.meter.Observe(r)
		}
		if err != nil {
			m.Fatal(err)
		}
	}
	if owed := m.owed(2 * tick); owed.GtUint64(creditSeconds * 1000) {
		for _, l := range m.leases {
			m.end(l, metering.RequestLimit)
		}
	}
}

// owed is what the payer owes in so long, by its provider.
func (m *market) owed(ahead time.Duration) (sum uint256.Int) {
	for _, l := range m.leases {
		due, err := m.meter.Due(l.ID, m.clock.Now().Mono+int64(ahead))
		if err != nil {
			m.Fatal(err)
		}
		debt, err := m.price.Charge(uint64(due))
		if err != nil {
			m.Fatal(err)
		}
		debt = u256.SaturatingSub(debt, l.accepted)
		sum.Add(&sum, &debt)
	}
	return sum
}

func (m *market) end(l *rented, how metering.Outcome) {
	unpaid := u256.SaturatingSub(l.Owed(), l.accepted)
	for id := range l.running {
		if err := m.meter.Give(l.ID, id, m.clock.Now().Mono, how); err != nil {
			m.Fatal(err)
		}
		delete(l.running, id)
		l.broken, m.last = append(l.broken, id), m.clock.Now().Boot
		if how == metering.RequestLimit {
			if m.cut++; unpaid.LtUint64(creditSeconds * 1000 / 4) {
				m.aside++
			}
		}
	}
}

func (m *market) begin(l *rented) {
	id, err := l.Requests.Begin(m.Context())
	if err != nil {
		m.Fatal(err)
	}
	if m.meter.Take(l.ID, id, m.clock.Now().Mono) != nil {
		l.Requests.End(id, rental.Errored) // no slot
		return
	}
	l.running[id] = true
}

// hear has the renter hear of what broke off.
func (m *market) hear() {
	for _, l := range m.leases {
		for _, id := range l.broken {
			l.Requests.End(id, rental.Broken)
		}
		l.broken = nil
	}
}

// record has the renter check what the provider states.
func (m *market) record(l *rented) error {
	e, err := m.meter.Cut(l.ID, false)
	if err != nil {
		m.Fatal(err)
	}
	books, known, err := l.requests(m.Context(), metering.SignedRecord{Evidence: e}, nil)
	if err != nil {
		return err
	}
	owed, err := m.price.Charge(uint64(e.Total))
	if err != nil {
		m.Fatal(err)
	}
	l.Row.Books, l.Row.Checker = books, &verify.State{Owed: owed}
	l.Show(context.Background())
	l.Requests.forget(known, books)
	return nil
}

func (m *market) step() {
	l := m.leases[m.random.IntN(len(m.leases))]
	switch m.random.IntN(9) {
	case 0, 1:
		m.begin(l)
	case 2: // its answer is whole
		for id := range l.running {
			if err := m.meter.Give(l.ID, id, m.clock.Now().Mono, metering.RequestDone); err != nil {
				m.Fatal(err)
			}
			delete(l.running, id)
			l.Requests.End(id, rental.Done)
			break
		}
	case 3:
		m.hear()
	case 4:
		if err := m.record(l); err != nil {
			m.Fatalf("an honest provider is accused: %v", err)
		}
	case 5: // it pays, which the provider hears
		if l == m.leases[0] || m.random.IntN(6) == 0 {
			l.accepted = l.Owed()
		}
		if m.random.IntN(2) == 0 {
			l.Requests.hears(l.accepted, l.Row.Deposit)
		}
	case 6: // and says so later
		l.Requests.hears(l.accepted, l.Row.Deposit)
	default:
		if m.clock.Now().Boot-m.last > int64(receiptLate/2) {
			m.hear()
		}
		m.pass(time.Duration(m.random.Int64N(int64(tick))))
	}
}

// TestLimitsOfAllLeases: whatever one payer's requests do on several leases of one credit, whichever of them owe it, and in whatever order
// records, receipts and ends reach it: it accuses no honest provider of what that ended at the credit.
func TestLimitsOfAllLeases(t *testing.T) {
	t.Parallel()
	w, cut, aside := openWallet(t), 0, 0
	for seed := range uint64(10) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := newMarket(t, w, seed, 1+int(seed%4), 0)
			for range 250 {
				m.step()
			}
			for _, l := range m.leases {
				m.end(l, metering.RequestFailed)
			}
			m.hear()
			m.pass(tick)
			for _, l := range m.leases {
				if err := m.record(l); err != nil {
					t.Fatalf("an honest provider is accused: %v", err)
				}
			}
			cut, aside = cut+m.cut, aside+m.aside
		})
	}
	if cut < 20 || aside < 10 {
		t.Errorf("%d requests are ended at the credit, %d of them on leases that owe little", cut, aside)
	}
}

// TestFarFromALimit: what breaks off far from every limit has failed, whatever its provider calls it. Where its longest time is over, the
// provider is paid, however little is owed; also before the renter has heard that it broke off.
func TestFarFromALimit(t *testing.T) {
	t.Parallel()
	w := openWallet(t)
	for name, c := range map[string]struct {
		most   uint32
		runs   time.Duration
		paid   bool
		unpaid bool // it runs yet, for the renter
	}{
		"half of the credit":      {runs: creditSeconds / 2 * time.Second},
		"it runs, for the renter": {runs: creditSeconds / 2 * time.Second, unpaid: true},
		"short of its time":       {most: 12, runs: 9 * time.Second},
		"at its time":             {most: 9, runs: 9 * time.Second, paid: true},
		"at its time, unheard of": {most: 9, runs: 9 * time.Second, paid: true, unpaid: true},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMarket(t, w, uint64(len(name)), 1, c.most)
			l := m.leases[0]
			m.begin(l)
			for range c.runs / tick {
				m.pass(tick)
			}
			m.end(l, metering.RequestLimit)
			m.pass(tick)
			if !c.unpaid {
				l.Requests.End(1, rental.Broken)
			}
			if err := m.record(l); (err == nil) != c.paid {
				t.Errorf("its record: %v", err)
			}
		})
	}
}

// TestPaidAMomentLater: a provider is not accused of what it ended at the credit because a payment reached it a moment later.
func TestPaidAMomentLater(t *testing.T) {
	t.Parallel()
	m := newMarket(t, openWallet(t), 1, 1, 0)
	l := m.leases[0]
	m.begin(l)
	for owed := m.owed(0); owed.LtUint64(creditSeconds * 1000 / 2); owed = m.owed(0) {
		m.pass(tick)
	}
	if err := m.meter.Give(l.ID, 1, m.clock.Now().Mono, metering.RequestDone); err != nil {
		t.Fatal(err)
	}
	delete(l.running, 1)
	l.Requests.End(1, rental.Done)
	m.pass(tick)
	if err := m.record(l); err != nil {
		t.Fatal(err)
	}
	m.begin(l)
	for m.cut == 0 {
		m.pass(tick)
	}
	l.accepted = l.Owed()
	l.Requests.hears(l.accepted, l.Row.Deposit)
	m.hear()
	m.pass(tick)
	if err := m.record(l); err != nil {
		t.Errorf("an honest provider is accused: %v", err)
	}
}

// TestClocksThatDrift: a request that its provider ended at the offer's longest time, by a clock that is a thousandth faster than ours, is no failure.
func TestClocksThatDrift(t *testing.T) {
	const most = 10 // seconds: of which a thousandth is 10 ms
	for _, c := range []struct {
		short time.Duration // of the longest time, by our clock
		ended bool
	}{{0, true}, {clockSlack + 5*time.Millisecond, true}, {clockSlack + 20*time.Millisecond, false}} {
		m := newMarket(t, openWallet(t), 3, 1, most)
		l := m.leases[0]
		id, err := l.Requests.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		m.clock.Advance(most*time.Second - c.short)
		if got := l.Requests.limited(id); got != c.ended {
			t.Errorf("%s short of its longest time: its provider may have ended it: %t, want %t", c.short, got, c.ended)
		}
	}
}

// TestUsed: what requests may have used is the time that each took, and two ticks and one for those that may run, in the share of the GPUs that
// a slot has.
func TestUsed(t *testing.T) {
	m := newMarket(t, openWallet(t), 1, 1, 0)
	q := m.leases[0].Requests
	now := m.clock.Now().Boot
	q.own[1], q.own[2], q.own[3] = slots.Own{From: now - int64(time.Hour), To: now - int64(time.Hour) + int64(4*time.Second)}, slots.Own{From: now - int64(2*time.Second)}, slots.Own{From: now - int64(time.Hour), To: now - int64(time.Hour) + int64(8*time.Second)}
	q.running[2], q.errored[3] = false, true
	got, err := q.used(now)
	share := q.limits.share
	want := 1000*(4+2+3)*uint64(share.GPUs)/uint64(share.Slots) + 1
	if err != nil || !got.IsUint64() || got.Uint64() < want || got.Uint64() > want+1 {
		t.Errorf("%s, and not %d: %v", got.Dec(), want, err)
	}
}
