package sdk

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/payercredit"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wire"
)

// owing lists the escrow's channels of some payers on which they owe something,
// whatever became of them and whichever gateway served them.
func (p *Provider) owing(ctx context.Context, payers ...common.Address) ([]channel.State, error) {
	return payerDebts{p}.OwingAt(ctx, p.escrow, payers...)
}

// payerDebts says what payers owe here.
type payerDebts struct{ p *Provider }

// LeastRow is the least that is worth a row in a settlement on a contract.
func (d payerDebts) LeastRow(contract chain.Contract) uint256.Int { return d.p.leastRow(contract) }

// OwingAt lists the channels of one contract as owing does the escrow's. While a channel has a lease what is vouchered on
// it stands there as settled: it grows to a row, and a payer of many leases, each of
// which begins at nothing after each settlement, would be left without credit. When
// the lease ends it counts.
func (d payerDebts) OwingAt(ctx context.Context, contract chain.Contract, payers ...common.Address) ([]channel.State, error) {
	states, err := d.p.db.Owing(ctx, payers...)
	if err != nil || len(states) == 0 {
		return nil, err
	}
	served, err := d.p.store.Leases.Served(ctx)
	if err != nil {
		return nil, err
	}
	forgiven, err := d.p.store.Debts.WrittenOff(ctx, payers...)
	if err != nil {
		return nil, err
	}
	row, domain := d.p.leastRow(contract), contract.Domain()
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

// Creditworthy refuses a lease whose payer's channels, its own included, have used
// up what of the credit it needs, unless so much is paid in advance.
func (d payerDebts) Creditworthy(ctx context.Context, s channel.State, offer wire.SignedOffer, gpus int) error {
	owing, err := d.p.owing(ctx, s.Terms.Payer)
	if err == nil {
		owing, err = d.Lapse(ctx, owing)
	}
	if err != nil {
		return err
	}
	price, err := offer.Price()
	if err != nil {
		return err
	}
	credit, err := price.Charge(uint64(d.p.config.Credit))
	if err != nil {
		return err
	}
	need, err := price.Charge(uint64(gpus) * uint64(4*d.p.config.Tick))
	if err != nil {
		return err
	}
	row, owed := d.p.leastRow(d.p.escrow), s.Owed() // of this channel as it is, or will be by the voucher that comes with the request
	others := payercredit.OwedBut(owing, s.ID, row)
	room := u256.SaturatingSub(payercredit.Collectible(s, row), s.Spent) // who has used up the credit pays in advance what a settlement fetches
	if left := u256.SaturatingSub(u256.SaturatingSub(credit, others), d.p.leases.Deps.Accounts.Ahead(s.Terms.Payer, s.ID)); !left.IsZero() {
		left = u256.SaturatingSub(left, owed)
		room = s.Available()
		room.Add(&room, &left)
	}
	if !room.Lt(&need) {
		return nil
	}
	return wire.InsufficientBalance.With("this payer owes %s and has no credit left: pay it by vouchers, close channels with less than %s to settle, or pay %s in advance, over what is spent and settled here; owed on %s%s",
		units.Format(*owed.Add(&owed, &others), d.p.token.Decimals), units.Format(row, d.p.token.Decimals), units.Format(u256.Max(need, row), d.p.token.Decimals), d.Debtors(owing, row), d.patience(owing))
}

// patience says for how long a debt on a closed channel counts, if there is one.
func (d payerDebts) patience(owing []channel.State) string {
	if d.p.config.DebtKept < 0 || !slices.ContainsFunc(owing, spentUp) {
		return ""
	}
	return fmt.Sprintf("; of closed channels for %s", d.p.config.DebtKept)
}

// Lapses says what helps who owes on channels of x402 that have nothing left, if there are some: a refund does not.
func (d payerDebts) Lapses(owing []channel.State) string {
	switch {
	case !slices.ContainsFunc(owing, spentUp):
		return ""
	case d.p.config.DebtKept < 0:
		return "; a channel with nothing left has nothing to refund: ask the provider to forgive what is owed on it"
	}
	return fmt.Sprintf("; a channel with nothing left has nothing to refund: what is owed on it counts for %s after its last use, or until the provider forgives it", d.p.config.DebtKept)
}

// Debtors names the channels with a debt, the first few of many.
func (d payerDebts) Debtors(owing []channel.State, row uint256.Int) string {
	text := ""
	for n, s := range owing {
		if n == 3 {
			return text + ", .."
		}
		if n > 0 {
			text += ", "
		}
		owed := payercredit.DebtOf(s, row)
		text += fmt.Sprintf("%s: %s", s.ID, units.Format(owed, d.p.token.Decimals))
	}
	return text
}

// defaultDebtKept is how long a debt counts that no voucher can pay any more. A
// stranger has the credit with each new address, so that asking longer would keep
// nobody out but who is known.
const defaultDebtKept = 24 * time.Hour

// Forgive writes off what a payer owes on channels that are closed, or, with x402, have nothing left, where no voucher
// can pay it any more: its credit is whole again, at every gateway of the database.
// What it owes on other channels stays owed. It returns what was written off, in base
// units: nothing the second time. Debts that nobody forgives are written off after
// ProviderConfig.DebtKept.
func (p *Provider) Forgive(ctx context.Context, payer common.Address) (sum uint256.Int, err error) {
	for _, contract := range p.contracts() {
		owing, err := payerDebts{p}.OwingAt(ctx, contract, payer)
		if err != nil {
			return sum, err
		}
		for _, s := range owing {
			if !spentUp(s) {
				continue
			}
			if err := p.writeOff(ctx, s, "it is forgiven"); err != nil {
				return sum, err
			}
			debt := payercredit.DebtOf(s, uint256.Int{})
			sum.Add(&sum, &debt)
		}
	}
	return sum, nil
}

// spentUp reports a channel of which no voucher fetches anything any more: it is closed, or, with x402, whose channels are never
// over, all of it is claimed or was taken back.
func spentUp(s channel.State) bool {
	return s.Status == channel.Finalized || s.Terms.Scheme == channel.BatchSettlement && !s.Deposit.Gt(&s.Settled)
}

// Lapse writes off the debts of which DebtKept is over, and returns the others.
func (d payerDebts) Lapse(ctx context.Context, owing []channel.State) ([]channel.State, error) {
	if d.p.config.DebtKept < 0 {
		return owing, nil
	}
	fresh, err := d.p.owedSince(ctx, time.Now().Add(-d.p.config.DebtKept), owing...)
	if err != nil {
		return nil, err
	}
	var left []channel.State
	for _, s := range owing {
		if !spentUp(s) || fresh[s.ID] {
			left = append(left, s)
		} else if err := d.p.writeOff(ctx, s, "it was owed for "+d.p.config.DebtKept.String()); err != nil {
			return nil, err
		}
	}
	return left, nil
}

// owedSince returns which of the channels that are spent up had a lease, or something to collect of one, after a time; or, with
// x402, which serves without a lease as well, were charged or changed on the chain.
func (p *Provider) owedSince(ctx context.Context, after time.Time, owing ...channel.State) (map[common.Hash]bool, error) {
	var over []string
	for _, s := range owing {
		if spentUp(s) {
			over = append(over, s.ID.Hex())
		}
	}
	if len(over) == 0 {
		return nil, nil
	}
	fresh, err := p.store.Leases.HeldAfter(ctx, over, after)
	if err != nil {
		return nil, err
	}
	for _, s := range owing {
		if s.Terms.Scheme == channel.BatchSettlement && s.UpdatedAt.After(after) {
			fresh[s.ID] = true
		}
	}
	return fresh, nil
}

// owesStill reports a channel whose payer owes something on it that DebtKept is not over for: its leases say since when.
func (p *Provider) owesStill(ctx context.Context, s channel.State) (bool, error) {
	forgiven, err := p.store.Debts.WrittenOff(ctx, s.Terms.Payer)
	if err != nil {
		return false, err
	}
	s.Spent = u256.SaturatingSub(s.Spent, forgiven[s.ID])
	if debt := payercredit.DebtOf(s, uint256.Int{}); debt.IsZero() {
		return false, nil
	}
	if p.config.DebtKept < 0 {
		return true, nil
	}
	fresh, err := p.owedSince(ctx, time.Now().Add(-p.config.DebtKept), s)
	return fresh[s.ID], err
}

// writeOff has what is owed on a closed channel count for nothing from now on.
// Several gateways may do so at once: the figure is all that it owes.
func (p *Provider) writeOff(ctx context.Context, s channel.State, why string) error {
	whole, err := p.payee.State(ctx, s.ID) // without what was written off before
	if err != nil {
		return err
	}
	amount := u256.SaturatingSub(whole.Spent, whole.Settled)
	if err = p.store.Debts.WriteOff(ctx, s, amount); err == nil {
		p.config.Log.Warn("debt on a channel with nothing left is written off", "channel", s.ID, "payer", s.Terms.Payer, "why", why,
			"tokens", units.Format(amount, p.token.Decimals))
	}
	return err
}
