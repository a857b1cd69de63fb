package sdk

import (
	"context"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/units"
)

// defaultDebtKept is how long a debt counts that no voucher can pay any more. A
// stranger has the credit with each new address, so that asking longer would keep
// nobody out but who is known.
const defaultDebtKept = 24 * time.Hour

// Forgive writes off what a payer owes on channels that are closed, where no voucher
// can pay it any more: its credit is whole again, at every gateway of the database.
// What it owes on open channels stays owed. It returns what was written off, in base
// units: nothing the second time. Debts that nobody forgives are written off after
// ProviderConfig.DebtKept.
func (p *Provider) Forgive(ctx context.Context, payer common.Address) (sum uint256.Int, err error) {
	owing, err := p.owing(ctx, payer)
	if err != nil {
		return sum, err
	}
	for _, s := range owing {
		if s.Status != channel.Finalized {
			continue
		}
		if err := p.writeOff(ctx, s, "it is forgiven"); err != nil {
			return sum, err
		}
		debt := debtOf(s, uint256.Int{})
		sum.Add(&sum, &debt)
	}
	return sum, nil
}

// lapse writes off the debts of which DebtKept is over, and returns the others.
func (p *Provider) lapse(ctx context.Context, owing []channel.State) ([]channel.State, error) {
	var ended []string
	for _, s := range owing {
		if s.Status == channel.Finalized {
			ended = append(ended, s.ID.Hex())
		}
	}
	if p.config.DebtKept < 0 || len(ended) == 0 {
		return owing, nil
	}
	fresh, err := p.store.heldAfter(ctx, ended, time.Now().Add(-p.config.DebtKept))
	if err != nil {
		return nil, err
	}
	var left []channel.State
	for _, s := range owing {
		if s.Status != channel.Finalized || fresh[s.ID] {
			left = append(left, s)
		} else if err := p.writeOff(ctx, s, "it was owed for "+p.config.DebtKept.String()); err != nil {
			return nil, err
		}
	}
	return left, nil
}

// writeOff has what is owed on a closed channel count for nothing from now on.
// Several gateways may do so at once: the figure is all that it owes.
func (p *Provider) writeOff(ctx context.Context, s channel.State, why string) error {
	whole, err := p.payee.State(ctx, s.ID) // without what was written off before
	if err != nil {
		return err
	}
	amount := u256.SaturatingSub(whole.Spent, whole.Settled)
	err = p.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO written_off (channel, payer, amount, at) VALUES (?, ?, ?, ?)
			ON CONFLICT (channel) DO UPDATE SET amount = excluded.amount, at = excluded.at`),
			s.ID.Hex(), s.Terms.Payer.Hex(), amount.Dec(), time.Now().Unix())
		return err
	})
	if err == nil {
		p.config.Log.Warn("debt on a closed channel is written off", "channel", s.ID, "payer", s.Terms.Payer, "why", why,
			"tokens", units.Format(amount, p.token.Decimals))
	}
	return err
}

// heldAfter returns which of the channels had a lease, or something to collect of
// one, after a time.
func (s leaseStore) heldAfter(ctx context.Context, channels []string, after time.Time) (map[common.Hash]bool, error) {
	query, args, err := sqlx.In(`SELECT DISTINCT channel FROM leases WHERE channel IN (?) AND (state <> 'ended' OR held = 1 OR ended_at > ?)`,
		channels, after.Unix())
	if err != nil {
		return nil, err
	}
	var rows []string
	db := s.db.View()
	err = db.SelectContext(ctx, &rows, db.Rebind(query), args...)
	held := make(map[common.Hash]bool, len(rows))
	for _, text := range rows {
		held[common.HexToHash(text)] = true
	}
	return held, err
}

// writtenOff is what of the payers' debts counts no more, by channel; of all payers
// if none is named.
func (s leaseStore) writtenOff(ctx context.Context, payers ...common.Address) (map[common.Hash]uint256.Int, error) {
	query, args := `SELECT channel, amount FROM written_off`, []any(nil)
	if len(payers) > 0 {
		var err error
		if query, args, err = sqlx.In(query+` WHERE payer IN (?)`, hexes(payers)); err != nil {
			return nil, err
		}
	}
	var rows []struct{ Channel, Amount string }
	db := s.db.View()
	if err := db.SelectContext(ctx, &rows, db.Rebind(query), args...); err != nil {
		return nil, err
	}
	amounts := make(map[common.Hash]uint256.Int, len(rows))
	for _, row := range rows {
		amount, err := channel.ParseAmount(row.Amount)
		if err != nil {
			return nil, err
		}
		amounts[common.HexToHash(row.Channel)] = amount
	}
	return amounts, nil
}

func hexes(addresses []common.Address) []string {
	texts := make([]string, len(addresses))
	for i, a := range addresses {
		texts[i] = a.Hex()
	}
	return texts
}
