package model

import (
	"crypto/ecdsa"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
)

// An account is what the model knows of a channel: a few integers that say who may have what.
type account struct {
	w     *world
	terms channel.Terms
	id    common.Hash
	payer *payer

	meant  uint64 // what was ever authorized or sent for its deposit
	signed uint64 // the most that its payer ever signed for: what it may cost the payer
	payerBook
	payeeBook
	answer *channel.ChainView // what the chain said of it once, if it was asked
	heard  bool               // the payee has worked on a chain that answers since the payer asked for its money
	gone   bool               // withdrawn or closed on the chain, as of the last look
	late   bool               // its grace period passed while the payee was away: what was not settled is lost
}

// chainState is what the contract has of a channel in the newest block.
type chainState struct {
	deposit, settled uint64
	closing          uint64
	final            bool
}

func (s chainState) locked() uint64 {
	if s.final {
		return 0
	}
	return s.deposit - s.settled
}

// A payerBook is what the payer's database has of a channel. It may be older than the world.
type payerBook struct {
	lost      bool   // nothing: it is older than the channel
	own       uint64 // what it can cost: signed for, or settled by a voucher that the store does not know
	vouchered uint64 // signed for, by this store
	funded    uint64 // the deposit that it counts with
	agreed    uint64 // what the channel may come to hold by what was signed, until the payer sees it there
	asked     bool   // a close was seen pending on the chain
	over      bool   // and its end
	closed    bool   // no more is to be signed
}

// A payeeBook is what the payee's database has, likewise.
type payeeBook struct {
	known bool
	acked uint64 // the most that was acknowledged
	spent uint64 // charged
}

// String is for failures.
func (a *account) String() string {
	return fmt.Sprintf("%s channel %x of %s: meant %d, signed %d (own %d of %d), acked %d, charged %d, known %t, closed %t, gone %t, late %t",
		a.terms.Scheme, a.terms.Salt[31:], a.payer.name, a.meant, a.signed, a.own, a.funded, a.acked, a.spent, a.known, a.closed, a.gone, a.late)
}

func (a *account) session() bool { return a.terms.Scheme == channel.Session }

// A reading is what the contracts have of all accounts after one block.
type reading struct {
	block    common.Hash
	accounts int
	states   map[*account]chainState
	balances map[common.Address]uint64
}

// onChain reads accounts of the world from both contracts. What a block says is read once: most steps make none.
func (w *world) onChain() map[*account]chainState {
	head := w.chain.Head()
	if w.last.block == head && w.last.accounts == len(w.accounts) {
		return w.last.states
	}
	states := make(map[*account]chainState, len(w.accounts))
	for _, d := range w.till.desks {
		var ids []common.Hash
		var which []*account
		for _, a := range w.accounts {
			if d.contract.Domain().Holds(a.terms) == nil {
				ids, which = append(ids, a.id), append(which, a)
			}
		}
		if len(ids) == 0 {
			continue
		}
		views, _, err := d.contract.Confirmed(w.ctx, ids, 1)
		w.must(err)
		for i, v := range views {
			states[which[i]] = chainState{v.Latest.Deposit.Uint64(), v.Latest.Settled.Uint64(), v.Latest.CloseRequestedAt, v.Latest.Finalized}
		}
	}
	w.last = reading{head, len(w.accounts), states, map[common.Address]uint64{}}
	return states
}

// payable is what the payee may have of what it acknowledged.
func (a *account) payable() uint64 {
	if a.session() {
		return a.acked
	}
	return min(a.spent, max(a.acked, 1)-1)
}

// newAccount is one whose terms no other has.
func (w *world) newAccount(p *payer, scheme channel.Scheme) *account {
	w.salts++
	t := channel.Terms{Scheme: scheme, ChainID: w.till.session.ChainID(), Payer: p.address(), Payee: w.payee.Address(),
		Token: w.token.Address, Salt: common.BytesToHash([]byte{w.salts}), Escrow: w.escrow}
	if scheme == channel.BatchSettlement {
		t.Escrow, t.PayeeAuthorizer = channel.BatchSettlementEscrow, w.payee.Address()
		t.AuthorizedSigner, t.WithdrawDelay = p.address(), uint64(grace/time.Second)
	}
	return &account{w: w, terms: t, id: t.ID(), payer: p}
}

// deposit has somebody send the payer's authorization to add to the channel, or to open it.
func (a *account) deposit(amount uint64, opening bool, from *ecdsa.PrivateKey) error {
	a.w.salts++
	salt := common.BytesToHash([]byte{a.w.salts})
	k := a.w.till
	var call chain.Call
	switch {
	case !a.session():
		call = k.batch.DepositCall(a.terms, salt, a.payer.authorize(channel.BatchSettlementCollector, amount, channel.DepositNonce(a.id, salt)))
	case opening:
		call = k.session.OpenAuthorizedCall(a.terms, a.payer.authorize(a.w.escrow, amount, channel.OpenNonce(a.payer.address(), a.terms)))
	default:
		nonce := channel.TopUpNonce(a.id, units(amount), a.payer.address(), salt)
		call = k.session.TopUpAuthorizedCall(a.terms, salt, a.payer.authorize(a.w.escrow, amount, nonce))
	}
	err := a.w.send(from, call)
	if err == nil {
		a.meant += amount
	}
	return err
}

// askBack has the payer ask for its money: anybody may carry a session's request.
func (a *account) askBack(from chainState) error {
	k := a.w.till
	if !a.session() {
		return a.w.send(a.payer.key, k.batch.InitiateWithdrawCall(a.terms, units(from.locked())))
	}
	nonce, err := k.session.CloseRequests(a.w.ctx, a.id)
	a.w.must(err)
	signature, err := a.payer.signer().Sign(a.w.ctx, k.session.Domain().RequestCloseDigest(a.id, nonce, 1<<40))
	a.w.must(err)
	return a.w.send(a.w.stranger, k.session.RequestCloseAuthorizedCall(a.terms, 1<<40, signature))
}

func (a *account) takeBack() error {
	if !a.session() {
		return a.w.send(a.payer.key, a.w.till.batch.FinalizeWithdrawCall(a.terms))
	}
	return a.w.send(a.w.stranger, a.w.till.session.WithdrawCall(a.terms))
}

// pay has the payer sign for amount and the payee take it, and holds both answers to the model.
func (a *account) pay(amount uint64, charge uint64) {
	w := a.w
	v, err := a.payer.pays(a.terms.Scheme).Pay(w.ctx, a.id, units(amount))
	want := a.payer.expects(a, amount)
	var cap *channel.CapError
	if (want == nil) != (err == nil) || want == errCap && !errors.As(err, &cap) || want != nil && want != errCap && !errors.Is(err, want) {
		w.Fatalf("paying %d on %s: %v, want %v (%s)", amount, a.terms.Scheme, err, want, a)
	}
	if err != nil {
		w.seen["not signed: "+want.Error()]++
		return
	}
	a.payer.spends(a, amount)
	a.take(v, charge)
}

// take has the payee judge a voucher as the contract would, by what the payee has seen of the chain.
func (a *account) take(v channel.Voucher, charge uint64) {
	w, amount := a.w, v.Cumulative.Uint64()
	if !a.known {
		if err := w.till.register(a); err != nil {
			w.Fatal(err)
		}
		a.known = true
	}
	if !a.session() {
		free, err := w.till.unrefunded(a)
		w.must(err)
		if !free {
			w.seen["refunds under way"]++
			return
		}
	}
	before := w.till.state(a)
	if before.Accepted.Uint64() != a.acked || before.Spent.Uint64() != a.spent {
		w.Fatalf("the payee has accepted %s and charged %s, not %d and %d", before.Accepted.Dec(), before.Spent.Dec(), a.acked, a.spent)
	}
	payee := w.till.desk(a.terms.Scheme).payee
	r, err := payee.Accept(w.ctx, v)
	outcome, want := channel.Accepted, error(nil)
	switch {
	case amount == 0:
		want = channel.ErrAmount
	case before.Status == channel.Finalized:
		want = channel.ErrFinalized
	case before.Status == channel.Closing:
		want = channel.ErrClosing
	case amount > before.Deposit.Uint64():
		want = channel.ErrExceedsDeposit
	case amount == a.acked:
		outcome = channel.Replayed
	case amount < a.acked:
		outcome = channel.Stale
	}
	if !errors.Is(err, want) || err == nil && r.Outcome != outcome {
		w.Fatalf("a voucher for %d on %s: %s, %v; want %s, %v", amount, a, r.Outcome, err, outcome, want)
	}
	if err != nil {
		w.seen["not taken: "+want.Error()]++
	}
	if err == nil && outcome == channel.Accepted {
		w.seen["vouchers"]++
		if settled := before.Settled.Uint64(); settled > a.acked { // the books are from before: what the chain has paid was served
			a.spent = max(a.spent, settled)
		}
		a.acked = amount
	}
	if err == nil && !a.session() {
		a.spent = max(a.spent, min(a.spent+charge, a.acked, r.State.Deposit.Uint64()))
		_, err := payee.Charge(w.ctx, a.id, units(a.spent))
		w.must(err)
	}
}

// errCap stands for any channel.CapError.
var errCap = errors.New("over a cap")

// expects is the pure answer to whether a payer may sign.
func (p *payer) expects(a *account, amount uint64) error {
	switch {
	case a.lost:
		return channel.ErrUnknown
	case a.over:
		return channel.ErrFinalized
	case a.closed, a.asked:
		return channel.ErrClosing
	case amount < a.vouchered && a.session():
		return channel.ErrLower
	case amount <= a.vouchered:
		return nil
	case amount > a.funded:
		return channel.ErrExceedsDeposit
	case amount > max(a.own, capChannel), amount > a.own && p.paid+amount-a.own > capPayee, p.days[p.day()]+amount-a.vouchered > capDay:
		return errCap
	}
	return nil
}

func (p *payer) day() string { return p.w.wall.UTC().Format(time.DateOnly) }

// committed is what the payer has at stake in the channel.
func (a *account) committed() uint64 {
	if a.over {
		return a.own
	}
	return max(a.own, a.funded, a.agreed)
}

// affords is the pure answer to whether the caps allow that the channel comes to hold so much in all.
func (p *payer) affords(a *account, deposit uint64) bool {
	if max(a.own, deposit) <= a.committed() {
		return true
	}
	locked := deposit - min(deposit, a.own)
	unsigned := deposit - min(deposit, a.vouchered) // what the chain alone says was settled makes no room in the day
	for _, b := range p.w.accounts {
		if b != a && b.payer == p && !b.lost && !b.over {
			locked += b.committed() - b.own
			unsigned += b.committed() - b.vouchered
		}
	}
	return max(a.own, deposit) <= capChannel && p.paid+locked <= capPayee && p.days[p.day()]+unsigned <= capDay
}

// look has the payer observe its channel.
func (a *account) look(s chainState) {
	v := channel.ChainView{Deposit: units(s.deposit), Settled: units(s.settled), CloseRequestedAt: s.closing, Finalized: s.final}
	payer := a.payer.pays(a.terms.Scheme)
	if a.lost {
		_, err := payer.Adopt(a.w.ctx, a.terms, v)
		a.w.must(err)
		a.payerBook = payerBook{}
	}
	_, err := payer.Observe(a.w.ctx, a.id, v)
	a.w.must(err)
	a.funded, a.asked, a.over = s.deposit, s.closing != 0, s.final
	if s.final || s.deposit >= a.agreed {
		a.agreed = 0
	}
	cost := max(a.vouchered, s.settled) // which a re-org takes back
	a.payer.paid += cost - a.own        // modulo 2^64 where it falls
	a.own = cost
}

// spends books what was signed.
func (p *payer) spends(a *account, amount uint64) {
	p.days[p.day()] += amount - min(amount, a.vouchered)
	p.paid += amount - min(amount, a.own)
	a.own, a.signed, a.vouchered = max(a.own, amount), max(a.signed, amount), max(a.vouchered, amount)
}
