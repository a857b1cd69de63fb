// Package sharedcredit counts what a payer may owe a payee over all channels between the two, as the payee's offers say.
package sharedcredit

import (
	"context"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/billed"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Credits are what payees give one payer: one each, for all of its channels on an
// escrow. The zero value is ready.
type Credits struct {
	mu sync.Mutex
	of map[creditor]*Credit
}

type creditor struct {
	chain         uint64
	escrow, payee common.Address
}

// Credit is one payee's credit. Whoever checks a record of one of the channels
// holds the lock until that is on disk, so that records which come at one instant take
// from each other.
type Credit struct {
	sync.Mutex
	channels map[common.Hash]*Use

	debtors sync.Map // Debtor, by channel
}

// Debtor is a channel whose payer owes on it.
type Debtor interface {
	// Unpaid is what may be owed now by the payer's own measure, beyond what the payee is known to have, in base units. It is false where
	// nothing will be any more. It asks no Credit.
	Unpaid() (debt uint256.Int, counts bool)
}

// Count has a channel's debt count in Unpaid, in place of what counted of it before.
func (c *Credit) Count(id common.Hash, of Debtor) { c.debtors.Store(id, of) }

// Unpaid is what may be owed on all channels together. An honest payee ends nothing that it serves while the credit covers that, and may
// end all of it where it does not, on channels that owe little too.
func (c *Credit) Unpaid() (sum uint256.Int) {
	c.debtors.Range(func(id, of any) bool {
		debt, counts := of.(Debtor).Unpaid()
		if sum.Add(&sum, &debt); !counts {
			c.debtors.CompareAndDelete(id, of)
		}
		return true
	})
	return sum
}

// Use is a channel's part. Amounts are base units.
type Use struct {
	price  metering.Price
	gpus   int
	Owed   uint256.Int // by the newest record of this process; a restored database may not know what was signed for older ones
	late   uint256.Int // what an honest payee's other leases may hear of too late
	others Taken
}

// Taken is what other channels had taken of the credit at a moment. It binds
// for as long as the channel's GPUs take to earn it, paid or not: a payment makes
// no GPU time before it.
type Taken struct {
	Amount uint256.Int      `json:"amount"`
	At     metering.Instant `json:"at"`
	BootID string           `json:"bootId"` // of this renter's host; after a reboot nothing is known
}

// With is the credit of the payee of a channel.
func (p *Credits) With(t channel.Terms) *Credit {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := creditor{t.ChainID, t.Escrow, t.Payee}
	if p.of == nil {
		p.of = make(map[creditor]*Credit)
	}
	if p.of[k] == nil {
		p.of[k] = &Credit{channels: make(map[common.Hash]*Use)}
	}
	return p.of[k]
}

// Restore takes up what is on disk of what others had taken of a channel's credit. A channel that has not joined has none.
func (c *Credit) Restore(id common.Hash, t Taken, clock metering.Clock) {
	if use := c.channels[id]; use != nil && t.BootID == clock.BootID() {
		use.take(t)
	}
}

// Join counts a channel in. What others learn too late of is a reading, and a
// record and a second where another gateway serves them.
func (c *Credit) Join(id common.Hash, gpus int, price metering.Price, o wire.Offer) *Use {
	if c.channels[id] == nil {
		c.channels[id] = new(Use)
	}
	use := c.channels[id]
	use.price, use.gpus = price, gpus
	use.late = use.earns(time.Duration(o.MaxGap+o.RecordEvery)*time.Millisecond + time.Second)
	return use
}

// Look notes for each channel what the others have taken at this moment: what is
// owed on them, and was not signed for.
func (c *Credit) Look(ctx context.Context, payer *channel.Payer, clock metering.Clock) error {
	if len(c.channels) < 2 {
		return nil
	}
	debts, sum := make(map[common.Hash]uint256.Int), uint256.Int{}
	for id, use := range c.channels {
		if use.Owed.IsZero() {
			continue
		}
		paid, err := payer.State(ctx, id)
		if err != nil {
			return err
		}
		if paid.Closed { // what is owed there is not paid any more
			continue
		}
		if covered := *paid.Signed.Add(&paid.Signed, &use.late); use.Owed.Gt(&covered) {
			debt := *new(uint256.Int).Sub(&use.Owed, &covered)
			debts[id] = debt
			sum.Add(&sum, &debt)
		}
	}
	for id, use := range c.channels {
		own := debts[id]
		use.take(Taken{Amount: *new(uint256.Int).Sub(&sum, &own), At: clock.Now(), BootID: clock.BootID()})
	}
	return nil
}

// Beside is what is kept of the others with a channel's record.
func (c *Credit) Beside(id common.Hash) map[common.Hash]*Taken {
	var all map[common.Hash]*Taken
	for other, use := range c.channels {
		if other != id && !use.others.Amount.IsZero() {
			if all == nil {
				all = make(map[common.Hash]*Taken)
			}
			taken := use.others
			all[other] = &taken
		}
	}
	return all
}

// take keeps the moment that binds more, of two.
func (u *Use) take(t Taken) {
	if left := u.Left(t.At, 0); t.Amount.Gt(&left) {
		u.others = t
	}
}

// Left is what others had taken and the channel's GPUs cannot have earned since, on
// whichever of our clocks went further, and with slack.
func (u *Use) Left(now metering.Instant, slack time.Duration) uint256.Int {
	passed := max(now.Boot-u.others.At.Boot, now.Wall-u.others.At.Wall, 0)
	return u256.SaturatingSub(u.others.Amount, u.earns(time.Duration(passed+passed/billed.Slew)+slack))
}

// earns is what all of the channel's GPUs earn in a time; the most that there is for
// one that no amount holds.
func (u *Use) earns(d time.Duration) uint256.Int {
	earned, err := u.price.Charge(uint64(u.gpus) * uint64(min(d, 1000*time.Hour)))
	if err != nil {
		return *new(uint256.Int).SetAllOne()
	}
	return *earned.AddUint64(&earned, 1) // each charge is rounded by itself
}
