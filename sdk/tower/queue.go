package tower

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/wire"
)

// planned is how far ahead the order of settlements looks: two of a budget's hours, so
// that what is worth most of all that ends within them is settled first whatever was
// spent before they began.
const planned = 2 * time.Hour

// first puts first what must be settled first: what ends within the next two hours, then
// within the two after them and so on; and of these what brings most for the gas, which
// is the same for each. So a stranger's small channels take no budget from a larger
// one, whatever their ids are and whoever asked to close first. The settler sends in
// this order too: where there is no coin for all, it goes to what is most at risk.
func (d *dutyStore) first(a, b channel.State) int {
	now := time.Unix(d.now.Load(), 0)
	worthA, worthB := d.weight(a.Terms, a.Unsettled()), d.weight(b.Terms, b.Unsettled())
	return cmp.Or(cmp.Compare(d.due(a).Sub(now)/planned, d.due(b).Sub(now)/planned), worthB.Cmp(&worthA))
}

// largestFirst puts the payers first who get most back.
func (r *relay) largestFirst(ctx context.Context, requests []wire.LeaveRequest) {
	weights := make(map[wire.Terms]uint256.Int, len(requests))
	for _, q := range requests {
		if s, err := r.payee.State(ctx, q.Channel().ID()); err == nil {
			weights[q.Terms] = r.weight(s.Terms, refund(s))
		}
	}
	slices.SortStableFunc(requests, func(a, b wire.LeaveRequest) int {
		first, second := weights[a.Terms], weights[b.Terms]
		return second.Cmp(&first)
	})
}
