package renter_test

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestNoRoomNoDeposit: a provider whose GPUs are all taken is asked before any
// money moves, by either way to fund, and nothing keeps the renter's database.
func TestNoRoomNoDeposit(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, func(c *provider.Config) { c.Source = testclock.GPUs(1) })
	first := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	l, err := first.Rent(t.Context(), server.URL, renter.Options{Deposit: "1"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Lease().Detach()
	key := m.Dusty(t)
	m.RPC(t, nil, "anvil_setBalance", channel.NewKey(key).Address(), "0xde0b6b3a7640000")
	r := renterrig.Open(t, renterrig.Config(t, m, key))
	for _, gasless := range []bool{false, true} {
		if _, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1", Gasless: gasless}); !errors.Is(err, gpu.ErrNoCapacity) {
			t.Errorf("gasless %v: %v, want ErrNoCapacity", gasless, err)
		}
	}
	if open, err := r.Rentals(t.Context()); err != nil || len(open) != 0 {
		t.Errorf("%+v, %v: something was begun", open, err)
	}
	if got := m.Tokens(t, r.Address()); got != testrig.Thousand {
		t.Errorf("%d tokens left", got)
	}
}

// vanished is a provider that takes an open and is never heard of again.
func vanished(t *testing.T, m *testrig.Market) *drawer {
	d := newDrawer(t, m)
	d.RefuseOpen = true
	return d
}

// unopened is a rental whose open was handed out and refused.
func unopened(t *testing.T, d *drawer, config renter.Config, options renter.Options) (*renter.Client, *renter.Rental) {
	t.Helper()
	r := renterrig.Open(t, config)
	options.Deposit = "0.5"
	if _, err := r.Rent(t.Context(), d.Server.URL, options); err == nil {
		t.Fatal("it was not refused")
	}
	open, err := r.Rentals(t.Context())
	if err != nil || len(open) != 1 {
		t.Fatalf("%d rentals, %v", len(open), err)
	}
	l, err := r.Rental(t.Context(), open[0].Channel)
	if err != nil {
		t.Fatal(err)
	}
	d.terms = l.Terms()
	d.Server.CloseClientConnections()
	d.Server.Close()
	return r, l
}

// TestLeaveWhatWasNotOpened: the provider is gone before the lease began. Leaving
// asks the chain alone, makes no deposit, and gets back what is there.
func TestLeaveWhatWasNotOpened(t *testing.T) {
	m := testrig.NewMarket(t)
	config := func(t *testing.T) renter.Config {
		c := renterrig.Config(t, m, m.Payer)
		c.Chain.ClockTolerance, c.Now = 1000*time.Hour, m.Now
		return c
	}
	before := m.Tokens(t, m.PayerAddress())
	back := func(t *testing.T) {
		t.Helper()
		if got := m.Tokens(t, m.PayerAddress()); got != before {
			t.Errorf("the payer has %d of %d", got, before)
		}
	}
	t.Run("nothing was signed", func(t *testing.T) {
		d := newDrawer(t, m)
		r := renterrig.Open(t, config(t))
		q, err := r.Quote(t.Context(), d.Server.URL)
		if err != nil {
			t.Fatal(err)
		}
		options := renter.Options{GPUs: 1, PayEvery: time.Second}
		l, err := r.Prepare(t.Context(), q, options, *uint256.NewInt(500_000))
		if err != nil {
			t.Fatal(err)
		}
		d.Server.Close()
		if l, err = r.Rental(t.Context(), l.ID()); err != nil {
			t.Fatal(err)
		}
		c, err := l.Leave(t.Context())
		if err != nil || !c.Deposit.IsZero() || c.Note == "" {
			t.Errorf("%+v, %v", c, err)
		}
		back(t)
	})
	t.Run("authorization unused", func(t *testing.T) {
		_, l := unopened(t, vanished(t, m), config(t), renter.Options{Gasless: true})
		for wait, heard := 300*time.Millisecond, false; !heard; wait *= 2 { // on a busy machine it comes no further than to look
			short, cancel := context.WithTimeout(t.Context(), wait)
			_, err := l.Leave(short)
			cancel()
			heard = err != nil && strings.Contains(err.Error(), "may be sent until")
			if !errors.Is(err, context.DeadlineExceeded) || !heard && wait > time.Minute {
				t.Fatalf("%v, want to hear until when", err)
			}
		}
		m.Pass(t, wallet.AuthorizationTTL+time.Minute)
		c, err := l.Leave(t.Context())
		if err != nil || !c.Deposit.IsZero() || c.Note == "" {
			t.Errorf("%+v, %v", c, err)
		}
		back(t)
	})
	t.Run("authorization used while it is watched", func(t *testing.T) {
		d := vanished(t, m)
		_, l := unopened(t, d, config(t), renter.Options{Gasless: true})
		time.AfterFunc(300*time.Millisecond, func() { d.submit(d.payloads()[0]) })
		if c := leave(t, m, l); c.Refunded.Uint64() != 500_000 {
			t.Errorf("%+v", c)
		}
		back(t)
	})
	t.Run("own transaction", func(t *testing.T) {
		_, l := unopened(t, vanished(t, m), config(t), renter.Options{})
		if c := leave(t, m, l); c.Refunded.Uint64() != 500_000 {
			t.Errorf("%+v", c)
		}
		back(t)
	})
}

// TestMinedDepositIsNotSaidToCome: a provider sends the deposit and refuses the lease. Neither the error nor the list of rentals says
// that the deposit may still be sent; both do while it was not.
func TestMinedDepositIsNotSaidToCome(t *testing.T) {
	m := testrig.NewMarket(t)
	for _, when := range []string{"before it refuses", "afterwards"} {
		t.Run(when, func(t *testing.T) {
			d := vanished(t, m)
			r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
			keep := d.Funding
			d.Funding = func(p wire.Payload) {
				row, err := r.Store().Load(t.Context(), p.ChannelID)
				if err != nil {
					t.Error(err)
				}
				if keep(p); when == "before it refuses" {
					d.terms = row.Terms
					d.submit(p)
				}
			}
			_, refused := r.Rent(t.Context(), d.Server.URL, renter.Options{Deposit: "0.5", Gasless: true})
			if refused == nil || strings.Contains(refused.Error(), "may be sent until") != (when == "afterwards") {
				t.Errorf("%v", refused)
			}
			open, err := r.Rentals(t.Context())
			if err != nil || len(open) != 1 || open[0].Until.IsZero() != (when == "before it refuses") {
				t.Fatalf("%+v, %v", open, err)
			}
			l, err := r.Rental(t.Context(), open[0].Channel)
			if err != nil {
				t.Fatal(err)
			}
			d.terms = l.Terms()
			d.submit(d.payloads()[0])
			open, err = r.Rentals(t.Context())
			if err != nil || len(open) != 1 || !open[0].Until.IsZero() || !open[0].Promised.IsZero() || open[0].Deposit.Uint64() != 500_000 {
				t.Errorf("once it is mined: %+v, %v", open, err)
			}
		})
	}
}

// between is an endpoint at which something happens, once, when the time of a
// block is asked for after the token was.
type between struct {
	chain.Backend
	token       common.Address
	armed, read atomic.Bool
	once        sync.Once
	do          func()
}

func (b *between) CallContract(ctx context.Context, call ethereum.CallMsg, block *big.Int) ([]byte, error) {
	if b.armed.Load() && *call.To == b.token {
		b.read.Store(true)
	}
	return b.Backend.CallContract(ctx, call, block)
}

func (b *between) HeaderByNumber(ctx context.Context, n *big.Int) (*types.Header, error) {
	if b.read.Load() {
		b.once.Do(b.do)
	}
	return b.Backend.HeaderByNumber(ctx, n)
}

// TestDepositBetweenTwoLooks: a deposit is sent in its last moment, between the
// look at the channel and the look at the clock. It is not taken for one that
// never came.
func TestDepositBetweenTwoLooks(t *testing.T) {
	m := testrig.NewMarket(t)
	before := m.Tokens(t, m.PayerAddress())
	d := vanished(t, m)
	endpoint := &between{Backend: m.Backend, token: m.Token, do: func() {
		d.submit(d.payloads()[0])
		m.Pass(t, wallet.AuthorizationTTL+time.Minute)
	}}
	config := renterrig.Config(t, m, m.Payer)
	config.Chain.ClockTolerance, config.Chain.Backend, config.Now = 1000*time.Hour, endpoint, m.Now
	_, l := unopened(t, d, config, renter.Options{Gasless: true})
	endpoint.armed.Store(true)
	if c := leave(t, m, l); c.Refunded.Uint64() != 500_000 {
		t.Errorf("%+v", c)
	}
	if got := m.Tokens(t, m.PayerAddress()); got != before {
		t.Errorf("the payer has %d of %d", got, before)
	}
}

// TestReorgAfterTheEnd: a re-org takes the end of a channel back. The rental is
// listed until that cannot happen any more, is open again when it does, and the
// deposit comes back in the end.
func TestReorgAfterTheEnd(t *testing.T) {
	m := testrig.NewMarket(t)
	v := testrig.NewHostile(t, m, nil)
	v.Script = func(*testrig.Stream) {}
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	before := m.Tokens(t, m.PayerAddress())
	l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1"})
	if err != nil {
		t.Fatal(err)
	}
	id := l.ID()
	leave(t, m, l)
	if open, err := r.Rentals(t.Context()); err != nil || len(open) != 1 || open[0].Phase != renter.PhaseClosed {
		t.Fatalf("%+v, %v: want one that is closed", open, err)
	}
	m.Reorg(t, 1) // the withdrawal
	open, err := r.Rentals(t.Context())
	if err != nil || len(open) != 1 || open[0].Phase == renter.PhaseClosed || open[0].Closed != nil {
		t.Fatalf("%+v, %v: want one that is open again", open, err)
	}
	if l, err = r.Rental(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if c, err := l.Leave(t.Context()); err != nil || c.Refunded.Uint64() != 1_000_000 {
		t.Fatalf("%+v, %v", c, err)
	}
	if got := m.Tokens(t, m.PayerAddress()); got != before {
		t.Errorf("the payer has %d of %d", got, before)
	}
	m.Mine(t, rental.Finality-1)
	if open, err = r.Rentals(t.Context()); err != nil || len(open) != 1 {
		t.Errorf("%+v, %v: finished one block early", open, err)
	}
	m.Mine(t, 1)
	if open, err = r.Rentals(t.Context()); err != nil || len(open) != 0 {
		t.Errorf("%+v, %v: want none", open, err)
	}
	all, err := r.History(t.Context())
	if err != nil || len(all) != 1 || all[0].Phase != renter.PhaseFinished || all[0].Closed.Refunded.Uint64() != 1_000_000 {
		t.Errorf("%+v, %v: what is finished cannot be found", all, err)
	}
}

// TestBackupFromBeforeTheOpen: the database is brought back from before the
// deposit. The rental can be taken up, and its deposit comes back.
func TestBackupFromBeforeTheOpen(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	before := m.Tokens(t, m.PayerAddress())
	for _, gasless := range []bool{false, true} {
		config := renterrig.Config(t, m, m.Payer)
		r := renterrig.Open(t, config)
		q, err := r.Quote(t.Context(), server.URL)
		if err != nil {
			t.Fatal(err)
		}
		l, err := r.Prepare(t.Context(), q, renter.Options{GPUs: 1, PayEvery: 50 * time.Millisecond, Gasless: gasless}, *uint256.NewInt(500_000))
		if err != nil {
			t.Fatal(err)
		}
		id := l.ID()
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		backup, err := os.ReadFile(config.Database)
		if err != nil {
			t.Fatal(err)
		}
		r = renterrig.Open(t, config)
		if l, err = r.Resume(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		l.Lease().Detach()
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(config.Database, backup, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, rest := range []string{"-wal", "-shm"} {
			_ = os.Remove(config.Database + rest)
		}
		r = renterrig.Open(t, config)
		if l, err = r.Resume(t.Context(), id); err != nil {
			t.Fatalf("gasless %v: %v", gasless, err)
		}
		c, err := l.Close(t.Context())
		if err != nil || !c.Settled.IsZero() {
			t.Fatalf("gasless %v: %+v, %v", gasless, c, err)
		}
		if got := m.Tokens(t, m.PayerAddress()); got != before {
			t.Errorf("the payer has %d of %d", got, before)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// idle is a relay that says yes and does nothing, or no.
type idle struct{ says error }

func (r idle) RequestClose(context.Context, wire.LeaveRequest) error { return r.says }

func (r idle) Withdraw(context.Context, channel.Terms) error { return r.says }

// TestLeavingEnds: a relay that refuses, or does nothing, is named after some
// tries, and the rental is left through another one from where it stands.
func TestLeavingEnds(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	key := m.Newcomer(t)
	config := renterrig.Config(t, m, key)
	relay := &struct{ renter.Relay }{idle{}}
	config.Chain.Poll, config.Relay = 10*time.Millisecond, relay
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := l.Leave(ctx); !errors.Is(err, wallet.ErrStuck) || !strings.Contains(err.Error(), "request the close") {
		t.Errorf("%v, want ErrStuck", err)
	}
	relay.Relay = idle{says: fmt.Errorf("out of coin")}
	if _, err := l.Leave(ctx); !errors.Is(err, wallet.ErrStuck) || !strings.Contains(err.Error(), "the relay did not request the close: out of coin") {
		t.Errorf("%v, want to hear whose refusal it is", err)
	}
	if open, err := r.Rentals(t.Context()); err != nil || len(open) != 1 || open[0].Phase != renter.PhaseLeaving {
		t.Errorf("%+v, %v", open, err)
	}
	relay.Relay = m.Relayer(t)
	leave(t, m, l)
}

// outage is an endpoint that does not answer while it is down.
type outage struct {
	chain.Backend
	down atomic.Bool
}

func (o *outage) BlockNumber(ctx context.Context) (uint64, error) {
	if o.down.Load() {
		return 0, errors.New("429 too many requests")
	}
	return o.Backend.BlockNumber(ctx)
}

// TestCloseWhileTheEndpointIsDown: the GPU is given back at once, and the refund
// comes when the endpoint answers again.
func TestCloseWhileTheEndpointIsDown(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	endpoint := &outage{Backend: m.Backend}
	config := renterrig.Config(t, m, m.Payer)
	config.Chain.Backend = endpoint
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1", PayEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	done := renterrig.Background(t.Context(), l)
	testrig.Eventually(t, "a payment", func() bool { s := l.Snapshot(); return !s.Paid.IsZero() })
	endpoint.down.Store(true)
	closed := make(chan error, 1)
	var c renter.Closing
	go func() {
		var err error
		c, err = l.Close(t.Context())
		closed <- err
	}()
	testrig.Eventually(t, "the final record", func() bool {
		records, err := r.Records(t.Context(), l.ID())
		return err == nil && len(records) > 0 && records[len(records)-1].Final
	})
	endpoint.down.Store(false)
	if err := <-closed; err != nil || c.Settled != c.Owed {
		t.Errorf("%+v, %v", c, err)
	}
	<-done
}

// TestLeaveThatFailsIsNoEnd: a renter that cannot send the request to close its channel, and has nobody who does, can go on with
// the rental, pay, and have it closed. One whose request was signed for others to send cannot: they may send it.
func TestLeaveThatFailsIsNoEnd(t *testing.T) {
	for _, test := range []struct {
		name   string
		coin   int64 // wei: less than the request takes
		signed bool
	}{{"no coin", 0, false}, {"too little coin", 1, false}, {"a request that is out", 0, true}} {
		t.Run(test.name, func(t *testing.T) {
			m := testrig.NewMarket(t)
			server := serveProvider(t, m, nil)
			config := renterrig.Config(t, m, m.Newcomer(t))
			r := renterrig.Open(t, config)
			l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1", PayEvery: 100 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			if test.signed {
				if _, err := l.SignLeave(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := r.Close(); err != nil { // the next process knows of it by its books alone
					t.Fatal(err)
				}
				r = renterrig.Open(t, config)
				if l, err = r.Rental(t.Context(), l.ID()); err != nil {
					t.Fatal(err)
				}
			}
			m.RPC(t, nil, "anvil_setBalance", r.Address(), (*hexutil.Big)(big.NewInt(test.coin)))
			if _, err := l.Leave(t.Context()); !errors.Is(err, wallet.ErrNoGas) {
				t.Fatalf("Leave: %v, want ErrNoGas", err)
			}
			if l, err = r.Resume(t.Context(), l.ID()); err != nil {
				t.Fatal(err)
			}
			if phase := l.Snapshot().Phase; (phase == renter.PhaseLeaving) != test.signed {
				t.Fatalf("it is %s", phase)
			}
			if test.signed {
				return
			}
			before := l.Snapshot().Paid
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			done := renterrig.Background(ctx, l)
			testrig.Eventually(t, "a payment", func() bool { paid := l.Snapshot().Paid; return paid.Gt(&before) })
			stop()
			<-done
			if c, err := l.Close(t.Context()); err != nil || c.Settled.IsZero() || c.Settled != c.Owed {
				t.Errorf("%+v, %v", c, err)
			}
		})
	}
}
