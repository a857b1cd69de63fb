package renter

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
	"github.com/gpupay/gpupay/sdk/wire"
)

// payments follows the lease's stream, signs vouchers for the records that hold, and tops up while the caps allow it.
type payments struct {
	leaseStream
	sentAt   time.Time     // by awake: of the oldest voucher in the stream that waits for its receipt
	topped   time.Time     // the newest try to top up
	aside    bool          // something is done beside the stream
	followed time.Duration // by awake: how long, in all
	looked   time.Time     // the newest look of budget at the chain
}

// demand is a provider's wish for more than its records explain. It is not
// paid; if it stays, it is a dispute.
type demand struct {
	required  uint256.Int
	explained uint256.Int
	since     time.Time // by the rental's awake; zero: there is none
	document  []byte
}

// pay brings the voucher up to what checked records say, and the prepayment.
// A provider that cannot be reached is told later; only what stops payments
// for good is an error.
func (l *payments) pay(ctx context.Context) error {
	target, err := l.target()
	if err != nil {
		return err
	}
	capped, err := l.payUpTo(ctx, target)
	// The prepayment may have to give way to a cap; what is owed may not.
	if owed := u256.Min(l.owed(), l.row.Deposit); capped != nil && capped.Lt(&owed) {
		return fmt.Errorf("channel %s: %w: a cap stands before %s, %s is signed for", l.id, ErrBudget, owed.Dec(), capped.Dec())
	}
	return err
}

// target is the most that may be signed for now.
func (l *payments) target() (uint256.Int, error) {
	ahead, err := l.price.Charge(uint64(l.row.Options.Prepay))
	if err != nil {
		return ahead, err
	}
	owed := l.owed()
	ahead.Add(&ahead, &owed) // two amounts of 96 bits
	return u256.Min(ahead, l.row.Deposit), nil
}

// payUpTo signs for target, or for as much of it as the caps allow (capped,
// then), and tells the provider. It never signs for less than before.
func (l *payments) payUpTo(ctx context.Context, target uint256.Int) (capped *uint256.Int, err error) {
	paid, err := l.payer.State(ctx, l.id)
	if err != nil {
		return nil, err
	}
	if target.Lt(&paid.Signed) {
		target = paid.Signed
	}
	if l.belowMinDelta(target) {
		return nil, nil
	}
	voucher, err := l.payer.Pay(ctx, l.id, target)
	var cap *channel.CapError
	if errors.As(err, &cap) {
		target = cappedAt(cap, paid.Cost(), target)
		capped = &target
		voucher, err = l.payer.Pay(ctx, l.id, target)
	}
	if errors.Is(err, channel.ErrClosing) {
		return nil, l.paidNoMore()
	}
	if err != nil {
		return nil, fmt.Errorf("channel %s: paying %s: %w", l.id, target.Dec(), err)
	}
	if l.offered() != voucher.Cumulative {
		l.deliver(ctx, voucher)
	}
	l.show(ctx)
	return capped, nil
}

func (l *ledger) paidNoMore() error {
	return fmt.Errorf("channel %s: nothing is paid after a leave was signed or a close requested: leave it: %w", l.id, channel.ErrClosing)
}

// belowMinDelta reports a step that the provider would refuse, or none at all.
func (l *payments) belowMinDelta(target uint256.Int) bool {
	offered := l.offered()
	if !offered.Lt(&target) {
		return true
	}
	var step uint256.Int
	step.Sub(&target, &offered)
	return step.Lt(&l.row.MinDelta)
}

// offered is the newest voucher that the provider has, or that is on its way.
func (l *payments) offered() uint256.Int {
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

// deliver hands a voucher to the provider. It is on disk: if the provider does
// not take it now, it gets it, or a later one, the next time.
func (l *payments) deliver(ctx context.Context, v channel.Voucher) {
	if v.Cumulative.Gt(&l.counted) { // one that is sent again explains no record
		l.counted = v.Cumulative
		l.row.Vouchers++ // on disk with the next record
	}
	if l.feed.TakesVouchers() {
		l.stream(ctx, v)
		return
	}
	amount := wire.NewAmount(v.Cumulative)
	_, _, err := l.post(ctx, wire.Payload{
		Action: wire.ActionVoucher, ChannelID: l.id, CumulativeAmount: &amount, Signature: v.Signature,
	}, "", peer.AnswerTimeout)
	if err != nil {
		boundlog.Warn(l.r.w.Log, "provider did not take a voucher: it is offered again", l.id, err, "cumulative", v.Cumulative.Dec())
		return
	}
	l.has(v.Cumulative)
}

// stream sends a voucher through the lease's stream and does not wait for the
// receipt. A stream that does not take it is attached to again.
func (l *payments) stream(ctx context.Context, v channel.Voucher) {
	if err := l.feed.Pay(ctx, v); err != nil {
		boundlog.Warn(l.r.w.Log, "stream did not take a voucher: it is offered again", l.id, err, "cumulative", v.Cumulative.Dec())
		l.feed.Cancel()
		return
	}
	if !l.sent.Gt(&l.delivered) {
		l.sentAt = l.awake.Now() // of the oldest that waits for its receipt
	}
	l.sent = v.Cumulative
}

// accepted is the provider's receipt for what was sent through the stream.
func (l *payments) accepted(ctx context.Context, message []byte) error {
	amount, err := wire.ParseReceiptMessage(message)
	if err != nil {
		return l.dispute(ctx, fmt.Errorf("%w: receipt: %w", peer.ErrProtocol, err), message)
	}
	if amount.Gt(&l.sent) || !l.delivered.Lt(&amount) {
		return nil // of what we showed when we attached, or of nothing: no voucher depends on it
	}
	l.sentAt = l.awake.Now()
	l.has(amount)
	return nil
}

// has notes that the provider has a voucher, on disk by its word.
func (l *payments) has(cumulative uint256.Int) {
	fault.Point(fault.VoucherDelivered)
	l.delivered = cumulative
	l.r.w.Log.Debug("paid", "channel", l.id, "cumulative", cumulative.Dec())
}

// notTaken is a problem with what was sent through the stream: it is offered
// again with the next payment.
func (l *payments) notTaken(document []byte) {
	var problem wire.Problem
	if err := exactjson.Unmarshal(document, &problem); err != nil {
		problem = wire.Problem{Title: "a problem that does not parse"}
	}
	problem = problem.Printable()
	boundlog.Warn(l.r.w.Log, "provider did not take a voucher: it is offered again", l.id, &problem, "cumulative", l.sent.Dec())
	l.sent = uint256.Int{}
}

// unanswered reports a voucher that the stream took and nobody acknowledged.
func (l *payments) unanswered() bool {
	return l.sent.Gt(&l.delivered) && l.awake.Since(l.sentAt) > peer.AnswerTimeout
}

// urgent reports whether half of the provider's credit is used: waiting for the
// next payment could suspend the lease.
func (l *payments) urgent() bool {
	owed := l.owed()
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
func (l *payments) needed(ctx context.Context, document []byte) error {
	var n wire.NeedVoucher
	if err := exactjson.Unmarshal(document, &n); err != nil || n.ChannelID != l.id {
		return l.dispute(ctx, fmt.Errorf("%w: a demand for another channel or none (%v)", peer.ErrProtocol, err), document)
	}
	explained, err := l.target()
	if err != nil {
		return err
	}
	if n.RequiredCumulative.Gt(&l.row.Deposit) {
		owed := l.owed()
		explained.Add(&owed, &l.credit)
	}
	if n.RequiredCumulative.Gt(&explained) {
		l.demanded(n.RequiredCumulative.Int, explained, document)
	} else {
		l.demand = demand{}
	}
	if err := l.pay(ctx); err != nil {
		return err
	}
	return l.budget(ctx)
}

func (l *payments) demanded(required, explained uint256.Int, document []byte) {
	since := l.demand.since
	if since.IsZero() {
		since = l.awake.Now()
	}
	l.demand = demand{required: required, explained: explained, since: since, document: document}
}
