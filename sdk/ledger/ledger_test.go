package ledger_test

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"math/big"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/bindings"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/providerrig"
	"github.com/gpupay/gpupay/sdk/ledger"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/x402/x402client"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// canary is what a renter is told to reach its GPU by.
const canary = "canary-access-of-a-lease"

// trade is a provider that is paid by session and by x402, and what its renters have.
type trade struct {
	*testing.T
	*providerrig.Rig
	escrow  *chain.Escrow
	x402    *chain.BatchSettlement
	secrets []string
}

func newTrade(t *testing.T, database string) *trade {
	m := rig.NewX402Market(t)
	script := filepath.Join(t.TempDir(), "allocate")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho '{\"ssh\":\""+canary+"\"}'\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	r := providerrig.NewX402(t, m, func(c *provider.Config) {
		c.Source = testclock.GPUs(4)
		c.Allocator = gpu.HostOf(t.Context(), c.Source)
		c.Allocator.(*gpu.HostAllocator).AllocateCommand = []string{script}
		c.Log = slog.New(slog.DiscardHandler)
		if database != "" {
			c.Database, c.Records.HighWater = database, filepath.Join(t.TempDir(), "high-water.db")
		}
	})
	k := &trade{T: t, Rig: r, secrets: []string{canary, hex.EncodeToString(crypto.FromECDSA(m.Payee))}}
	var err error
	if k.escrow, err = chain.NewEscrow(t.Context(), m.Backend, m.Escrow); err == nil {
		k.x402, err = chain.NewBatchSettlement(t.Context(), m.Backend)
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

var caps = wallet.Caps{PricePerGPUHour: "10", PerLease: "1", PerDay: "5", PerPayee: "5"}

// tenant is a renter of sessions and its database.
type tenant struct {
	*trade
	*renter.Client
	address  common.Address
	database string
}

func (k *trade) tenant() *tenant {
	private := k.Newcomer(k.T)
	k.secrets = append(k.secrets, hex.EncodeToString(crypto.FromECDSA(private)))
	database := filepath.Join(k.TempDir(), "renter.db")
	r, err := renter.New(k.Context(), renter.Config{
		RPC: k.URL, Token: k.Token, Key: channel.NewKey(private), Database: database, Chain: wallet.Chain{Poll: 50 * time.Millisecond, ClockTolerance: 24 * time.Hour},
		Log: slog.New(slog.DiscardHandler), Caps: caps,
	})
	if err != nil {
		k.Fatal(err)
	}
	k.Cleanup(func() { r.Close() })
	return &tenant{k, r, crypto.PubkeyToAddress(private.PublicKey), database}
}

// rent runs a lease until it has paid for three records more, and leaves it as it is.
func (n *tenant) rent(server *httptest.Server) *renter.Rental {
	n.Helper()
	l, err := n.Rent(n.Context(), server.URL, renter.Options{Deposit: "0.5", PayEvery: 100 * time.Millisecond})
	if err != nil {
		n.Fatal(err)
	}
	n.pay(l)
	return l
}

func (n *tenant) pay(l *renter.Rental) {
	n.Helper()
	ctx, cancel := context.WithTimeout(n.Context(), 2*time.Minute)
	defer cancel()
	before := l.Snapshot()
	ran := make(chan struct{})
	go func() { defer close(ran); _ = l.Run(ctx) }()
	for s := before; s.Sequence < before.Sequence+3 || !s.Paid.Gt(&before.Paid); s = l.Snapshot() {
		if ctx.Err() != nil {
			n.Fatalf("it is not paid for: %+v", s)
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	<-ran
}

// ticks rents over x402.
func (k *trade) ticks(n int) (database string) {
	k.Helper()
	private := k.Newcomer(k.T)
	k.secrets = append(k.secrets, hex.EncodeToString(crypto.FromECDSA(private)))
	database = filepath.Join(k.TempDir(), "x402.db")
	w, err := wallet.Open(k.Context(), wallet.Config{Key: channel.NewKey(private), Chain: wallet.Chain{Backend: k.Backend, Poll: 50 * time.Millisecond, ClockTolerance: 24 * time.Hour},
		Token: k.Token, Database: database, Caps: caps, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		k.Fatal(err)
	}
	k.Cleanup(func() { w.Close() })
	x, err := x402client.New(k.Context(), w, x402client.Options{MaxPrice: "0.01", Deposit: "0.05"})
	if err != nil {
		k.Fatal(err)
	}
	rental, err := x.Rent(k.Context(), k.Server.URL, 1)
	for range n {
		if err == nil {
			_, err = rental.Tick(k.Context())
		}
	}
	if err != nil {
		k.Fatal(err)
	}
	return database
}

// onChain is what the contracts say was settled, over all channels of the provider's books.
func (k *trade) onChain() (sum uint256.Int, each map[common.Hash]uint256.Int) {
	k.Helper()
	db, err := store.OpenToRead(k.Context(), k.Config.Database)
	if err != nil {
		k.Fatal(err)
	}
	defer db.Close()
	states, err := db.Payee().List(k.Context())
	if err != nil {
		k.Fatal(err)
	}
	each = make(map[common.Hash]uint256.Int)
	for _, s := range states {
		contract := chain.Contract(k.escrow)
		if s.Terms.Scheme == channel.BatchSettlement {
			contract = k.x402
		}
		views, _, err := contract.Confirmed(k.Context(), []common.Hash{s.ID}, 1)
		if err != nil {
			k.Fatal(err)
		}
		each[s.ID] = views[0].Latest.Settled
		sum.Add(&sum, &views[0].Latest.Settled)
	}
	return sum, each
}

// books waits until a database says of all channels what the chain does, and of all gas what was spent.
func (k *trade) books(coinBefore *big.Int) *ledger.Books {
	k.Helper()
	for try := 0; ; try++ {
		b, err := ledger.ReadFile(k.Context(), k.Config.Database)
		if err != nil {
			k.Fatal(err)
		}
		got := b.Totals()
		want, _ := k.onChain()
		coin, err := k.Backend.BalanceAt(k.Context(), k.PayeeAddress(), nil)
		if err != nil {
			k.Fatal(err)
		}
		spent := new(big.Int).Sub(coinBefore, coin)
		if got.Settled.Eq(&want) && got.Gas.Cmp(spent) == 0 {
			return b
		}
		if try == 300 {
			k.Fatalf("the books have %s settled and %s wei of gas, the chain %s and %s", got.Settled.Dec(), &got.Gas, want.Dec(), spent)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// TestTotalsEqualTheChain: of leases by session and x402, one closed, two settled together, one that a stranger settled, one settled while the
// token refuses, and one not settled yet, the books of a provider that runs say what the chain's contracts, events and balances say, to
// the base unit and to the wei. The renters' books say the same of their leases. No secret is in any of them.
func TestTotalsEqualTheChain(t *testing.T) {
	t.Parallel()
	t.Run("sqlite", func(t *testing.T) { t.Parallel(); totalsEqualTheChain(t, "") })
	t.Run("postgres", func(t *testing.T) { t.Parallel(); totalsEqualTheChain(t, pgtest.URL(t)) })
}

func totalsEqualTheChain(t *testing.T, database string) {
	k := newTrade(t, database)
	coin, err := k.Backend.BalanceAt(t.Context(), k.PayeeAddress(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ada, bob := k.tenant(), k.tenant()
	closed := ada.rent(k.Server)
	if _, err := closed.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	lasting, batched := bob.rent(k.Server), k.tenant().rent(k.Server).ID()
	overX402 := k.ticks(3)
	if err := k.Provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}

	// A stranger settles what is paid next.
	bob.pay(lasting)
	state := k.Books(lasting.ID())
	call := k.escrow.SettleCall(state.Terms, state.Accepted, state.Signature)
	k.Transact(t, k.Keys[5], call.To, call.Data)

	// And what is paid then, the token does not pay out: it is settled, and credited.
	bob.pay(lasting)
	resume := k.PauseToken(t)
	k.credited()
	k.equalsEvents(k.books(coin))
	resume()

	cid := k.tenant()
	unsettled := cid.rent(k.Server).ID()

	b := k.books(coin)
	k.equalsBalances(b)
	k.equalsEvents(b)
	total := b.Totals()
	if total.Leases != 5 || total.Nanos.Sign() <= 0 {
		t.Errorf("%d leases, %s GPU-nanoseconds", total.Leases, &total.Nanos)
	}
	for _, e := range b.Entries {
		if e.Kind == ledger.Settlement && e.Channel == unsettled {
			t.Errorf("settled, though it is not: %+v", e)
		}
	}
	of, beside := settled(b, lasting.ID()), settled(b, batched)
	if len(of) < 2 || len(beside) == 0 || beside[0].Detail != "settle batch" || beside[0].Transaction != of[0].Transaction || beside[0].Lease == (common.Hash{}) {
		t.Errorf("settlements of two channels, of which the first was in one batch: %+v\nand %+v", of, beside)
	}
	k.equalsRenter(b, ada.database, closed.ID())
	if has := k.Tokens(t, ada.address) + sum(b, closed.ID()); has != rig.Thousand {
		t.Errorf("the renter has and has paid %d of %d", has, uint64(rig.Thousand))
	}
	k.keepsSecrets(k.Config.Database, ada.database, bob.database, cid.database, overX402)
}

// credited has the provider settle until the escrow holds something for it.
func (k *trade) credited() {
	k.Helper()
	for try := 0; ; try++ {
		err := k.Provider.Settle(k.Context())
		var refused *chain.Revert
		credit, failed := k.escrow.Credit(k.Context(), k.PayeeAddress(), k.Token, nil)
		if err != nil && !errors.As(err, &refused) || failed != nil || try == 300 {
			k.Fatalf("nothing is credited: %v, %v", err, failed)
		}
		if !credit.Amount.IsZero() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func settled(b *ledger.Books, id common.Hash) (lines []ledger.Entry) {
	for _, e := range b.Entries {
		if e.Kind == ledger.Settlement && e.Channel == id {
			lines = append(lines, e)
		}
	}
	return lines
}

func sum(b *ledger.Books, id common.Hash) (total uint64) {
	for _, e := range settled(b, id) {
		total += e.Amount.Uint64()
	}
	return total
}

// equalsBalances: what was settled is what the payee has and what the contracts hold for it.
func (k *trade) equalsBalances(b *ledger.Books) {
	k.Helper()
	credit, err := k.escrow.Credit(k.Context(), k.PayeeAddress(), k.Token, nil)
	if err != nil {
		k.Fatal(err)
	}
	_, due, err := k.x402.PayoutCall(k.Context(), k.PayeeAddress(), k.Token)
	if err != nil {
		k.Fatal(err)
	}
	got := b.Totals().Settled
	if has := k.Tokens(k.T, k.PayeeAddress()); got.Uint64() != has+credit.Amount.Uint64()+due.Uint64() {
		k.Errorf("the books have %s settled, the payee has %d, credited are %s, claimed and not paid out %s", got.Dec(), has, credit.Amount.Dec(), due.Dec())
	}
}

// equalsEvents: each line of the escrow's that names a transaction is an event of its receipt, at the same cumulative amount, and the
// lines of a channel end where the contract is.
func (k *trade) equalsEvents(b *ledger.Books) {
	k.Helper()
	_, each := k.onChain()
	abi := bindings.NewChannelEscrow()
	for id, want := range each {
		var up uint64
		others := 0
		for _, e := range settled(b, id) {
			up += e.Amount.Uint64()
			if e.Transaction == (common.Hash{}) {
				others++
				continue
			}
			receipt, err := k.Backend.TransactionReceipt(k.Context(), e.Transaction)
			if err != nil || receipt.BlockNumber.Uint64() != e.Block {
				k.Fatalf("%+v: %v", e, err)
			}
			is := e.Detail == "claim" || e.Detail == "refund" // x402's contract has other events
			for _, log := range receipt.Logs {
				if s, err := abi.UnpackSettledEvent(log); err == nil && s.ChannelId == id {
					is = is || s.Settled.Uint64() == up
				}
				if c, err := abi.UnpackClosedEvent(log); err == nil && c.ChannelId == id {
					is = is || c.Settled.Uint64() == up
				}
			}
			if !is {
				k.Errorf("no event of its transaction says that %d are settled: %+v", up, e)
			}
		}
		if up != want.Uint64() || others > 1 {
			k.Errorf("channel %s: %d in the books, %d lines of others, %s on the chain", id, up, others, want.Dec())
		}
	}
}

// equalsRenter: of a channel that is closed both sides' books have the same leases and the same sum.
func (k *trade) equalsRenter(b *ledger.Books, database string, id common.Hash) {
	k.Helper()
	theirs, err := ledger.ReadFile(k.Context(), database)
	if err != nil {
		k.Fatal(err)
	}
	if sum(theirs, id) != sum(b, id) || sum(b, id) == 0 {
		k.Errorf("the renter has %d settled, the provider %d", sum(theirs, id), sum(b, id))
	}
	lease := func(b *ledger.Books) (l ledger.Entry) {
		for _, e := range b.Entries {
			if e.Kind == ledger.Lease && e.Channel == id {
				l = e
			}
		}
		return l
	}
	ours, other := lease(b), lease(theirs)
	if ours.Nanos != other.Nanos || ours.Amount != other.Amount || ours.Lease != other.Lease || other.Counterparty != k.PayeeAddress() || ours.Nanos == 0 || ours.Amount.Uint64() != sum(b, id) {
		k.Errorf("the lease is %+v here and %+v there", ours, other)
	}
	if theirs.Decimals[k.Token] != 6 {
		k.Errorf("decimals: %v", theirs.Decimals)
	}
}

// shapes are all that a field may be.
var shapes = regexp.MustCompile(`^(|settlement|lease|gas|active|suspended|ended|ending|running|allocating|by others|[a-z ]{4,20}(, failed)?|\d{4}-\d\d-\d\dT[0-9:.]+Z|0x[0-9a-fA-F]{40}|0x[0-9a-f]{64}|\d+(\.\d+)?)$`)

// keepsSecrets: neither key, access nor lease secret is in what is written, in no form, and each id is one of a channel, a transaction
// or a lease.
func (k *trade) keepsSecrets(databases ...string) {
	k.Helper()
	for _, path := range databases {
		b, err := ledger.ReadFile(k.Context(), path)
		if err != nil {
			k.Fatal(err)
		}
		b.Decimals = map[common.Address]uint8{k.Token: 6}
		var csvs, jsons bytes.Buffer
		if err := errors.Join(b.WriteCSV(&csvs), b.WriteJSON(&jsons)); err != nil {
			k.Fatal(err)
		}
		rows, err := csv.NewReader(bytes.NewReader(csvs.Bytes())).ReadAll()
		if err != nil || len(rows) != len(b.Entries)+1 || !slices.Equal(rows[0], ledger.Columns) {
			k.Fatalf("%d rows of %d: %v", len(rows), len(b.Entries), err)
		}
		lines := json.NewDecoder(&jsons)
		for _, row := range rows[1:] {
			var object map[string]string
			if err := lines.Decode(&object); err != nil {
				k.Fatal(err)
			}
			for i, field := range row {
				if !shapes.MatchString(field) || object[ledger.Columns[i]] != field {
					k.Errorf("%s is %q in CSV, %q in JSON", ledger.Columns[i], field, object[ledger.Columns[i]])
				}
			}
		}
		for _, secret := range append(k.secrets, k.kept(path)...) {
			if strings.Contains(csvs.String(), secret) {
				k.Errorf("%s: the export has %s", path, secret)
			}
		}
	}
}

// kept are the lease secrets, and their hashes, that a database holds.
func (k *trade) kept(path string) (secrets []string) {
	k.Helper()
	db, err := store.OpenToRead(k.Context(), path)
	if err != nil {
		k.Fatal(err)
	}
	defer db.Close()
	for _, query := range []string{`SELECT secret_hash FROM leases`, `SELECT document FROM rentals`, `SELECT document FROM x402_slates`} {
		var texts []string
		if db.View().SelectContext(k.Context(), &texts, query) != nil {
			continue // the other side's
		}
		for _, text := range texts {
			for _, found := range regexp.MustCompile(`"secret": ?"([^"]{8,})"`).FindAllStringSubmatch(text, -1) {
				secrets = append(secrets, found[1])
			}
			if text != "" && !strings.HasPrefix(text, "{") {
				secrets = append(secrets, strings.TrimPrefix(text, "0x"))
			}
		}
	}
	return secrets
}
