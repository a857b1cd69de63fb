package x402client

import (
	"errors"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/providerrig"
	"github.com/gpupay/gpupay/sdk/internal/x402account"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// payRig is a provider of ours that takes x402, and the contracts that it is paid by.
type payRig struct {
	*testing.T
	*providerrig.Rig
	contract *chain.BatchSettlement
	token    *chain.Token
}

// testMost is the most that a tick of the rig costs in base units: its window, its slack and one more.
const testMost = 501

func newPayRig(t *testing.T, change ...func(*provider.Config)) *payRig {
	t.Helper()
	t.Parallel()
	return payRigOn(t, testrig.NewX402Market(t), change...)
}

func payRigOn(t *testing.T, m *testrig.Market, change ...func(*provider.Config)) *payRig {
	t.Helper()
	r := &payRig{T: t, Rig: providerrig.NewX402(t, m, change...)}
	var err error
	if r.contract, err = chain.NewBatchSettlement(t.Context(), m.Backend); err != nil {
		t.Fatal(err)
	}
	if r.token, err = chain.NewToken(t.Context(), m.Backend, m.Token); err != nil {
		t.Fatal(err)
	}
	return r
}

// tenant is a renter of ours at a provider of ours, that speak x402.
type tenant struct {
	*payRig
	key      *channel.Key
	database string
	clock    metering.Clock
	line     *testrig.FaultyTransport
	wallet   *wallet.Wallet // nil before it is opened
	x        *Client
	rental   *Rental
	change   func(*wallet.Config) // of the next one that is opened; may be nil
}

const tenantPurse = 1_000_000

var tenantCaps = wallet.Caps{PricePerGPUHour: "10", PerLease: "0.05", PerDay: "1", PerPayee: "1"}

func newTenant(t *testing.T, r *payRig) *tenant {
	t.Helper()
	private, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	n := &tenant{payRig: r, key: channel.NewKey(private), database: filepath.Join(t.TempDir(), "renter.db"), line: &testrig.FaultyTransport{}}
	r.Mint(t, n.key.Address(), tenantPurse)
	n.open()
	return n
}

// open makes the renter anew on its database, as after a crash.
func (n *tenant) open() {
	n.Helper()
	n.use(n.openWallet())
}

func (n *tenant) openWallet() *wallet.Wallet {
	n.Helper()
	if n.wallet != nil { // a database belongs to one wallet at a time
		if err := n.wallet.Close(); err != nil {
			n.Fatal(err)
		}
	}
	config := wallet.Config{
		Key: n.key, Chain: wallet.Chain{Backend: n.Backend, Poll: 5 * time.Millisecond, ClockTolerance: time.Hour}, Token: n.Config.Token, Database: n.database, Clock: n.clock,
		Caps: tenantCaps, Log: slog.New(slog.DiscardHandler),
	}
	if n.change != nil {
		n.change(&config)
	}
	w, err := wallet.Open(n.Context(), config)
	if err != nil {
		n.Fatal(err)
	}
	return w
}

// use has the renter pay from a wallet, until that is closed or the test ends.
func (n *tenant) use(w *wallet.Wallet) {
	n.Helper()
	n.useAlone(w)
	var err error
	if n.rental, err = n.x.Rent(n.Context(), n.Server.URL, 1); err != nil {
		n.Fatal(err)
	}
}

// useAlone is use where the provider is gone.
func (n *tenant) useAlone(w *wallet.Wallet) {
	n.Helper()
	n.Cleanup(func() { w.Close() })
	n.wallet, n.rental = w, nil
	var err error
	if n.x, err = New(n.Context(), w, Options{MaxPrice: wallet.Unlimited, Transport: n.line}); err != nil {
		n.Fatal(err)
	}
}

func (n *tenant) tick() Tick {
	n.Helper()
	for tries := 0; ; tries++ {
		tick, err := n.rental.Tick(n.Context())
		if err == nil {
			return tick
		}
		// The lease used slack meanwhile, and more of it before the corrected voucher came.
		var p *wire.Problem
		if !errors.As(err, &p) || p.Status != http.StatusPaymentRequired || tries == 10 {
			n.Fatal(err)
		}
	}
}

// account is what the renter has on disk of its only channel.
func (n *tenant) account() x402account.Account {
	n.Helper()
	all, err := n.x.accounts().List(n.Context())
	if err != nil || len(all) != 1 {
		n.Fatalf("%+v, %v", all, err)
	}
	return all[0]
}

// accountAt is what the renter has on disk of its only channel with a site.
func (n *tenant) accountAt(url string) x402account.Account {
	n.Helper()
	all, err := n.x.accounts().List(n.Context())
	i := slices.IndexFunc(all, func(s x402account.Account) bool { return s.PaidSite() == peer.SiteOf(url) })
	if err != nil || i < 0 {
		n.Fatalf("%+v, %v", all, err)
	}
	return all[i]
}

// agrees holds the renter's books to the provider's. What the provider meters between two ticks, up to its slack, the
// renter learns with the next one.
func (n *tenant) agrees() {
	n.Helper()
	ours := n.account()
	theirs := n.Books(ours.ID)
	var most uint256.Int
	most.AddUint64(&ours.Charged, testMost)
	if theirs.Spent.Lt(&ours.Charged) || theirs.Spent.Gt(&most) {
		n.Errorf("the renter has %s charged, the provider %s", ours.Charged.Dec(), theirs.Spent.Dec())
	}
	signed, err := n.x.payer.State(n.Context(), ours.ID)
	if err != nil || theirs.Accepted.Gt(&signed.Signed) || theirs.Spent.Gt(&signed.Signed) {
		n.Errorf("the renter has %s signed, the provider accepted %s, %v", signed.Signed.Dec(), theirs.Accepted.Dec(), err)
	}
}

func (n *tenant) only() *Channel {
	n.Helper()
	all, err := n.x.Channels(n.Context())
	if err != nil || len(all) != 1 {
		n.Fatalf("%+v, %v", all, err)
	}
	return &all[0]
}

func (n *tenant) view(id common.Hash) uint64 {
	n.Helper()
	s, err := n.contract.State(n.Context(), id)
	if err != nil {
		n.Fatal(err)
	}
	return s.View.Deposit.Uint64()
}

func (n *tenant) claimed(id common.Hash) uint64 {
	s, err := n.contract.State(n.Context(), id)
	if err != nil {
		n.Fatal(err)
	}
	return s.View.Settled.Uint64()
}

// dust deposits so much into the only channel, from outside of the renter's books.
func (n *tenant) dust(amount uint64) {
	n.Helper()
	terms := n.only().Terms
	salt := common.Hash{9, byte(time.Now().UnixNano())}
	separator, err := n.token.DomainSeparator(n.Context())
	if err != nil {
		n.Fatal(err)
	}
	a, err := chain.SignAuthorization(n.Context(), n.key, separator, channel.Authorization{
		From: terms.Payer, To: channel.BatchSettlementCollector, Value: *uint256.NewInt(amount), ValidBefore: 1 << 40, Nonce: channel.DepositNonce(terms.ID(), salt),
	})
	if err != nil {
		n.Fatal(err)
	}
	call := n.contract.DepositCall(terms, salt, a)
	n.Transact(n.T, n.Keys[3], call.To, call.Data)
}
