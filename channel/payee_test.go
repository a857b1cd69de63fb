package channel_test

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
)

func openStore(t testing.TB) *store.DB {
	t.Helper()
	db, err := store.Open(context.Background(), filepath.Join(t.TempDir(), "gpupay.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// newPayee returns a payee with one channel of a deposit of 1000.
func newPayee(t testing.TB) (*channel.Payee, common.Hash) {
	t.Helper()
	p := &channel.Payee{Store: openStore(t).Payee(), Domain: testDomain}
	terms := testTerms("0x01")
	if _, err := p.Register(context.Background(), terms, channel.ChainView{Deposit: units(1000)}); err != nil {
		t.Fatal(err)
	}
	return p, terms.ID()
}

func accept(t testing.TB, p *channel.Payee, id common.Hash, amount uint64) channel.Receipt {
	t.Helper()
	r, err := p.Accept(context.Background(), sign(t, testDomain, payerKey, id, units(amount)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func observe(t testing.TB, p *channel.Payee, id common.Hash, v channel.ChainView) channel.State {
	t.Helper()
	s, err := p.Observe(context.Background(), id, v)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// checkSettles fails unless the state's signature is what settles it.
func checkSettles(t testing.TB, s channel.State, accepted uint64) {
	t.Helper()
	if s.Accepted != units(accepted) {
		t.Errorf("accepted %s, want %d", s.Accepted.Dec(), accepted)
	}
	if err := testDomain.Verify(s.Voucher(), s.Terms.Signer()); err != nil {
		t.Errorf("what is kept does not settle: %v", err)
	}
}

func TestAcceptOutcomes(t *testing.T) {
	p, id := newPayee(t)
	for _, step := range []struct {
		amount   uint64
		outcome  channel.Outcome
		accepted uint64
	}{
		{100, channel.Accepted, 100}, {100, channel.Replayed, 100}, {250, channel.Accepted, 250},
		{100, channel.Stale, 250}, {250, channel.Replayed, 250}, {1000, channel.Accepted, 1000}, {1, channel.Stale, 1000},
	} {
		r := accept(t, p, id, step.amount)
		if r.Outcome != step.outcome {
			t.Errorf("voucher for %d: %s, want %s", step.amount, r.Outcome, step.outcome)
		}
		checkSettles(t, r.State, step.accepted)
	}
}

// hostile is a voucher that pays nothing, in a state of the channel, and the
// answer it gets. Before it, 500 of 1000 were accepted.
type hostile struct {
	name    string
	view    channel.ChainView
	voucher channel.Voucher
	want    error
}

func hostiles(t *testing.T, id common.Hash) []hostile {
	open := channel.ChainView{Deposit: units(1000)}
	closing := channel.ChainView{Deposit: units(1000), CloseRequestedAt: 1_700_000_000}
	final := channel.ChainView{Deposit: units(1000), Settled: units(500), Finalized: true}
	of := func(amount uint64) channel.Voucher { return sign(t, testDomain, payerKey, id, units(amount)) }
	by := func(key *channel.Key, d channel.Domain, amount uint64) channel.Voucher {
		return sign(t, d, key, id, units(amount))
	}
	forged := func(amount uint64, sig []byte) channel.Voucher {
		return channel.Voucher{ChannelID: id, Cumulative: units(amount), Signature: sig}
	}
	over := channel.MaxAmount()
	over.AddUint64(&over, 1)
	good := of(600).Signature
	return []hostile{
		{"high s", open, forged(600, highS(good)), channel.ErrSignature},
		{"flipped v", open, forged(600, withV(good, good[64]^27^28)), channel.ErrSignature},
		{"v of 0 or 1", open, forged(600, withV(good, good[64]-27)), channel.ErrSignature},
		{"short signature", open, forged(600, good[:64]), channel.ErrSignature},
		{"no signature", open, forged(600, nil), channel.ErrSignature},
		{"wrong chain", open, by(payerKey, channel.EscrowDomain(1, testEscrow), 600), channel.ErrSigner},
		{"wrong escrow", open, by(payerKey, channel.EscrowDomain(testChain, testToken), 600), channel.ErrSigner},
		{"wrong signer", open, by(strangerKey, testDomain, 600), channel.ErrSigner},
		{"signature of another amount", open, forged(601, good), channel.ErrSigner},
		{"replayed, badly signed", open, forged(500, good), channel.ErrSigner},
		{"stale, badly signed", open, forged(400, good), channel.ErrSigner},
		{"replayed, high s", open, forged(500, highS(of(500).Signature)), channel.ErrSignature},
		{"over the deposit", open, of(1001), channel.ErrExceedsDeposit},
		{"max amount", open, sign(t, testDomain, payerKey, id, channel.MaxAmount()), channel.ErrExceedsDeposit},
		{"over 96 bits", open, channel.Voucher{ChannelID: id, Cumulative: over, Signature: good}, channel.ErrAmount},
		{"zero", open, of(0), channel.ErrAmount},
		{"closing", closing, of(600), channel.ErrClosing},
		{"closing, replayed", closing, of(500), channel.ErrClosing},
		{"closing, badly signed", closing, forged(600, nil), channel.ErrSignature},
		{"finalized", final, of(600), channel.ErrFinalized},
		{"unknown channel", open, sign(t, testDomain, payerKey, common.Hash{1}, units(600)), channel.ErrUnknown},
	}
}

func TestAcceptHostile(t *testing.T) {
	p, id := newPayee(t)
	accept(t, p, id, 500)
	for _, h := range hostiles(t, id) {
		t.Run(h.name, func(t *testing.T) {
			observe(t, p, id, h.view)
			r, err := p.Accept(context.Background(), h.voucher)
			if !errors.Is(err, h.want) || r.Outcome == channel.Accepted {
				t.Errorf("%s, %v; want %v", r.Outcome, err, h.want)
			}
			s, err := p.State(context.Background(), id)
			if err != nil {
				t.Fatal(err)
			}
			checkSettles(t, s, 500)
		})
	}
}

func TestMinDelta(t *testing.T) {
	p, id := newPayee(t)
	p.MinDelta = units(10)
	if _, err := p.Accept(context.Background(), sign(t, testDomain, payerKey, id, units(9))); !errors.Is(err, channel.ErrDelta) {
		t.Errorf("a step of 9: %v, want %v", err, channel.ErrDelta)
	}
	checkSettles(t, accept(t, p, id, 10).State, 10)
	if _, err := p.Accept(context.Background(), sign(t, testDomain, payerKey, id, units(19))); !errors.Is(err, channel.ErrDelta) {
		t.Errorf("a step of 9: %v, want %v", err, channel.ErrDelta)
	}
	if r := accept(t, p, id, 10); r.Outcome != channel.Replayed {
		t.Errorf("a delta of zero is %s, want replayed", r.Outcome)
	}
	if _, err := p.Charge(context.Background(), id, units(13)); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Accept(context.Background(), sign(t, testDomain, payerKey, id, units(14))); !errors.Is(err, channel.ErrDelta) {
		t.Errorf("one more than is owed: %v, want %v", err, channel.ErrDelta)
	}
	checkSettles(t, accept(t, p, id, 13).State, 13) // exactly what is owed: no debt is too small to be paid
}

func TestCheckTakesTheInitialVoucherAndChangesNothing(t *testing.T) {
	p, id := newPayee(t)
	for _, amount := range []uint64{0, 700} {
		s, err := p.Check(context.Background(), sign(t, testDomain, payerKey, id, units(amount)))
		if err != nil || !s.Accepted.IsZero() {
			t.Errorf("voucher for %d: accepted %s, %v", amount, s.Accepted.Dec(), err)
		}
	}
	if _, err := p.Check(context.Background(), sign(t, testDomain, strangerKey, id, units(0))); !errors.Is(err, channel.ErrSigner) {
		t.Errorf("a stranger's initial voucher: %v", err)
	}
}

func TestVerifyHoldsTheVoucherToTheTerms(t *testing.T) {
	p, _ := newPayee(t)
	mine, other := testTerms("0x05"), testTerms("0x06")
	v := sign(t, testDomain, payerKey, mine.ID(), units(0))
	if err := p.Verify(context.Background(), mine, v); err != nil {
		t.Error(err)
	}
	if err := p.Verify(context.Background(), other, v); !errors.Is(err, channel.ErrTerms) {
		t.Errorf("a voucher of another channel: %v, want %v", err, channel.ErrTerms)
	}
}

func TestRegister(t *testing.T) {
	p, id := newPayee(t)
	ctx := context.Background()
	accept(t, p, id, 300)
	if _, err := p.Charge(ctx, id, units(350)); err != nil {
		t.Fatal(err)
	}
	s, err := p.Register(ctx, testTerms("0x01"), channel.ChainView{Deposit: units(2000), Settled: units(100)})
	if err != nil {
		t.Fatal(err)
	}
	checkSettles(t, s, 300)
	if s.Deposit != units(2000) || s.Spent != units(350) || s.Unsettled() != units(200) || s.Owed() != units(50) || !isZero(s.Available()) {
		t.Errorf("registered again: %+v", s)
	}
	for name, terms := range map[string]channel.Terms{
		"another chain":  {ChainID: 1, Escrow: testEscrow, Payer: testToken, Payee: testToken, Token: testToken},
		"another escrow": {ChainID: testChain, Escrow: testToken, Payer: testToken, Payee: testToken, Token: testToken},
		"no payer":       {ChainID: testChain, Escrow: testEscrow, Payee: testToken, Token: testToken},
	} {
		if _, err := p.Register(ctx, terms, channel.ChainView{Deposit: units(1)}); !errors.Is(err, channel.ErrTerms) {
			t.Errorf("%s: %v, want %v", name, err, channel.ErrTerms)
		}
	}
	if _, err := p.Register(ctx, testTerms("0x02"), channel.ChainView{Deposit: units(1), Settled: units(2)}); !errors.Is(err, channel.ErrAmount) {
		t.Errorf("settled over the deposit: %v", err)
	}
}

func isZero(a uint256.Int) bool { return a.IsZero() }

// TestReorg: the chain's newest word counts, also where it takes back what it
// said; what was accepted and charged is ours and stays. Only who saw a re-org
// undoes a close: every other word of before it is an old one.
func TestReorg(t *testing.T) {
	p, id := newPayee(t)
	accept(t, p, id, 800)
	closed := observe(t, p, id, channel.ChainView{Deposit: units(1000), Settled: units(800), Finalized: true})
	before := channel.ChainView{Deposit: units(600), Settled: units(100)}
	if s := observe(t, p, id, before); s.Status != channel.Finalized || s.Settled != closed.Settled || s.Deposit != closed.Deposit {
		t.Errorf("an old word reopens it: %+v", s)
	}
	if s, err := p.Register(context.Background(), closed.Terms, before); err != nil || s.Status != channel.Finalized {
		t.Errorf("an open that is sent again reopens it: %+v, %v", s, err)
	}
	s, err := p.Reopen(context.Background(), id, before)
	if err != nil {
		t.Fatal(err)
	}
	if s.Status != channel.Closing || s.Settled != units(100) || s.Deposit != units(600) || s.Unsettled() != units(700) {
		t.Errorf("after the re-org: %+v", s)
	}
	checkSettles(t, s, 800)
	if _, err := p.Accept(context.Background(), sign(t, testDomain, payerKey, id, units(900))); !errors.Is(err, channel.ErrClosing) {
		t.Errorf("behind the close that comes again: %v", err)
	}
	if s, err = p.Keep(context.Background(), id); err != nil || s.Status != channel.Open {
		t.Errorf("nothing came of the close: %+v, %v", s, err)
	}
	if _, err := p.Accept(context.Background(), sign(t, testDomain, payerKey, id, units(900))); !errors.Is(err, channel.ErrExceedsDeposit) {
		t.Errorf("over the deposit that is left: %v", err)
	}
}

func TestCharge(t *testing.T) {
	p, id := newPayee(t)
	ctx := context.Background()
	for _, step := range []struct {
		spent uint64
		want  error
		kept  uint64
	}{{100, nil, 100}, {100, nil, 100}, {99, channel.ErrLower, 100}, {5000, nil, 5000}} {
		if _, err := p.Charge(ctx, id, units(step.spent)); !errors.Is(err, step.want) {
			t.Errorf("charge %d: %v, want %v", step.spent, err, step.want)
		}
		if s, _ := p.State(ctx, id); s.Spent != units(step.kept) {
			t.Errorf("charge %d: spent %s, want %d", step.spent, s.Spent.Dec(), step.kept)
		}
	}
	over := uint256.Int{0, 1 << 32}
	if _, err := p.Charge(ctx, id, over); !errors.Is(err, channel.ErrAmount) {
		t.Errorf("charge over 96 bits: %v", err)
	}
	if _, err := p.Charge(ctx, common.Hash{9}, units(1)); !errors.Is(err, channel.ErrUnknown) {
		t.Errorf("unknown channel: %v", err)
	}
}

func TestUnsettledAndChannels(t *testing.T) {
	p, id := newPayee(t)
	ctx := context.Background()
	for _, salt := range []string{"0x02", "0x03", "0x04"} {
		if _, err := p.Register(ctx, testTerms(salt), channel.ChainView{Deposit: units(1000)}); err != nil {
			t.Fatal(err)
		}
		accept(t, p, testTerms(salt).ID(), 10)
	}
	observe(t, p, testTerms("0x02").ID(), channel.ChainView{Deposit: units(1000), Settled: units(10)})
	observe(t, p, testTerms("0x03").ID(), channel.ChainView{Deposit: units(1000), CloseRequestedAt: 5})
	observe(t, p, testTerms("0x04").ID(), channel.ChainView{Deposit: units(1000), Finalized: true})
	if due, err := p.Unsettled(ctx); err != nil || len(due) != 1 || due[0].ID != testTerms("0x03").ID() {
		t.Errorf("unsettled: %v, %v; want the closing channel only", due, err)
	}
	for _, c := range []struct {
		statuses []channel.Status
		want     int
	}{{nil, 4}, {[]channel.Status{channel.Open}, 2}, {[]channel.Status{channel.Closing, channel.Finalized}, 2}} {
		if got, err := p.Channels(ctx, c.statuses...); err != nil || len(got) != c.want {
			t.Errorf("%v: %d channels, %v; want %d", c.statuses, len(got), err, c.want)
		}
	}
	if s, err := p.State(ctx, id); err != nil || s.Status.String() != "open" {
		t.Errorf("state %v, %v", s.Status, err)
	}
}

// TestHundredGoroutinesOnOneChannel: every voucher is answered, the highest is
// kept with its own signature, and the accepted ones only rise.
func TestHundredGoroutinesOnOneChannel(t *testing.T) {
	p, id := newPayee(t)
	const workers, each = 100, 10
	vouchers := make([]channel.Voucher, workers*each)
	for i := range vouchers {
		vouchers[i] = sign(t, testDomain, payerKey, id, units(uint64(i+1)))
	}
	var wait sync.WaitGroup
	counts := make([]map[channel.Outcome]int, workers)
	for w := range workers {
		counts[w] = make(map[channel.Outcome]int)
		wait.Go(func() {
			for i := range each {
				r, err := p.Accept(context.Background(), vouchers[i*workers+w])
				if err != nil {
					t.Error(err)
					return
				}
				counts[w][r.Outcome]++
				if v := vouchers[i*workers+w]; r.State.Accepted.Lt(&v.Cumulative) {
					t.Errorf("voucher for %s acknowledged with %s kept", v.Cumulative.Dec(), r.State.Accepted.Dec())
				}
			}
		})
	}
	wait.Wait()
	total := make(map[channel.Outcome]int)
	for _, c := range counts {
		for outcome, n := range c {
			total[outcome] += n
		}
	}
	if total[channel.Accepted]+total[channel.Stale] != len(vouchers) || total[channel.Replayed] != 0 {
		t.Errorf("outcomes %v, want %d accepted or stale", total, len(vouchers))
	}
	s, err := p.State(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	checkSettles(t, s, workers*each)
}

// TestSameVoucherFromManyIsAcceptedOnce: one of a hundred equal vouchers counts.
func TestSameVoucherFromManyIsAcceptedOnce(t *testing.T) {
	p, id := newPayee(t)
	v := sign(t, testDomain, payerKey, id, units(77))
	outcomes := make([]channel.Outcome, 100)
	var wait sync.WaitGroup
	for i := range outcomes {
		wait.Go(func() {
			r, err := p.Accept(context.Background(), v)
			if err != nil {
				t.Error(err)
			}
			outcomes[i] = r.Outcome
		})
	}
	wait.Wait()
	accepted := 0
	for _, o := range outcomes {
		if o == channel.Accepted {
			accepted++
		}
	}
	if accepted != 1 {
		t.Errorf("accepted %d times, want once", accepted)
	}
}

// wallet stands for the chain's answer about one contract account.
type wallet struct {
	account common.Address
	digest  common.Hash
	err     error
}

func (w wallet) IsValidSignature(_ context.Context, account common.Address, digest common.Hash, sig []byte) (bool, error) {
	return account == w.account && digest == w.digest && string(sig) == "wallet", w.err
}

func TestContractAccount(t *testing.T) {
	p, id := newPayee(t)
	amount := units(5)
	w := wallet{payerKey.Address(), testDomain.Digest(id, &amount), nil}
	v := channel.Voucher{ChannelID: id, Cumulative: amount, Signature: []byte("wallet")}
	if _, err := p.Accept(context.Background(), v); !errors.Is(err, channel.ErrSignature) {
		t.Errorf("nobody to ask: %v", err)
	}
	down := errors.New("endpoint is down")
	p.Contracts = wallet{err: down}
	if _, err := p.Accept(context.Background(), v); !errors.Is(err, down) {
		t.Errorf("nobody answers: %v", err)
	}
	p.Contracts = w
	if r, err := p.Accept(context.Background(), v); err != nil || r.Outcome != channel.Accepted {
		t.Errorf("the account's own: %v, %v", r.Outcome, err)
	}
	v.Cumulative = units(6)
	if _, err := p.Accept(context.Background(), v); !errors.Is(err, channel.ErrSignature) {
		t.Errorf("of another amount: %v", err)
	}
	v.Signature = make([]byte, 1<<20)
	if _, err := p.Accept(context.Background(), v); !errors.Is(err, channel.ErrSignature) {
		t.Errorf("a megabyte: %v", err)
	}
}

// Books from before a settlement charge what was settled once, whichever they hear of first; a re-org takes no charge back,
// and what was charged before is charged once.
func TestBooksBehindASettlement(t *testing.T) {
	p, id := newPayee(t)
	accept(t, p, id, 100)
	charge := func(want uint64) {
		t.Helper()
		s, err := p.State(t.Context(), id)
		if err != nil || s.Spent != units(want) {
			t.Errorf("charged %s, want %d (%v)", s.Spent.Dec(), want, err)
		}
	}
	if s := observe(t, p, id, channel.ChainView{Deposit: units(1000), Settled: units(100)}); s.Behind() {
		t.Error("what was accepted is not unknown")
	}
	s := observe(t, p, id, channel.ChainView{Deposit: units(1000), Settled: units(400)})
	if charge(0); !s.Behind() {
		t.Error("400 is settled and 100 accepted")
	}
	if s = accept(t, p, id, 390).State; s.Available() != units(0) {
		t.Errorf("%+v can be used of a voucher under what is settled", s.Available())
	}
	charge(400)
	if s = accept(t, p, id, 450).State; s.Available() != units(50) {
		t.Errorf("%+v can be used of 50 more", s.Available())
	}
	observe(t, p, id, channel.ChainView{Deposit: units(1000)}) // a re-org
	charge(400)
	for _, settled := range []uint64{450, 420, 700, 700} {
		if _, err := p.CatchUp(t.Context(), id, units(settled)); err != nil {
			t.Fatal(err)
		}
	}
	charge(700)
	if s, _ = p.State(t.Context(), id); s.Owed() != units(250) {
		t.Errorf("%+v is owed after a re-org", s.Owed())
	}
	if s = observe(t, p, id, channel.ChainView{Deposit: units(1000), Settled: units(700)}); s.Owed() != units(0) || s.Behind() {
		t.Errorf("%+v is owed of what the chain has paid", s.Owed())
	}
}
