package paystream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/exactjson"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	"github.com/gpupay/gpupay/sdk/wire"
)

// pay brings the voucher up to what checked records say, and the prepayment.
// A provider that cannot be reached is told later; only what stops payments
// for good is an error. What nobody asked for waits until it makes a step that the
// provider takes.
func (l *Lease) pay(ctx context.Context) error {
	target, err := l.Target()
	if err != nil {
		return err
	}
	if l.belowMinDelta(target) {
		if !l.due() {
			return nil
		}
		target = u256.Min(l.Owed(), l.Row.Deposit) // to the base unit: nothing else is taken under a step
	}
	capped, err := l.payUpTo(ctx, target)
	// The prepayment may have to give way to a cap; what is owed may not.
	if owed := u256.Min(l.Owed(), l.Row.Deposit); capped != nil && capped.Lt(&owed) {
		return fmt.Errorf("channel %s: %w: a cap stands before %s, %s is signed for", l.ID, rental.ErrBudget, owed.Dec(), capped.Dec())
	}
	return err
}

// Target is the most that may be signed for now.
func (l *Lease) Target() (uint256.Int, error) {
	ahead, err := l.Price.Charge(uint64(l.Row.Options.Prepay))
	if err != nil {
		return ahead, err
	}
	owed := l.Owed()
	ahead.Add(&ahead, &owed) // two amounts of 96 bits
	return u256.Min(ahead, l.Row.Deposit), nil
}

// payUpTo signs for target, or for as much of it as the caps allow (capped,
// then), and tells the provider. It never signs for less than before. A step as
// small as it may be is signed: what is owed at an end, or when the provider asks,
// is paid whatever the least step is, which binds only who pays unasked (see pay).
func (l *Lease) payUpTo(ctx context.Context, target uint256.Int) (capped *uint256.Int, err error) {
	paid, err := l.Payer.State(ctx, l.ID)
	if err != nil {
		return nil, err
	}
	if target.Lt(&paid.Signed) {
		target = paid.Signed
	}
	if offered := l.offered(); !offered.Lt(&target) {
		return nil, nil
	}
	voucher, err := l.Payer.Pay(ctx, l.ID, target)
	var cap *channel.CapError
	if errors.As(err, &cap) {
		target = cappedAt(cap, paid.Cost(), target)
		capped = &target
		voucher, err = l.Payer.Pay(ctx, l.ID, target)
	}
	if errors.Is(err, channel.ErrClosing) {
		return nil, l.PaidNoMore()
	}
	if err != nil {
		return nil, fmt.Errorf("channel %s: paying %s: %w", l.ID, target.Dec(), err)
	}
	if l.offered() != voucher.Cumulative {
		l.Deliver(ctx, voucher)
	}
	l.Show(ctx)
	return capped, nil
}

// belowMinDelta reports a step that the provider would refuse, or none at all. It
// takes a smaller one that pays exactly what is charged.
func (l *Lease) belowMinDelta(target uint256.Int) bool {
	offered := l.offered()
	if !offered.Lt(&target) {
		return true
	}
	var step uint256.Int
	step.Sub(&target, &offered)
	return step.Lt(&l.Row.MinDelta)
}

// due reports whether the provider asked for what it has not been offered yet. A
// voucher that came after the next record was charged pays no more exactly, and is
// refused: so it is due with each record, until the provider has it.
func (l *Lease) due() bool {
	offered := l.offered()
	return offered.Lt(&l.asked)
}

// offered is the newest voucher that the provider has, or that is on its way.
func (l *Lease) offered() uint256.Int {
	if l.sent.Gt(&l.delivered) {
		return l.sent
	}
	return l.delivered
}

// cappedAt is the most that a cap leaves of the way from what counts in it to target.
func cappedAt(cap *channel.CapError, cost, target uint256.Int) uint256.Int {
	var over uint256.Int
	over.Sub(&cap.Wanted, &cap.Limit) // a cap is only met from below
	var growth uint256.Int
	if growth.Sub(&target, &cost); growth.Lt(&over) {
		return cost
	}
	growth.Sub(&growth, &over)
	growth.Add(&growth, &cost)
	return growth
}

// Deliver hands a voucher to the provider. It is on disk: if the provider does
// not take it now, it gets it, or a later one, the next time.
func (l *Lease) Deliver(ctx context.Context, v channel.Voucher) {
	if v.Cumulative.Gt(&l.counted) { // one that is sent again explains no record
		l.counted = v.Cumulative
		l.Row.Vouchers++ // on disk with the next record
	}
	if l.Feed.TakesVouchers() {
		l.stream(ctx, v)
		return
	}
	amount := wire.NewAmount(v.Cumulative)
	_, _, err := l.post(ctx, wire.Payload{
		Action: wire.ActionVoucher, ChannelID: l.ID, CumulativeAmount: &amount, Signature: v.Signature,
	}, "", peer.AnswerTimeout)
	if err != nil {
		boundlog.Warn(l.Wallet.Log, "provider did not take a voucher: it is offered again", l.ID, err, "cumulative", v.Cumulative.Dec())
		return
	}
	l.has(v.Cumulative)
}

// stream sends a voucher through the lease's stream and does not wait for the
// receipt. A stream that does not take it is attached to again.
func (l *Lease) stream(ctx context.Context, v channel.Voucher) {
	if err := l.Feed.Pay(ctx, v); err != nil {
		boundlog.Warn(l.Wallet.Log, "stream did not take a voucher: it is offered again", l.ID, err, "cumulative", v.Cumulative.Dec())
		l.Feed.Cancel()
		return
	}
	if !l.sent.Gt(&l.delivered) {
		l.sentAt = l.awake.Now() // of the oldest that waits for its receipt
	}
	l.sent = v.Cumulative
}

// accepted is the provider's receipt for what was sent through the stream.
func (l *Lease) accepted(ctx context.Context, message []byte) error {
	amount, err := wire.ParseReceiptMessage(message)
	if err != nil {
		return l.Dispute(ctx, fmt.Errorf("%w: receipt: %w", peer.ErrProtocol, err), message)
	}
	if amount.Gt(&l.sent) || !l.delivered.Lt(&amount) {
		return nil // of what we showed when we attached, or of nothing: no voucher depends on it
	}
	l.sentAt = l.awake.Now()
	l.has(amount)
	return nil
}

// has notes that the provider has a voucher, on disk by its word.
func (l *Lease) has(cumulative uint256.Int) {
	fault.Point(fault.VoucherDelivered)
	l.delivered = cumulative
	l.Requests.hears(cumulative, l.Row.Deposit)
	l.Wallet.Log.Debug("paid", "channel", l.ID, "cumulative", cumulative.Dec())
}

// notTaken is a problem with what was sent through the stream: it is offered
// again with the next payment.
func (l *Lease) notTaken(document []byte) {
	var problem wire.Problem
	if err := exactjson.Unmarshal(document, &problem); err != nil {
		problem = wire.Problem{Title: "a problem that does not parse"}
	}
	problem = problem.Printable()
	boundlog.Warn(l.Wallet.Log, "provider did not take a voucher: it is offered again", l.ID, &problem, "cumulative", l.sent.Dec())
	l.sent = uint256.Int{}
}

// unanswered reports a voucher that the stream took and nobody acknowledged.
func (l *Lease) unanswered() bool {
	return l.sent.Gt(&l.delivered) && l.awake.Since(l.sentAt) > peer.AnswerTimeout
}

// urgent reports whether half of the provider's credit is used, or it asked for a
// voucher: waiting for the next payment could suspend the lease.
func (l *Lease) urgent() bool {
	if l.due() {
		return true
	}
	owed := l.Owed()
	if !l.delivered.Lt(&owed) {
		return false
	}
	var open, half uint256.Int
	open.Sub(&owed, &l.delivered)
	half.Rsh(&l.credit, 1)
	return !open.Lt(&half)
}

// needed is the provider asking for a voucher. It gets what checked records
// explain. If it asks for more than the deposit, it asks for a top-up, and that
// may be ahead of the records by the credit.
func (l *Lease) needed(ctx context.Context, document []byte) error {
	var n wire.NeedVoucher
	if err := exactjson.Unmarshal(document, &n); err != nil || n.ChannelID != l.ID {
		return l.Dispute(ctx, fmt.Errorf("%w: a demand for another channel or none (%v)", peer.ErrProtocol, err), document)
	}
	explained, err := l.Target()
	if err != nil {
		return err
	}
	if n.RequiredCumulative.Gt(&l.Row.Deposit) {
		owed := l.Owed()
		explained.Add(&owed, &l.credit)
	}
	if n.RequiredCumulative.Gt(&explained) {
		since := l.Demand.since
		if since.IsZero() {
			since = l.awake.Now()
		}
		l.Demand = Demand{required: n.RequiredCumulative.Int, explained: explained, since: since, document: document}
	} else {
		l.Demand = Demand{}
	}
	l.asked = u256.Max(l.asked, u256.Min(n.RequiredCumulative.Int, l.Owed()))
	if err := l.pay(ctx); err != nil {
		return err
	}
	return l.Budget(ctx)
}

// topUpLead is how much GPU time of every device the deposit still covers when a
// top-up is begun, at most: it has to be mined before the rest is used up.
const topUpLead = time.Minute

// Budget makes room for what comes, or says in time that there is none: while
// everything that was used can still be paid. What is owed decides, and nothing
// that the provider alone says.
func (l *Lease) Budget(ctx context.Context) error {
	l.clearDemand()
	room, err := l.reserve()
	if err != nil {
		return err
	}
	lead, err := l.Price.Charge(uint64(l.Row.GPUs) * uint64(topUpLead))
	if err != nil {
		return err
	}
	lead = u256.Min(lead, l.credit)
	need := l.Owed()
	need.Add(&need, &room)
	var low uint256.Int
	low.Add(&need, &lead)
	if low.Gt(&l.Row.Deposit) {
		l.recount(ctx)
	}
	step := l.Step()
	if low.Gt(&l.Row.Deposit) && (!step.IsZero() || l.Row.TopUp != nil) {
		err := l.TopUp(ctx)
		if l.Row.Phase == rental.PhaseDisputed { // it was caught meanwhile
			return err
		}
		if err != nil {
			boundlog.Warn(l.Wallet.Log, "top-up failed: it is tried again", l.ID, err)
		}
	}
	if need.Gt(&l.Row.Deposit) && !l.MayTopUp() {
		return fmt.Errorf("channel %s: %w: %s of %s are owed%s: close now, and all is paid",
			l.ID, rental.ErrBudget, l.Wallet.Format(l.Owed()), l.Wallet.Format(l.Row.Deposit), l.WhyNoTopUp())
	}
	return nil
}

// recount looks at the chain before the caps end a rental: an authorization that
// has moved its money counts beside the deposit until a look has seen that, and
// the one at the start may have come before its confirmations.
func (l *Lease) recount(ctx context.Context) {
	promised := l.Row.Outstanding()
	if promised.IsZero() || l.Row.TopUp != nil || l.Row.Options.TopUp == "" || time.Since(l.looked) < l.Wallet.Poll {
		return
	}
	began := l.awake.Now()
	if _, err := l.Look(ctx, l.Wallet.Confirmations); err != nil {
		boundlog.Warn(l.Wallet.Log, "what became of a deposit's authorization is not known yet", l.ID, err)
	}
	l.looked = time.Now()
	l.listened = l.listened.Add(l.awake.Since(began)) // our own doing took the time, not the provider's silence
}

// clearDemand drops a demand that records have come to explain.
func (l *Lease) clearDemand() {
	if target, err := l.Target(); err == nil && !l.Demand.since.IsZero() && !l.Demand.required.Gt(&target) {
		l.Demand = Demand{}
	}
}

// reserve is what may be used between two looks at the records, and while the
// lease is given back.
func (l *Lease) reserve() (uint256.Int, error) {
	perGPU := 2*time.Duration(l.Offer.RecordEvery+l.Offer.Tick)*time.Millisecond + time.Second
	return l.Price.Charge(uint64(l.Row.GPUs) * uint64(perGPU))
}
