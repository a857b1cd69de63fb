package renter_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/chain"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// LongEndpoints is the environment variable that, set to 1, has every field misbehave in every way, on either side and at
// every moment. Without it a sample is tried in which each field misbehaves, and each method in every way.
const LongEndpoints = "GPUPAY_LONG_ENDPOINTS"

// answers are the methods that are used, and the fields of their answers that are read; "" is the answer itself.
var answers = map[string][]string{
	"eth_chainId":               {""},
	"eth_blockNumber":           {""},
	"eth_getBlockByNumber":      {"", "number", "hash", "baseFeePerGas", "timestamp", "gasUsed", "gasLimit", "parentHash", "miner"},
	"eth_getBalance":            {""},
	"eth_getCode":               {""},
	"eth_call":                  {""},
	"eth_estimateGas":           {""},
	"eth_getTransactionCount":   {""},
	"eth_maxPriorityFeePerGas":  {""},
	"eth_gasPrice":              {""},
	"eth_getLogs":               {"", "address", "topics", "data", "blockHash", "blockNumber", "logIndex"},
	"eth_sendRawTransaction":    {""},
	"eth_getTransactionReceipt": {"", "status", "blockNumber", "blockHash", "gasUsed", "effectiveGasPrice", "logs", "transactionHash", "cumulativeGasUsed"},
	"eth_getTransactionByHash":  {"", "hash", "blockNumber"},
}

// A misdeed is what an endpoint does to a field.
type misdeed struct {
	name string
	to   func(field string) badrpc.Fault
}

var misdeeds = []misdeed{
	{"leaves out", func(field string) badrpc.Fault {
		if field == "" {
			return badrpc.Null
		}
		return badrpc.Without(field)
	}},
	{"nulls", func(field string) badrpc.Fault {
		if field == "" {
			return badrpc.Null
		}
		return badrpc.With(field, nil)
	}},
	{"contradicts with nothing", func(field string) badrpc.Fault { return says(field, "0x0") }},
	{"contradicts with much", func(field string) badrpc.Fault { return says(field, "0xfffffffff") }},
	{"garbles", func(field string) badrpc.Fault { return says(field, map[string]int{"a": 1}) }},
	{"ages", func(string) badrpc.Fault { return badrpc.Aged }},
	{"delays", func(string) badrpc.Fault { return badrpc.Delay(300 * time.Millisecond) }},
	{"refuses", func(string) badrpc.Fault { return badrpc.Fail(-32000, "internal error") }},
	{"limits", func(string) badrpc.Fault { return badrpc.Status(429) }},
}

func says(field string, value any) badrpc.Fault {
	if field == "" {
		return badrpc.Says(value)
	}
	return badrpc.With(field, value)
}

// The moments of a story, at which an endpoint begins to misbehave.
var moments = []string{"start", "open", "top-up", "close"}

// A story is one rental, of which one side's endpoint misbehaves for a while.
type story struct {
	method, field, moment, side string
	misdeed                     misdeed
}

func (s story) String() string {
	return fmt.Sprintf("%s: the %s's endpoint %s %s.%s", s.moment, s.side, s.misdeed.name, s.method, s.field)
}

// onceFailed are those of all stories that failed once: an ended rental was open again, and a deposit of which the renter's
// endpoint said that it had reverted was nobody's.
var onceFailed = []string{
	"eth_getBlockByNumber  ages close renter",
	"eth_getBlockByNumber number ages close renter",
	"eth_getTransactionReceipt status contradicts with nothing open renter",
}

// stories are all of them, or the sample: each field with one misdeed at one moment of one side, and each method with every
// misdeed, at moments and sides that take turns.
func stories() (all []story) {
	long, turn := os.Getenv(LongEndpoints) == "1", 0
	for _, method := range slices.Sorted(maps.Keys(answers)) {
		fields := answers[method]
		for i, field := range fields {
			for j, m := range misdeeds {
				for k, moment := range moments {
					for l, side := range []string{"provider", "renter"} {
						if !long && !slices.Contains(onceFailed, method+" "+field+" "+m.name+" "+moment+" "+side) && (j%len(fields) != i || (turn+j)%len(moments) != k || (turn+j)/len(moments)%2 != l) {
							continue
						}
						all = append(all, story{method, field, moment, side, m})
					}
				}
			}
		}
		turn++
	}
	return all
}

// Whatever an endpoint leaves out, nulls, delays, repeats or contradicts, for a while, on either side: nothing panics, no
// money moves twice, nothing is lost, what fails says so in one line, and once the endpoint is well the rental ends as if it
// had always been.
func TestEndpointMisbehaves(t *testing.T) {
	all := stories()
	t.Logf("%d stories", len(all))
	for some := range slices.Chunk(all, 300) { // a chain each: one keeps a state of all accounts for every block
		t.Run("", func(t *testing.T) { tellTogether(t, some) })
	}
}

func tellTogether(t *testing.T, some []story) {
	m := testrig.NewMarket(t)
	keys := make([][2]*channel.Key, len(some))
	for i := range some {
		for j := range keys[i] {
			private, err := crypto.GenerateKey()
			if err != nil {
				t.Fatal(err)
			}
			keys[i][j] = channel.NewKey(private)
			m.RPC(t, nil, "anvil_setBalance", keys[i][j].Address(), "0x56bc75e2d63100000") // 100 coins
		}
		m.Mint(t, keys[i][0].Address(), testrig.Thousand)
	}
	var running sync.WaitGroup
	turns := make(chan struct{}, 12) // they mostly wait
	for i, s := range some {
		turns <- struct{}{}
		running.Go(func() {
			defer func() { <-turns }()
			t.Run(s.String(), func(t *testing.T) { newTale(t, m, s, keys[i]).tell() })
		})
	}
	running.Wait()
}

// A tale is a story that is being told.
type tale struct {
	*testing.T
	story
	m            *testrig.Market
	payer, payee *channel.Key
	log, panics  *testrig.Log
	provider     *badrpc.Endpoint
	renter       *badrpc.Endpoint
	rpc          string // the renter's endpoints; renter if empty
	perLease     string // the renter's cap; 10 if empty
	gasless      bool
	server       *httptest.Server
}

func newTale(t *testing.T, m *testrig.Market, s story, keys [2]*channel.Key) *tale {
	w := &tale{T: t, story: s, m: m, payer: keys[0], payee: keys[1], log: &testrig.Log{}, panics: &testrig.Log{},
		provider: badrpc.New(t, m.URL), renter: badrpc.New(t, m.URL)}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(w.log.String())
		}
		if text := w.panics.String(); strings.Contains(text, "panic") {
			t.Error(text)
		}
	})
	return w
}

// misbehave begins the fault if this is its moment, and ends it after a while.
func (w *tale) misbehave(moment string) {
	if moment != w.moment {
		return
	}
	bad := w.provider
	if w.side == "renter" {
		bad = w.renter
	}
	bad.On(w.method, w.misdeed.to(w.field))
	time.AfterFunc(1200*time.Millisecond, bad.Heal)
}

func (w *tale) tell() {
	w.misbehave("start")
	p := insist(w, "the provider starts", w.startProvider)
	defer p()
	r := insist(w, "the renter starts", w.startRenter)
	defer r.Close()
	w.misbehave("open")
	l := insist(w, "renting", func() (*renter.Rental, error) { return w.rent(r) })
	if l.Snapshot().Phase == renter.PhaseClosing && w.side == "renter" && w.field == "status" {
		w.takeBack(r, l)
		return
	}
	ctx, cancel := context.WithCancel(w.Context())
	defer cancel()
	ran := make(chan error, 1)
	go func() {
		err := l.Run(ctx)
		_, _ = fmt.Fprintln(w.log, "Run ended:", err)
		ran <- err
	}()
	testrig.Eventually(w.T, "a paid record", func() bool { s := l.Snapshot(); return !s.Paid.IsZero() })
	w.misbehave("top-up")
	testrig.Eventually(w.T, "a top-up", func() bool { s := l.Snapshot(); return s.Deposit.Uint64() > 3_000 })
	w.misbehave("close")
	c := insist(w, "closing", func() (renter.Closing, error) { return l.Close(w.Context()) })
	cancel()
	<-ran
	w.balance(r, c)
}

// takeBack closes a rental whose renter believed an endpoint that its deposit had failed. It can only be closed, and all comes back.
func (w *tale) takeBack(r *renter.Client, l *renter.Rental) {
	w.Helper()
	c := insist(w, "closing", func() (renter.Closing, error) { return l.Close(w.Context()) })
	if got := w.m.Tokens(w.T, w.payer.Address()); got != testrig.Thousand || !c.Settled.IsZero() {
		w.Errorf("the payer has %d of %d, and %s were settled of a lease that it never had", got, testrig.Thousand, c.Settled.Dec())
	}
	if open := insist(w, "listing", func() ([]renter.State, error) { return unfinished(w.Context(), r) }); len(open) != 0 {
		w.Errorf("unfinished: %v", open)
	}
}

// insist tries until the endpoint is well again; each error until then must be one clear line.
func insist[T any](w *tale, what string, try func() (T, error)) T {
	w.Helper()
	limit := time.Now().Add(2 * time.Minute)
	for {
		v, err := try()
		if err == nil {
			return v
		}
		if text := err.Error(); text == "" || strings.Contains(text, "\n") || strings.Contains(text, "nil pointer") {
			w.Errorf("%s: not one clear line: %q", what, text)
		}
		if time.Now().After(limit) {
			w.Fatalf("%s: not within 40 s: %v", what, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func (w *tale) startProvider() (func(), error) {
	p, err := provider.New(w.Context(), provider.Config{
		RPC: w.provider.URL, Escrow: w.m.Escrow, Token: w.m.Token, Key: w.payee,
		Database: filepath.Join(w.TempDir(), "provider.db"), PricePerGPUHour: "3.60", Deposits: provider.Deposits{Min: "0.003"},
		Source: testclock.GPUs(1), Metering: provider.Metering{Clock: testclock.Process(), Tick: 50 * time.Millisecond, RecordEvery: 100 * time.Millisecond, MaxGap: time.Second}, Terms: provider.Terms{Credit: 2 * time.Second},
		Chain: provider.Chain{Poll: 50 * time.Millisecond,
			ClockTolerance: time.Hour}, Log: slog.New(slog.NewTextHandler(w.log, nil)),
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	w.server = httptest.NewUnstartedServer(p)
	w.server.Config.ErrorLog = log.New(w.panics, "", 0)
	w.server.Start()
	return func() {
		w.server.CloseClientConnections()
		w.server.Close()
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			w.Errorf("the provider ended with %v", err)
		}
		if err := p.Close(); err != nil {
			w.Error(err)
		}
	}, nil
}

func (w *tale) startRenter() (*renter.Client, error) {
	return renter.New(w.Context(), renter.Config{
		RPC: cmp.Or(w.rpc, w.renter.URL), Token: w.m.Token, Key: w.payer, Database: filepath.Join(w.TempDir(), "renter.db"),
		Caps:      wallet.Caps{PricePerGPUHour: "4.00", PerLease: cmp.Or(w.perLease, "10"), PerDay: "20", PerPayee: wallet.Unlimited},
		Tolerance: time.Second, Patience: 10 * time.Second, Chain: wallet.Chain{Poll: 50 * time.Millisecond, ClockTolerance: time.Hour},
		Log: slog.New(slog.NewTextHandler(w.log, nil)),
	})
}

// rent goes on with what an earlier try left, or begins.
func (w *tale) rent(r *renter.Client) (*renter.Rental, error) {
	open, err := unfinished(w.Context(), r)
	if err != nil {
		return nil, err
	}
	if len(open) > 0 {
		return r.Resume(w.Context(), open[0].Channel)
	}
	return r.Rent(w.Context(), w.server.URL, renter.Options{Deposit: "0.003", TopUp: "0.02", PayEvery: 100 * time.Millisecond, Gasless: w.gasless})
}

func unfinished(ctx context.Context, r *renter.Client) ([]renter.State, error) {
	all, err := r.Rentals(ctx)
	return slices.DeleteFunc(all, func(s renter.State) bool { return s.Phase == renter.PhaseFinished || s.Phase == renter.PhaseClosed }), err
}

// balance holds what everybody has against what was used.
func (w *tale) balance(r *renter.Client, c renter.Closing) {
	w.Helper()
	if c.Settled.IsZero() || c.Settled != c.Owed {
		w.Errorf("owed %s, settled %s", c.Owed.Dec(), c.Settled.Dec())
	}
	if got := w.m.Tokens(w.T, w.payee.Address()); got != c.Settled.Uint64() {
		w.Errorf("the payee has %d, settled was %s", got, c.Settled.Dec())
	}
	if got := w.m.Tokens(w.T, w.payer.Address()); got != testrig.Thousand-c.Settled.Uint64() {
		w.Errorf("the payer has %d of %d, and owed %s", got, testrig.Thousand, c.Owed.Dec())
	}
	if open := insist(w, "listing", func() ([]renter.State, error) { return unfinished(w.Context(), r) }); len(open) != 0 {
		w.Errorf("unfinished: %v", open)
	}
	if w.perLease != "" && c.Deposit.Uint64() > 23_000 {
		w.Errorf("%s was deposited, the cap is %s", c.Deposit.Dec(), w.perLease)
	}
	if w.gasless {
		return
	}
	coins, err := w.m.Backend.BalanceAt(w.Context(), w.payer.Address(), nil)
	if err != nil || coins.Cmp(common.Big0) == 0 || len(coins.String()) < len("99900000000000000000") {
		w.Errorf("the payer has %s wei left of 10^20 (%v)", coins, err)
	}
	if text := w.log.String(); strings.Contains(text, "moved twice") || strings.Contains(text, "nil pointer") {
		w.Error("money moved twice, or something panicked")
	}
}

// Whoever checks a bundle against an endpoint that leaves out or nulls what its answers must say hears that it could not be
// checked, in one line each, and never that it holds, nor a panic.
func TestVerifyThroughABadEndpoint(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "0.01", PayEvery: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	bundle, err := r.Export(t.Context(), l.ID())
	if err != nil {
		t.Fatal(err)
	}
	bad := badrpc.New(t, m.URL)
	for _, raw := range []bool{true, false} { // as it is dialled, and checked
		client, err := chain.Dial(t.Context(), bad.URL)
		if err != nil {
			t.Fatal(err)
		}
		backend := chain.Backend(client)
		if !raw {
			backend = chain.Checked(client)
		}
		for _, field := range []string{"", "blockNumber", "blockHash", "gasUsed", "logs", "transactionHash"} {
			for _, misdeed := range misdeeds[:2] {
				bad.On("eth_getTransactionReceipt", misdeed.to(field))
				failed := false
				for _, check := range audit.Verify(t.Context(), bundle, backend) {
					failed = failed || check.Err != nil
				}
				if !failed {
					t.Errorf("raw %t: the bundle holds though the endpoint %s %q of each receipt", raw, misdeed.name, field)
				}
				bad.Heal()
			}
		}
		for _, check := range audit.Verify(t.Context(), bundle, backend) {
			if check.Err != nil {
				t.Errorf("%s: %v", check.Name, check.Err)
			}
		}
		client.Close()
	}
}
