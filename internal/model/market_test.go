package model

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/params"
	"github.com/holiman/uint256"
	"pgregory.net/rapid"

	"github.com/gpupay/gpupay/bindings/batchsettlement/standin"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/model/memchain"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/limit"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/settle"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// What the market's programs are set to. A GPU-second costs 1,000 base units.
const (
	creditTime = time.Second // the offer says whole seconds
	creditCost = 1000
	tick       = 20 * time.Millisecond
	perLease   = 100_000 // base units
	gpus       = 4
	leastRoom  = 4 * 20 // base units of credit that a lease of one GPU begins with: four ticks
)

// A market is a real provider, real renters and HTTP between them, on a chain in memory.
type market struct {
	*world
	stop     context.CancelFunc // of the chain's clock
	config   provider.Config
	provider *provider.Server
	server   *httptest.Server
	halt     context.CancelFunc // of the provider
	ran      chan error
	renters  []*program
	deals    []*deal
	gifts    map[common.Hash]uint64
	digests  map[string]common.Hash // of every record that was ever shown, by lease and number
	backed   bool
	restored uint64 // how often the provider went on from a backup
	sponsorship
}

// A program is one renter, with its database.
type program struct {
	config renter.Config
	*renter.Client
}

// A deal is a rental, whether anybody pays for it at the moment or not.
type deal struct {
	by     *program
	rental *renter.Rental
	id     common.Hash
	cancel context.CancelFunc // nil: nobody runs it
	done   chan error
	signed uint64
	over   bool
	left   bool // its renter wants its money back without the provider
}

// TestMarket is slow: its programs live in real time. GPUPAY_MODEL_MARKETS is how many there are, 3 if it is not set.
func TestMarket(t *testing.T) {
	set(t, "rapid.checks", strconv.Itoa(markets(t)))
	set(t, "rapid.steps", "40")
	set(t, "rapid.nofailfile", "true")
	set(t, "rapid.shrinktime", "1ms") // in real time nothing fails twice alike
	seen := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		m := newMarket(rt, seen)
		actions := rapid.StateMachineActions(&trades{m})
		for i, often := range []string{"Rent", "Wait", "Wait", "Wait", "Gift", "Drain", "Drain"} {
			actions[fmt.Sprintf("%s (%d)", often, i)] = actions[often]
		}
		for name, action := range actions {
			actions[name] = func(rt *rapid.T) { m.T = rt; action(rt) }
		}
		rt.Repeat(actions)
		m.T = rt
		m.clearance()
	})
	t.Log(seen)
}

// TestDebtors: who has used its credit gets no other lease, whatever channel it opens for that.
func TestDebtors(t *testing.T) {
	set(t, "rapid.checks", strconv.Itoa(markets(t)))
	set(t, "rapid.nofailfile", "true")
	set(t, "rapid.shrinktime", "1ms")
	seen := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		m := newMarket(rt, seen, func(c *provider.Config) { c.Terms.SuspendTimeout = 10 * tick }) // so that there are free GPUs
		x := &trades{m}
		for range rapid.IntRange(1, 2).Draw(rt, "rounds") {
			x.Dodge(rt)
			for range rapid.IntRange(2, 4).Draw(rt, "more") {
				x.Rent(rt)
			}
		}
		m.audit()
	})
	t.Log(seen)
}

// markets is how many of a kind a test makes.
func markets(t *testing.T) int { return setting(t, "GPUPAY_MODEL_MARKETS", 3) }

func newMarket(t *rapid.T, seen map[string]int, change ...func(*provider.Config)) *market {
	dir, err := os.MkdirTemp(scratch(), "gpupay-market-")
	if err != nil {
		t.Fatal(err)
	}
	m := &market{sponsorship: sponsorship{spent: map[common.Address]*big.Int{}, most: new(big.Int)}, gifts: map[common.Hash]uint64{}, digests: map[string]common.Hash{}, world: &world{T: t, ctx: context.Background(), dir: dir,
		wall: time.Now(), seen: seen, stranger: key("stranger"), payee: channel.NewKey(key("payee"))}}
	coins := new(big.Int).Mul(big.NewInt(1000), big.NewInt(params.Ether))
	alloc := types.GenesisAlloc{
		channel.BatchSettlementEscrow:    {Code: common.FromHex(standin.BatchSettlement)},
		channel.BatchSettlementCollector: {Code: common.FromHex(standin.ERC3009DepositCollector)},
		giver:                            {Code: giverCode},
	}
	for _, who := range []string{"stranger", "payee", "payer 0"} { // the other payer has no coin
		alloc[crypto.PubkeyToAddress(key(who).PublicKey)] = types.Account{Balance: coins}
	}
	m.chain, err = memchain.New(uint64(time.Now().Unix()), alloc)
	m.must(err)
	m.escrow, err = chain.Deploy(m.ctx, m.chain, channel.NewKey(m.stranger), grace)
	m.must(err)
	m.deployToken()
	ctx, stop := context.WithCancel(m.ctx)
	m.stop = stop
	go func() {
		for chain.Pause(ctx, 100*time.Millisecond) == nil {
			_, _ = m.chain.Mine()
		}
	}()
	m.config = provider.Config{
		Chain: provider.Chain{Backend: m.chain, Poll: 20 * time.Millisecond, ClockTolerance: 24 * time.Hour}, Escrow: m.escrow, Token: m.token.Address, Key: m.payee, Database: filepath.Join(dir, tillFile),
		PricePerGPUHour: "3.60", Deposits: provider.Deposits{Min: "0.002"}, Source: sim.New(gpus, sim.Options{}), X402: &provider.X402{},
		Terms: provider.Terms{Credit: creditTime}, Metering: provider.Metering{Tick: tick, RecordEvery: 50 * time.Millisecond, MaxGap: time.Second},
		Limits:     provider.Limits{Deposits: limit.Rate{PerSecond: -1}, SponsoredGasPerPayer: gasPerPayer},
		Settlement: settle.Policy{Interval: 50 * time.Millisecond, MaxAge: time.Hour}, Log: slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(&m.config)
	}
	m.open()
	for i := range 2 {
		m.renters = append(m.renters, m.newRenter(key(fmt.Sprintf("payer %d", i)), i))
	}
	t.Cleanup(m.close)
	return m
}

func (m *market) newRenter(k *ecdsa.PrivateKey, i int) *program {
	r := &program{config: renter.Config{
		Chain: wallet.Chain{Backend: m.chain, Poll: 10 * time.Millisecond, ClockTolerance: 24 * time.Hour}, Escrow: m.escrow, Token: m.token.Address, Key: channel.NewKey(k), Database: filepath.Join(m.dir, fmt.Sprintf("renter %d.db", i)),
		Caps:      wallet.Caps{PricePerGPUHour: "4.00", PerLease: "0.1", PerDay: wallet.Unlimited, PerPayee: wallet.Unlimited},
		Tolerance: time.Second, Patience: 5 * time.Second, Log: slog.New(slog.DiscardHandler),
	}}
	m.start(r)
	return r
}

func (m *market) start(r *program) {
	var err error
	r.Client, err = renter.New(m.ctx, r.config)
	m.must(err)
}

// open starts the provider on its database, and close ends everything.
func (m *market) open() {
	p, err := provider.New(m.ctx, m.config)
	m.must(err)
	ctx, halt := context.WithCancel(m.ctx)
	m.provider, m.halt, m.ran = p, halt, make(chan error, 1)
	go func() { m.ran <- p.Run(ctx); close(m.ran) }()
	if m.server == nil {
		m.server = httptest.NewServer(p)
	} else {
		m.server.Config.Handler = p
	}
}

func (m *market) shut() {
	m.halt()
	if err := <-m.ran; err != nil && !errors.Is(err, context.Canceled) {
		m.Fatalf("the provider ended: %v", err)
	}
	m.must(m.provider.Close())
	m.server.CloseClientConnections()
}

func (m *market) close() {
	for _, d := range m.deals {
		m.pause(d)
	}
	for _, r := range m.renters {
		_ = r.Close()
	}
	m.halt()
	<-m.ran
	_ = m.provider.Close()
	m.server.CloseClientConnections()
	m.server.Close()
	m.stop()
	_ = os.RemoveAll(m.dir)
}

// trades are what may happen on a market next.
type trades struct{ m *market }

func (x *trades) any(t *rapid.T) *deal {
	var open []*deal
	for _, d := range x.m.deals {
		if !d.over {
			open = append(open, d)
		}
	}
	if len(open) == 0 {
		t.Skip("no deal")
	}
	return open[rapid.IntRange(0, len(open)-1).Draw(t, "deal")]
}

// Rent makes a deal, if there is a GPU and nothing is owed.
func (x *trades) Rent(t *rapid.T) {
	m := x.m
	r := m.renters[rapid.IntRange(0, 1).Draw(t, "renter")]
	options := renter.Options{Deposit: rapid.SampledFrom([]string{"0.002", "0.005", "0.05"}).Draw(t, "deposit"),
		TopUp: rapid.SampledFrom([]string{"", "0.001", "0.02"}).Draw(t, "top up"), PayEvery: 50 * time.Millisecond}
	ctx, cancel := context.WithTimeout(m.ctx, 10*time.Second)
	defer cancel()
	debt, stands := m.debt(r)
	rental, err := r.Rent(ctx, m.server.URL, options)
	if err != nil {
		m.seen["not rented"]++
		t.Log(err)
		return
	}
	if stands && m.restored == 0 && debt+leastRoom > creditCost {
		m.Fatalf("a payer that owes %d of a credit of %d gets another lease", debt, creditCost)
	}
	m.seen["rented"]++
	d := &deal{by: r, rental: rental, id: rental.ID()}
	m.deals = append(m.deals, d)
	if rapid.IntRange(0, 3).Draw(t, "pays") > 0 {
		m.pay(d)
	}
}

// Dodge makes as many deals as there are GPUs, and pays for none.
func (x *trades) Dodge(t *rapid.T) {
	m := x.m
	r := m.renters[rapid.IntRange(0, 1).Draw(t, "renter")]
	for range gpus {
		ctx, cancel := context.WithTimeout(m.ctx, 10*time.Second)
		rental, err := r.Rent(ctx, m.server.URL, renter.Options{Deposit: "0.002"})
		cancel()
		if err != nil {
			m.seen["not dodged"]++
			break
		}
		m.deals = append(m.deals, &deal{by: r, rental: rental, id: rental.ID()})
		m.seen["dodged"]++
	}
	time.Sleep(creditTime + 10*tick)
}

// debt is what a renter owes, and stands says that nobody pays it meanwhile: it only grows.
func (m *market) debt(r *program) (sum uint64, stands bool) {
	for _, d := range m.deals {
		if d.by == r && d.cancel != nil {
			return 0, false
		}
	}
	db, err := store.Open(m.ctx, m.config.Database)
	m.must(err)
	defer db.Close()
	states, err := db.Payee().List(m.ctx)
	m.must(err)
	for _, s := range states {
		if s.Terms.Payer == r.Address() {
			owed := s.Owed()
			sum += owed.Uint64()
		}
	}
	return sum, true
}

// pay has somebody pay for a deal, until pause.
func (m *market) pay(d *deal) {
	ctx, cancel := context.WithCancel(m.ctx)
	d.cancel, d.done = cancel, make(chan error, 1)
	go func() { d.done <- d.rental.Run(ctx) }()
}

func (m *market) pause(d *deal) {
	if d.cancel == nil {
		return
	}
	d.cancel()
	err := <-d.done
	d.cancel = nil
	var lied *wallet.Dispute
	if errors.As(err, &lied) {
		m.Fatalf("an honest provider is disputed: %v", err)
	}
}

// Wait lets all of it go on for a moment.
func (x *trades) Wait(t *rapid.T) {
	time.Sleep(time.Duration(rapid.IntRange(1, 40).Draw(t, "ticks")) * tick / 2)
}

// Absence has nobody pay for a deal, or somebody again.
func (x *trades) Absence(t *rapid.T) {
	d := x.any(t)
	if d.cancel == nil {
		x.m.pay(d)
	} else {
		x.m.pause(d)
	}
}

// Gift is a stranger's base unit in a channel.
func (x *trades) Gift(t *rapid.T) {
	m, d := x.m, x.any(t)
	escrow, err := chain.NewEscrow(m.ctx, m.chain, m.escrow)
	m.must(err)
	_ = m.send(m.stranger, m.token.ApproveCall(m.escrow, channel.MaxAmount()))
	if m.send(m.stranger, escrow.TopUpCall(d.rental.Terms(), *uint256.NewInt(1))) == nil {
		m.gifts[d.id]++
	}
}

// Close ends a deal with the provider's consent.
func (x *trades) Close(t *rapid.T) {
	m, d := x.m, x.any(t)
	m.pause(d)
	ctx, cancel := context.WithTimeout(m.ctx, 20*time.Second)
	defer cancel()
	c, err := d.rental.Close(ctx)
	if err != nil {
		m.seen["not closed"]++
		t.Log(err)
		return
	}
	m.seen["closed"]++
	d.over = true
	if c.Settled.Gt(&c.Signed) || c.Signed.Gt(&c.Owed) {
		m.Fatalf("owed %s, signed for %s, settled %s", c.Owed.Dec(), c.Signed.Dec(), c.Settled.Dec())
	}
}

// Restart begins a program anew on its database.
func (x *trades) Restart(t *rapid.T) {
	m := x.m
	i := rapid.IntRange(0, 2).Draw(t, "program")
	if i == 2 {
		m.shut()
		m.open()
		return
	}
	r := m.renters[i]
	var paid []*deal
	for _, d := range m.deals {
		if d.by == r && !d.over {
			if d.cancel != nil {
				paid = append(paid, d)
			}
			m.pause(d)
		}
	}
	m.must(r.Close())
	m.start(r)
	for _, d := range m.deals {
		if d.by == r && !d.over {
			var err error
			d.rental, err = r.Rental(m.ctx, d.id)
			m.must(err)
		}
	}
	for _, d := range paid {
		m.pay(d)
	}
}

// Restore backs the provider's database up, or has the provider go on from the backup.
func (x *trades) Restore(t *rapid.T) {
	m := x.m
	m.shut()
	if m.backed && rapid.Bool().Draw(t, "restore") {
		m.seen["restored"]++
		m.restored++
		m.copyFile(tillFile+".bak", tillFile)
	} else {
		m.copyFile(tillFile, tillFile+".bak")
	}
	m.backed = true
	m.open()
}

// Second is another provider on the same database.
func (x *trades) Second(t *rapid.T) {
	m := x.m
	if p, err := provider.New(m.ctx, m.config); err == nil {
		_ = p.Close()
		m.Fatal("two providers run on one database")
	}
}

// Check holds at any moment, whatever is under way.
func (x *trades) Check(t *rapid.T) {
	x.m.T = t
	x.m.audit()
}

// audit reads everybody's books and the chain's.
func (m *market) audit() {
	escrow, err := chain.NewEscrow(m.ctx, m.chain, m.escrow)
	m.must(err)
	for _, d := range m.deals {
		view, err := escrow.View(m.ctx, d.id, nil)
		if err != nil {
			continue // not on the chain yet
		}
		s := d.rental.Snapshot()
		d.signed = max(d.signed, m.signed(d))
		if settled := view.Settled.Uint64(); settled > d.signed {
			m.Fatalf("%d are settled and %d signed for", settled, d.signed)
		}
		if deposit := view.Deposit.Uint64(); deposit > perLease+m.gifts[d.id] {
			m.Fatalf("%d are deposited, of which %d are gifts: the cap is %d", deposit, m.gifts[d.id], perLease)
		}
		m.records(d, s)
	}
	m.debts()
	m.sponsored()
}

// signed is what a renter's database says that it signed for.
func (m *market) signed(d *deal) uint64 {
	db, err := store.Open(m.ctx, d.by.config.Database)
	m.must(err)
	defer db.Close()
	s, err := db.Payer().Load(m.ctx, d.id)
	m.must(err)
	return s.Signed.Uint64()
}

// records holds what a renter was shown to what it was shown before: one number, one record.
func (m *market) records(d *deal, s renter.State) {
	records, err := d.by.Records(m.ctx, d.id)
	m.must(err)
	var owed uint64
	for _, r := range records {
		name := fmt.Sprintf("%x %d", r.LeaseID, r.Sequence)
		digest := digestOf(r)
		if old, ok := m.digests[name]; ok && old != digest {
			m.Fatalf("record %s was signed twice", name)
		}
		m.digests[name] = digest
		owed = max(owed, r.Owed.Uint64())
	}
	if d.signed > owed {
		m.Fatalf("%d are signed for and the checked records say %d (%s)", d.signed, owed, s.Phase)
	}
}

func digestOf(r metering.SignedRecord) common.Hash { return crypto.Keccak256Hash(r.Signature) }

// debts holds what each payer owes, over all of its channels, to one credit and what a look at the meter takes. A restored
// provider has forgotten vouchers, which are no debt, and channels, which count again once they are shown: a credit more.
func (m *market) debts() {
	db, err := store.Open(m.ctx, m.config.Database)
	m.must(err)
	defer db.Close()
	states, err := db.Payee().List(m.ctx)
	m.must(err)
	signed := map[common.Hash]uint64{}
	for _, d := range m.deals {
		signed[d.id] = d.signed
	}
	owed := map[common.Address]uint64{}
	for _, s := range states {
		o := s.Owed()
		debt := o.Uint64()
		if m.restored > 0 {
			debt -= min(debt, signed[s.ID]-min(signed[s.ID], s.Accepted.Uint64()))
		}
		owed[s.Terms.Payer] += debt
	}
	for payer, sum := range owed {
		m.seen["most owed"] = max(m.seen["most owed"], int(sum))
		if sum > creditCost*(1+m.restored)+gpus*1000/10 {
			m.Fatalf("%s owes %d, the credit is %d, and the provider was restored %d times", payer, sum, creditCost, m.restored)
		}
	}
}

// clearance closes what is open, and then the money has to be where it belongs.
func (m *market) clearance() {
	for _, d := range m.deals {
		m.pause(d)
		if d.over {
			continue
		}
		ctx, cancel := context.WithTimeout(m.ctx, 20*time.Second)
		if _, err := d.rental.Close(ctx); err != nil {
			m.seen["not closed in the end"]++
			m.Log(err)
		}
		cancel()
	}
	m.audit()
	ctx, cancel := context.WithTimeout(m.ctx, 20*time.Second)
	defer cancel()
	m.must(m.provider.Settle(ctx))
	escrow, err := chain.NewEscrow(m.ctx, m.chain, m.escrow)
	m.must(err)
	db, err := store.Open(m.ctx, m.config.Database)
	m.must(err)
	defer db.Close()
	states, err := db.Payee().List(m.ctx)
	m.must(err)
	var sum uint64
	for _, s := range states {
		view, err := escrow.View(m.ctx, s.ID, nil)
		m.must(err)
		sum += view.Settled.Uint64()
		if view.Settled.Lt(&s.Accepted) {
			m.Fatalf("%s were acknowledged and %s are settled", s.Accepted.Dec(), view.Settled.Dec())
		}
		m.seen["settled"] += int(view.Settled.Uint64())
	}
	if got := m.balance(m.payee.Address()); got < sum {
		m.Fatalf("the payee has %d, and settled were %d", got, sum)
	}
}
