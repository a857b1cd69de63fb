package renter_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// drawer is a provider that keeps what its renter signed and sends it, or not,
// whenever it likes.
type drawer struct {
	*testrig.Hostile
	t      *testing.T
	escrow *chain.Escrow
	token  *chain.Token
	terms  channel.Terms
	signed []wire.Payload
	gifts  uint64 // base units that strangers added
}

func newDrawer(t *testing.T, m *testrig.Market) *drawer { return newDrawerOf(t, m, nil) }

func newDrawerOf(t *testing.T, m *testrig.Market, change func(*wire.Offer)) *drawer {
	d := &drawer{t: t, Hostile: testrig.NewHostile(t, m, change)}
	d.Script = func(*testrig.Stream) {}
	d.Funding = func(p wire.Payload) {
		if p.Authorization == nil {
			return
		}
		d.Mu.Lock()
		d.signed = append(d.signed, p)
		d.Mu.Unlock()
	}
	var err error
	if d.escrow, err = chain.NewEscrow(t.Context(), m.Backend, m.Escrow); err != nil {
		t.Fatal(err)
	}
	if d.token, err = chain.NewToken(t.Context(), m.Backend, m.Token); err != nil {
		t.Fatal(err)
	}
	return d
}

// payloads are those that came, each authorization once.
func (d *drawer) payloads() (distinct []wire.Payload) {
	d.Mu.Lock()
	defer d.Mu.Unlock()
	seen := make(map[string]bool)
	for _, p := range d.signed {
		if !seen[p.Signature.String()] {
			seen[p.Signature.String()] = true
			distinct = append(distinct, p)
		}
	}
	return distinct
}

// submit sends one, if the chain takes it.
func (d *drawer) submit(p wire.Payload) {
	a := p.Authorization
	signed := chain.Authorization{Signature: p.Signature, Authorization: channel.Authorization{
		From: common.Address(a.From), To: common.Address(a.To), Value: a.Value.Int, Nonce: a.Nonce, ValidBefore: a.ValidBefore.Uint64(),
	}}
	call := d.escrow.OpenAuthorizedCall(d.terms, signed)
	if p.Action == wire.ActionTopUp {
		call = d.escrow.TopUpAuthorizedCall(d.terms, *p.Salt, signed)
	}
	if d.escrow.Simulate(d.t.Context(), d.Key.Address(), call) == nil {
		d.Market.Transact(d.t, d.Market.Payee, call.To, call.Data)
	}
}

// gift is a stranger's base unit.
func (d *drawer) gift() {
	stranger := d.Market.Keys[5]
	if d.gifts == 0 {
		d.Market.Mint(d.t, channel.NewKey(stranger).Address(), 1000)
		approve := d.token.ApproveCall(d.Market.Escrow, *uint256.NewInt(1000))
		d.Market.Transact(d.t, stranger, approve.To, approve.Data)
	}
	call := d.escrow.TopUpCall(d.terms, *uint256.NewInt(1))
	d.Market.Transact(d.t, stranger, call.To, call.Data)
	d.gifts++
}

// deposited is what the renter has in the channel.
func (d *drawer) deposited() uint64 {
	view, err := d.escrow.View(d.t.Context(), d.terms.ID(), nil)
	if err != nil {
		d.t.Fatal(err)
	}
	return view.Deposit.Uint64() - d.gifts
}

// outstanding is what the provider can still move into the channel.
func (d *drawer) outstanding() (sum uint64) {
	now, err := d.escrow.Now(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	for _, p := range d.payloads() {
		used, err := d.token.AuthorizationUsed(d.t.Context(), d.terms.Payer, p.Authorization.Nonce)
		if err != nil {
			d.t.Fatal(err)
		}
		if !used && uint64(now.Unix()) < p.Authorization.ValidBefore.Uint64() {
			sum += p.Authorization.Value.Uint64()
		}
	}
	return sum
}

// TestCapHoldsWhateverIsSent: a provider withholds what it was given and sends it
// at any time later, strangers add base units, authorizations end, and the renter
// is started again. What is in the channel and what can still come never pass the
// cap, and once nothing is outstanding, and the day is over, the renter can go up to it.
func TestCapHoldsWhateverIsSent(t *testing.T) {
	m := testrig.NewMarket(t)
	const cap, deposit = 2_000_000, 500_000
	for seed := range uint64(4) {
		d := newDrawerOf(t, m, func(o *wire.Offer) { o.Expires += 100 * 3600 })
		config := renterrig.Config(t, m, m.Payer)
		config.Caps.PerLease, config.Chain.ClockTolerance, config.Now = "2", 1000*time.Hour, m.Now
		r := renterrig.Open(t, config)
		l, err := r.Rent(t.Context(), d.Server.URL, renter.Options{Deposit: "0.5", TopUp: "0.7", Gasless: true})
		if err != nil {
			t.Fatal(err)
		}
		d.terms = l.Terms()
		d.submit(d.payloads()[0])
		if got := d.deposited(); got != deposit {
			t.Fatalf("%d deposited", got)
		}
		random := rand.New(rand.NewPCG(seed, 9))
		for range 40 {
			switch all := d.payloads(); random.IntN(7) {
			case 0, 1, 2:
				l.Lease().Topped = time.Time{}
				_ = l.Lease().TopUp(t.Context()) // the provider says yes and does nothing
			case 3:
				d.gift()
			case 4:
				d.submit(all[random.IntN(len(all))])
			case 5:
				m.Pass(t, time.Duration(1+random.IntN(10))*time.Minute)
			case 6:
				l.Lease().Detach()
				if l, err = r.Resume(t.Context(), l.ID()); err != nil {
					t.Fatal(err)
				}
			}
			if got, out := d.deposited(), d.outstanding(); got+out > cap {
				t.Fatalf("seed %d: %d deposited and %d outstanding are over the cap of %d", seed, got, out, cap)
			}
		}
		m.Pass(t, 24*time.Hour+2*wallet.AuthorizationTTL) // and what ended unseen counts no more
		var last error
		for range 12 {
			l.Lease().Topped = time.Time{}
			last = l.Lease().TopUp(t.Context())
			for _, p := range d.payloads() {
				d.submit(p)
			}
		}
		if got := d.deposited(); got+d.gifts != cap && got != cap {
			t.Errorf("seed %d: %d of %d deposited, with %d by strangers: the cap leaves room (%v)", seed, got, cap, d.gifts, last)
		}
		l.Lease().Detach()
	}
}

// TestOwnDepositsCountWhateverIsSeen: an endpoint that shows a channel with what it held at first, for as long as makes that
// final, and each top-up only until it is taken for arrived, has no cap passed: what we moved into it counts.
func TestOwnDepositsCountWhateverIsSeen(t *testing.T) {
	m := testrig.NewMarket(t)
	const deposit, step, cap = 500_000, 300_000, 1_200_000
	for name, caps := range map[string]wallet.Caps{
		"PerLease": {PerLease: "1.2", PerDay: "10", PerPayee: "10"},
		"PerDay":   {PerLease: "10", PerDay: "1.2", PerPayee: "10"},
		"PerPayee": {PerLease: "10", PerDay: "10", PerPayee: "1.2"},
	} {
		for _, gasless := range []bool{false, true} {
			d := newDrawerOf(t, m, func(o *wire.Offer) { o.Expires += 100 * 3600 })
			config, bad := behindEndpoint(t, m)
			caps.PricePerGPUHour = config.Caps.PricePerGPUHour
			config.Caps, config.Chain.ClockTolerance, config.Now = caps, 1000*time.Hour, m.Now
			r := renterrig.Open(t, config)
			l, err := r.Rent(t.Context(), d.Server.URL, renter.Options{Deposit: "0.5", TopUp: "0.3", Gasless: gasless})
			if err != nil {
				t.Fatal(err)
			}
			d.terms = l.Terms()
			topUp := func(shown uint64) {
				bad.Heal()
				bad.On("eth_call", word(channelsCall, map[int]uint64{fieldDeposit: shown}))
				for _, p := range d.payloads() {
					d.submit(p)
				}
				l.Lease().Topped = time.Time{}
				_ = l.Lease().TopUp(t.Context())
			}
			for range 4 {
				topUp(deposit)
				topUp(deposit + step)
				m.Pass(t, 2*wallet.AuthorizationTTL) // what was signed leaves the books
				m.Mine(t, rental.Finality)
			}
			if got, out := d.deposited(), d.outstanding(); got+out > cap || got < cap-step {
				t.Errorf("%s, gasless %t: %d deposited and %d outstanding, the cap is %d", name, gasless, got, out, cap)
			}
			l.Lease().Detach()
		}
	}
}

// TestTopUpComesWithTheDebt: a provider that offers an hour's credit is not given
// the cap at once. The deposit is added to when what is owed comes near it.
func TestTopUpComesWithTheDebt(t *testing.T) {
	m := testrig.NewMarket(t)
	for deposit, want := range map[string]int{"1": 1, "0.05": 2} { // a second is 0.001
		d := newDrawerOf(t, m, func(o *wire.Offer) { o.Credit = 3600 })
		d.Script = func(p *testrig.Stream) { p.Honest(8) }
		r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
		l, err := r.Rent(t.Context(), d.Server.URL, renter.Options{Deposit: deposit, TopUp: "0.7", Gasless: true})
		if err != nil {
			t.Fatal(err)
		}
		d.terms = l.Terms()
		d.submit(d.payloads()[0])
		renterrig.Background(t.Context(), l)
		testrig.Eventually(t, "the records", func() bool { return l.Snapshot().Sequence == 8 })
		if got := len(d.payloads()); got != want {
			t.Errorf("deposit %s: %d authorizations, want %d", deposit, got, want)
		}
	}
}

// TestSilentWhileItTopsUp: a provider that takes a top-up's request and does not answer is as silent as any, and one that goes
// on meanwhile is paid as ever.
func TestSilentWhileItTopsUp(t *testing.T) {
	m := testrig.NewMarket(t)
	for _, test := range []struct {
		name    string
		records int
		want    error
	}{{"silent", 8, peer.ErrSilent}, {"goes on", 60, nil}} {
		t.Run(test.name, func(t *testing.T) {
			d := newDrawerOf(t, m, func(o *wire.Offer) { o.Credit = 3600 })
			answer := make(chan struct{})
			keep := d.Funding
			d.Funding = func(p wire.Payload) {
				keep(p)
				if p.Action == wire.ActionTopUp {
					select {
					case <-answer:
					case <-d.Stop:
					}
				}
			}
			d.Script = func(p *testrig.Stream) { p.Honest(test.records) }
			config := renterrig.Config(t, m, m.Payer)
			config.Patience = 4 * time.Second
			r := renterrig.Open(t, config)
			l, err := r.Rent(t.Context(), d.Server.URL, renter.Options{Deposit: "0.05", TopUp: "0.7", PayEvery: 100 * time.Millisecond, Gasless: true})
			if err != nil {
				t.Fatal(err)
			}
			d.terms = l.Terms()
			d.submit(d.payloads()[0])
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			done := renterrig.Background(ctx, l)
			testrig.Eventually(t, "the top-up's request", func() bool { return len(d.payloads()) == 2 || len(done) > 0 })
			if test.want == nil {
				testrig.Eventually(t, "payments beside the top-up", func() bool { s := l.Snapshot(); return s.Paid.Uint64() > 2000 || len(done) > 0 })
				d.submit(d.payloads()[1])
				close(answer)
				testrig.Eventually(t, "the top-up", func() bool { s := l.Snapshot(); return s.Deposit.Uint64() == 750_000 || len(done) > 0 })
				stop()
				test.want = context.Canceled
			}
			select {
			case err = <-done:
			case <-time.After(time.Minute):
				err = errors.New("it waits on")
			}
			if !errors.Is(err, test.want) {
				t.Errorf("Run: %v, want %v", err, test.want)
			}
		})
	}
}

// TestAuthorizationIsGoodForMinutes: what a provider was given ends a quarter of
// an hour after it was signed, by our clock and the chain's, and nothing is
// signed by a chain's clock that is far from ours.
func TestAuthorizationIsGoodForMinutes(t *testing.T) {
	m := testrig.NewMarket(t)
	d := newDrawer(t, m)
	config := renterrig.Config(t, m, m.Payer)
	r := renterrig.Open(t, config)
	began := time.Now()
	l, err := r.Rent(t.Context(), d.Server.URL, renter.Options{Deposit: "0.5", TopUp: "0.7", Gasless: true})
	if err != nil {
		t.Fatal(err)
	}
	d.terms = l.Terms()
	d.submit(d.payloads()[0])
	until := time.Unix(int64(d.payloads()[0].Authorization.ValidBefore.Uint64()), 0)
	if left := until.Sub(began); left < 14*time.Minute || left > 16*time.Minute {
		t.Errorf("the authorization is good for %s", left)
	}
	m.AdvanceTime(t, time.Hour) // as an endpoint would that lies
	if err := l.Lease().TopUp(t.Context()); err == nil || len(d.payloads()) != 1 {
		t.Errorf("%v, %d authorizations: one was signed by a clock that is an hour off", err, len(d.payloads()))
	}
	l.Lease().Detach()
}

// TestTopUpCountsInOtherRentals: what was signed for a top-up of one rental, and may still be sent, leaves no room under a cap for
// another rental at the same payee.
func TestTopUpCountsInOtherRentals(t *testing.T) {
	m := testrig.NewMarket(t)
	const cap = 1_700_000 // two deposits and one top-up
	for name, caps := range map[string]wallet.Caps{
		"PerDay":   {PerLease: "10", PerDay: "1.7", PerPayee: "10"},
		"PerPayee": {PerLease: "10", PerDay: "10", PerPayee: "1.7"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDrawer(t, m)
			config := renterrig.Config(t, m, m.Payer)
			caps.PricePerGPUHour = config.Caps.PricePerGPUHour
			config.Caps = caps
			r := renterrig.Open(t, config)
			var both []*renter.Rental
			var deposited uint64
			for i := range 2 {
				l, err := r.Rent(t.Context(), d.Server.URL, renter.Options{Deposit: "0.5", TopUp: "0.7", Gasless: true})
				if err != nil {
					t.Fatal(err)
				}
				defer l.Lease().Detach()
				both, d.terms = append(both, l), l.Terms()
				d.submit(d.payloads()[i])
				deposited += d.deposited()
			}
			if err := both[0].Lease().TopUp(t.Context()); err == nil || errors.Is(err, renter.ErrBudget) { // the provider keeps it
				t.Fatalf("the first top-up: %v", err)
			}
			if err := both[1].Lease().TopUp(t.Context()); !errors.Is(err, renter.ErrBudget) {
				t.Errorf("the second top-up: %v, want ErrBudget", err)
			}
			if out := d.outstanding(); deposited+out != cap {
				t.Errorf("%d deposited and %d outstanding, the cap is %d", deposited, out, cap)
			}
		})
	}
}
