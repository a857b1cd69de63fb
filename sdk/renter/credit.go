package renter

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

// payeeCredits are the credits that payees give this renter: one each, for all of
// its channels on an escrow.
type payeeCredits struct {
	mu sync.Mutex
	of map[creditor]*payeeCredit
}

type creditor struct {
	chain         uint64
	escrow, payee common.Address
}

// payeeCredit is one payee's credit. Whoever checks a record of one of the channels
// holds mu until that is on disk, so that records which come at one instant take
// from each other.
type payeeCredit struct {
	mu       sync.Mutex
	channels map[common.Hash]*creditUse
}

// creditUse is a channel's part. Amounts are base units.
type creditUse struct {
	price  metering.Price
	gpus   int
	owed   uint256.Int // by the newest record of this process; a restored database may not know what was signed for older ones
	late   uint256.Int // what an honest payee's other leases may hear of too late
	others creditTaken
}

// creditTaken is what other channels had taken of the credit at a moment. It binds
// for as long as the channel's GPUs take to earn it, paid or not: a payment makes
// no GPU time before it.
type creditTaken struct {
	Amount uint256.Int      `json:"amount"`
	At     metering.Instant `json:"at"`
	BootID string           `json:"bootId"` // of this renter's host; after a reboot nothing is known
}

func (p *payeeCredits) with(t channel.Terms) *payeeCredit {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := creditor{t.ChainID, t.Escrow, t.Payee}
	if p.of == nil {
		p.of = make(map[creditor]*payeeCredit)
	}
	if p.of[k] == nil {
		p.of[k] = &payeeCredit{channels: make(map[common.Hash]*creditUse)}
	}
	return p.of[k]
}

// recall takes up what is on disk of rentals that run.
func (p *payeeCredits) recall(rows []rentalRow, clock metering.Clock) {
	for _, row := range rows {
		offer, err := wire.ParseOffer(row.Offer)
		if err != nil || row.Phase != PhaseRunning {
			continue
		}
		if price, err := offer.Price(); err == nil {
			p.with(row.Terms).join(row.Terms.ID(), row.GPUs, price, offer.Offer)
		}
	}
	for _, row := range rows {
		c := p.with(row.Terms)
		for id, taken := range row.Beside {
			if use := c.channels[id]; use != nil && taken.BootID == clock.BootID() {
				use.take(*taken)
			}
		}
	}
}

// join counts a channel in. What others learn too late of is a reading, and a
// record and a second where another gateway serves them.
func (c *payeeCredit) join(id common.Hash, gpus int, price metering.Price, o wire.Offer) *creditUse {
	if c.channels[id] == nil {
		c.channels[id] = new(creditUse)
	}
	use := c.channels[id]
	use.price, use.gpus = price, gpus
	use.late = use.earns(time.Duration(o.MaxGap+o.RecordEvery)*time.Millisecond + time.Second)
	return use
}

// look notes for each channel what the others have taken at this moment: what is
// owed on them, and was not signed for.
func (c *payeeCredit) look(ctx context.Context, payer *channel.Payer, clock metering.Clock) error {
	if len(c.channels) < 2 {
		return nil
	}
	debts, sum := make(map[common.Hash]uint256.Int), uint256.Int{}
	for id, use := range c.channels {
		if use.owed.IsZero() {
			continue
		}
		paid, err := payer.State(ctx, id)
		if err != nil {
			return err
		}
		if paid.Closed { // what is owed there is not paid any more
			continue
		}
		if covered := *paid.Signed.Add(&paid.Signed, &use.late); use.owed.Gt(&covered) {
			debt := *new(uint256.Int).Sub(&use.owed, &covered)
			debts[id] = debt
			sum.Add(&sum, &debt)
		}
	}
	for id, use := range c.channels {
		own := debts[id]
		use.take(creditTaken{Amount: *new(uint256.Int).Sub(&sum, &own), At: clock.Now(), BootID: clock.BootID()})
	}
	return nil
}

// beside is what is kept of the others with a channel's record.
func (c *payeeCredit) beside(id common.Hash) map[common.Hash]*creditTaken {
	var all map[common.Hash]*creditTaken
	for other, use := range c.channels {
		if other != id && !use.others.Amount.IsZero() {
			if all == nil {
				all = make(map[common.Hash]*creditTaken)
			}
			taken := use.others
			all[other] = &taken
		}
	}
	return all
}

// take keeps the moment that binds more, of two.
func (u *creditUse) take(t creditTaken) {
	if left := u.left(t.At, 0); t.Amount.Gt(&left) {
		u.others = t
	}
}

// left is what others had taken and the channel's GPUs cannot have earned since, on
// whichever of our clocks went further, and with slack.
func (u *creditUse) left(now metering.Instant, slack time.Duration) uint256.Int {
	passed := max(now.Boot-u.others.At.Boot, now.Wall-u.others.At.Wall, 0)
	return u256.SaturatingSub(u.others.Amount, u.earns(time.Duration(passed+passed/billed.Slew)+slack))
}

// earns is what all of the channel's GPUs earn in a time; the most that there is for
// one that no amount holds.
func (u *creditUse) earns(d time.Duration) uint256.Int {
	earned, err := u.price.Charge(uint64(u.gpus) * uint64(min(d, 1000*time.Hour)))
	if err != nil {
		return *new(uint256.Int).SetAllOne()
	}
	return *earned.AddUint64(&earned, 1) // each charge is rounded by itself
}
