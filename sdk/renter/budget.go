package renter

import (
	"context"
	"fmt"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
)

// topUpLead is how much GPU time of every device the deposit still covers when a
// top-up is begun, at most: it has to be mined before the rest is used up.
const topUpLead = time.Minute

// budget makes room for what comes, or says in time that there is none: while
// everything that was used can still be paid. What is owed decides, and nothing
// that the provider alone says.
func (l *payments) budget(ctx context.Context) error {
	l.clearDemand()
	room, err := l.reserve()
	if err != nil {
		return err
	}
	lead, err := l.price.Charge(uint64(l.row.GPUs) * uint64(topUpLead))
	if err != nil {
		return err
	}
	lead = u256.Min(lead, l.credit)
	need := l.owed()
	need.Add(&need, &room)
	var low uint256.Int
	low.Add(&need, &lead)
	if low.Gt(&l.row.Deposit) {
		l.recount(ctx)
	}
	step := l.step()
	if low.Gt(&l.row.Deposit) && (!step.IsZero() || l.row.TopUp != nil) {
		err := l.topUp(ctx)
		if l.row.Phase == PhaseDisputed { // it was caught meanwhile
			return err
		}
		if err != nil {
			boundlog.Warn(l.r.w.Log, "top-up failed: it is tried again", l.id, err)
		}
	}
	if need.Gt(&l.row.Deposit) && !l.mayTopUp() {
		return fmt.Errorf("channel %s: %w: %s of %s are owed%s: close now, and all is paid",
			l.id, ErrBudget, l.r.w.Format(l.owed()), l.r.w.Format(l.row.Deposit), l.whyNoTopUp())
	}
	return nil
}

// recount looks at the chain before the caps end a rental: an authorization that
// has moved its money counts beside the deposit until a look has seen that, and
// the one at the start may have come before its confirmations.
func (l *payments) recount(ctx context.Context) {
	promised := l.row.outstanding()
	if promised.IsZero() || l.row.TopUp != nil || l.row.Options.TopUp == "" || time.Since(l.looked) < l.r.w.Poll {
		return
	}
	began := l.awake.Now()
	if _, err := l.look(ctx, l.r.w.Confirmations); err != nil {
		boundlog.Warn(l.r.w.Log, "what became of a deposit's authorization is not known yet", l.id, err)
	}
	l.looked = time.Now()
	l.listened = l.listened.Add(l.awake.Since(began)) // our own doing took the time, not the provider's silence
}

// clearDemand drops a demand that records have come to explain.
func (l *payments) clearDemand() {
	if target, err := l.target(); err == nil && !l.demand.since.IsZero() && !l.demand.required.Gt(&target) {
		l.demand = demand{}
	}
}

// reserve is what may be used between two looks at the records, and while the
// lease is given back.
func (l *payments) reserve() (uint256.Int, error) {
	perGPU := 2*time.Duration(l.offer.RecordEvery+l.offer.Tick)*time.Millisecond + time.Second
	return l.price.Charge(uint64(l.row.GPUs) * uint64(perGPU))
}
