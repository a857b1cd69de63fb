package x402server

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// Refundable is what a refund may move: what is asked for, and no more than the
// channel holds beyond what is claimed and what will be.
func Refundable(s channel.State, asked *wire.Amount) (uint256.Int, error) {
	taken := s.Payable()
	if s.Settled.Gt(&taken) {
		taken = s.Settled
	}
	var free uint256.Int
	if s.Deposit.Gt(&taken) {
		free.Sub(&s.Deposit, &taken)
	}
	if free.IsZero() {
		return free, fmt.Errorf("%w: channel %s holds %s, of which %s are used", x402.CodeRefundNoBalance, s.ID, s.Deposit.Dec(), taken.Dec())
	}
	if asked != nil && asked.Lt(&free) {
		return asked.Int, nil
	}
	return free, nil
}

// WorthRefunding refuses a part that is not worth a transaction. The whole is given back however little it is.
func (a *Accounts) WorthRefunding(s channel.State, asked *wire.Amount) error {
	if asked == nil || !asked.Lt(&a.LeastRefund) {
		return nil
	}
	if all, err := Refundable(s, nil); err != nil || !asked.Lt(&all) {
		return err
	}
	return fmt.Errorf("%w: a refund of %s, the least part is %s: ask for more, or for all", x402.CodeRefundAmountInvalid, asked.Dec(), a.LeastRefund.Dec())
}

// Unrefunded is a channel from which no refund takes anything any more. One that is in flight may take the deposit in
// the next block, whether or not its request was given up, and whichever gateway or key sent it: nothing is served
// meanwhile, nor while a re-org has undone it. Of one that was mined the channel is read from the chain, as the watcher
// may come to it later: each time until the refund is final, and then once at each gateway. So it is of one of ours whose receipt no
// endpoint shows and whose nonce is used.
func (a *Accounts) Unrefunded(ctx context.Context, tab Account) (Account, error) {
	refunds, err := a.Sender.Find(ctx, tab.ID, chain.Refund)
	if err != nil {
		return tab, err
	}
	var unread []common.Hash
	unseen := false
	for i, tx := range refunds {
		seen, over, ours := tx.BlockHash, true, tx.State == chain.Pending && a.Sender.InForce(tx)
		if tx.State == chain.Pending {
			seen = tx.Attempts[0].Signed.Hash()
		}
		if tx.State != chain.Mined && !ours && a.Looked.Has(seen) {
			continue
		}
		switch tx.State {
		case chain.Pending:
			over, err = a.overtaken(ctx, tx, refunds[i+1:])
		case chain.Mined:
			over, err = a.Sender.Stands(ctx, tx)
		}
		if err != nil || !over {
			return tab, cmp.Or(err, fmt.Errorf("channel %s: %w", tab.ID, ErrRefunding))
		}
		if unseen = unseen || ours; !ours {
			unread = append(unread, seen)
		}
	}
	if len(unread) == 0 && !unseen {
		return tab, nil
	}
	s, _, err := a.Confirmed(ctx, tab.Terms)
	if err != nil {
		return tab, fmt.Errorf("channel %s: nothing is served after a refund before it was read from the chain: %w", tab.ID, err)
	}
	for _, block := range unread {
		a.Looked.Add(block)
	}
	return a.Account(ctx, s)
}

// overtaken reports whether a refund that the outbox has in flight takes nothing any more: it was mined or never will be where its
// sender has used its nonce. One that another key sent is in flight there for ever, as nobody looks after it; it is over, too, where a
// later refund was mined, since what it carries is signed for the channel's next one.
func (a *Accounts) overtaken(ctx context.Context, tx chain.Tx, later []chain.Tx) (bool, error) {
	if !a.Sender.InForce(tx) && slices.ContainsFunc(later, func(o chain.Tx) bool { return o.Succeeded }) {
		return true, nil
	}
	return chain.Passed(ctx, a.Contract.Backend(), tx, a.Confirmations)
}
