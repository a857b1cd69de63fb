package renter_test

import (
	"context"
	"errors"
	"math/big"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402/x402client"
)

// hurried is an endpoint that says for as many blocks as it has lies that an hour more has passed.
type hurried struct {
	chain.Backend
	lies atomic.Int64
}

func (h *hurried) HeaderByNumber(ctx context.Context, n *big.Int) (*types.Header, error) {
	head, err := h.Backend.HeaderByNumber(ctx, n)
	if err == nil && h.lies.Add(-1) >= 0 {
		later := *head
		later.Time += 3600
		return &later, nil
	}
	return head, err
}

// TestOneFalseBlockTimeFreesNoCap: an endpoint says that what was signed has ended. As long as it is good by our own clock
// it stays in the books, whether it is an open or a top-up.
func TestOneFalseBlockTimeFreesNoCap(t *testing.T) {
	m := testrig.NewMarket(t)
	t.Run("top-ups", func(t *testing.T) {
		d := newDrawer(t, m)
		config := renterrig.Config(t, m, m.Payer)
		h := &hurried{Backend: m.Backend}
		config.Chain.Backend, config.Caps.PerLease = h, "1.5"
		r := renterrig.Open(t, config)
		l, err := r.Rent(t.Context(), d.Server.URL, renter.Options{Deposit: "0.5", TopUp: "0.5", Gasless: true})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Lease().Detach()
		d.terms = l.Terms()
		d.submit(d.payloads()[0])
		for range 4 {
			for _, lies := range []int64{0, 1} {
				h.lies.Store(lies)
				l.Lease().Topped = time.Time{}
				_ = l.Lease().TopUp(t.Context()) // the provider says yes and does nothing
			}
			h.lies.Store(0)
		}
		for _, p := range d.payloads() {
			d.submit(p)
		}
		if got := d.deposited() + d.outstanding(); got > 1_500_000 {
			t.Errorf("%d can be in the channel, over a cap of 1500000", got)
		}
	})
	t.Run("opens", func(t *testing.T) {
		d := vanished(t, m)
		config := renterrig.Config(t, m, m.Payer)
		h := &hurried{Backend: m.Backend}
		config.Chain.Backend, config.Caps.PerDay = h, "0.5"
		r := renterrig.Open(t, config)
		if _, err := r.Rent(t.Context(), d.Server.URL, renter.Options{Deposit: "0.5", Gasless: true}); err == nil {
			t.Fatal("it was not refused")
		}
		open, err := r.Rentals(t.Context())
		if err != nil || len(open) != 1 {
			t.Fatalf("%+v, %v", open, err)
		}
		l, err := r.Rental(t.Context(), open[0].Channel)
		if err != nil {
			t.Fatal(err)
		}
		h.lies.Store(1)
		short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if c, err := l.Leave(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("left: %+v, %v", c, err)
		}
		h.lies.Store(0)
		if _, err := r.Rent(t.Context(), d.Server.URL, renter.Options{Deposit: "0.5", Gasless: true}); !errors.Is(err, wallet.ErrDeposit) || len(d.payloads()) != 1 {
			t.Errorf("%v, %d deposits were signed", err, len(d.payloads()))
		}
	})
}

// TestOpenCountsOnce: a deposit that the provider sent is in the channel, and no more promised beside that: there is room
// for a top-up up to the cap.
func TestOpenCountsOnce(t *testing.T) {
	m := testrig.NewMarket(t)
	d := newDrawer(t, m)
	keep := d.Funding
	d.Funding = func(p wire.Payload) {
		keep(p)
		if p.Action == wire.ActionOpen && p.Authorization != nil {
			d.terms = channel.Terms{
				ChainID: 31337, Escrow: m.Escrow, Payer: common.Address(p.Authorization.From), Payee: d.Key.Address(), Token: m.Token, Salt: *p.Salt,
			}
			d.submit(p)
		}
	}
	config := renterrig.Config(t, m, m.Payer)
	config.Caps.PerLease = "1"
	l, err := renterrig.Open(t, config).Rent(t.Context(), d.Server.URL, renter.Options{Deposit: "0.5", TopUp: "0.5", Gasless: true})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Lease().Detach()
	if step, promised := l.Lease().Step(), l.Snapshot().Promised; step.Uint64() != 500_000 || !promised.IsZero() || d.deposited() != 500_000 {
		t.Errorf("the next top-up is %s, %s are promised beside %d", step.Dec(), promised.Dec(), d.deposited())
	}
}

// TestVoucherCountsOnce: a voucher that is offered again explains no record more.
func TestVoucherCountsOnce(t *testing.T) {
	m := testrig.NewMarket(t)
	v := testrig.NewHostile(t, m, nil)
	v.Script = func(*testrig.Stream) {}
	l, err := renterrig.Open(t, renterrig.Config(t, m, m.Payer)).Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Lease().Detach()
	before := l.Lease().Row.Vouchers
	for _, amount := range []uint64{1000, 1000, 1000, 2000, 2000} {
		voucher, err := l.Lease().Payer.Pay(t.Context(), l.ID(), *uint256.NewInt(amount))
		if err != nil {
			t.Fatal(err)
		}
		l.Lease().Deliver(t.Context(), voucher)
	}
	if got := l.Lease().Row.Vouchers - before; got != 2 {
		t.Errorf("%d were counted of 2", got)
	}
}

// TestDistrustCrossesSchemes: whoever was caught over x402 gets no deposit of a rental, and whoever was caught in a rental is
// not paid over x402 until that rental is over, also after a Close that it refused.
func TestDistrustCrossesSchemes(t *testing.T) {
	m := testrig.NewX402Market(t)
	newShop := func(t *testing.T) *testrig.Seller {
		s := testrig.NewSeller(t, m)
		s.Key = m.Payee
		s.Offer.PayTo = wire.Address(channel.NewKey(m.Payee).Address())
		s.Offer.Extra.ReceiverAuthorizer = s.Offer.PayTo
		return s
	}
	open := func(t *testing.T) (*renter.Client, *x402client.Client) {
		config := renterrig.Config(t, m, m.Payer)
		config.Caps = wallet.Caps{PricePerGPUHour: "10", PerLease: "6", PerDay: "50", PerPayee: "50"}
		config.Tolerance, config.Patience, config.Chain.Poll = 2*time.Second, 50*time.Millisecond, 5*time.Millisecond
		r := renterrig.Open(t, config)
		x, err := x402client.New(t.Context(), r.Wallet(), x402client.Options{MaxPrice: wallet.Unlimited})
		if err != nil {
			t.Fatal(err)
		}
		return r, x
	}
	lieOverX402 := func(t *testing.T, s *testrig.Seller, x *x402client.Client) { // in a record that the payee signs
		mill := testrig.NewMill(t, s, func(uint64, uint64) time.Duration { return time.Second })
		rental, err := x.Rent(t.Context(), mill.URL, 1)
		if err != nil {
			t.Fatal(err)
		}
		mill.Price.Amount.AddUint64(&mill.Price.Amount, 1)
		if _, err := rental.Tick(t.Context()); !errors.Is(err, metering.ErrPrice) {
			t.Fatal(err)
		}
	}
	var d *wallet.Dispute
	t.Run("caught over x402", func(t *testing.T) {
		s := newShop(t)
		r, x := open(t)
		lieOverX402(t, s, x)
		v := testrig.NewHostile(t, m, nil)
		v.Script = func(*testrig.Stream) {}
		if _, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "0.02"}); !errors.As(err, &d) {
			t.Errorf("rented: %v", err)
		}
		if left, err := r.Rentals(t.Context()); err != nil || len(left) != 0 {
			t.Errorf("%+v, %v", left, err)
		}
	})
	t.Run("caught over x402 beside a rental", func(t *testing.T) {
		s := newShop(t)
		r, x := open(t)
		v := testrig.NewHostile(t, m, nil)
		v.Script = func(p *testrig.Stream) { p.Honest(2) }
		l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "0.02", TopUp: "0.01", PayEvery: 50 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		lieOverX402(t, s, x)
		if err := l.Lease().TopUp(t.Context()); !errors.As(err, &d) || l.Lease().Row.TopUp != nil || l.Lease().MayTopUp() {
			t.Errorf("topped up: %v, %+v", err, l.Lease().Row.TopUp)
		}
	})
	t.Run("caught in a rental", func(t *testing.T) {
		s := newShop(t)
		r, x := open(t)
		v := testrig.NewHostile(t, m, nil)
		v.Script = (*testrig.Stream).Overcharge
		l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "0.02", PayEvery: 50 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Run(t.Context()); !errors.As(err, &d) {
			t.Fatal(err)
		}
		if _, err := l.Close(t.Context()); !errors.Is(err, peer.ErrRefused) {
			t.Fatal(err)
		}
		if _, err := x.Client().Get(s.Server.URL); !errors.As(err, &d) || len(s.Paid) != 0 {
			t.Errorf("%v, %d payments", err, len(s.Paid))
		}
	})
}

// TestBackupFromBeforeTheAuthorization: the database is a copy from before the deposit was signed, and the provider holds the
// deposit back. The rental is not over while it may still come, and one that comes later all the same is found.
func TestBackupFromBeforeTheAuthorization(t *testing.T) {
	m := testrig.NewMarket(t)
	before := m.Tokens(t, m.PayerAddress())
	d := vanished(t, m)
	config := renterrig.Config(t, m, m.Payer)
	config.Chain.ClockTolerance, config.Now = 1000*time.Hour, m.Now
	r := renterrig.Open(t, config)
	q, err := r.Quote(t.Context(), d.Server.URL)
	if err != nil {
		t.Fatal(err)
	}
	l, err := r.Prepare(t.Context(), q, renter.Options{GPUs: 1, PayEvery: 50 * time.Millisecond, Gasless: true}, *uint256.NewInt(500_000))
	if err != nil {
		t.Fatal(err)
	}
	d.terms = l.Terms()
	shut := func() {
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	shut()
	backup, err := os.ReadFile(config.Database)
	if err != nil {
		t.Fatal(err)
	}
	r = renterrig.Open(t, config)
	m.Pass(t, 10*time.Minute) // it is taken up later, and good for longer than a rental of that age
	if _, err := r.Resume(t.Context(), d.terms.ID()); err == nil || len(d.payloads()) != 1 {
		t.Fatalf("%v, %d deposits were handed out", err, len(d.payloads()))
	}
	shut()
	if err := os.WriteFile(config.Database, backup, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, rest := range []string{"-wal", "-shm"} {
		_ = os.Remove(config.Database + rest)
	}
	r = renterrig.Open(t, config)
	if l, err = r.Rental(t.Context(), d.terms.ID()); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if c, err := l.Leave(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("it is over while its deposit may come: %+v, %v", c, err)
	}
	m.Pass(t, 6*time.Minute)
	if c, err := l.Leave(t.Context()); err != nil || !c.Deposit.IsZero() {
		t.Fatalf("%+v, %v", c, err)
	}
	m.Mine(t, rental.Finality)
	if open, err := r.Rentals(t.Context()); err != nil || len(open) != 0 {
		t.Fatalf("%+v, %v: want none", open, err)
	}
	d.submit(d.payloads()[0])
	for i, n := range []int{1, 0} { // the second time it is known
		if found, err := r.Recover(t.Context(), m.Escrow, 0); err != nil || len(found) != n {
			t.Fatalf("look %d found %v, %v", i, found, err)
		}
	}
	if l, err = r.Rental(t.Context(), d.terms.ID()); err != nil {
		t.Fatal(err)
	}
	if c := leave(t, m, l); c.Refunded.Uint64() != 500_000 {
		t.Errorf("%+v", c)
	}
	if got := m.Tokens(t, m.PayerAddress()); got != before {
		t.Errorf("the payer has %d of %d", got, before)
	}
}

// TestDepositCountsOnceWithConfirmations: the look at the start comes before the deposit has its confirmations. When the
// deposit runs low it is looked at again, and the caps leave the room that they leave.
func TestDepositCountsOnceWithConfirmations(t *testing.T) {
	m := testrig.NewMarket(t)
	d := newDrawer(t, m)
	config := renterrig.Config(t, m, m.Payer)
	config.Chain.Confirmations, config.Caps.PerLease = 3, "0.021"
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), d.Server.URL, renter.Options{Deposit: "0.011", TopUp: "0.01", Gasless: true})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Lease().Detach()
	d.terms = l.Terms()
	d.submit(d.payloads()[0])
	m.Mine(t, 3)
	if step := l.Lease().Step(); !step.IsZero() {
		t.Fatalf("the deposit is counted already, and a top-up of %s would be made: the test shows nothing", step.Dec())
	}
	if err := l.Lease().Budget(t.Context()); err != nil || len(d.payloads()) != 2 {
		t.Errorf("%v, %d deposits were handed out, want the top-up", err, len(d.payloads()))
	}
}

// TestCaughtPayeeGetsNoOtherRental: a payee that signed what it was caught at, in a rental that is not over, gets the deposit of no other: not of a new
// one, nor of one that is taken up again.
func TestCaughtPayeeGetsNoOtherRental(t *testing.T) {
	m := testrig.NewMarket(t)
	v := testrig.NewHostile(t, m, nil)
	v.Script = (*testrig.Stream).Overcharge
	config := renterrig.Config(t, m, m.Payer)
	config.Chain.ClockTolerance, config.Now = 1000*time.Hour, m.Now // the chain's clock runs ahead once the rental was left
	r := renterrig.Open(t, config)
	q, err := r.Quote(t.Context(), v.Server.URL)
	if err != nil {
		t.Fatal(err)
	}
	begun, err := r.Prepare(t.Context(), q, renter.Options{GPUs: 1, PayEvery: time.Second}, *uint256.NewInt(100_000))
	if err != nil {
		t.Fatal(err)
	}
	l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "0.1"})
	if err != nil {
		t.Fatal(err)
	}
	var d *wallet.Dispute
	if err := l.Run(t.Context()); !errors.As(err, &d) {
		t.Fatal(err)
	}
	before := m.Tokens(t, m.PayerAddress())
	elsewhere := testrig.NewHostile(t, m, func(o *wire.Offer) { o.Expires += 3600 }) // the same payee at another site
	elsewhere.Script = func(*testrig.Stream) {}
	if _, err := r.Rent(t.Context(), elsewhere.Server.URL, renter.Options{Deposit: "0.1"}); !errors.As(err, &d) || d.Channel != l.ID() {
		t.Errorf("rented again: %v", err)
	}
	if _, err := r.Resume(t.Context(), begun.ID()); !errors.As(err, &d) {
		t.Errorf("opened: %v", err)
	}
	if got := m.Tokens(t, m.PayerAddress()); got != before {
		t.Errorf("%d were deposited", before-got)
	}
	leave(t, m, l)
	if l, err = r.Rent(t.Context(), elsewhere.Server.URL, renter.Options{Deposit: "0.1"}); err != nil {
		t.Errorf("it is over, and all is back: %v", err)
	} else {
		l.Lease().Detach()
	}
}

// TestFallbackMayStillCome: a copy of the database, from when the renter's own transaction was to open the channel, does not
// know of the authorization that the provider got in its place. What it took for never funded is found when it comes.
func TestFallbackMayStillCome(t *testing.T) {
	m := testrig.NewMarket(t)
	d := vanished(t, m)
	config := renterrig.Config(t, m, m.Payer)
	config.Chain.ClockTolerance, config.Now = 1000*time.Hour, m.Now
	r := renterrig.Open(t, config)
	q, err := r.Quote(t.Context(), d.Server.URL)
	if err != nil {
		t.Fatal(err)
	}
	l, err := r.Prepare(t.Context(), q, renter.Options{GPUs: 1, PayEvery: 50 * time.Millisecond}, *uint256.NewInt(500_000))
	if err != nil || l.Lease().Row.Funding.Type != wire.TypeHash {
		t.Fatalf("%+v, %v", l.Lease().Row.Funding, err)
	}
	d.terms = l.Terms()
	if c, err := l.Leave(t.Context()); err != nil || !c.Deposit.IsZero() {
		t.Fatalf("%+v, %v", c, err)
	}
	m.Mine(t, rental.Finality+1)
	if open, err := r.Rentals(t.Context()); err != nil || len(open) != 1 || open[0].Phase != renter.PhaseClosed {
		t.Fatalf("%+v, %v: want one that is closed, and not for good", open, err)
	}
	a, signature, err := l.Lease().Authorize(t.Context(), *uint256.NewInt(500_000), channel.OpenNonce(d.terms.Payer, d.terms)) // as the other copy did
	if err != nil {
		t.Fatal(err)
	}
	d.submit(wire.Payload{Action: wire.ActionOpen, Type: wire.TypeAuthorization, Authorization: a, Signature: signature})
	if _, err := r.Rentals(t.Context()); err != nil {
		t.Fatal(err)
	}
	if l, err = r.Rental(t.Context(), d.terms.ID()); err != nil {
		t.Fatal(err)
	}
	if c := leave(t, m, l); c.Refunded.Uint64() != 500_000 {
		t.Errorf("%+v", c)
	}
}
