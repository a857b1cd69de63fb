package tower

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/settle"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Voucher is a voucher with its channel's terms: all that it takes to
// settle it. Its signature is all that it takes to be believed.
type Voucher struct {
	wire.Terms
	Cumulative wire.Amount `json:"cumulativeAmount"`
	Signature  wire.Bytes  `json:"signature"`
}

// NewVoucher is the newest voucher of a channel.
func NewVoucher(s channel.State) Voucher {
	return Voucher{Terms: wire.NewTerms(s.Terms), Cumulative: wire.NewAmount(s.Accepted), Signature: s.Signature}
}

func (v Voucher) voucher() channel.Voucher {
	return channel.Voucher{ChannelID: v.Channel().ID(), Cumulative: v.Cumulative.Int, Signature: v.Signature}
}

// Receipt answers one voucher: accepted, replayed or stale, or why not.
type Receipt struct {
	ChannelID common.Hash   `json:"channelId"`
	Outcome   string        `json:"outcome,omitempty"`
	Problem   *wire.Problem `json:"problem,omitempty"`
}

// taker takes vouchers: those that would settle something go to disk.
type taker struct {
	*watched
	books   *books
	guard   *guard
	settler *settle.Settler
	late    *channel.Payee // takes vouchers, until the channel is final
}

// take takes vouchers, each with its own outcome or error. Those of channels
// that are new, or topped up since, share one look at the chain.
func (t *taker) take(ctx context.Context, client string, vouchers []Voucher) ([]channel.Outcome, []error) {
	outcomes, errs := make([]channel.Outcome, len(vouchers)), make([]error, len(vouchers))
	var again []int
	var unread []channel.Terms
	for i, v := range vouchers {
		outcomes[i], errs[i] = t.accept(ctx, client, v)
		if errors.Is(errs[i], channel.ErrUnknown) || errors.Is(errs[i], channel.ErrExceedsDeposit) {
			again, unread = append(again, i), append(unread, v.Channel())
		}
	}
	if len(again) == 0 {
		return outcomes, errs
	}
	if busy := t.guard.read(client); busy != nil {
		for _, i := range again {
			errs[i] = busy
		}
		return outcomes, errs
	}
	_, failed := t.books.learn(ctx, unread)
	for k, i := range again {
		if errs[i] = failed[k]; errs[i] == nil {
			errs[i] = t.guard.voucher(client, unread[k])
		}
		if errs[i] == nil {
			outcomes[i], errs[i] = t.count(ctx, vouchers[i].voucher())
		}
	}
	return outcomes, errs
}

// accept takes a voucher of a channel that is known. What costs nothing is
// checked first, and nothing is looked up for a forged one. It counts for its payee
// only where it would be kept: anybody can sign for a channel that there is not, and
// a settled voucher is public.
func (t *taker) accept(ctx context.Context, client string, v Voucher) (channel.Outcome, error) {
	terms := v.Channel()
	if err := t.serves(terms); err != nil {
		return 0, err
	}
	if err := t.late.Verify(ctx, terms, v.voucher()); err != nil {
		return 0, err
	}
	known, err := t.late.State(ctx, terms.ID())
	if err != nil {
		return 0, err
	}
	if v.Cumulative.Gt(&known.Accepted) && !v.Cumulative.Gt(&known.Deposit) {
		if err := t.guard.voucher(client, terms); err != nil {
			return 0, err
		}
	}
	return t.count(ctx, v.voucher())
}

func (t *taker) count(ctx context.Context, v channel.Voucher) (channel.Outcome, error) {
	receipt, err := t.late.Accept(ctx, v)
	if err == nil && receipt.Outcome == channel.Accepted && receipt.State.Status == channel.Closing {
		t.settler.Urgent(v.ChannelID)
	}
	return receipt.Outcome, err
}

// lateStore shows a closing channel as an open one to who changes it, so that
// vouchers count to the end: a payee must refuse what a payer signs after its
// close request, because it serves for it, but what it took before that may
// reach a tower late, and the escrow honours it until the channel is final.
type lateStore struct{ channel.Store }

func (s lateStore) Load(ctx context.Context, id common.Hash) (channel.State, error) {
	state, err := s.Store.Load(ctx, id)
	if state.Status == channel.Closing {
		state.Status = channel.Open
	}
	return state, err
}

func (s lateStore) Update(ctx context.Context, id common.Hash, change func(*channel.State) error) (channel.State, error) {
	return s.Store.Update(ctx, id, func(state *channel.State) error {
		closing := state.Status == channel.Closing
		if closing {
			state.Status = channel.Open
		}
		err := change(state)
		if closing {
			state.Status = channel.Closing
		}
		return err
	})
}

// dutyStore is the store that the settler works from: what is unsettled there is
// what the tower must settle now. That is what is closing and the payee has
// not settled in time, is worth it, and is within the budget.
type dutyStore struct {
	channel.Store
	*watched
	budget *budget
	now    atomic.Int64 // the chain's time, unix seconds, when what is due was last looked for
}

func (d *dutyStore) Unsettled(ctx context.Context) ([]channel.State, error) {
	states, err := d.Store.Unsettled(ctx)
	if err != nil {
		return nil, err
	}
	var closing []channel.State
	for _, s := range states {
		if s.Status == channel.Closing && d.serves(s.Terms) == nil && d.worth(s.Terms, s.Unsettled()) == nil {
			closing = append(closing, s)
		}
	}
	if len(closing) == 0 {
		return nil, nil
	}
	now, err := d.time(ctx)
	if err != nil {
		return nil, err
	}
	var due []channel.State
	for _, s := range closing {
		if !now.Before(time.Unix(int64(s.CloseRequestedAt), 0).Add(d.config.Patience)) {
			due = append(due, s)
		}
	}
	d.now.Store(now.Unix())
	slices.SortStableFunc(due, d.first)
	return d.budget.affordable(ctx, due)
}

// budget is what gas is spent for others, of settlements by payee and of what is relayed by payer, in the last hour.
type budget struct {
	*watched
	db     *store.DB
	sender *chain.Sender
	guard  *guard
}

// affordable drops what would exceed the budget of settlements, from the end.
func (b *budget) affordable(ctx context.Context, states []channel.State) ([]channel.State, error) {
	if len(states) == 0 || len(b.config.Payees) > 0 {
		return states, nil
	}
	spent, err := b.spent(ctx, payeeOf, chain.Settle, chain.SettleBatch)
	if err != nil {
		return nil, err
	}
	price, err := b.settlementPrice(ctx)
	if err != nil {
		return nil, err
	}
	var kept []channel.State
	for _, s := range states {
		payee := s.Terms.Payee
		err := spent.within(b.config.SettleGas, payee)
		if spent.times[s.ID] >= settlementsAnHour {
			err = fmt.Errorf("%w: channel %s was settled %d times", errBudget, s.ID, spent.times[s.ID])
		}
		if err != nil {
			if left := s.Unsettled(); b.guard.mention(payee) {
				b.config.Log.Error("vouchers are not settled", "payee", payee, "channel", s.ID, "unsettled", left.Dec(), "err", err)
			}
			continue
		}
		spent.add(payee, price) // many payees may be due at once
		kept = append(kept, s)
	}
	return kept, nil
}

const (
	// settlementGas is about what one settlement takes.
	settlementGas = 100_000
	// settlementBytes is about how much calldata it has, which a rollup charges
	// for beside the gas.
	settlementBytes = 300
	// settlementsAnHour of one channel, where its payee may be anybody: a payer
	// who pays himself must not get many settlements for the gas of one open. The
	// second is for a voucher that comes late.
	settlementsAnHour = 2
)

// settlementPrice is about what one settlement costs at the moment, in wei.
func (b *budget) settlementPrice(ctx context.Context) (*big.Int, error) {
	price, err := b.sender.GasPrice(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking for the gas price: %w", err)
	}
	data, err := b.sender.DataFee(ctx, settlementBytes)
	if err != nil {
		return nil, err
	}
	price.Mul(price, big.NewInt(settlementGas))
	return price.Add(price, data), nil
}

func payeeOf(t channel.Terms) common.Address { return t.Payee }
func payerOf(t channel.Terms) common.Address { return t.Payer }

// gasSpent is what the last hour's transactions cost, or may cost, in wei.
type gasSpent struct {
	total *big.Int
	party map[common.Address]*big.Int
	times map[common.Hash]int // transactions about a channel
}

// spent reads it from the outbox, so that a restart forgets nothing.
func (b *budget) spent(ctx context.Context, party func(channel.Terms) common.Address, kinds ...chain.Kind) (gasSpent, error) {
	sum := gasSpent{new(big.Int), make(map[common.Address]*big.Int), make(map[common.Hash]int)}
	txs, err := b.sender.Recent(ctx, time.Now().Add(-time.Hour), kinds...)
	if err != nil {
		return sum, err
	}
	for _, tx := range txs {
		states, err := b.db.States(ctx, tx.Call.Channels[:min(1, len(tx.Call.Channels))]) // a batch is of one payee
		if err != nil {
			return sum, err
		}
		who := common.Address{}
		if len(states) > 0 {
			who = party(states[0].Terms)
		}
		sum.add(who, tx.Price())
		for _, id := range tx.Call.Channels {
			sum.times[id]++
		}
	}
	return sum, nil
}

func (g gasSpent) add(who common.Address, wei *big.Int) {
	g.total.Add(g.total, wei)
	if g.party[who] == nil {
		g.party[who] = new(big.Int)
	}
	g.party[who].Add(g.party[who], wei)
}

func (g gasSpent) within(budget GasBudget, who common.Address) error {
	if g.total.Cmp(budget.Total) >= 0 {
		return fmt.Errorf("%w: %s wei of %s for everybody", errBudget, g.total, budget.Total)
	}
	if own := g.party[who]; own != nil && own.Cmp(budget.PerParty) >= 0 {
		return fmt.Errorf("%w: %s wei of %s for %s", errBudget, own, budget.PerParty, who)
	}
	return nil
}
