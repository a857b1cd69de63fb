package chain_test

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/settle"
)

// A desk is a payee of x402 channels on a real chain, with the settler and the watcher of sdk as they are.
type desk struct {
	*world
	t        *testing.T
	contract *chain.BatchSettlement
	signer   *channel.Key  // of the payer's vouchers
	others   *chain.Sender // of somebody with no rights in any channel
	payers   *chain.Sender
	sender   *chain.Sender // the payee's authorizer
	receiver common.Address
	deposits byte
	payee    *channel.Payee
	settler  *settle.Settler
	watcher  *settle.Watcher

	mu          sync.Mutex
	changes     []channel.State
	settlements []settle.Settlement
}

const deskPoll = 20 * time.Millisecond

func newDesk(t *testing.T) *desk {
	t.Helper()
	w := newWorld(t)
	w.PlaceBatchSettlement(t)
	contract, err := chain.NewBatchSettlement(t.Context(), w.Backend)
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{world: w, t: t, contract: contract, signer: channel.NewKey(w.Keys[5]), receiver: common.Address{0xcc}}
	d.others, d.payers = w.sender(t, w.Keys[2]), w.sender(t, w.Keys[0])
	txs, db := openStore(t, filepath.Join(t.TempDir(), "desk.db"))
	d.sender = &chain.Sender{Backend: w.Backend, Key: w.payee, Store: txs, Poll: deskPoll, Resend: 200 * time.Millisecond}
	d.payee = &channel.Payee{Store: db.Payee(), Domain: contract.Domain()}
	d.settler = &settle.Settler{
		Payee: d.payee, Contract: contract, Sender: d.sender, Policy: settle.Policy{Interval: deskPoll},
		OnSettled: func(s settle.Settlement) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.settlements = append(d.settlements, s)
		},
	}
	d.watcher = &settle.Watcher{
		Payee: d.payee, Contract: contract, Confirmations: 3, Poll: deskPoll, Store: txs,
		OnChange: func(_, now channel.State) {
			if now.Status == channel.Closing {
				d.settler.Urgent(now.ID)
			}
			d.mu.Lock()
			defer d.mu.Unlock()
			d.changes = append(d.changes, now)
		},
	}
	return d
}

func (d *desk) config(salt byte) channel.Terms {
	return channel.Terms{
		Scheme: channel.BatchSettlement, ChainID: d.contract.ChainID(), Escrow: d.contract.Address(),
		Payer: d.payer.Address(), AuthorizedSigner: d.signer.Address(), Payee: d.receiver, PayeeAuthorizer: d.sender.Address(),
		Token: d.Token, WithdrawDelay: 900, Salt: common.BytesToHash([]byte{salt}),
	}
}

// authorizeDeposit signs the payer's authorization to the collector.
func (d *desk) authorizeDeposit(id common.Hash, value uint64, salt common.Hash) chain.Authorization {
	d.t.Helper()
	separator, err := d.token.DomainSeparator(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	a, err := chain.SignAuthorization(d.t.Context(), d.world.payer, separator, channel.Authorization{
		From: d.payer.Address(), To: channel.BatchSettlementCollector, Value: *uint256.NewInt(value), ValidBefore: 1 << 40, Nonce: channel.DepositNonce(id, salt),
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return a
}

// deposit adds to a channel; somebody else sends it.
func (d *desk) deposit(terms channel.Terms, value uint64) {
	d.t.Helper()
	d.deposits++
	salt := common.BytesToHash([]byte{d.deposits})
	send(d.t, d.others, d.contract.DepositCall(terms, salt, d.authorizeDeposit(terms.ID(), value, salt)))
}

// fund makes a channel on the chain and registers it with what it holds.
func (d *desk) fund(salt byte, value uint64) channel.Terms {
	d.t.Helper()
	terms := d.config(salt)
	d.deposit(terms, value)
	d.register(terms)
	return terms
}

func (d *desk) register(terms channel.Terms) {
	d.t.Helper()
	if _, err := d.payee.Register(d.t.Context(), terms, d.on(terms).View); err != nil {
		d.t.Fatal(err)
	}
}

// serve takes the payer's voucher for most and charges used of it.
func (d *desk) serve(terms channel.Terms, most, used uint64) {
	d.t.Helper()
	v, err := d.contract.Domain().Sign(d.t.Context(), d.signer, terms.ID(), *uint256.NewInt(most))
	if err != nil {
		d.t.Fatal(err)
	}
	if _, err := d.payee.Accept(d.t.Context(), v); err != nil {
		d.t.Fatal(err)
	}
	if _, err := d.payee.Charge(d.t.Context(), terms.ID(), *uint256.NewInt(used)); err != nil {
		d.t.Fatal(err)
	}
}

// on is what the contract says of a channel.
func (d *desk) on(terms channel.Terms) chain.BatchSettlementState {
	d.t.Helper()
	s, err := d.contract.State(d.t.Context(), terms.ID())
	if err != nil {
		d.t.Fatal(err)
	}
	return s
}

func (d *desk) kept(terms channel.Terms) channel.State {
	d.t.Helper()
	s, err := d.payee.State(d.t.Context(), terms.ID())
	if err != nil {
		d.t.Fatal(err)
	}
	return s
}

// holds fails unless the contract holds so much of a channel and so much of it is claimed.
func (d *desk) holds(terms channel.Terms, deposit, claimed uint64) {
	d.t.Helper()
	v := d.on(terms).View
	if v.Deposit.Uint64() != deposit || v.Settled.Uint64() != claimed {
		d.t.Errorf("the contract holds %s of channel %s and %s of it are claimed, want %d and %d", v.Deposit.Dec(), terms.ID(), v.Settled.Dec(), deposit, claimed)
	}
}

func (d *desk) received(want uint64) {
	d.t.Helper()
	if got := d.Tokens(d.t, d.receiver); got != want {
		d.t.Errorf("the payee has %d, want %d", got, want)
	}
}

// refused fails unless the contract refuses a call with this error.
func (d *desk) refused(from *chain.Sender, call chain.Call, name string) {
	d.t.Helper()
	err := d.contract.Simulate(d.t.Context(), from.Address(), call)
	var revert *chain.Revert
	if !errors.As(err, &revert) || revert.Name != name {
		d.t.Errorf("%s from %s: %v, want %s", call, from.Address(), err, name)
	}
}

func (d *desk) check() {
	d.t.Helper()
	if err := d.watcher.Check(d.t.Context()); err != nil {
		d.t.Fatal(err)
	}
}

// during runs a part until the test ends.
func (d *desk) during(part func(context.Context) error) {
	ctx, cancel := context.WithCancel(d.t.Context())
	done := make(chan error, 1)
	go func() { done <- part(ctx) }()
	d.t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			d.t.Errorf("ended with %v", err)
		}
	})
}

func (d *desk) until(what string, f func() bool) {
	d.t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(deskPoll) {
		if f() {
			return
		}
	}
	d.t.Fatalf("not within a minute: %s", what)
}

func (d *desk) reports() []settle.Settlement {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]settle.Settlement(nil), d.settlements...)
}
