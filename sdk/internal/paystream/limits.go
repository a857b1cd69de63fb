package paystream

import (
	"context"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	"github.com/gpupay/gpupay/sdk/internal/sharedcredit"
	"github.com/gpupay/gpupay/sdk/wire"
)

// What a provider was paid, and what was deposited, counts here so long after it is known: it may have ended a request a moment before,
// and it counts a deposit when the chain has confirmed it.
const (
	receiptLate = 10 * time.Second
	depositLate = time.Minute
)

// What a request may have run for less by the renter's clock than by its provider's, beside one part in clockDrift.
const (
	clockSlack = time.Second
	clockDrift = 1000
)

// limits are where an offer lets a provider end a request, and what is known of how far from there it is.
type limits struct {
	credits *sharedcredit.Credit // of all channels with the payee
	credit  uint256.Int          // base units
	price   metering.Price
	share   metering.Share
	gpus    int
	tick    time.Duration
	most    time.Duration // that a request may run; zero: the offer names none
	heard   []balance     // since depositLate and one from before that; oldest first
}

// balance is what a provider was known to have, at a moment of the renter's clock.
type balance struct {
	at            int64
	paid, deposit uint256.Int
}

// agree has requests end at the limits of an offer.
func (q *Requests) agree(o wire.Offer, gpus int, price metering.Price, credit uint256.Int, credits *sharedcredit.Credit) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.limits.credits, q.limits.credit, q.limits.price, q.limits.gpus = credits, credit, price, gpus
	q.limits.tick, q.limits.most, q.limits.share = time.Duration(o.Tick)*time.Millisecond, o.Share.MaxTime(), metering.Share{}
	if o.Share != nil {
		q.limits.share = metering.Share{GPUs: o.Share.GPUs, Slots: o.Share.Slots}
	}
}

// hears notes what the provider has by its own word.
func (q *Requests) hears(paid, deposit uint256.Int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now, heard := q.clock.Now().Boot, q.limits.heard
	for len(heard) > 1 && heard[1].at <= now-int64(depositLate) {
		heard = heard[1:]
	}
	q.limits.heard = append(heard, balance{now, paid, deposit})
}

// before is what the provider was known to have at a moment: the first that is known, of one before that.
func (l *limits) before(at int64) (then balance) {
	for i, b := range l.heard {
		if i > 0 && b.at > at {
			break
		}
		then = b
	}
	return then
}

// used is what requests may have used that no record names, and may for two more ticks, by the renter's own measure: base units, rounded
// up. Those that were answered with an error count no longer than it may take to hear of an end. The caller holds mu.
func (q *Requests) used(now int64) (uint256.Int, error) {
	var nanos, ahead int64
	for id, own := range q.own {
		late := own.To < now-int64(receiptLate)
		if _, runs := q.running[id]; runs {
			own.To, late = now, false
		}
		if late && q.errored[id] {
			continue
		}
		if nanos += max(0, own.To-own.From); !late {
			ahead += 3 * int64(q.limits.tick)
		}
	}
	billed, _, err := q.limits.share.Bill(nanos+ahead, q.limits.share.Slots-1)
	if err != nil {
		return uint256.Int{}, err
	}
	used, err := q.limits.price.Charge(uint64(billed))
	return *used.AddUint64(&used, 1), err
}

// rented is what a lease of GPUs of its own may have used since its newest record.
func (q *Requests) rented(row rental.Row, now int64) (uint256.Int, error) {
	if row.Checker == nil {
		return q.limits.credit, nil
	}
	since := max(0, now-row.Checker.Start.Boot-row.Checker.Elapsed) + 3*int64(q.limits.tick)
	used, err := q.limits.price.Charge(uint64(q.limits.gpus) * uint64(since))
	return u256.Min(used, q.limits.credit), err
}

// Unpaid is what the channel may owe by the renter's own measure. What a lease that is over was paid counts when it is settled: less than
// its provider settles is no payment to that.
func (q *Requests) Unpaid() (debt uint256.Int, counts bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.clock.Now().Boot
	owed, row, err := q.owes(now)
	if row.Closed != nil {
		debt = u256.SaturatingSub(owedBy(row), row.Closed.Settled)
		return debt, !debt.IsZero()
	}
	paid := q.limits.before(now - int64(receiptLate)).paid
	if serves := row.Phase == rental.PhaseRunning && row.Ended == ""; err == nil && !serves {
		state, failed := q.ledger.Payer.State(context.Background(), q.ledger.ID)
		paid, err = state.Settled, failed
	}
	if err != nil {
		boundlog.Warn(q.ledger.Wallet.Log, "what a lease may owe is not known: it counts as its credit", q.ledger.ID, err)
		return q.limits.credit, true
	}
	return u256.SaturatingSub(owed, paid), true
}

// owes is what records say and what none bills yet. The records are looked at last: what one named meanwhile counts twice, and not in
// neither. The caller holds mu.
func (q *Requests) owes(now int64) (owed uint256.Int, row rental.Row, err error) {
	row = q.ledger.View().Row
	if q.limits.share.Shared() {
		if err = q.load(context.Background(), row.Books); err == nil {
			owed, err = q.used(now)
		}
	} else {
		owed, err = q.rented(row, now)
	}
	row = q.ledger.View().Row
	stated := owedBy(row)
	return *owed.Add(&owed, &stated), row, err
}

// limited reports whether an honest provider may have ended a request that breaks off now: it ran for the longest time that its offer names,
// or what the payer may owe on all of its channels takes up the credit, or what it may owe on this one the deposit. A sixteenth of the
// credit is between the two sides' measures at most.
func (q *Requests) limited(id uint64) bool {
	q.mu.Lock()
	now, own, limits := q.clock.Now().Boot, q.own[id], q.limits
	deposit := limits.before(now - int64(depositLate)).deposit
	owed, _, err := q.owes(now)
	q.mu.Unlock()
	took := time.Duration(now - own.From)
	if limits.most > 0 && took+took/clockDrift+clockSlack >= limits.most {
		return true
	}
	if err != nil || limits.credits == nil {
		return true
	}
	var between uint256.Int
	between.Rsh(&limits.credit, 4)
	unpaid := limits.credits.Unpaid()
	unpaid.Add(&unpaid, &between)
	owed.Add(&owed, &between)
	return !unpaid.Lt(&limits.credit) || !owed.Lt(&deposit)
}

// past is a channel of an earlier process, whose lease this one has not attached to yet.
type past struct{ debt uint256.Int }

func (p past) Unpaid() (uint256.Int, bool) { return p.debt, true }

// Recall counts what a channel may owe that an earlier process of this renter had: by its newest record, and by the requests that none
// names. One whose lease has GPUs for itself may have used up the credit meanwhile.
func Recall(ctx context.Context, store rental.Store, clock metering.Clock, row rental.Row, paid channel.PayerState, offer wire.SignedOffer, credits *sharedcredit.Credits) error {
	price, err := offer.Price()
	if err != nil {
		return err
	}
	credit, err := price.Charge(offer.Credit * uint64(time.Second))
	if err != nil {
		return err
	}
	owed, settled := owedBy(row), paid.Settled
	if serves := row.Phase == rental.PhaseRunning && row.Ended == ""; serves {
		settled = paid.Signed
		if offer.Share == nil {
			owed.Add(&owed, &credit)
		}
	}
	if row.Closed == nil && offer.Share != nil {
		sent, err := store.Requests(ctx, row.Terms.ID())
		if err != nil {
			return err
		}
		q := newRequests(nil, clock)
		q.agree(offer.Offer, row.GPUs, price, credit, nil)
		q.sent(sent)
		used, err := q.used(clock.Now().Boot)
		if err != nil {
			return err
		}
		owed.Add(&owed, &used)
	}
	if debt := u256.SaturatingSub(owed, settled); !debt.IsZero() {
		credits.With(row.Terms).Count(row.Terms.ID(), past{debt})
	}
	return nil
}

// owedBy is what checked records say that a channel owes.
func owedBy(row rental.Row) uint256.Int {
	if row.Checker != nil {
		return row.Checker.Owed
	}
	return row.OwedBefore
}
