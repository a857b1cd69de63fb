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
func (t *Tower) first(a, b channel.State) int {
	now := time.Unix(t.now.Load(), 0)
	worthA, worthB := t.weight(a.Terms, a.Unsettled()), t.weight(b.Terms, b.Unsettled())
	return cmp.Or(cmp.Compare(t.due(a).Sub(now)/planned, t.due(b).Sub(now)/planned), worthB.Cmp(&worthA))
}

// weight is an amount in millionths of what is worth gas in its token: those of several
// tokens compare.
func (t *Tower) weight(terms channel.Terms, amount uint256.Int) uint256.Int {
	least := t.least[terms.Token]
	if least.IsZero() {
		least.SetOne()
	}
	amount.Mul(&amount, uint256.NewInt(1_000_000)) // 96 bits, and 20
	return *amount.Div(&amount, &least)
}

// largestFirst puts the payers first who get most back.
func (t *Tower) largestFirst(ctx context.Context, requests []wire.LeaveRequest) {
	weights := make(map[wire.Terms]uint256.Int, len(requests))
	for _, q := range requests {
		if s, err := t.payee.State(ctx, q.Channel().ID()); err == nil {
			weights[q.Terms] = t.weight(s.Terms, refund(s))
		}
	}
	slices.SortStableFunc(requests, func(a, b wire.LeaveRequest) int {
		first, second := weights[a.Terms], weights[b.Terms]
		return second.Cmp(&first)
	})
}
