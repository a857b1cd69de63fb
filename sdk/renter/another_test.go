package renter_test

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// usurper is a hostile provider that names another lease than its renter's, once it is told to, under an offer of its choice, and shows
// records of it: in each stream, and in the answer to a release.
type usurper struct {
	*testrig.Hostile
	front  *httptest.Server
	offer  wire.SignedOffer
	named  atomic.Bool
	keeps  atomic.Bool  // it takes no lease back
	aborts atomic.Int32 // streams until one is cut off before its first byte

	mu      sync.Mutex
	lease   metering.Lease
	plot    *testrig.Stream // of the lease's meter
	records []metering.SignedRecord
}

// newUsurper has the lease that was asked for billed for three seconds.
func newUsurper(t *testing.T, m *testrig.Market, change func(*wire.Offer)) *usurper {
	t.Helper()
	u := &usurper{Hostile: testrig.NewHostile(t, m, nil)}
	offer := u.Hostile.Offer.Offer
	if change != nil {
		change(&offer)
	}
	var err error
	if u.offer, err = wire.SignOffer(t.Context(), u.Key, offer); err != nil {
		t.Fatal(err)
	}
	u.Script = u.streams
	u.ForgeLease = func(l *wire.Lease) {
		if u.named.Load() {
			l.LeaseID, l.OfferHash, l.OwedBefore = u.lease.ID, u.offer.Hash, wire.NewAmount(u.lease.OwedBefore)
		}
	}
	u.front = httptest.NewServer(http.HandlerFunc(u.answer))
	t.Cleanup(func() { u.front.CloseClientConnections(); u.front.Close() })
	return u
}

func (u *usurper) answer(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, u.offer.Hash.Hex()) {
		_, _ = w.Write(u.offer.Document)
		return
	}
	if r.Method == http.MethodGet && r.Header.Get("Authorization") != "" && u.named.Load() && u.aborts.Add(-1) == 0 {
		panic(http.ErrAbortHandler)
	}
	if c, err := wire.ParseCredential(r.Header); err == nil && u.keeps.Load() && c.Payload.Action == wire.ActionRelease {
		wire.Internal.With("no").Write(w)
		return
	}
	u.ServeHTTP(w, r)
}

func (u *usurper) streams(p *testrig.Stream) {
	if !u.named.Load() {
		p.Usage(p.Next(time.Second))
		p.Usage(p.Next(2 * time.Second))
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.bill(5 * time.Second)
	for _, rec := range u.records {
		p.Usage(rec)
	}
}

// bill is another record of the lease that nobody asked for.
func (u *usurper) bill(worth time.Duration) metering.SignedRecord {
	rec := u.plot.Next(worth)
	u.records = append(u.records, rec)
	return rec
}

// name has another lease named, of which so much is billed in the answer to a release.
func (u *usurper) name(l *renter.Rental, worth time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.plot, u.records = u.Hostile.NewStream(nil, l.ID()), nil
	u.lease = u.plot.Lease
	u.lease.ID, u.lease.OfferHash, u.lease.Price.Amount, u.lease.OwedBefore = crypto.Keccak256Hash([]byte(rand.Text())), u.offer.Hash, u.offer.Amount.Int, l.Snapshot().Owed
	u.plot.Restart(u.lease, nil)
	u.Hostile.Mu.Lock()
	defer u.Hostile.Mu.Unlock()
	u.Final = func() metering.SignedRecord {
		u.mu.Lock()
		defer u.mu.Unlock()
		return u.bill(worth)
	}
	u.named.Store(true)
}

// TestLeaseThatNobodyAskedFor: a payee names another lease than the one that a renter asked for, and shows records of it, under
// the agreed offer or one of its own that the caps would allow. The renter pays none of it, whether it runs, over a connection
// that drops, comes back after an hour, or closes, once or again and again, also in a new process.
func TestLeaseThatNobodyAskedFor(t *testing.T) {
	m := testrig.NewMarket(t)
	offers := map[string]func(*wire.Offer){
		"the agreed offer": nil,
		"a dearer one": func(o *wire.Offer) {
			o.Amount, o.Credit = wire.NewAmount(*uint256.NewInt(4 * testrig.HostilePrice)), uint64(time.Hour/time.Second)
		},
	}
	for under, change := range offers {
		for how, then := range map[string]func(*visit){
			"runs":                                       func(v *visit) { v.run() },
			"runs, the first connection drops":           func(v *visit) { v.aborts.Store(1); v.run() },
			"runs, the second connection drops":          func(v *visit) { v.aborts.Store(2); v.run() },
			"runs, and cannot give it back":              func(v *visit) { v.kept() },
			"comes back":                                 func(v *visit) { v.clock.Advance(time.Hour); v.run() },
			"comes back, in a new process":               func(v *visit) { v.clock.Advance(time.Hour); v.anew(); v.run(); v.close() },
			"closes":                                     func(v *visit) { v.clock.Advance(time.Hour); v.close() },
			"closes, and the answer comes late":          func(v *visit) { v.late(); v.close() },
			"closes again and again":                     func(v *visit) { v.closeAgain() },
			"heard of its end, and closes an hour later": func(v *visit) { v.ended(); v.clock.Advance(time.Hour); v.anew(); v.close() },
		} {
			t.Run(how+", under "+under, func(t *testing.T) {
				v := arrive(t, m, change)
				u := v.usurper
				u.name(v.l, 9*time.Second)
				then(v)
				s := v.l.Snapshot()
				if highest := u.Highest(); highest.Uint64() != 3*testrig.HostilePrice || s.Paid != highest || s.Owed != highest {
					t.Errorf("%s are signed for, %s owed, the lease that was asked for cost %d", highest.Dec(), s.Owed.Dec(), 3*testrig.HostilePrice)
				}
				if s.Price.Amount.Uint64() != testrig.HostilePrice || s.Lease == u.lease.ID {
					t.Errorf("lease %s, a price of %s: the agreed one was %d", s.Lease, s.Price.Amount.Dec(), testrig.HostilePrice)
				}
				if s.Reason == "" {
					t.Error("no word of why it ended")
				}
			})
		}
	}
}

// visit is what a renter does at a usurper.
type visit struct {
	*usurper
	t      *testing.T
	config renter.Config
	clock  *sim.Clock
	log    *testrig.Log
	r      *renter.Client
	l      *renter.Rental
}

// arrive has a lease begin, and all of it paid: three seconds.
func arrive(t *testing.T, m *testrig.Market, change func(*wire.Offer)) *visit {
	t.Helper()
	v := &visit{usurper: newUsurper(t, m, change), t: t, config: renterrig.Config(t, m, m.Payer), log: &testrig.Log{}}
	v.config.Log = slog.New(slog.NewTextHandler(v.log, nil))
	v.clock = ownClock(&v.config)
	v.config.Caps.PricePerGPUHour, v.config.Caps.PerDay = "20", wallet.Unlimited
	v.r = renterrig.Open(t, v.config)
	var err error
	if v.l, err = v.r.Rent(t.Context(), v.front.URL, renter.Options{Deposit: "1", PayEvery: 50 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	v.clock.Advance(3 * time.Second)
	ctx, stop := context.WithCancel(t.Context())
	done := renterrig.Background(ctx, v.l)
	testrig.Eventually(t, "the lease's records", func() bool { return signedFor(v.l) == 3*testrig.HostilePrice || len(done) > 0 })
	stop()
	<-done
	return v
}

func (v *visit) run() {
	v.t.Helper()
	v.clock.Advance(time.Minute)
	ctx, cancel := context.WithTimeout(v.t.Context(), time.Minute)
	defer cancel()
	if err := v.l.Run(ctx); err != nil {
		v.t.Errorf("Run: %v", err)
	}
}

// kept has the provider take no lease back, of which the renter hears what to do.
func (v *visit) kept() {
	v.t.Helper()
	v.keeps.Store(true)
	v.run()
	if !strings.Contains(v.log.String(), "could not be given back: close the rental") {
		v.t.Error("the log does not say that the lease is not given back")
	}
}

func (v *visit) close() {
	v.t.Helper()
	if _, err := v.l.Close(v.t.Context()); !errors.Is(err, peer.ErrRefused) { // this provider does not close
		v.t.Errorf("Close: %v", err)
	}
}

// anew starts the renter's process anew.
func (v *visit) anew() {
	v.t.Helper()
	err := v.r.Close()
	if err != nil {
		v.t.Fatal(err)
	}
	v.r = renterrig.Open(v.t, v.config)
	if v.l, err = v.r.Rental(v.t.Context(), v.l.ID()); err != nil {
		v.t.Fatal(err)
	}
}

// late has time pass after Close is asked for, before the provider answers.
func (v *visit) late() {
	forge := v.ForgeLease
	v.ForgeLease = func(l *wire.Lease) { v.clock.Advance(25 * time.Second); forge(l) }
}

// ended has the lease that was asked for end with a word of its provider.
func (v *visit) ended() {
	v.t.Helper()
	v.named.Store(false)
	script := v.Script
	v.Script = func(p *testrig.Stream) {
		p.Send(0, wire.EventStatus, wire.Status{State: wire.StateEnded, Reason: "we need the GPU"})
	}
	v.run()
	v.Script = script
	v.named.Store(true)
}

// closeAgain closes each hour at a provider that names another lease each time, and cuts off what comes after its first release.
func (v *visit) closeAgain() {
	v.t.Helper()
	for range 3 {
		v.clock.Advance(time.Hour)
		v.name(v.l, 9*time.Second)
		v.close()
		v.anew()
	}
}

// TestForgottenLeaseIsPaidUpToItsClose: a restored renter closes, and is shown a voucher that it had lost for a lease that it had
// lost. What is metered of that after Close was asked for, however late the answer comes, is not paid. Under an offer with a longer
// credit than was agreed nothing is, beyond the voucher.
func TestForgottenLeaseIsPaidUpToItsClose(t *testing.T) {
	m := testrig.NewMarket(t)
	const shown = 3*testrig.HostilePrice + 100
	for name, c := range map[string]struct {
		change func(*wire.Offer)
		goesOn bool
	}{
		"under the agreed offer": {nil, true},
		"under a longer credit":  {func(o *wire.Offer) { o.Credit *= 2 }, false},
	} {
		t.Run(name, func(t *testing.T) {
			v := arrive(t, m, c.change)
			v.name(v.l, 2*time.Second)
			signer, forge := channel.NewKey(m.Payer), v.ForgeLease
			v.ForgeLease = func(l *wire.Lease) {
				voucher, err := channel.EscrowDomain(31337, m.Escrow).Sign(t.Context(), signer, l.ChannelID, *uint256.NewInt(shown))
				if err != nil {
					t.Error(err)
				}
				l.Voucher = &wire.HeldVoucher{CumulativeAmount: wire.NewAmount(voucher.Cumulative), Signature: voucher.Signature}
				forge(l)
			}
			v.late()
			v.close()
			want := uint64(shown)
			if c.goesOn { // what was used before, and the tolerance
				want = 3*testrig.HostilePrice + uint64(v.config.Tolerance.Seconds()*testrig.HostilePrice)
			}
			if paid := signedFor(v.l); paid != want {
				t.Errorf("%d are signed for, %d is right", paid, want)
			}
			if is := v.l.Snapshot().Lease == v.lease.ID; is != c.goesOn {
				t.Errorf("its lease is the one that was lost: %t", is)
			}
		})
	}
}

// TestStoppedLeaseIsPaidOnce: a renter comes back after an hour and closes. Its provider shows a credit more in each answer, and
// takes no voucher until the renter gives up and closes again: it has its credit once, for the time before.
func TestStoppedLeaseIsPaidOnce(t *testing.T) {
	m := testrig.NewMarket(t)
	v := testrig.NewHostile(t, m, nil) // a credit of 10 s
	config := renterrig.Config(t, m, m.Payer)
	config.Caps.PerDay = wallet.Unlimited
	clock := ownClock(&config)
	left := 23 * time.Second // a credit after the 13 s beyond the first that are payable
	oneMeter(v, func(stream int, p *testrig.Stream) {
		if stream == 1 {
			clock.Advance(time.Second)
			p.Usage(p.Next(time.Second))
		}
	}, func(p *testrig.Stream) metering.SignedRecord { // all that it may serve on what is signed for
		worth := min(10*time.Second, left)
		left -= worth
		return p.Next(worth)
	})
	giveUp := func() {}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cred, err := wire.ParseCredential(r.Header)
		if err == nil && r.Method == http.MethodPost && cred.Payload.Action == wire.ActionVoucher && clock.Now().Boot > int64(time.Hour) {
			giveUp()
			panic(http.ErrAbortHandler)
		}
		v.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { front.CloseClientConnections(); front.Close() })
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), front.URL, renter.Options{Deposit: "1", PayEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := renterrig.Background(ctx, l)
	testrig.Eventually(t, "a payment", func() bool { return signedFor(l) == testrig.HostilePrice || len(done) > 0 })
	stop()
	<-done
	clock.Advance(time.Hour)
	for range 4 {
		ctx, cancel := context.WithCancel(t.Context())
		giveUp = cancel
		_, err := l.Close(ctx)
		cancel()
		t.Log(err)
		if errors.As(err, new(*wallet.Dispute)) {
			t.Fatal("time that a provider meters that did not hear of the end is no lie")
		}
		clock.Advance(5 * time.Minute)
	}
	s := l.Snapshot()
	if most := uint64(testrig.HostilePrice*(1+10+3) + 1); s.Sequence < 4 || s.Paid.Uint64() > most || s.Paid.Uint64() < most-4*testrig.HostilePrice {
		t.Errorf("after record %d %s are signed for, %d at most", s.Sequence, s.Paid.Dec(), most)
	}
}

func signedFor(l *renter.Rental) uint64 {
	s := l.Snapshot()
	return s.Paid.Uint64()
}
