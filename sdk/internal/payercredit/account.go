// Package payercredit counts what a payer owes over all of its leases at one payee, who gives it one credit for all of them.
package payercredit

import (
	"maps"
	"slices"
	"sync"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
)

// Account is what one payer owes on all of its channels: one credit is for all of
// them together, or a payer would have it anew with each channel. Whoever holds
// its mu may lock a lease's status and inbox, and never the other way round.
type Account struct {
	mu     sync.Mutex
	row    uint256.Int                 // see Accounts
	debts  map[common.Hash]uint256.Int // see DebtOf, by channel
	sum    uint256.Int                 // of debts
	leases map[Lease]claim             // that run here, or were let go and are watched over
}

// Lease is a lease that owes out of its payer's credit.
type Lease interface {
	ChannelID() common.Hash
	State() leasestore.State
	Debt() uint256.Int      // base units that it used and are not vouchered
	DebtAhead() uint256.Int // its debt two ticks later
	Wake()                  // has it look at its money
}

// claim is what a lease may use of its payer's credit before it is stopped.
type claim struct {
	serves bool        // else it is suspended, and uses nothing
	ahead  uint256.Int // base units that its next two ticks may add to its debt
}

// Accounts are those of the payers that have a lease here.
type Accounts struct {
	row uint256.Int // base units of a channel that a settlement fetches at least

	mu      sync.Mutex
	byPayer map[common.Address]*Account
}

// New counts for a payee whose settlements fetch a row at least.
func New(row uint256.Int) *Accounts {
	return &Accounts{row: row, byPayer: make(map[common.Address]*Account)}
}

// Collectible is how much of a channel is the payee's whatever its payer does: what is
// settled, and what is vouchered where a settlement would fetch that. Less than row
// waits for more, and is lost when the payer takes its deposit back by force.
func Collectible(s channel.State, row uint256.Int) uint256.Int {
	payable := u256.Min(s.Payable(), s.Deposit)
	if left := u256.SaturatingSub(payable, s.Settled); s.Status == channel.Finalized || left.Lt(&row) {
		return s.Settled
	}
	return u256.Max(payable, s.Settled)
}

// DebtOf is what was charged on a channel and is not collectible: what the payer can
// leave with.
func DebtOf(s channel.State, row uint256.Int) uint256.Int {
	return u256.SaturatingSub(s.Spent, Collectible(s, row))
}

// OwedBut is what is owed on all of the channels but one.
func OwedBut(owing []channel.State, but common.Hash, row uint256.Int) (sum uint256.Int) {
	for _, s := range owing {
		if debt := DebtOf(s, row); s.ID != but {
			sum.Add(&sum, &debt)
		}
	}
	return sum
}

// Join counts a lease's debt with that of its payer's other channels, those that
// have no lease included.
func (b *Accounts) Join(payer common.Address, l Lease, owing []channel.State) *Account {
	b.mu.Lock()
	a := b.byPayer[payer]
	if a == nil {
		a = &Account{row: b.row, debts: make(map[common.Hash]uint256.Int), leases: make(map[Lease]claim)}
		b.byPayer[payer] = a
	}
	a.mu.Lock()
	b.mu.Unlock()
	defer a.mu.Unlock()
	for other := range a.leases {
		if other.ChannelID() == l.ChannelID() { // it was let go and runs here again, and is metered
			delete(a.leases, other)
		}
	}
	a.leases[l] = claim{serves: l.State() == leasestore.Active}
	a.count(l)
	a.learn(owing)
	return a
}

// Leave forgets a lease. Its debt stands with its channel.
func (b *Accounts) Leave(payer common.Address, a *Account, l Lease) {
	if a == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.leases, l)
	if len(a.leases) == 0 && b.byPayer[payer] == a {
		delete(b.byPayer, payer)
	}
}

// Paid hears of a voucher for a channel that has no lease here.
func (b *Accounts) Paid(s channel.State) {
	a := b.of(s.Terms.Payer)
	if a == nil {
		return
	}
	a.mu.Lock()
	a.put(s.ID, DebtOf(s, a.row))
	waiting := a.suspended(nil)
	a.mu.Unlock()
	for _, l := range waiting {
		l.Wake()
	}
}

// of is a payer's account; nil where it has no lease here, or nobody counts.
func (b *Accounts) of(payer common.Address) *Account {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.byPayer[payer]
}

// Wake has a payer's leases look at their money.
func (b *Accounts) Wake(payer common.Address) {
	a := b.of(payer)
	if a == nil {
		return
	}
	a.mu.Lock()
	all := slices.Collect(maps.Keys(a.leases))
	a.mu.Unlock()
	for _, l := range all {
		l.Wake()
	}
}

// Ahead is what the payer's leases here, but for one channel's, may add to its debt before they are read again.
func (b *Accounts) Ahead(payer common.Address, but common.Hash) (sum uint256.Int) {
	a := b.of(payer)
	if a == nil {
		return sum
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for l, c := range a.leases {
		if l.ChannelID() != but {
			sum.Add(&sum, &c.ahead)
		}
	}
	return sum
}

// Payers are those that have a lease here.
func (b *Accounts) Payers() []common.Address {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Collect(maps.Keys(b.byPayer))
}

// Learn takes what the books say of the payers' channels that other gateways
// serve.
func (b *Accounts) Learn(payers []common.Address, owing []channel.State) {
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

// Has reports whether a lease counts here: not one that runs here again since it was let go.
func (a *Account) Has(l Lease) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, here := a.leases[l]
	return here
}

// Others is what the payer owes on channels other than a lease's, and what its other leases here may add to that before each of them
// has been read again: it is off the credit, or many leases would each go a little past it. A lease that has a credit for itself has
// no account: nil, which has no others.
func (a *Account) Others(l Lease) (debt, ahead uint256.Int) {
	if a == nil {
		return debt, ahead
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.beside(l)
}

// Claim has what a lease may use before it is read again off the credit of the payer's others if it serves, or no more. It is false
// where a lease that is to serve has no room beside what they owe and may add to that.
func (a *Account) Claim(l Lease, serves bool, room func(debt, ahead uint256.Int) bool) bool {
	if a == nil {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, here := a.leases[l]; !here {
		return true
	}
	if serves && !room(a.beside(l)) {
		return false
	}
	a.leases[l] = claim{serves: serves}
	a.count(l)
	return true
}

// Tally counts what a lease owes now, and has the payer's suspended leases look whether they may go on where that fell.
func (a *Account) Tally(l Lease) {
	if a == nil {
		return
	}
	var waiting []Lease
	a.mu.Lock()
	before := a.debts[l.ChannelID()]
	if _, here := a.leases[l]; here {
		a.count(l)
	} else {
		a.put(l.ChannelID(), l.Debt())
	}
	if now := a.debts[l.ChannelID()]; now.Lt(&before) {
		waiting = a.suspended(l)
	}
	a.mu.Unlock()
	for _, other := range waiting {
		other.Wake()
	}
}

// learn takes what the books say of channels that have no lease here. The caller
// holds mu.
func (a *Account) learn(owing []channel.State) {
	here := make(map[common.Hash]bool, len(a.leases))
	for l := range a.leases {
		here[l.ChannelID()] = true
	}
	for id := range a.debts {
		if !here[id] {
			a.put(id, uint256.Int{})
		}
	}
	for _, s := range owing {
		if !here[s.ID] {
			a.put(s.ID, DebtOf(s, a.row))
		}
	}
}

// put replaces the debt of one channel. The caller holds mu.
func (a *Account) put(id common.Hash, debt uint256.Int) {
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
func (a *Account) suspended(but Lease) []Lease {
	var waiting []Lease
	for l := range a.leases {
		if l != but && l.State() == leasestore.Suspended {
			waiting = append(waiting, l)
		}
	}
	return waiting
}

// beside is others. The caller holds mu.
func (a *Account) beside(l Lease) (debt, ahead uint256.Int) {
	own := a.debts[l.ChannelID()]
	debt.Sub(&a.sum, &own)
	for other, c := range a.leases {
		if other != l {
			ahead.Add(&ahead, &c.ahead)
		}
	}
	return debt, ahead
}

// count takes what a lease owes now, and may owe two ticks later. The caller holds mu.
func (a *Account) count(l Lease) {
	debt, c := l.Debt(), a.leases[l]
	c.ahead = uint256.Int{}
	if c.serves {
		later := l.DebtAhead()
		c.ahead = u256.SaturatingSub(later, debt)
	}
	a.leases[l] = c
	a.put(l.ChannelID(), debt)
}
