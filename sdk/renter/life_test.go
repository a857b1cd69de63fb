package renter_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math/big"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestBrokenStreams: the lease outlives its connections, and is paid exactly. One that breaks again and again is attached to ever
// later.
func TestBrokenStreams(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	before := m.Tokens(t, m.PayeeAddress())
	config, log := renterrig.Config(t, m, m.Payer), &testrig.Log{}
	config.Log = slog.New(slog.NewTextHandler(log, nil))
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1", PayEvery: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	lease := l.Snapshot().Lease
	done := renterrig.Background(t.Context(), l)
	for range 6 {
		seen := l.Snapshot().Sequence
		testrig.Eventually(t, "records", func() bool { return l.Snapshot().Sequence > seen+2 })
		testrig.HangUp(server)
	}
	c, err := l.Close(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	checkClosing(t, m, c, m.PayerAddress(), before)
	checkBooks(t, r, l, c)
	if c.Owed != c.Settled || l.Snapshot().Lease != lease {
		t.Errorf("owed %s, settled %s, lease %s, was %s", c.Owed.Dec(), c.Settled.Dec(), l.Snapshot().Lease, lease)
	}
	var longest time.Duration
	for _, said := range regexp.MustCompile(`attaching again.* retry=(\S+)`).FindAllStringSubmatch(log.String(), -1) {
		retry, err := time.ParseDuration(said[1])
		if err != nil {
			t.Fatal(err)
		}
		longest = max(longest, retry)
	}
	if longest < 400*time.Millisecond { // pauses are drawn at random
		t.Errorf("after six breaks the longest pause is %s", longest)
	}
}

// TestSuspended: a renter that was away too long is suspended, pays when it is
// back, and goes on.
func TestSuspended(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, func(c *provider.Config) { c.Terms.Credit = time.Second })
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	passed := testclock.Stopwatch()
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1", PayEvery: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	testclock.Sleep(2 * time.Second) // twice the credit, and nobody pays
	done := renterrig.Background(t.Context(), l)
	testrig.Eventually(t, "the lease to go on", func() bool {
		s := l.Snapshot()
		return s.Service == "active" && s.Owed.Uint64() > 1300
	})
	if s, d := l.Snapshot(), passed(); d-time.Duration(s.Nanos) < 700*time.Millisecond {
		t.Errorf("%s of %s are billed: it was not suspended", time.Duration(s.Nanos), d)
	}
	if _, err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// TestBudget: whatever limit is met first, Run says so while everything that
// was used can still be paid, and no more is signed than the limit.
func TestBudget(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, func(c *provider.Config) { c.Deposits.Min = "0.002" })
	for _, test := range []struct {
		name    string
		caps    func(*wallet.Caps)
		options renter.Options
		limit   uint64
		exact   bool // everything used was paid
	}{
		{"deposit", nil, renter.Options{Deposit: "0.003"}, 3000, true},
		{"cap per lease", func(c *wallet.Caps) { c.PerLease = "0.004" }, renter.Options{Deposit: "0.003", TopUp: "5"}, 4000, true},
		{"cap per day", func(c *wallet.Caps) { c.PerDay = "0.004" }, renter.Options{Deposit: "0.003", TopUp: "5"}, 4000, true},
		{"cap per payee", func(c *wallet.Caps) { c.PerPayee = "0.004" }, renter.Options{Deposit: "0.003", TopUp: "5"}, 4000, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			key := m.Newcomer(t)
			before := m.Tokens(t, m.PayeeAddress())
			config := renterrig.Config(t, m, key)
			if test.caps != nil {
				test.caps(&config.Caps)
			}
			r := renterrig.Open(t, config)
			test.options.PayEvery = 50 * time.Millisecond
			l, err := r.Rent(t.Context(), server.URL, test.options)
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Run(t.Context()); !errors.Is(err, renter.ErrBudget) {
				t.Fatalf("Run: %v, want ErrBudget", err)
			}
			c, err := l.Close(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			checkClosing(t, m, c, crypto.PubkeyToAddress(key.PublicKey), before)
			if c.Signed.Uint64() > test.limit {
				t.Errorf("signed %s, the limit is %d", c.Signed.Dec(), test.limit)
			}
			if test.exact && c.Settled != c.Owed {
				t.Errorf("settled %s, owed %s", c.Settled.Dec(), c.Owed.Dec())
			}
		})
	}
}

// TestLoweredCapIsPaidUpTo: a cap that is lowered under what a lease comes to cost is paid up to, to the base unit, and no further.
func TestLoweredCapIsPaidUpTo(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	const limit = 1234
	for name, lower := range map[string]func(*wallet.Caps){
		"per lease": func(c *wallet.Caps) { c.PerLease = "0.001234" },
		"per day":   func(c *wallet.Caps) { c.PerDay = "0.001234" },
		"per payee": func(c *wallet.Caps) { c.PerPayee = "0.001234" },
	} {
		t.Run(name, func(t *testing.T) {
			config := renterrig.Config(t, m, m.Newcomer(t))
			r := renterrig.Open(t, config)
			l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1", PayEvery: 50 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			l.Lease().Detach()
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			lower(&config.Caps)
			r = renterrig.Open(t, config)
			if l, err = r.Resume(t.Context(), l.ID()); err != nil {
				t.Fatal(err)
			}
			if err := l.Run(t.Context()); !errors.Is(err, renter.ErrBudget) || !strings.Contains(err.Error(), "a cap stands before") {
				t.Errorf("Run: %v, want ErrBudget", err)
			}
			c, err := l.Close(t.Context())
			if err != nil || c.Signed.Uint64() != limit || c.Settled != c.Signed || !c.Owed.Gt(&c.Signed) {
				t.Errorf("owed %s, signed %s, settled %s, the cap is %d: %v", c.Owed.Dec(), c.Signed.Dec(), c.Settled.Dec(), limit, err)
			}
		})
	}
}

// TestRefusedRentals: what is refused before anything is signed.
func TestRefusedRentals(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, func(c *provider.Config) { c.Deposits.NoGasless = true })
	poor := m.Newcomer(t)
	for _, test := range []struct {
		name    string
		change  func(*renter.Config)
		options renter.Options
		want    error
	}{
		{"deposit over the cap", nil, renter.Options{Deposit: "10.000001"}, wallet.ErrDeposit},
		{"deposit under the provider's least", nil, renter.Options{Deposit: "0.009999"}, wallet.ErrDeposit},
		{"no deposit", nil, renter.Options{Deposit: "0"}, wallet.ErrDeposit},
		{"more than the balance", func(c *renter.Config) { c.Caps.PerLease, c.Caps.PerDay = wallet.Unlimited, wallet.Unlimited }, renter.Options{Deposit: "1000.000001"}, wallet.ErrBalance},
		{"no gas, and nobody sends for us", func(c *renter.Config) { c.Key = channel.NewKey(poor) }, renter.Options{Deposit: "1"}, wallet.ErrNoGas},
		{"another escrow than the trusted one", func(c *renter.Config) {
			other, err := chain.Deploy(t.Context(), m.Backend, channel.NewKey(m.Keys[3]), time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			c.Escrow = other
		}, renter.Options{Deposit: "1"}, wallet.ErrEscrow},
		{"an escrow that takes too long to leave", func(c *renter.Config) { c.Chain.MaxGrace = time.Minute }, renter.Options{Deposit: "1"}, wallet.ErrEscrow},
		{"no such amount", nil, renter.Options{Deposit: "1.0000001"}, channel.ErrAmount},
		{"no such top-up", nil, renter.Options{Deposit: "1", TopUp: "lots"}, channel.ErrAmount},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := renterrig.Config(t, m, m.Payer)
			if test.change != nil {
				test.change(&config)
			}
			r := renterrig.Open(t, config)
			_, err := r.Rent(t.Context(), server.URL, test.options)
			if !errors.Is(err, test.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("Rent: %v, want %v in one line", err, test.want)
			}
			if open, err := r.Rentals(t.Context()); err != nil || len(open) != 0 {
				t.Errorf("%d rentals were begun (%v)", len(open), err)
			}
		})
	}
}

// TestDepositBeginsALease: a deposit that no lease begins with is refused before it is made, by who would ask for it and by who would make it.
func TestDepositBeginsALease(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, func(c *provider.Config) { c.Deposits.Min, c.Source = "0.002", testclock.GPUs(16) })
	config := renterrig.Config(t, m, m.Payer)
	r := renterrig.Open(t, config)
	_, err := r.Rent(t.Context(), server.URL, renter.Options{GPUs: 10, Deposit: "0.002"})
	if !errors.Is(err, wallet.ErrDeposit) || !strings.Contains(err.Error(), "10 GPU(s) of this provider take at least 0.003") {
		t.Errorf("Rent: %v, want ErrDeposit", err)
	}
	config.Database, config.Caps.PerLease = filepath.Join(t.TempDir(), "capped.db"), "0.001"
	capped := renterrig.Open(t, config)
	_, err = capped.Rent(t.Context(), server.URL, renter.Options{})
	if !errors.Is(err, wallet.ErrDeposit) || !strings.Contains(err.Error(), "Caps.PerLease leaves room for 0.001") || !strings.Contains(err.Error(), "raise the cap") {
		t.Errorf("Rent under a small cap: %v, want ErrDeposit and the cap", err)
	}
	if open, err := r.Rentals(t.Context()); err != nil || len(open) != 0 {
		t.Errorf("%d rentals were begun (%v)", len(open), err)
	}
	if _, err := r.Rent(t.Context(), server.URL, renter.Options{GPUs: 16}); !errors.Is(err, gpu.ErrNoCapacity) || !strings.Contains(err.Error(), "nothing was deposited") {
		t.Errorf("Rent of more GPUs than the credit lets begin: %v, want ErrNoCapacity", err)
	}
	l, err := r.Rent(t.Context(), server.URL, renter.Options{GPUs: 10}) // what nobody says is enough
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestTrustedEscrow: the one that the configuration names needs no comparison.
func TestTrustedEscrow(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	config := renterrig.Config(t, m, m.Payer)
	config.Escrow = m.Escrow
	q, err := renterrig.Open(t, config).Quote(t.Context(), server.URL)
	if err != nil {
		t.Fatal(err)
	}
	if q.PerGPUHour != "3.60" || q.Symbol == "" || !q.Gasless || q.Grace != 10*time.Minute {
		t.Errorf("quote: %+v", q)
	}
}

// TestRenterConfig: bad configuration is one line that says what to do.
func TestRenterConfig(t *testing.T) {
	m := testrig.NewMarket(t)
	for _, test := range []struct {
		name   string
		change func(*renter.Config)
		says   string
		want   error
	}{
		{"no key", func(c *renter.Config) { c.Key = nil }, "Key is nil", nil},
		{"no chain", func(c *renter.Config) { c.Chain.Backend = nil }, "RPC is empty", nil},
		{"chain that is not there", func(c *renter.Config) { c.Chain.Backend, c.RPC = nil, "http://127.0.0.1:1" }, "", chain.ErrUnreachable},
		{"another chain than the one to pay on", func(c *renter.Config) { c.Chain.ID = 1 }, "", chain.ErrChainID},
		{"no token", func(c *renter.Config) { c.Token = common.Address{} }, "Token is empty", nil},
		{"token that is nothing", func(c *renter.Config) { c.Token = common.Address{1} }, "", chain.ErrNoContract},
		{"escrow that is nothing", func(c *renter.Config) { c.Escrow = common.Address{1} }, "", chain.ErrNoContract},
		{"no database", func(c *renter.Config) { c.Database = "" }, "Database is empty", nil},
		{"database nowhere", func(c *renter.Config) { c.Database = filepath.Join(c.Database, "x") }, "no such file", nil},
		{"no price cap", func(c *renter.Config) { c.Caps.PricePerGPUHour = "" }, "Caps.PricePerGPUHour is empty", nil},
		{"unlimited price", func(c *renter.Config) { c.Caps.PricePerGPUHour = wallet.Unlimited }, "Caps.PricePerGPUHour", channel.ErrAmount},
		{"no lease cap", func(c *renter.Config) { c.Caps.PerLease = "" }, "Caps.PerLease is empty", nil},
		{"no day cap", func(c *renter.Config) { c.Caps.PerDay = "" }, "Caps.PerDay is empty", nil},
		{"no payee cap", func(c *renter.Config) { c.Caps.PerPayee = "" }, "Caps.PerPayee is empty", nil},
		{"cap that is no number", func(c *renter.Config) { c.Caps.PerDay = "ten" }, "Caps.PerDay", channel.ErrAmount},
		{"clock tolerance below zero", func(c *renter.Config) { c.Chain.ClockTolerance = -1 }, "must not be negative", nil},
		{"credit that no offer can say", func(c *renter.Config) { c.MaxCredit = time.Second - 1 }, "MaxCredit (999.999999ms) must be", nil},
		{"negative patience", func(c *renter.Config) { c.Patience = -1 }, "must not be negative", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := renterrig.Config(t, m, m.Payer)
			test.change(&config)
			r, err := renter.New(t.Context(), config)
			if err == nil {
				t.Fatal("accepted", r.Close())
			}
			if !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "\n") || (test.want != nil && !errors.Is(err, test.want)) {
				t.Errorf("%v, want %q, %v in one line", err, test.says, test.want)
			}
		})
	}
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	for _, url := range []string{"", "example.org", "ftp://example.org", "http://", "http://a/?b=c", "http://user@a/"} {
		if _, err := r.Quote(t.Context(), url); err == nil || errors.Is(err, peer.ErrUnreachable) {
			t.Errorf("Quote(%q): %v", url, err)
		}
	}
	if _, err := r.Quote(t.Context(), "http://127.0.0.1:1"); !errors.Is(err, peer.ErrUnreachable) {
		t.Errorf("a provider that is not there: %v, want ErrUnreachable", err)
	}
	if _, err := r.Resume(t.Context(), common.Hash{1}); !errors.Is(err, channel.ErrUnknown) {
		t.Errorf("resuming what was never rented: %v, want ErrUnknown", err)
	}
}

// TestLeaveWithoutGas: the provider is gone and the renter has not one wei. A
// document that it signs, sent by a stranger, gets its deposit back.
func TestLeaveWithoutGas(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	key := m.Newcomer(t)
	payer := crypto.PubkeyToAddress(key.PublicKey)
	config := renterrig.Config(t, m, key)
	config.Patience = time.Second
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1", PayEvery: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	done := renterrig.Background(t.Context(), l)
	testrig.Eventually(t, "a payment", func() bool { s := l.Snapshot(); return !s.Paid.IsZero() })
	testrig.HangUp(server)
	server.Close()
	if err := <-done; !errors.Is(err, peer.ErrSilent) || !errors.Is(err, peer.ErrUnreachable) {
		t.Errorf("Run without a provider: %v, want ErrSilent for ErrUnreachable", err)
	}
	if _, err := l.Close(t.Context()); !errors.Is(err, peer.ErrRefused) {
		t.Errorf("Close without a provider: %v, want ErrRefused", err)
	}
	if _, err := l.Leave(t.Context()); !errors.Is(err, wallet.ErrNoGas) {
		t.Errorf("Leave without gas or relay: %v, want ErrNoGas", err)
	}

	relay := m.Relayer(t)
	checkRequest(t, l, relay)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	config.Relay = relay
	r = renterrig.Open(t, config)
	if l, err = r.Resume(t.Context(), l.ID()); err != nil {
		t.Fatal(err)
	}
	c := leave(t, m, l)
	checkRefund(t, m, c, payer) // behind its dead server, the provider may still have settled what was signed
	if !c.Forced || c.Settled.Gt(&c.Owed) {
		t.Errorf("settled %s of %s owed, by force: %v", c.Settled.Dec(), c.Owed.Dec(), c.Forced)
	}
	if coin, err := m.Backend.BalanceAt(t.Context(), payer, nil); err != nil || coin.Cmp(new(big.Int)) != 0 {
		t.Errorf("the payer has %v wei (%v): the test shows nothing", coin, err)
	}
}

// checkRequest: the document survives its JSON, and nobody else's will do.
func checkRequest(t *testing.T, l *renter.Rental, relay renter.Relay) {
	t.Helper()
	request, err := l.SignLeave(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	var read wire.LeaveRequest
	if err := json.Unmarshal(text, &read); err != nil {
		t.Fatal(err)
	}
	if err := read.Check(); err != nil || read.Channel() != l.Terms() {
		t.Errorf("after its JSON: %v, %+v", err, read)
	}
	for name, change := range map[string]func(*wire.LeaveRequest){
		"deadline": func(q *wire.LeaveRequest) { q.Deadline++ },
		"nonce":    func(q *wire.LeaveRequest) { q.CloseRequests++ },
		"payer":    func(q *wire.LeaveRequest) { q.Payer[0]++ },
		"salt":     func(q *wire.LeaveRequest) { q.Salt[0]++ },
		"chain":    func(q *wire.LeaveRequest) { q.ChainID++ },
	} {
		forged := read
		change(&forged)
		if err := relay.RequestClose(t.Context(), forged); !errors.Is(err, channel.ErrSignature) {
			t.Errorf("another %s: %v, want ErrSignature", name, err)
		}
	}
}

// TestLeaseEndedWhileAway: a provider that gave up on an absent renter is not
// paid for a lease that nobody asked for.
func TestLeaseEndedWhileAway(t *testing.T) {
	m := testrig.NewMarket(t)
	allocator, err := gpu.NewHostAllocator(t.Context(), testclock.GPUs(4))
	if err != nil {
		t.Fatal(err)
	}
	server := serveProvider(t, m, func(c *provider.Config) {
		c.Terms.Credit, c.Terms.SuspendTimeout, c.Allocator = time.Second, 200*time.Millisecond, allocator
	})
	before := m.Tokens(t, m.PayeeAddress())
	config := renterrig.Config(t, m, m.Payer)
	r := renterrig.Open(t, config)
	ctx, cancel := context.WithCancel(t.Context())
	l, err := r.Rent(ctx, server.URL, renter.Options{Deposit: "1", PayEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	done := renterrig.Background(ctx, l)
	testrig.Eventually(t, "a payment", func() bool { s := l.Snapshot(); return !s.Paid.IsZero() })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v, want the context's error", err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	testrig.Eventually(t, "the lease to end", func() bool { return allocator.Free() == 4 })

	r = renterrig.Open(t, config)
	if l, err = r.Resume(t.Context(), l.ID()); err != nil {
		t.Fatal(err)
	}
	if err := l.Run(t.Context()); err != nil {
		t.Errorf("Run: %v", err)
	}
	s := l.Snapshot()
	if s.Reason == "" {
		t.Error("no word of why it ended")
	}
	c, err := l.Close(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	checkClosing(t, m, c, m.PayerAddress(), before)
	if limit := uint256.NewInt(2500); c.Settled.Gt(limit) {
		t.Errorf("settled %s for about a second and a half", c.Settled.Dec())
	}
}

// TestDatabaseGone: a renter that cannot write does not pay on, and loses
// nothing: what it takes up later is paid exactly.
func TestDatabaseGone(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	before := m.Tokens(t, m.PayeeAddress())
	config := renterrig.Config(t, m, m.Payer)
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1", PayEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	done := renterrig.Background(t.Context(), l)
	testrig.Eventually(t, "a payment", func() bool { s := l.Snapshot(); return !s.Paid.IsZero() })
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err == nil {
			t.Errorf("Run without a database: %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("Run goes on without a database")
	}

	r = renterrig.Open(t, config)
	if l, err = r.Resume(t.Context(), l.ID()); err != nil {
		t.Fatal(err)
	}
	c, err := l.Close(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	checkClosing(t, m, c, m.PayerAddress(), before)
	checkBooks(t, r, l, c)
	if c.Owed != c.Settled {
		t.Errorf("owed %s, settled %s", c.Owed.Dec(), c.Settled.Dec())
	}
}
