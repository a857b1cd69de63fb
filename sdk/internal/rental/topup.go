package rental

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/outcome"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// MayTopUp reports whether a top-up is on its way, or the renter allowed one, a
// cap leaves room for it and, as of the newest look, the balance covers it.
func (l *Deposits) MayTopUp() bool {
	step := l.Step()
	return l.Row.TopUp != nil || !step.IsZero() && !l.LowBalance
}

// Committed is what counts against the caps: what is in the channel, whatever an
// endpoint says of it at least what we moved into it, and all that signed
// authorizations may still move into it, whoever has them and whether or not they
// were ever sent.
func (l *Deposits) Committed() uint256.Int {
	sum, moved := l.Row.Outstanding(), l.Row.Arrived()
	there := u256.Max(l.Row.Deposit, moved)
	return *sum.Add(&sum, &there)
}

// Step is the next top-up: what was asked for, within the cap per lease.
func (l *Deposits) Step() uint256.Int {
	if l.Row.Options.TopUp == "" {
		return uint256.Int{}
	}
	step, err := units.Parse(l.Row.Options.TopUp, l.Wallet.Token.Decimals)
	committed := l.Committed()
	if err != nil || !committed.Lt(&l.Wallet.Caps.PerChannel) {
		return uint256.Int{}
	}
	var room uint256.Int
	room.Sub(&l.Wallet.Caps.PerChannel, &committed)
	step = u256.Min(step, room)
	if least := l.leastTopUp(); step.Lt(&least) {
		return uint256.Int{} // it would be refused, again and again
	}
	return step
}

// leastTopUp is the least that the provider sends for us. What we send ourselves
// has no bound.
func (l *Deposits) leastTopUp() uint256.Int {
	return LeastTopUp(l.Offer.Offer, l.Row.TopUpType())
}

func LeastTopUp(o wire.Offer, kind string) uint256.Int {
	if o.MinTopUp == nil || kind != wire.TypeAuthorization {
		return uint256.Int{}
	}
	return o.MinTopUp.Int
}

// WhyNoTopUp says that the last top-up would be one that the provider refuses; ""
// where it is not that.
func (l *Deposits) WhyNoTopUp() string {
	least := l.leastTopUp()
	room := u256.SaturatingSub(l.Wallet.Caps.PerChannel, l.Committed())
	if l.Row.Options.TopUp == "" || !room.Lt(&least) {
		return ""
	}
	return fmt.Sprintf(" (Caps.PerLease leaves room for less than the %s that this provider sends at least)", l.Wallet.Format(least))
}

// Room is how much of a top-up all caps leave room for.
func (l *Deposits) Room(ctx context.Context, step uint256.Int) (uint256.Int, error) {
	most, cap, err := l.Payer.Room(ctx, l.Row.Terms)
	if err != nil {
		return step, err
	}
	committed := l.Committed()
	if !most.Gt(&committed) {
		l.LowBalance = true
		return step, fmt.Errorf("%w: %s leaves no room for a top-up: raise the cap, or get back what lies in other channels", ErrBudget, wallet.CapField(cap))
	}
	most.Sub(&most, &committed)
	step = u256.Min(step, most)
	if least := l.leastTopUp(); step.Lt(&least) {
		l.LowBalance = true
		return step, fmt.Errorf("%w: %s leaves room for a top-up of %s, this provider sends none under %s: raise the cap, or get back what lies in other channels",
			ErrBudget, wallet.CapField(cap), l.Wallet.Format(step), l.Wallet.Format(least))
	}
	return step, nil
}

// NextStep is step after a look at the chain, if the balance covers it and no
// transaction of ours is on its way that moves money into the channel.
func (l *Deposits) NextStep(ctx context.Context) (uint256.Int, error) {
	if _, err := l.Look(ctx, l.Wallet.Confirmations); err != nil {
		return uint256.Int{}, err
	}
	sent, err := l.Wallet.Sender.Find(ctx, l.ID)
	if err != nil {
		return uint256.Int{}, err
	}
	for _, tx := range sent {
		if tx.State == chain.Pending && (tx.Call.Kind == chain.Open || tx.Call.Kind == chain.TopUp) && !l.over(ctx, tx) {
			return uint256.Int{}, fmt.Errorf("channel %s: a deposit of ours is on its way in transaction %s: %w", l.ID, tx.ID, wallet.ErrNotYet)
		}
	}
	step, err := l.Room(ctx, l.Step())
	if err != nil {
		return step, err
	}
	balance, err := l.Wallet.Token.Balance(ctx, l.Row.Terms.Payer)
	if err != nil {
		return uint256.Int{}, err
	}
	if l.LowBalance = balance.Lt(&step); l.LowBalance {
		return uint256.Int{}, fmt.Errorf("%w: %s has %s, the top-up is %s", wallet.ErrBalance, l.Row.Terms.Payer, l.Wallet.Format(balance), l.Wallet.Format(step))
	}
	return step, nil
}

// TopUpSalt numbers top-ups, so that two equal ones are two.
func (l *Deposits) TopUpSalt() (salt common.Hash) {
	binary.BigEndian.PutUint64(salt[24:], l.Row.TopUps+1)
	return salt
}

// maxUsed is how many top-ups that were made already are looked for at a time.
const maxUsed = 64

// SkipUsed counts the top-ups that a database from before them does not know: their authorizations are used, and would move
// nothing again. It tries so many at a time: an endpoint that says it of each holds up no payment.
func (l *Deposits) SkipUsed(ctx context.Context, step uint256.Int) error {
	for tried := 0; ; tried++ {
		if tried == maxUsed {
			return Transient(fmt.Errorf("channel %s: the RPC endpoint says that %d authorizations of a top-up were used already, up to number %d: where you did not make so many, it lies: take another",
				l.ID, tried, l.Row.TopUps))
		}
		used, err := l.Wallet.Token.AuthorizationUsed(ctx, l.Terms.Payer, channel.TopUpNonce(l.ID, step, l.Terms.Payer, l.TopUpSalt()))
		if err != nil || !used {
			return err
		}
		l.Row.TopUps++
	}
}

// Arrived reports whether the chain had the top-up when it was seen. A receipt,
// which may be one endpoint's word, does not do without the deposit; where none is
// shown, the deposit does with the nonce, which anybody's gift does not use.
func (l *Deposits) Arrived(ctx context.Context, seen Sight) (bool, error) {
	var least uint256.Int
	if least.Add(&l.Row.Before, &l.Row.TopUp.AdditionalDeposit.Int); seen.Deposit.Lt(&least) {
		return false, nil
	}
	if a := l.Row.TopUp.Authorization; a != nil {
		return seen.used[a.Nonce], nil
	}
	sent, err := l.Wallet.Sender.Find(ctx, l.ID)
	if err != nil {
		return false, err
	}
	for _, tx := range sent {
		switch ours := slices.ContainsFunc(tx.Attempts, func(a chain.Attempt) bool { return a.Signed.Hash() == *l.Row.TopUp.Hash }); {
		case ours && tx.State == chain.Pending:
			return l.over(ctx, tx), nil
		case ours: // the node that was asked may be behind it
			return tx.Succeeded && seen.Block.Uint64() >= tx.Block, nil
		}
	}
	return false, nil
}

// over reports whether the nonce of a pending transaction is used: its receipt is not shown, and what it moved is in the channel.
func (l *Deposits) over(ctx context.Context, tx chain.Tx) bool {
	return outcome.Used(ctx, l.Wallet.Sender, tx.ID, l.Wallet.Confirmations)
}

// Sponsor has the provider send a top-up that our coin does not pay for, and those after it: a little coin is as good as none,
// and nothing was sent. That it does is on disk before anything is signed for it, and no transaction of ours is made beside it.
func (l *Deposits) Sponsor(ctx context.Context, topUp *wire.Payload, cause error) error {
	if !l.Row.Sponsored {
		return fmt.Errorf("channel %s: %w: this provider sends no deposits for others, send %s some: %w", l.ID, wallet.ErrNoGas, l.Wallet.Address(), cause)
	}
	step, known := topUp.AdditionalDeposit.Int, l.Row.TopUps
	if least := LeastTopUp(l.Offer.Offer, wire.TypeAuthorization); step.Lt(&least) {
		return fmt.Errorf("channel %s: %w: send %s some: the top-up is %s, and this provider sends none under %s: %w",
			l.ID, wallet.ErrNoGas, l.Wallet.Address(), l.Wallet.Format(step), l.Wallet.Format(least), cause)
	}
	if err := l.SkipUsed(ctx, step); err != nil {
		l.Row.TopUps = known // our own are counted from here, if the coin comes
		return err
	}
	salt := l.TopUpSalt()
	topUp.Type, topUp.Salt = wire.TypeAuthorization, &salt
	kept := *topUp
	l.Row.TopUp, l.Row.Coinless = &kept, true
	l.Wallet.Log.Info("the coin does not pay for a top-up: the provider sends it, and those after it", "channel", l.ID)
	return l.Save(ctx)
}

// DropTopUp forgets a top-up of a channel that we closed before it was signed. It
// was neither handed out nor sent, and its number is free for another.
func (l *Deposits) DropTopUp(ctx context.Context) error {
	l.Row.TopUp = nil
	if err := l.Payer.Fund(ctx, l.ID, l.Committed()); err != nil {
		return err
	}
	l.Wallet.Log.Info("top-up is not made: the channel was closed meanwhile", "channel", l.ID)
	return l.Save(ctx)
}

// Unfunded is a top-up that is not on the chain. An authorization that ended
// unused never will be, and the next one is another.
func (l *Deposits) Unfunded(ctx context.Context, seen Sight, cause error) error {
	failed := Transient(fmt.Errorf("channel %s: the top-up has not arrived: %w", l.ID, errors.Join(cause, wallet.ErrNotYet)))
	if l.Row.TopUp.Authorization == nil || !seen.ended(l.Row.TopUp.Authorization) {
		return errors.Join(failed, l.Save(ctx))
	}
	l.Row.TopUp = nil
	l.Row.TopUps++
	if err := l.Payer.Fund(ctx, l.ID, l.Committed()); err != nil && !errors.Is(err, channel.ErrClosing) {
		return err
	}
	return errors.Join(failed, l.Save(ctx))
}
