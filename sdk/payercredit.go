package sdk

import (
	"context"
	"fmt"
	"slices"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/payercredit"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wire"
)

// others is what the lease's payer owes on other channels, and what leases that run on those here may add to it before each
// of them has been read again: it is off the credit, or many leases would each go a little past it.
func (l *lease) others() (debt, ahead uint256.Int) {
	if l.account == nil {
		return debt, ahead
	}
	return l.account.Others(l)
}

// claims has what a lease may use before it is read again off the credit of its payer's others, or no more. It is false,
// and nothing is taken, where the credit has no room for it: of several that go on at once only so many do as it has.
func (l *lease) claims(serves bool) bool {
	return l.account == nil || l.account.Claim(l, serves, func(debt, ahead uint256.Int) bool {
		v := l.look()
		return v.state == leasestore.Active || !l.exceeds(l.limitOf(&v, l.leftOf(debt, ahead)))
	})
}

// tally counts what is owed here now, and lets leases of the same payer go on
// where it fell.
func (l *lease) tally() {
	if l.account != nil {
		l.account.Tally(l)
	}
}

func (l *lease) ChannelID() common.Hash { return l.terms.ID() }

// joinCredit counts the lease's debt with that of its payer's other channels, unless it has a credit for itself: a node's is told
// its share, and what is paid in advance takes none.
func (l *lease) joinCredit(owing []channel.State) {
	if l.deps.accounts != nil && l.credit.postpaid() {
		l.account = l.deps.accounts.Join(l.terms.Payer, l, owing)
	}
}

// leaveCredit undoes joinCredit. The lease's debt stands with its channel.
func (l *lease) leaveCredit() {
	if l.account != nil {
		l.deps.accounts.Leave(l.terms.Payer, l.account, l)
	}
}

// Debt is what was used and is not vouchered, of the newest reading.
func (l *lease) Debt() uint256.Int { return l.debtAfter(0) }

// DebtAhead is the debt two ticks of each GPU later: see exhausted.
func (l *lease) DebtAhead() uint256.Int { return l.debtAfter(l.ahead()) }

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
		if debt := payercredit.DebtOf(s, row); !debt.IsZero() && domain.Holds(s.Terms) == nil {
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
	room := u256.SaturatingSub(payercredit.Collectible(s, row), s.Spent) // who has used up the credit pays in advance what a settlement fetches
	if left := u256.SaturatingSub(u256.SaturatingSub(credit, others), p.deps.accounts.Ahead(s.Terms.Payer, s.ID)); !left.IsZero() {
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
		if debt := payercredit.DebtOf(s, row); s.ID != but {
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
		owed := payercredit.DebtOf(s, row)
		text += fmt.Sprintf("%s: %s", s.ID, units.Format(owed, p.token.Decimals))
	}
	return text
}
