package settle

import (
	"cmp"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
)

// DefaultMaxBatch is how many channels are settled in one transaction where the policy does not say: about 1.2 million gas.
const DefaultMaxBatch = 100

// mostBatch is how many channels one transaction may settle: of the escrow's rows, of some 90 bytes, more do not fit into what nodes
// take. Of x402's, of some 480, fewer do: what is too large is halved (settle).
const mostBatch = 1000

// What a settler does where the rest of its policy is zero.
const (
	defaultInterval   = time.Minute
	defaultMaxAge     = time.Hour
	defaultPatientAge = 24 * time.Hour // where the policy looks at fees
)

// wholeShare is a share of everything, in basis points.
const wholeShare = 10_000

// Policy says when money at risk is worth the gas of fetching it. A channel that is closing and worth its own row is settled
// at once whatever else it says, and so are those whose leases ended, if together they are no Dust, unless MaxFeeShare is set.
//
// At risk is what was vouchered and not yet settled. With MinValue it never exceeds MinValue and what comes in within one
// Interval and the transaction's time; nothing but Dust and LeastRow waits longer than MaxAge and that. No fee, however high, and no failure to
// learn it, changes either bound.
type Policy struct {
	// Interval is how often to look; 1 min if zero.
	Interval time.Duration
	// MinValue is how many base units of one payee and token are fetched as soon as they have come together; if zero, MaxAge is waited for.
	MinValue uint256.Int
	// MaxAge is how long anything may wait; 1 h if zero, 24 h with MaxFeeShare.
	MaxAge time.Duration
	// MaxBatch is how many channels are in one transaction, at most 1000; fewer where that is too much for one; 100 if zero.
	MaxBatch int

	// Dust is how much of one payee and token is not worth a transaction: less than that waits, however old it is and though
	// its leases ended, until more has come together or one of its payers wants out. Less than that of leases that ended waits
	// for MaxAge, as what runs beside it does. What a contract set aside of one payee
	// and token, also for who wanted out, is paid out when so much of it has come together, and by Settle. 0: everything is
	// fetched; for a provider, its MinTransfer.
	Dust uint256.Int

	// LeastRow is how much of one channel is worth its own row of a batch: a channel with less rides along in none, and is not
	// settled for closing either, since the row would cost more than it brings. It waits until it has more; what it has when
	// its payer takes the deposit back by force is given up, and a close that both sides make pays it. 0: every row is worth
	// it; for a provider, what a row's gas is of a settlement's, of MinTransfer.
	LeastRow uint256.Int

	// MaxFeeShare is how much of what it brings a settlement may cost, in basis points (50: half a percent). What has waited
	// for an hour is fetched at the first look at which it costs no more than that; what would cost more waits on, for
	// MinValue or MaxAge, a lease that ended too. 0: fees play no part. On a chain where gas is dear, set MinValue as well.
	MaxFeeShare uint32
	// CoinPrice is what one native coin (10^18 wei) is worth, in base units of the token. MaxFeeShare needs it. If it is
	// wrong, settlements come too early or too late, within the bounds of MinValue and MaxAge.
	CoinPrice uint256.Int
}

// A Waiting channel has something to settle.
type Waiting struct {
	ID        common.Hash
	Unsettled uint256.Int // base units
	Since     time.Time   // when it began to wait
	Closing   bool        // cannot wait, and be it Dust: its payer wants out
	Urgent    bool        // cannot wait: its payer wants out, or somebody said so
}

// A Cost is what one transaction costs now, in base units of the token that it brings. The zero Cost is unknown.
type Cost struct {
	Batch   uint256.Int // however many channels are in it
	Channel uint256.Int // each of them
}

// Costs is what a transaction of so much gas, and so much more for each channel, costs at a fee per gas in wei. It is
// unknown without CoinPrice, and where no amount could be so large.
func (p Policy) Costs(batchGas, channelGas uint64, fee *big.Int) Cost {
	if fee == nil || fee.Sign() <= 0 || p.CoinPrice.IsZero() {
		return Cost{}
	}
	wei, over := uint256.FromBig(fee)
	if over {
		return Cost{}
	}
	coin := uint256.NewInt(1e18)
	var c Cost
	for _, part := range []struct {
		cost *uint256.Int
		gas  uint64
	}{{&c.Batch, batchGas}, {&c.Channel, channelGas}} {
		if _, over := part.cost.MulOverflow(wei, uint256.NewInt(part.gas)); over {
			return Cost{}
		}
		if _, over := part.cost.MulDivOverflow(part.cost, &p.CoinPrice, coin); over {
			return Cost{}
		}
		part.cost.AddUint64(part.cost, 1) // upwards: what costs less than a base unit is known too
	}
	return c
}

func (c Cost) known() bool { return !c.Batch.IsZero() }

// Due picks those of one payee's and token's channels that are to be settled now. It reads no clock and keeps nothing.
func (p Policy) Due(waiting []Waiting, now time.Time, cost Cost) []Waiting {
	waiting = pick(waiting, func(w Waiting) bool { return !p.crumb(w) })
	if p.dust(waiting) {
		return pick(waiting, func(w Waiting) bool { return w.Closing })
	}
	if p.together(waiting) {
		return waiting
	}
	forced := pick(waiting, func(w Waiting) bool { return w.Urgent || p.old(w, now, p.Age()) })
	if p.dust(forced) && !slices.ContainsFunc(forced, func(w Waiting) bool { return w.Closing || p.old(w, now, p.Age()) }) {
		forced = nil // what is worth the transaction is not in it: leases that ended wait for more that did, or for the others
	}
	if p.MaxFeeShare == 0 {
		if p.anyOld(waiting, now, p.Age()) {
			return waiting
		}
		return forced
	}
	if len(forced) == 0 {
		return p.cheap(waiting, now, cost)
	}
	// A transaction is sent anyway: what is worth its own row of it goes along, and what would be due soon.
	return pick(waiting, func(w Waiting) bool { return w.Urgent || p.old(w, now, p.Age()/2) || p.pays(w, cost) })
}

// cheap picks what may be fetched before its time: channels that are worth their own row, if they carry the transaction
// together and one of them has waited for an hour. Fetching sooner would spend the share on next to nothing.
func (p Policy) cheap(waiting []Waiting, now time.Time, cost Cost) []Waiting {
	rows := pick(waiting, func(w Waiting) bool { return p.pays(w, cost) })
	total := sum(rows)
	price := new(uint256.Int).Mul(&cost.Channel, uint256.NewInt(uint64(len(rows))))
	if !p.anyOld(rows, now, min(defaultMaxAge, p.Age())) || !p.within(price.Add(price, &cost.Batch), &total) {
		return nil
	}
	return rows
}

// pays reports whether a channel is worth its own row.
func (p Policy) pays(w Waiting, cost Cost) bool {
	return cost.known() && p.within(&cost.Channel, &w.Unsettled)
}

// within reports whether a cost is at most the share of what it brings.
func (p Policy) within(cost, value *uint256.Int) bool {
	limit, over := new(uint256.Int).MulDivOverflow(value, uint256.NewInt(uint64(p.MaxFeeShare)), uint256.NewInt(wholeShare))
	return over || !limit.Lt(cost)
}

// crumb reports whether a channel is not worth its own row.
func (p Policy) crumb(w Waiting) bool { return w.Unsettled.Lt(&p.LeastRow) }

// RowOf is what a channel must bring to be worth its row of a batch where value is the least that is worth a whole
// transaction, by the gas that a transaction and a row take.
func RowOf(value uint256.Int, batchGas, rowGas uint64) uint256.Int {
	var row uint256.Int
	row.MulDivOverflow(&value, uint256.NewInt(rowGas), uint256.NewInt(batchGas+rowGas)) // no more than value
	return row
}

// dust reports whether all of it together is not worth a transaction.
func (p Policy) dust(waiting []Waiting) bool {
	total := sum(waiting)
	return total.Lt(&p.Dust)
}

// together reports whether as much as MinValue has come together.
func (p Policy) together(waiting []Waiting) bool {
	total := sum(waiting)
	return !p.MinValue.IsZero() && !total.Lt(&p.MinValue)
}

func (p Policy) anyOld(waiting []Waiting, now time.Time, age time.Duration) bool {
	for _, w := range waiting {
		if p.old(w, now, age) {
			return true
		}
	}
	return false
}

func (p Policy) old(w Waiting, now time.Time, age time.Duration) bool {
	return now.Sub(w.Since) >= age
}

// Age is how long anything may wait.
func (p Policy) Age() time.Duration {
	if p.MaxFeeShare > 0 {
		return cmp.Or(p.MaxAge, defaultPatientAge)
	}
	return cmp.Or(p.MaxAge, defaultMaxAge)
}

// Ended reports whether a lease's end is a reason to settle its channel. With MaxFeeShare it is not: no more comes in, and
// until its payer asks for the rest of its deposit, what is vouchered loses nothing by waiting.
func (p Policy) Ended() bool { return p.MaxFeeShare == 0 }

// Check says what of the policy makes no sense.
func (p Policy) Check() error {
	switch {
	case p.Interval < 0 || p.MaxAge < 0 || p.MaxBatch < 0:
		return errors.New("settlement policy: Interval, MaxAge and MaxBatch must not be negative")
	case p.MaxBatch > mostBatch:
		return fmt.Errorf("settlement policy: MaxBatch (%d) is more than nodes take in one transaction: at most %d", p.MaxBatch, mostBatch)
	case p.MaxFeeShare > wholeShare:
		return fmt.Errorf("settlement policy: MaxFeeShare (%d) is in basis points: at most %d, which is everything", p.MaxFeeShare, wholeShare)
	case p.MaxFeeShare > 0 && p.CoinPrice.IsZero():
		return errors.New("settlement policy: MaxFeeShare needs CoinPrice: what a coin that pays for gas is worth, in base units of the token")
	}
	return nil
}

func pick(waiting []Waiting, wanted func(Waiting) bool) []Waiting {
	var picked []Waiting
	for _, w := range waiting {
		if wanted(w) {
			picked = append(picked, w)
		}
	}
	return picked
}

func sum(waiting []Waiting) (total uint256.Int) {
	for i := range waiting {
		total.Add(&total, &waiting[i].Unsettled)
	}
	return total
}
