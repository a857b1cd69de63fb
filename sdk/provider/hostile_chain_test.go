package provider

import (
	"context"
	"errors"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/accounts/abi/bind/v2"
	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/bindings/testtoken"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/wire"
)

// anvilRig is a rig on a chain that can be told to stop mining and to forget.
type anvilRig struct {
	*rig
	anvil *chaintest.Chain
	log   *testrig.Log
}

const anvilID = 31337

func newAnvilRig(t *testing.T, change ...func(*Config)) *anvilRig {
	t.Helper()
	t.Parallel()
	a := &anvilRig{anvil: chaintest.Anvil(t), log: &testrig.Log{}}
	net := &devchain.Chain{Backend: a.anvil.Backend, URL: a.anvil.URL, Keys: a.anvil.Keys, Escrow: a.anvil.Escrow, Token: a.anvil.Token}
	payer := func(*rig) *channel.Key { return a.payerWith(t, 1, 1_000_000) }
	change = append([]func(*Config){func(c *Config) {
		c.Log = slog.New(slog.NewTextHandler(a.log, nil))
	}}, change...)
	a.rig = rigOn(t, net, payer, change...)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(a.log.String())
		}
	})
	return a
}

// payerWith is a payer that has native coin too, so that it can move its tokens
// by itself.
func (a *anvilRig) payerWith(t *testing.T, n int, tokens uint64) *channel.Key {
	key := channel.NewKey(a.anvil.Keys[n])
	a.anvil.Mint(t, key.Address(), tokens)
	return key
}

// flee moves all tokens of a payer away in a transaction that pays more for its
// place in the block than ours does.
func (a *anvilRig) flee(n int, amount uint64) {
	a.Helper()
	opts := bind.NewKeyedTransactor(a.anvil.Keys[n], big.NewInt(anvilID))
	opts.Context, opts.GasLimit = a.Context(), 100_000
	opts.GasTipCap, opts.GasFeeCap = big.NewInt(50e9), big.NewInt(200e9)
	bound := testtoken.NewTestToken().Instance(a.anvil.Backend, a.anvil.Token)
	if _, err := bind.Transact(bound, opts, testtoken.NewTestToken().PackTransfer(common.Address{0xee}, new(big.Int).SetUint64(amount))); err != nil {
		a.Fatal(err)
	}
}

// nonce counts the provider's transactions, those that wait included.
func (a *anvilRig) nonce() uint64 {
	a.Helper()
	n, err := a.anvil.Backend.PendingNonceAt(a.Context(), a.config.Key.Address())
	if err != nil {
		a.Fatal(err)
	}
	return n
}

func (a *anvilRig) lost() *big.Int {
	a.Helper()
	lost, _, err := a.provider.sender.Wasted(a.Context(), time.Now().Add(-time.Hour), chain.Open, chain.TopUp)
	if err != nil {
		a.Fatal(err)
	}
	return lost
}

// A payer that moves its tokens away after the simulation costs us gas. What it
// cost is counted, and when strangers have used up what we risk, they get no
// more gas of ours until an hour has passed. Renters with coin still get in.
func TestOpenThatRevertsAfterItsSimulation(t *testing.T) {
	a := newAnvilRig(t, func(c *Config) { c.Limits.LostGas = big.NewInt(1) }) // one revert uses it up
	terms := a.terms(a.payer.Address(), 1)
	cred := a.openCredential(a.payer, terms, 100_000, 0)
	second := a.payerWith(t, 2, 1_000_000)
	other := a.openCredential(second, a.terms(second.Address(), 1), 100_000, 0)
	before := a.nonce()

	a.anvil.Automine(t, false)
	answer := make(chan *http.Response, 1)
	go func() { answer <- a.do("GET", "", cred) }()
	waitFor(t, func() bool { return a.nonce() == before+1 }) // simulated and sent
	// While that one is in flight, another could revert as well.
	if err := problemIn(wire.Unavailable, a.do("GET", "", other)); err != nil {
		t.Error(err)
	}
	a.flee(1, 1_000_000)
	a.anvil.Mine(t, 1)
	if err := problemIn(wire.TransactionReverted, <-answer); err != nil {
		t.Error(err)
	}
	a.anvil.Automine(t, true)

	spent, err := a.provider.GasSpent(t.Context())
	if lost := a.lost(); err != nil || lost.Sign() == 0 || lost.Cmp(spent) != 0 {
		t.Errorf("%s wei were lost, %s were spent (%v)", lost, spent, err)
	}
	if _, err := a.provider.payee.State(t.Context(), terms.ID()); !errors.Is(err, channel.ErrUnknown) {
		t.Errorf("the channel is known: %v", err)
	}
	if free := a.provider.config.Allocator.(*gpu.HostAllocator).Free(); free != 2 {
		t.Errorf("%d of 2 devices are free", free)
	}
	// The same open is not tried again: it would cost gas again if the payer's
	// tokens came back for as long as a simulation takes.
	a.anvil.Mint(t, a.payer.Address(), 1_000_000)
	for _, c := range []*wire.Credential{cred, other} {
		if err := problemIn(wire.Unavailable, a.do("GET", "", c)); err != nil {
			t.Error(err)
		}
	}
	if got := a.nonce(); got != before+1 {
		t.Errorf("%d transactions were sent, want 1", got-before)
	}
	if n := strings.Count(a.log.String(), "Limits.LostGas"); n != 1 {
		t.Errorf("the log says so %d times, want 1", n)
	}
	a.noSponsor(true)
	a.opensItself(2)
	a.laterSponsors(other)
}

// noSponsor checks what challenges offer.
func (a *anvilRig) noSponsor(rests bool) {
	a.Helper()
	req, err := a.challenge().Decode()
	if err != nil || req.MethodDetails.FeePayer == rests {
		a.Errorf("the challenge says feePayer %v, %v (%v)", req.MethodDetails.FeePayer, req.MethodDetails.CredentialTypes, err)
	}
}

// opensItself opens a channel by the payer's own transaction.
func (a *anvilRig) opensItself(n int) {
	a.Helper()
	key := channel.NewKey(a.anvil.Keys[n])
	terms, deposit := a.terms(key.Address(), 9), *uint256.NewInt(100_000)
	token, err := chain.NewToken(a.Context(), a.anvil.Backend, a.anvil.Token)
	if err != nil {
		a.Fatal(err)
	}
	a.send(n, token.ApproveCall(a.anvil.Escrow, deposit))
	hash := a.send(n, a.provider.escrow.OpenCall(terms, deposit))
	amount := wireAmount(0)
	resp := a.do("GET", "", &wire.Credential{Challenge: a.challenge(), Source: wire.Source(anvilID, terms.Payer), Payload: wire.Payload{
		Action: wire.ActionOpen, Type: wire.TypeHash, ChannelID: terms.ID(), Salt: &terms.Salt, Hash: &hash,
		CumulativeAmount: &amount, Signature: a.sign(key, terms, 0)}})
	if resp.StatusCode != http.StatusOK {
		a.Errorf("an open that the renter paid for itself: %v", wire.ParseProblem(resp))
	}
}

// send sends a call by hand, as somebody who has nothing of ours.
func (r *rig) send(n int, call chain.Call) common.Hash {
	r.Helper()
	db, err := database.Open(r.Context(), filepath.Join(r.TempDir(), "stranger.db"), "provider", leasestore.Migrations, "migrations/provider")
	if err != nil {
		r.Fatal(err)
	}
	defer db.Close()
	txs, err := chain.OpenStore(r.Context(), db)
	if err != nil {
		r.Fatal(err)
	}
	sender := &chain.Sender{Backend: r.chain.Backend, Key: channel.NewKey(r.chain.Keys[n]), Store: txs, Poll: 50 * time.Millisecond}
	id, err := sender.Submit(r.Context(), call)
	if err != nil {
		r.Fatal(err)
	}
	result, err := sender.Wait(r.Context(), id, 1)
	if err != nil {
		r.Fatal(err)
	}
	return result.Hash
}

// laterSponsors lets the hour pass in which the revert counts.
func (a *anvilRig) laterSponsors(cred *wire.Credential) {
	a.Helper()
	err := a.provider.db.Update(a.Context(), func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(a.Context(), tx.Rebind(`UPDATE chain_tx SET created_at = created_at - 3600000 WHERE succeeded = 0`))
		return err
	})
	if err != nil {
		a.Fatal(err)
	}
	if resp := a.do("GET", "", cred); resp.StatusCode != http.StatusOK {
		a.Errorf("an hour later: %v", wire.ParseProblem(resp))
	}
	a.noSponsor(false)
}

// A restart does not give a stranger a new budget.
func TestLostGasSurvivesARestart(t *testing.T) {
	a := newAnvilRig(t, func(c *Config) { c.Limits.LostGas = big.NewInt(1) })
	cred := a.openCredential(a.payer, a.terms(a.payer.Address(), 1), 100_000, 0)
	before := a.nonce()
	a.anvil.Automine(t, false)
	answer := make(chan *http.Response, 1)
	go func() { answer <- a.do("GET", "", cred) }()
	waitFor(t, func() bool { return a.nonce() == before+1 })
	a.flee(1, 1_000_000)
	a.anvil.Mine(t, 1)
	if err := problemIn(wire.TransactionReverted, <-answer); err != nil {
		t.Error(err)
	}
	a.anvil.Automine(t, true)
	a.restart()
	second := a.payerWith(t, 2, 1_000_000)
	if err := problemIn(wire.Unavailable, a.do("GET", "", a.openCredential(second, a.terms(second.Address(), 1), 100_000, 0))); err != nil {
		t.Error(err)
	}
}

// The block with the deposit is undone after service began, and the payer uses
// its tokens elsewhere. Service stops within the credit, the lease ends, and
// nothing more is believed of the channel.
func TestDepositReorgedAwayAndSpentElsewhere(t *testing.T) {
	a := newAnvilRig(t, func(c *Config) { c.Terms.SuspendTimeout = time.Second })
	lease := a.open(1, 500_000, "")
	lease.pay(1000)
	lease.record()
	a.anvil.Automine(t, false)
	a.anvil.RPC(t, nil, "anvil_reorg", a.blocksSince(lease.terms.ID()), []any{})
	a.flee(1, 1_000_000)
	mined, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		for mined.Err() == nil {
			var skipped any
			_ = a.anvil.Backend.Client().CallContext(mined, &skipped, "anvil_mine", "0x1")
			time.Sleep(100 * time.Millisecond)
		}
	}()
	lease.status(leasestore.Suspended)
	if s := lease.status(leasestore.Ended); !strings.Contains(s.Reason, "unpaid") {
		t.Errorf("the lease ended because %q", s.Reason)
	}
	s, err := a.provider.payee.State(t.Context(), lease.terms.ID())
	if err != nil || !s.Deposit.IsZero() {
		t.Errorf("the deposit is %s (%v)", s.Deposit.Dec(), err)
	}
	if served := s.Spent.Uint64(); served > 1000+2000 {
		t.Errorf("%d base units were served of 1000 vouchered and a credit of 2000", served)
	}
	if err := problemIn(wire.AmountExceedsDeposit, lease.do("POST", "", lease.credential(wire.ActionVoucher, 2000))); err != nil {
		t.Error(err)
	}
	if got := a.balance(a.config.Key.Address()); got != 0 {
		t.Errorf("the payee has %d", got)
	}
	if free := a.provider.config.Allocator.(*gpu.HostAllocator).Free(); free != 2 {
		t.Errorf("%d of 2 devices are free", free)
	}
}

// blocksSince is how many blocks a re-org must replace to undo an open.
func (a *anvilRig) blocksSince(id common.Hash) uint64 {
	a.Helper()
	sent, err := a.provider.sender.Find(a.Context(), id)
	if err != nil || len(sent) != 1 {
		a.Fatalf("%d transactions (%v)", len(sent), err)
	}
	return a.anvil.Head(a.T) - sent[0].Block + 1
}

// The block with the deposit is undone and the deposit comes back, since its
// transaction is sent again: the lease goes on, and the deposit counts once.
func TestDepositReorgedAwayComesBackOnce(t *testing.T) {
	a := newAnvilRig(t)
	lease := a.open(1, 500_000, "")
	lease.pay(1000)
	paid := owedIn(lease.record())
	a.anvil.Reorg(t, int(a.blocksSince(lease.terms.ID())))
	waitFor(t, func() bool {
		view, err := a.provider.escrow.View(t.Context(), lease.terms.ID(), nil)
		return err == nil && view.Deposit.Uint64() == 500_000
	})
	waitFor(t, func() bool {
		s, err := a.provider.payee.State(t.Context(), lease.terms.ID())
		return err == nil && s.Deposit.Uint64() == 500_000
	})
	for rec := lease.record(); rec.Owed.Uint64() < paid+1000; rec = lease.record() { // it was resumed if it was suspended
		if owed := owedIn(rec); owed > 1000 {
			lease.pay(owed)
		}
	}
	owed := owedIn(lease.release())
	lease.pay(owed)
	lease.close(owed)
	if got := a.balance(a.config.Key.Address()); got != owed {
		t.Errorf("the payee has %d, is owed %d", got, owed)
	}
	if got := a.balance(a.payer.Address()); got != 1_000_000-owed {
		t.Errorf("the payer has %d, want %d", got, 1_000_000-owed)
	}
}

// Somebody settles all that a drained channel holds. It is served up to its
// deposit and not a base unit further.
func TestChannelDrainedWhileServed(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.Terms.Credit, c.Deposits.Min, c.Metering.MaxGap, c.Terms.SuspendTimeout = 30*time.Second, "0.001", 2*c.Metering.Tick, 2*time.Second
	})
	lease := r.open(1, 1_500, "")
	lease.pay(1_500) // all of it, ahead
	s, err := r.provider.payee.State(t.Context(), lease.terms.ID())
	if err != nil {
		t.Fatal(err)
	}
	r.send(2, r.provider.escrow.SettleCall(lease.terms, s.Accepted, s.Signature))
	lease.status(leasestore.Suspended)
	if err := problemIn(wire.AmountExceedsDeposit, r.do("POST", "", lease.credential(wire.ActionVoucher, 1_501))); err != nil {
		t.Error(err)
	}
	lease.status(leasestore.Ended)
	waitFor(t, func() bool {
		s, err = r.provider.payee.State(t.Context(), lease.terms.ID())
		return err == nil && s.Settled.Uint64() == 1_500
	})
	if s.Spent.Gt(&s.Deposit) || r.balance(r.config.Key.Address()) != 1_500 {
		t.Errorf("served %s of %s, the payee has %d", s.Spent.Dec(), s.Deposit.Dec(), r.balance(r.config.Key.Address()))
	}
	cred := lease.credential(wire.ActionVoucher, 1_500)
	cred.Payload.Proof = lease.proof(cred.Challenge.ID, "attach")
	if err := problemIn(wire.InsufficientBalance, r.do("GET", "", cred)); err != nil {
		t.Errorf("another lease on it: %v", err)
	}
}

// The payer asks the contract to close and goes on sending vouchers, each for
// more: whichever the provider acknowledges is what it gets on the chain.
func TestVouchersRaceACloseRequest(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Terms.Credit = time.Hour })
	r.payer = channel.NewKey(r.chain.Keys[1])
	if err := r.chain.Fund(t.Context(), r.payer.Address(), new(big.Int), *uint256.NewInt(1_000_000)); err != nil {
		t.Fatal(err)
	}
	lease := r.open(1, 500_000, "")
	cred := lease.credential(wire.ActionVoucher, 1)
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		r.send(1, r.provider.escrow.RequestCloseCall(lease.terms))
	}()
	var acknowledged uint64
	for amount := uint64(1000); ; amount += 10 {
		sum := wireAmount(amount)
		cred.Payload.CumulativeAmount, cred.Payload.Signature = &sum, lease.sign(lease.key, lease.terms, amount)
		resp := r.do("POST", "", cred)
		if resp.StatusCode != http.StatusOK {
			if err := problemIn(wire.ChannelFinalized, resp); err != nil {
				t.Fatal(err)
			}
			break
		}
		resp.Body.Close()
		acknowledged = amount
	}
	<-asked
	lease.status(leasestore.Ended)
	waitFor(t, func() bool { return r.balance(r.config.Key.Address()) != 0 })
	if got := r.balance(r.config.Key.Address()); got != acknowledged {
		t.Errorf("the payee has %d, acknowledged %d", got, acknowledged)
	}
	t.Logf("%d vouchers were acknowledged before the close request was seen", (acknowledged-1000)/10+1)
}

// A transaction about another channel of the same escrow pays for nothing, though the escrow speaks in its receipt.
func TestTransactionOfAnotherChannel(t *testing.T) {
	r := newRig(t, func(c *Config) {})
	key := channel.NewKey(r.chain.Keys[1])
	if err := r.chain.Fund(t.Context(), key.Address(), new(big.Int), *uint256.NewInt(1_000_000)); err != nil {
		t.Fatal(err)
	}
	token, err := chain.NewToken(t.Context(), r.chain.Backend, r.chain.Token)
	if err != nil {
		t.Fatal(err)
	}
	deposit, paid, other := *uint256.NewInt(100_000), r.terms(key.Address(), 1), r.terms(key.Address(), 2)
	r.send(1, token.ApproveCall(r.chain.Escrow, deposit))
	hash, amount := r.send(1, r.provider.escrow.OpenCall(paid, deposit)), wireAmount(0)
	resp := r.do("GET", "", &wire.Credential{Challenge: r.challenge(), Source: wire.Source(r.provider.escrow.ChainID(), other.Payer), Payload: wire.Payload{
		Action: wire.ActionOpen, Type: wire.TypeHash, ChannelID: other.ID(), Salt: &other.Salt, Hash: &hash,
		CumulativeAmount: &amount, Signature: r.sign(key, other, 0)}})
	if err := problemIn(wire.VerificationFailed, resp); err != nil {
		t.Error(err)
	}
}

// TestDepositUnderAnotherHash shows that a renter's own open and top-up count where it names a version of the transaction that was not
// mined: the contract has the money.
func TestDepositUnderAnotherHash(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Deposits.Timeout = 3 * time.Second })
	key := channel.NewKey(r.chain.Keys[1])
	if err := r.chain.Fund(t.Context(), key.Address(), new(big.Int), *uint256.NewInt(1_000_000)); err != nil {
		t.Fatal(err)
	}
	token, err := chain.NewToken(t.Context(), r.chain.Backend, r.chain.Token)
	if err != nil {
		t.Fatal(err)
	}
	deposit, terms, amount, added := *uint256.NewInt(100_000), r.terms(key.Address(), 1), wireAmount(0), wireAmount(100_000)
	r.send(1, token.ApproveCall(r.chain.Escrow, *uint256.NewInt(200_000)))
	r.send(1, r.provider.escrow.OpenCall(terms, deposit))
	lease := &tab{rig: r, key: key, terms: terms}
	lease.attach(r.do("GET", "", &wire.Credential{Challenge: r.challenge(), Source: wire.Source(terms.ChainID, terms.Payer), Payload: wire.Payload{
		Action: wire.ActionOpen, Type: wire.TypeHash, ChannelID: terms.ID(), Salt: &terms.Salt, Hash: &common.Hash{1},
		CumulativeAmount: &amount, Signature: r.sign(key, terms, 0)}}))
	r.send(1, r.provider.escrow.TopUpCall(terms, deposit))
	slot, err := r.provider.limiter.Deposit(httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/lease", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer slot.Release()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	known := channel.State{ID: terms.ID(), Terms: terms, Deposit: deposit} // by a provider that has not seen the top-up yet
	topUp := &wire.Payload{Action: wire.ActionTopUp, Type: wire.TypeHash, ChannelID: terms.ID(), Hash: &common.Hash{2}, AdditionalDeposit: &added}
	if err := sessionOf(r.provider).Deposits.FundTopUp(ctx, slot, nil, known, topUp); err != nil {
		t.Errorf("the top-up: %v", err)
	}
}
