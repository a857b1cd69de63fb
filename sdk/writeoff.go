package sdk

import (
	"context"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/internal/payercredit"
	"github.com/gpupay/gpupay/sdk/units"
)

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
		owing, err := p.owingAt(ctx, contract, payer)
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

// lapse writes off the debts of which DebtKept is over, and returns the others.
func (p *Provider) lapse(ctx context.Context, owing []channel.State) ([]channel.State, error) {
	if p.config.DebtKept < 0 {
		return owing, nil
	}
	fresh, err := p.owedSince(ctx, time.Now().Add(-p.config.DebtKept), owing...)
	if err != nil {
		return nil, err
	}
	var left []channel.State
	for _, s := range owing {
		if !spentUp(s) || fresh[s.ID] {
			left = append(left, s)
		} else if err := p.writeOff(ctx, s, "it was owed for "+p.config.DebtKept.String()); err != nil {
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
