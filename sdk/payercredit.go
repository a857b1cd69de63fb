package sdk

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wire"
)

// account is what one payer owes on all of its channels: one credit is for all of
// them together, or a payer would have it anew with each channel. Whoever holds
// its mu may lock a lease's mu, and never the other way round.
type account struct {
	mu     sync.Mutex
	row    uint256.Int                 // see accounts
	debts  map[common.Hash]uint256.Int // see debtOf, by channel
	sum    uint256.Int                 // of debts
	leases map[*lease]claim            // that run here, or were let go and are watched over
}

// claim is what a lease may use of its payer's credit before it is stopped.
type claim struct {
	serves bool        // else it is suspended, and uses nothing
	ahead  uint256.Int // base units that its next two ticks may add to its debt
}

// accounts are those of the payers that have a lease here.
type accounts struct {
	row uint256.Int // base units of a channel that a settlement fetches at least

	mu      sync.Mutex
	byPayer map[common.Address]*account
}

func newAccounts(row uint256.Int) *accounts {
	return &accounts{row: row, byPayer: make(map[common.Address]*account)}
}

// collectible is how much of a channel is the payee's whatever its payer does: what is
// settled, and what is vouchered where a settlement would fetch that. Less than row
// waits for more, and is lost when the payer takes its deposit back by force.
func collectible(s channel.State, row uint256.Int) uint256.Int {
	payable := u256.Min(s.Payable(), s.Deposit)
	if left := u256.SaturatingSub(payable, s.Settled); s.Status == channel.Finalized || left.Lt(&row) {
		return s.Settled
	}
	return u256.Max(payable, s.Settled)
}

// debtOf is what was charged on a channel and is not collectible: what the payer can
// leave with.
func debtOf(s channel.State, row uint256.Int) uint256.Int {
	return u256.SaturatingSub(s.Spent, collectible(s, row))
}

// join counts a lease's debt with that of its payer's other channels, those that
// have no lease included.
func (b *accounts) join(l *lease, owing []channel.State) {
	if b == nil || !l.credit.postpaid() {
		return // a node is told its share; what is paid in advance takes no credit
	}
	b.mu.Lock()
	a := b.byPayer[l.terms.Payer]
	if a == nil {
		a = &account{row: b.row, debts: make(map[common.Hash]uint256.Int), leases: make(map[*lease]claim)}
		b.byPayer[l.terms.Payer] = a
	}
	a.mu.Lock()
	b.mu.Unlock()
	defer a.mu.Unlock()
	for other := range a.leases {
		if other.terms.ID() == l.terms.ID() { // it was let go and runs here again, and is metered
			delete(a.leases, other)
		}
	}
	a.leases[l] = claim{serves: l.state() == leasestore.Active}
	l.account = a
	a.count(l)
	a.learn(owing)
}

// has reports whether a lease counts here: not one that runs here again since it was let go.
func (a *account) has(l *lease) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, here := a.leases[l]
	return here
}

// leave forgets a lease. Its debt stands with its channel.
func (b *accounts) leave(l *lease) {
	if b == nil || l.account == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	a := l.account
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.leases, l)
	if len(a.leases) == 0 && b.byPayer[l.terms.Payer] == a {
		delete(b.byPayer, l.terms.Payer)
	}
}

// paid hears of a voucher for a channel that has no lease here.
func (b *accounts) paid(s channel.State) {
	if b == nil {
		return
	}
	b.mu.Lock()
	a := b.byPayer[s.Terms.Payer]
	b.mu.Unlock()
	if a == nil {
		return
	}
	a.mu.Lock()
	a.put(s.ID, debtOf(s, a.row))
	waiting := a.suspended(nil)
	a.mu.Unlock()
	for _, l := range waiting {
		l.wake()
	}
}

// learn takes what the books say of channels that have no lease here. The caller
// holds mu.
func (a *account) learn(owing []channel.State) {
	here := make(map[common.Hash]bool, len(a.leases))
	for l := range a.leases {
		here[l.terms.ID()] = true
	}
	for id := range a.debts {
		if !here[id] {
			a.put(id, uint256.Int{})
		}
	}
	for _, s := range owing {
		if !here[s.ID] {
			a.put(s.ID, debtOf(s, a.row))
		}
	}
}

// put replaces the debt of one channel. The caller holds mu.
func (a *account) put(id common.Hash, debt uint256.Int) {
	old := a.debts[id]
	a.sum.Sub(&a.sum, &old)
	a.sum.Add(&a.sum, &debt)
	if debt.IsZero() {
		delete(a.debts, id)
	} else {
		a.debts[id] = debt
	}
}

// suspended are the leases that may go on when others pay. The caller holds mu.
func (a *account) suspended(but *lease) []*lease {
	var waiting []*lease
	for l := range a.leases {
		if l != but && l.state() == leasestore.Suspended {
			waiting = append(waiting, l)
		}
	}
	return waiting
}

// others is what the lease's payer owes on other channels, and what leases that run on those here may add to it before each
// of them has been read again: it is off the credit, or many leases would each go a little past it.
func (l *lease) others() (debt, ahead uint256.Int) {
	a := l.account
	if a == nil {
		return debt, ahead
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.others(l)
}

// others is lease.others. The caller holds mu.
func (a *account) others(l *lease) (debt, ahead uint256.Int) {
	own := a.debts[l.terms.ID()]
	debt.Sub(&a.sum, &own)
	for other, c := range a.leases {
		if other != l {
			ahead.Add(&ahead, &c.ahead)
		}
	}
	return debt, ahead
}

// count takes what a lease owes now, and may owe two ticks later. The caller holds mu.
func (a *account) count(l *lease) {
	debt, c := l.debt(), a.leases[l]
	c.ahead = uint256.Int{}
	if c.serves {
		later := l.debtAhead()
		c.ahead = u256.SaturatingSub(later, debt)
	}
	a.leases[l] = c
	a.put(l.terms.ID(), debt)
}

// claims has what a lease may use before it is read again off the credit of its payer's others, or no more. It is false,
// and nothing is taken, where the credit has no room for it: of several that go on at once only so many do as it has.
func (l *lease) claims(serves bool) bool {
	a := l.account
	if a == nil {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, here := a.leases[l]; !here {
		return true
	}
	if serves && l.state() != leasestore.Active {
		v := l.look()
		if limit := l.limitOf(&v, l.leftOf(a.others(l))); l.exceeds(limit) {
			return false
		}
	}
	a.leases[l] = claim{serves: serves}
	a.count(l)
	return true
}

// tally counts what is owed here now, and lets leases of the same payer go on
// where it fell.
func (l *lease) tally() {
	a := l.account
	if a == nil {
		return
	}
	var waiting []*lease
	a.mu.Lock()
	before := a.debts[l.terms.ID()]
	if _, here := a.leases[l]; here {
		a.count(l)
	} else {
		a.put(l.terms.ID(), l.debt())
	}
	if now := a.debts[l.terms.ID()]; now.Lt(&before) {
		waiting = a.suspended(l)
	}
	a.mu.Unlock()
	for _, other := range waiting {
		other.wake()
	}
}

// debt is what was used and is not vouchered, of the newest reading.
func (l *lease) debt() uint256.Int { return l.debtAfter(0) }

// debtAhead is the debt two ticks of each GPU later: see exhausted.
func (l *lease) debtAhead() uint256.Int { return l.debtAfter(l.ahead()) }

func (l *lease) debtAfter(nanos uint64) uint256.Int {
	v := l.look()
	owed := v.owed
	if l.meter != nil {
		if then, err := l.owedAt(l.used() + nanos); err == nil && then.Gt(&owed) {
			owed = then
		}
	}
	return u256.SaturatingSub(owed, v.accepted)
}

// left is what of the credit the payer's other channels leave for this lease.
func (l *lease) left() uint256.Int { return l.leftOf(l.others()) }

func (l *lease) leftOf(debt, ahead uint256.Int) uint256.Int {
	if share := l.share.Load(); share != nil {
		return u256.Min(*share, l.maxDebt)
	}
	return u256.SaturatingSub(u256.SaturatingSub(l.maxDebt, debt), ahead)
}

// ahead is what the payer's leases here, but for one channel's, may add to its debt before they are read again.
func (b *accounts) ahead(payer common.Address, but common.Hash) (sum uint256.Int) {
	if b == nil {
		return sum
	}
	b.mu.Lock()
	a := b.byPayer[payer]
	b.mu.Unlock()
	if a == nil {
		return sum
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for l, c := range a.leases {
		if l.terms.ID() != but {
			sum.Add(&sum, &c.ahead)
		}
	}
	return sum
}

// payers are those that have a lease here.
func (b *accounts) payers() []common.Address {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Collect(maps.Keys(b.byPayer))
}

// learn takes what the books say of the payers' channels that other gateways
// serve.
func (b *accounts) learn(payers []common.Address, owing []channel.State) {
	byPayer := make(map[common.Address][]channel.State)
	for _, s := range owing {
		byPayer[s.Terms.Payer] = append(byPayer[s.Terms.Payer], s)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, payer := range payers {
		if a := b.byPayer[payer]; a != nil {
			a.mu.Lock()
			a.learn(byPayer[payer])
			a.mu.Unlock()
		}
	}
}

// owing lists the escrow's channels of some payers on which they owe something,
// whatever became of them and whichever gateway served them.
func (p *Provider) owing(ctx context.Context, payers ...common.Address) ([]channel.State, error) {
	return p.owingAt(ctx, p.escrow, payers...)
}

// owingAt is owing at one contract. While a channel has a lease what is vouchered on
// it stands there as settled: it grows to a row, and a payer of many leases, each of
// which begins at nothing after each settlement, would be left without credit. When
// the lease ends it counts.
func (p *Provider) owingAt(ctx context.Context, contract chain.Contract, payers ...common.Address) ([]channel.State, error) {
	states, err := p.db.Owing(ctx, payers...)
	if err != nil || len(states) == 0 {
		return nil, err
	}
	served, err := p.store.Leases.Served(ctx)
	if err != nil {
		return nil, err
	}
	forgiven, err := p.store.Debts.WrittenOff(ctx, payers...)
	if err != nil {
		return nil, err
	}
	row, domain := p.leastRow(contract), contract.Domain()
	var own []channel.State
	for _, s := range states {
		s.Spent = u256.SaturatingSub(s.Spent, forgiven[s.ID])
		if slices.Contains(served, s.ID) {
			s.Settled = u256.Max(s.Settled, s.Accepted)
		}
		if debt := debtOf(s, row); !debt.IsZero() && domain.Holds(s.Terms) == nil {
			own = append(own, s)
		}
	}
	return own, nil
}

// creditworthy refuses a lease whose payer's channels, its own included, have used
// up what of the credit it needs, unless so much is paid in advance.
func (p *Provider) creditworthy(ctx context.Context, s channel.State, offer wire.SignedOffer, gpus int) error {
	owing, err := p.owing(ctx, s.Terms.Payer)
	if err == nil {
		owing, err = p.lapse(ctx, owing)
	}
	if err != nil {
		return err
	}
	price, err := offer.Price()
	if err != nil {
		return err
	}
	credit, err := price.Charge(uint64(p.config.Credit))
	if err != nil {
		return err
	}
	need, err := price.Charge(uint64(gpus) * uint64(4*p.config.Tick))
	if err != nil {
		return err
	}
	row, owed := p.leastRow(p.escrow), s.Owed() // of this channel as it is, or will be by the voucher that comes with the request
	others := debtsBut(owing, s.ID, row)
	room := u256.SaturatingSub(collectible(s, row), s.Spent) // who has used up the credit pays in advance what a settlement fetches
	if left := u256.SaturatingSub(u256.SaturatingSub(credit, others), p.deps.accounts.ahead(s.Terms.Payer, s.ID)); !left.IsZero() {
		left = u256.SaturatingSub(left, owed)
		room = s.Available()
		room.Add(&room, &left)
	}
	if !room.Lt(&need) {
		return nil
	}
	return wire.InsufficientBalance.With("this payer owes %s and has no credit left: pay it by vouchers, close channels with less than %s to settle, or pay %s in advance, over what is spent and settled here; owed on %s%s",
		units.Format(*owed.Add(&owed, &others), p.token.Decimals), units.Format(row, p.token.Decimals), units.Format(u256.Max(need, row), p.token.Decimals), p.debtors(owing, row), p.patience(owing))
}

// debtsBut is what is owed on all of the channels but one.
func debtsBut(owing []channel.State, but common.Hash, row uint256.Int) (sum uint256.Int) {
	for _, s := range owing {
		if debt := debtOf(s, row); s.ID != but {
			sum.Add(&sum, &debt)
		}
	}
	return sum
}

// patience says for how long a debt on a closed channel counts, if there is one.
func (p *Provider) patience(owing []channel.State) string {
	if p.config.DebtKept < 0 || !slices.ContainsFunc(owing, spentUp) {
		return ""
	}
	return fmt.Sprintf("; of closed channels for %s", p.config.DebtKept)
}

// lapses says what helps who owes on channels of x402 that have nothing left, if there are some: a refund does not.
func (p *Provider) lapses(owing []channel.State) string {
	switch {
	case !slices.ContainsFunc(owing, spentUp):
		return ""
	case p.config.DebtKept < 0:
		return "; a channel with nothing left has nothing to refund: ask the provider to forgive what is owed on it"
	}
	return fmt.Sprintf("; a channel with nothing left has nothing to refund: what is owed on it counts for %s after its last use, or until the provider forgives it", p.config.DebtKept)
}

// debtors names the channels with a debt, the first few of many.
func (p *Provider) debtors(owing []channel.State, row uint256.Int) string {
	text := ""
	for n, s := range owing {
		if n == 3 {
			return text + ", .."
		}
		if n > 0 {
			text += ", "
		}
		owed := debtOf(s, row)
		text += fmt.Sprintf("%s: %s", s.ID, units.Format(owed, p.token.Decimals))
	}
	return text
}
