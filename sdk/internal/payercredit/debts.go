package payercredit

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Debts says what payers owe a provider on all of their channels, and for how long what no voucher can pay any more counts.
type Debts struct {
	DB       *store.DB
	Store    leasestore.Store
	Payee    *channel.Payee // knows every channel of the database
	Accounts *Accounts
	Log      *slog.Logger

	Escrow    chain.Contract
	Contracts []chain.Contract                 // all that settlements go to, the escrow among them
	Row       func(chain.Contract) uint256.Int // the least of a channel that is worth a row in a settlement
	Credit    time.Duration                    // of GPU time that each payer has
	Tick      time.Duration
	Kept      time.Duration // how long a debt counts that no voucher can pay any more; negative: until it is forgiven
	Decimals  uint8         // of the token

	MayOpen func(offer wire.SignedOffer, payer common.Address) error // refuses another lease, whatever its payer owes; nil: none
}

// Owing lists the escrow's channels of some payers on which they owe something,
// whatever became of them and whichever gateway served them.
func (d *Debts) Owing(ctx context.Context, payers ...common.Address) ([]channel.State, error) {
	return d.OwingAt(ctx, d.Escrow, payers...)
}

// LeastRow is the least that is worth a row in a settlement on a contract.
func (d *Debts) LeastRow(contract chain.Contract) uint256.Int { return d.Row(contract) }

// OwingAt lists the channels of one contract as Owing does the escrow's. While a channel has a lease what is vouchered on
// it stands there as settled: it grows to a row, and a payer of many leases, each of
// which begins at nothing after each settlement, would be left without credit. When
// the lease ends it counts.
func (d *Debts) OwingAt(ctx context.Context, contract chain.Contract, payers ...common.Address) ([]channel.State, error) {
	states, err := d.DB.Owing(ctx, payers...)
	if err != nil || len(states) == 0 {
		return nil, err
	}
	served, err := d.Store.Leases.Served(ctx)
	if err != nil {
		return nil, err
	}
	forgiven, err := d.Store.Debts.WrittenOff(ctx, payers...)
	if err != nil {
		return nil, err
	}
	row, domain := d.Row(contract), contract.Domain()
	var own []channel.State
	for _, s := range states {
		s.Spent = u256.SaturatingSub(s.Spent, forgiven[s.ID])
		if slices.Contains(served, s.ID) {
			s.Settled = u256.Max(s.Settled, s.Accepted)
		}
		if debt := DebtOf(s, row); !debt.IsZero() && domain.Holds(s.Terms) == nil {
			own = append(own, s)
		}
	}
	return own, nil
}

// Creditworthy refuses a lease whose payer's channels, its own included, have used
// up what of the credit it needs, unless so much is paid in advance.
func (d *Debts) Creditworthy(ctx context.Context, s channel.State, offer wire.SignedOffer, gpus int) error {
	if d.MayOpen != nil {
		if err := d.MayOpen(offer, s.Terms.Payer); err != nil {
			return err
		}
	}
	owing, err := d.Owing(ctx, s.Terms.Payer)
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
	credit, err := price.Charge(uint64(d.Credit))
	if err != nil {
		return err
	}
	need, err := price.Charge(uint64(gpus) * uint64(4*d.Tick))
	if err != nil {
		return err
	}
	row, owed := d.Row(d.Escrow), s.Owed() // of this channel as it is, or will be by the voucher that comes with the request
	others := OwedBut(owing, s.ID, row)
	room := u256.SaturatingSub(Collectible(s, row), s.Spent) // who has used up the credit pays in advance what a settlement fetches
	if left := u256.SaturatingSub(u256.SaturatingSub(credit, others), d.Accounts.Ahead(s.Terms.Payer, s.ID)); !left.IsZero() {
		left = u256.SaturatingSub(left, owed)
		room = s.Available()
		room.Add(&room, &left)
	}
	if !room.Lt(&need) {
		return nil
	}
	return wire.InsufficientBalance.With("this payer owes %s and has no credit left: pay it by vouchers, close channels with less than %s to settle, or pay %s in advance, over what is spent and settled here; owed on %s%s",
		units.Format(*owed.Add(&owed, &others), d.Decimals), units.Format(row, d.Decimals), units.Format(u256.Max(need, row), d.Decimals), d.Debtors(owing, row), d.patience(owing))
}

// patience says for how long a debt on a closed channel counts, if there is one.
func (d *Debts) patience(owing []channel.State) string {
	if d.Kept < 0 || !slices.ContainsFunc(owing, spentUp) {
		return ""
	}
	return fmt.Sprintf("; of closed channels for %s", d.Kept)
}

// Lapses says what helps who owes on channels of x402 that have nothing left, if there are some: a refund does not.
func (d *Debts) Lapses(owing []channel.State) string {
	switch {
	case !slices.ContainsFunc(owing, spentUp):
		return ""
	case d.Kept < 0:
		return "; a channel with nothing left has nothing to refund: ask the provider to forgive what is owed on it"
	}
	return fmt.Sprintf("; a channel with nothing left has nothing to refund: what is owed on it counts for %s after its last use, or until the provider forgives it", d.Kept)
}

// Debtors names the channels with a debt, the first few of many.
func (d *Debts) Debtors(owing []channel.State, row uint256.Int) string {
	text := ""
	for n, s := range owing {
		if n == 3 {
			return text + ", .."
		}
		if n > 0 {
			text += ", "
		}
		owed := DebtOf(s, row)
		text += fmt.Sprintf("%s: %s", s.ID, units.Format(owed, d.Decimals))
	}
	return text
}

// Forgive writes off what a payer owes on channels that are closed, or, with x402, have nothing left, where no voucher
// can pay it any more: its credit is whole again, at every gateway of the database.
// What it owes on other channels stays owed. It returns what was written off, in base
// units: nothing the second time.
func (d *Debts) Forgive(ctx context.Context, payer common.Address) (sum uint256.Int, err error) {
	for _, contract := range d.Contracts {
		owing, err := d.OwingAt(ctx, contract, payer)
		if err != nil {
			return sum, err
		}
		for _, s := range owing {
			if !spentUp(s) {
				continue
			}
			if err := d.writeOff(ctx, s, "it is forgiven"); err != nil {
				return sum, err
			}
			debt := DebtOf(s, uint256.Int{})
			sum.Add(&sum, &debt)
		}
	}
	return sum, nil
}

// spentUp reports a channel of which no voucher fetches anything any more: it is closed, or, with x402, whose channels are never
// over, all of it is claimed or was taken back.
func spentUp(s channel.State) bool {
	return s.Status == channel.Finalized || s.Terms.Scheme.Lasting() && !s.Deposit.Gt(&s.Settled)
}

// Lapse writes off the debts of which DebtKept is over, and returns the others.
func (d *Debts) Lapse(ctx context.Context, owing []channel.State) ([]channel.State, error) {
	if d.Kept < 0 {
		return owing, nil
	}
	fresh, err := d.owedSince(ctx, time.Now().Add(-d.Kept), owing...)
	if err != nil {
		return nil, err
	}
	var left []channel.State
	for _, s := range owing {
		if !spentUp(s) || fresh[s.ID] {
			left = append(left, s)
		} else if err := d.writeOff(ctx, s, "it was owed for "+d.Kept.String()); err != nil {
			return nil, err
		}
	}
	return left, nil
}

// owedSince returns which of the channels that are spent up had a lease, or something to collect of one, after a time; or, with
// x402, which serves without a lease as well, were charged or changed on the chain.
func (d *Debts) owedSince(ctx context.Context, after time.Time, owing ...channel.State) (map[common.Hash]bool, error) {
	var over []string
	for _, s := range owing {
		if spentUp(s) {
			over = append(over, s.ID.Hex())
		}
	}
	if len(over) == 0 {
		return nil, nil
	}
	fresh, err := d.Store.Leases.HeldAfter(ctx, over, after)
	if err != nil {
		return nil, err
	}
	for _, s := range owing {
		if s.Terms.Scheme.Lasting() && s.UpdatedAt.After(after) {
			fresh[s.ID] = true
		}
	}
	return fresh, nil
}

// OwesStill reports a channel whose payer owes something on it that DebtKept is not over for: its leases say since when.
func (d *Debts) OwesStill(ctx context.Context, s channel.State) (bool, error) {
	forgiven, err := d.Store.Debts.WrittenOff(ctx, s.Terms.Payer)
	if err != nil {
		return false, err
	}
	s.Spent = u256.SaturatingSub(s.Spent, forgiven[s.ID])
	if debt := DebtOf(s, uint256.Int{}); debt.IsZero() {
		return false, nil
	}
	if d.Kept < 0 {
		return true, nil
	}
	fresh, err := d.owedSince(ctx, time.Now().Add(-d.Kept), s)
	return fresh[s.ID], err
}

// writeOff has what is owed on a closed channel count for nothing from now on.
// Several gateways may do so at once: the figure is all that it owes.
func (d *Debts) writeOff(ctx context.Context, s channel.State, why string) error {
	whole, err := d.Payee.State(ctx, s.ID) // without what was written off before
	if err != nil {
		return err
	}
	amount := u256.SaturatingSub(whole.Spent, whole.Settled)
	if err = d.Store.Debts.WriteOff(ctx, s, amount); err == nil {
		d.Log.Warn("debt on a channel with nothing left is written off", "channel", s.ID, "payer", s.Terms.Payer, "why", why,
			"tokens", units.Format(amount, d.Decimals))
	}
	return err
}
