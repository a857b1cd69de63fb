package x402client

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/internal/peer"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/ticks"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/x402"
)

// TestX402ChargedForNothing: a provider that says of each voucher that all of it is charged, and serves nothing, gets one
// voucher, however often it is asked again, and ends a Run at once: one that went on until the patience is over would pay the next. It gets a second one once it has claimed the first, and is caught at that.
func TestX402ChargedForNothing(t *testing.T) {
	for _, served := range []bool{false, true} { // before it takes to it
		m := newMill(t, false, func(uint64, uint64) time.Duration { return 50 * time.Millisecond })
		x := m.s.client(wallet.Caps{PricePerGPUHour: "10", PerLease: "5", PerDay: "50", PerPayee: "50"}, Options{MaxPrice: wallet.Unlimited})
		rental, err := x.Rent(t.Context(), m.URL, 1)
		if err != nil {
			t.Fatal(err)
		}
		if served {
			if _, err := rental.Tick(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		vouchers := map[uint64]bool{}
		m.s.Instead = func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
			most := p.Payload.Voucher.MaxClaimableAmount.Uint64()
			if vouchers[most] {
				w.WriteHeader(http.StatusNotFound)
				return true
			}
			vouchers[most] = true
			s.Bank(p)
			s.Correct(w, most, &p.Payload.Voucher)
			return true
		}
		if err := rental.Run(t.Context(), func(Tick) { t.Error("a tick") }); !errors.Is(err, ErrLostAnswer) || errors.Is(err, peer.ErrSilent) || len(vouchers) != 1 {
			t.Errorf("Run ended with %v after %d vouchers", err, len(vouchers))
		}
		if _, err := rental.Tick(t.Context()); !errors.Is(err, ErrLostAnswer) || len(vouchers) != 1 {
			t.Errorf("asked for the same tick: %v, %d vouchers", err, len(vouchers))
		}
		for range 5 {
			if _, err := rental.Tick(t.Context()); !errors.Is(err, ErrLostAnswer) || len(vouchers) != 1 {
				t.Errorf("asked for it again: %v, %d vouchers", err, len(vouchers))
			}
		}
		m.s.claimAll(m.s.only(x))
		if _, err := rental.Tick(t.Context()); !errors.Is(err, ErrLostAnswer) || len(vouchers) != 1 {
			t.Errorf("claimed: %v, %d vouchers", err, len(vouchers))
		}
		var d *wallet.Dispute
		if _, err := rental.Tick(t.Context()); !errors.As(err, &d) || len(vouchers) != 2 {
			t.Errorf("asked to pay again: %v, %d vouchers", err, len(vouchers))
		}
	}
}

// claimAll claims all that was signed on a channel.
func (s *stall) claimAll(c Channel) {
	i := slices.IndexFunc(s.Paid, func(p x402.PaymentPayload) bool { return p.Payload.Voucher.MaxClaimableAmount.Int == c.Signed })
	s.Newest, s.Base = &s.Paid[i].Payload.Voucher, c.Signed.Uint64()
	s.Claim(c.Terms)
}

// TestX402BaseWithoutARecord: whatever a provider that shows no record says of what is charged, by whatever answers and
// however much time passes, one voucher is signed beyond what the newest record's tick was signed for.
func TestX402BaseWithoutARecord(t *testing.T) {
	m := newMill(t, false, func(uint64, uint64) time.Duration { return 50 * time.Millisecond })
	serve := m.s.Instead
	seed := rand.Uint64()
	for round := range uint64(12) {
		random := rand.New(rand.NewPCG(seed, round))
		m.s.Payer, m.s.database = m.s.Newcomer(t), filepath.Join(t.TempDir(), "renter.db")
		m.s.Mint(t, m.s.PayerAddress(), 50_000_000)
		m.s.Base, m.s.Newest, m.s.Instead = 0, nil, serve
		x := m.s.client(wallet.Caps{PricePerGPUHour: "10", PerLease: "5", PerDay: "50", PerPayee: "50"}, Options{MaxPrice: wallet.Unlimited})
		clock := &nap{}
		x.w.Clock = clock
		rental, err := x.Rent(t.Context(), m.URL, 1)
		if err != nil {
			t.Fatal(err)
		}
		most := uint64(testrig.MillAsk)
		if round%2 == 1 {
			if _, err := rental.Tick(t.Context()); err != nil {
				t.Fatal(err)
			}
			most += m.s.Newest.MaxClaimableAmount.Uint64()
		}
		m.s.Instead = m.liar(random)
		var said []error
		for range 20 {
			_, err := rental.Tick(t.Context())
			if said = append(said, err); err == nil {
				t.Fatal("a tick with no record")
			}
			clock.pass(time.Duration(random.IntN(120)) * time.Second)
		}
		if signed := m.s.only(x).Signed; signed.Uint64() > most || signed.IsZero() {
			t.Errorf("seed %d, round %d: %s signed, at most %d may be: %v", seed, round, signed.Dec(), most, errors.Join(said...))
		}
	}
}

// liar answers payments by what is worth most to it, and shows no record.
func (m *mill) liar(random *rand.Rand) func(*testrig.Seller, http.ResponseWriter, x402.PaymentPayload) bool {
	return func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
		before, now := s.Newest, p.Payload.Voucher
		if before == nil {
			s.Bank(p)
		}
		if before == nil || before.MaxClaimableAmount.Lt(&now.MaxClaimableAmount.Int) {
			s.Newest = &now
		}
		all := s.Newest.MaxClaimableAmount.Uint64()
		switch random.IntN(6) {
		case 0:
			s.Correct(w, all, s.Newest)
		case 1:
			s.Correct(w, all-1, s.Newest)
		case 2:
			if before != nil {
				s.Correct(w, before.MaxClaimableAmount.Uint64(), before)
				return true
			}
			w.WriteHeader(http.StatusBadGateway)
		case 3:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 4:
			w.WriteHeader(http.StatusNotFound)
		default:
			s.Refuse(w, x402.FirstError, s.Offer)
		}
		return true
	}
}

// TestX402TickIsAnsweredAfterAll: a tick that was said to be charged, with no record, is asked for again with the same
// payment; when its answer comes it is checked and costs nothing more.
func TestX402TickIsAnsweredAfterAll(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	n.tick()
	var sent string
	n.line.Alter = func(resp *http.Response) {
		sent = resp.Request.Header.Get(x402.HeaderSignature)
		p, err := x402.ParsePaymentPayload(resp.Request.Header)
		if err != nil {
			t.Error(err)
		}
		v, a := p.Payload.Voucher, p.Accepted
		offer := x402.Requirements{Network: a.Network, Amount: a.Amount, Asset: a.Asset, PayTo: a.PayTo, MaxTimeoutSeconds: a.MaxTimeoutSeconds, Extra: a.Extra}
		base := v.MaxClaimableAmount
		base.SubUint64(&base.Int, 1)
		offer.Extra.ChannelState = &x402.ChannelState{ChargedCumulativeAmount: &base}
		offer.Extra.VoucherState = &x402.VoucherState{SignedMaxClaimable: v.MaxClaimableAmount, Signature: v.Signature}
		resp.Header = make(http.Header)
		resp.StatusCode = http.StatusPaymentRequired
		if err := (x402.PaymentRequired{Error: string(x402.CodeCumulativeMismatch), Resource: x402.Resource{URL: n.Server.URL}, Accepts: []x402.Requirements{offer}}).Set(resp.Header); err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		if _, err := n.rental.Tick(t.Context()); !errors.Is(err, ErrLostAnswer) || !strings.Contains(err.Error(), "signs nothing more") {
			t.Fatalf("%v, want %v", err, ErrLostAnswer)
		}
		n.open()
	}
	n.line.Alter, n.line.Paid = nil, nil
	if tick := n.tick(); tick.Charged.IsZero() || len(n.line.Paid) != 1 || n.line.Paid[0] != sent {
		t.Errorf("%+v, %d payments", tick, len(n.line.Paid))
	}
	n.agrees()
	if s := n.account(); s.Tick != nil || !s.Lost.IsZero() {
		t.Errorf("it is not over: %+v", s)
	}
	n.tick()
	n.agrees()
}

// TestX402LostAndClaimedTicks: ticks whose answers get lost, one after the other, and that are claimed before they are asked
// for again, are answered when they are: an honest provider is not accused, and each is paid once.
func TestX402LostAndClaimedTicks(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	n.tick()
	for range 3 {
		before := n.account()
		n.line.Cut = lostTries + 1
		if _, err := n.rental.Tick(t.Context()); !errors.Is(err, peer.ErrUnreachable) {
			t.Fatalf("%v, want %v", err, peer.ErrUnreachable)
		}
		if err := n.Provider.Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		paid := len(n.line.Paid)
		if tick := n.tick(); tick.Charged.IsZero() || !tick.Record.Owed.Gt(&before.Charged) || len(n.line.Paid) != paid+1 || n.line.Paid[paid] != n.line.Paid[paid-1] {
			t.Errorf("%+v, by %d payments", tick, len(n.line.Paid)-paid)
		}
		n.agrees()
	}
	if evidence, err := n.x.w.Evidence(t.Context(), n.account().ID); err != nil || len(evidence) > 0 {
		t.Errorf("it is accused: %v, %v", evidence, err)
	}
}

// TestX402LostTickIsGivenUp: a tick that was charged and is never answered is given up by a refund.
func TestX402LostTickIsGivenUp(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	n.tick()
	s := n.account()
	s.Tick = &ticks.Pending{URL: n.Server.URL + "/tick?gpus=1", Header: "lost", Base: s.Charged, Most: *uint256.NewInt(1000), Prior: *uint256.NewInt(501)}
	s.Lost = s.Tick.Most
	if err := n.x.accounts().Save(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	paid := len(n.line.Paid)
	two, err := n.x.Rent(t.Context(), n.Server.URL, 2)
	if err != nil {
		t.Fatal(err)
	}
	for _, rental := range []*Rental{n.rental, two} {
		if _, err := rental.Tick(t.Context()); !errors.Is(err, ErrLostAnswer) || len(n.line.Paid) != paid {
			t.Errorf("%v, %d payments", err, len(n.line.Paid)-paid)
		}
	}
	if _, err := n.rental.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if tick := n.tick(); tick.Charged.IsZero() {
		t.Errorf("after it: %+v", tick)
	}
}

// TestX402LostTickAtANewPrice: a tick that is asked for again is charged at most what its own voucher was for, however much
// the next one may cost by then.
func TestX402LostTickAtANewPrice(t *testing.T) {
	m := newMill(t, false, func(uint64, uint64) time.Duration { return 50 * time.Millisecond })
	x := m.s.client(wallet.Caps{PricePerGPUHour: "10", PerLease: "5", PerDay: "50", PerPayee: "50"}, Options{MaxPrice: wallet.Unlimited})
	rental, err := x.Rent(t.Context(), m.URL, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rental.Tick(t.Context()); err != nil {
		t.Fatal(err)
	}
	const small = 3000
	m.s.Offer.Amount = wireUnits(small)
	var gone atomic.Int32
	m.s.Instead = func(*testrig.Seller, http.ResponseWriter, x402.PaymentPayload) bool {
		gone.Add(1)
		panic(http.ErrAbortHandler)
	}
	if _, err := rental.Tick(t.Context()); !errors.Is(err, peer.ErrUnreachable) {
		t.Fatalf("%v, want %v", err, peer.ErrUnreachable)
	}
	if time.Sleep(100 * time.Millisecond); gone.Load() == 0 { // a client may ask twice where its line broke
		t.Fatal("the tick was not asked for")
	}
	m.s.Offer.Amount = wireUnits(testrig.MillAsk)
	m.s.Instead = func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
		receipt := x402.SettleResponse{Success: true, Network: 31337, ChargedAmount: ptr(wireUnits(small + 1))}
		if err := receipt.Set(w.Header()); err != nil {
			t.Error(err)
		}
		return true
	}
	if _, err := rental.Tick(t.Context()); !errors.Is(err, ErrOvercharged) {
		t.Errorf("%v, want %v", err, ErrOvercharged)
	}
	if all, err := x.Channels(t.Context()); err != nil || len(all) != 1 || all[0].Charged.Gt(&all[0].Signed) {
		t.Errorf("charged more than was signed: %+v, %v", all, err)
	}
}

// TestX402RaisedBaseIsTimeThatPassed: a provider that meters little in a new lease at every tick, and says before the next
// that all of the voucher before is charged, has no more signed than the time that passed, and one ceiling.
func TestX402RaisedBaseIsTimeThatPassed(t *testing.T) {
	m := newMill(t, false, func(uint64, uint64) time.Duration { time.Sleep(60 * time.Millisecond); return 50 * time.Millisecond })
	x := m.s.client(wallet.Caps{PricePerGPUHour: "10", PerLease: "5", PerDay: "50", PerPayee: "50"}, Options{MaxPrice: wallet.Unlimited})
	rental, err := x.Rent(t.Context(), m.URL, 1)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for range 8 {
		if _, err := rental.Tick(t.Context()); err != nil {
			t.Log(err)
		}
		if m.s.Newest != nil {
			m.s.Base = m.s.Newest.MaxClaimableAmount.Uint64()
		}
	}
	all, err := x.Channels(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatalf("%+v, %v", all, err)
	}
	var most uint256.Int
	most.SetUint64(uint64((time.Since(began) + ticks.Tolerance).Milliseconds()) + testrig.MillAsk)
	if all[0].Signed.Gt(&most) || all[0].Signed.IsZero() {
		t.Errorf("signed %s, %s is what passed and one tick", all[0].Signed.Dec(), most.Dec())
	}
}
