package settle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/outcome"
)

// due picks what the policy wants settled now, those in flight and those kept back aside.
// What is dust is urgent no more, as of the words that were heard before it was read.
func (s *Settler) due(ctx context.Context, states []channel.State, heard uint64) ([]channel.State, error) {
	ids := make([]common.Hash, len(states))
	for i, state := range states {
		ids[i] = state.ID
	}
	since, err := s.Sender.Store.Since(ctx, s.Contract.ChainID(), s.Contract.Address(), ids, s.now())
	if err != nil {
		return nil, err
	}
	var due []channel.State
	for _, group := range s.byPurse(states) {
		waiting, byID := s.waiting(group, since)
		if s.Policy.dust(waiting) {
			s.queue.calm(waiting, heard)
		}
		s.queue.calm(pick(waiting, s.Policy.crumb), heard)
		for _, w := range s.Policy.Due(waiting, s.now(), s.cost(ctx)) {
			due = append(due, byID[w.ID])
		}
	}
	return due, nil
}

// byPurse sorts channels by purse, without those that are in flight or kept back.
func (s *Settler) byPurse(states []channel.State) map[purse][]channel.State {
	purses := make(map[purse][]channel.State)
	for _, state := range s.queue.free(states, s.now()) {
		key := purseOf(state)
		purses[key] = append(purses[key], state)
	}
	return purses
}

// waiting is a purse as the policy sees it.
func (s *Settler) waiting(group []channel.State, since map[common.Hash]time.Time) ([]Waiting, map[common.Hash]channel.State) {
	waiting, byID := make([]Waiting, len(group)), make(map[common.Hash]channel.State, len(group))
	for i, state := range group {
		closing := state.Status == channel.Closing && state.CloseRequested() // not where our own close fetches it
		waiting[i] = Waiting{ID: state.ID, Unsettled: state.Unsettled(), Since: since[state.ID], Closing: closing, Urgent: closing || s.queue.urgent(state.ID)}
		byID[state.ID] = state
	}
	return waiting, byID
}

// cost is what a settlement costs at this moment, as far as the policy wants to know. Where the endpoint does not say, it
// is unknown, and what is due whatever it costs is settled all the same.
func (s *Settler) cost(ctx context.Context) Cost {
	if s.Policy.MaxFeeShare == 0 {
		return Cost{}
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	fee, err := s.Sender.GasPrice(ctx)
	if err != nil {
		s.log().Warn("the fee is unknown: nothing is settled early", "err", err)
		return Cost{}
	}
	batch, row := s.Contract.SettlementGas()
	for _, part := range []struct {
		gas   *uint64
		bytes int
	}{{&batch, batchBytes}, {&row, rowBytes}} {
		data, err := s.Sender.DataFee(ctx, part.bytes)
		if err != nil {
			s.log().Warn("what data costs is unknown: nothing is settled early", "err", err)
			return Cost{}
		}
		if data.Sign() > 0 && fee.Sign() > 0 { // a rollup's charge, as so much more gas
			*part.gas += data.Div(data, fee).Uint64()
		}
	}
	return s.Policy.Costs(batch, row, fee)
}

// About how many bytes of calldata a settlement has, and each channel in it: a rollup charges for them beside the gas.
const (
	batchBytes = 164
	rowBytes   = 100
)

// refresh reads the channels from the contract and drops those that have nothing left to settle: somebody else may have
// settled them, and paying gas to hear that is a waste. What is dropped is released; what is returned, with an error or
// without, is the caller's to release.
func (s *Settler) refresh(ctx context.Context, states []channel.State) ([]channel.State, error) {
	ids := make([]common.Hash, len(states))
	for i, state := range states {
		ids[i] = state.ID
	}
	now, err := s.observe(ctx, ids, 0)
	if err != nil {
		return states, err
	}
	fresh := make([]channel.State, 0, len(states))
	for _, id := range ids {
		state := now[id]
		if left := state.Unsettled(); left.IsZero() || state.Status == channel.Finalized {
			continue
		}
		fresh = append(fresh, state)
	}
	s.queue.release(except(states, fresh))
	return fresh, nil
}

// observe reads channels from the contract and records what it says, of settlement, close and finality; deposits of
// channels that go on are for the watcher to confirm. It insists on a node that knows the block least, and on a reading of
// the node's newest block: what an older one lacks would be taken out of the books. What it returns counts as settled what a
// settlement of ours brought that one of two endpoints does not know yet, which the books do not; with errUnknownYet all the same.
func (s *Settler) observe(ctx context.Context, ids []common.Hash, least uint64) (map[common.Hash]channel.State, error) {
	states := make(map[common.Hash]channel.State, len(ids))
	if len(ids) == 0 {
		return states, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout) // others wait for the record meanwhile
	defer cancel()
	return states, s.Contract.Record(func() error {
		views, err := s.views(ctx, ids, least)
		if err != nil {
			return err
		}
		var late error
		for i, id := range ids {
			if least > 0 && views[i].Disputed && views[i].Known < least {
				late = fmt.Errorf("%w: what block %d settled of channel %s", errUnknownYet, least, id)
			}
			state, err := s.Payee.State(ctx, id)
			if errors.Is(err, channel.ErrUnknown) {
				continue // not ours to keep: a watchtower's
			}
			if err != nil {
				return err
			}
			now, fetched, err := s.book(ctx, state, views[i])
			if err != nil {
				return err
			}
			left := now.Unsettled()
			if left.IsZero() {
				s.queue.served(id)
			}
			if least > 0 && views[i].Disputed && !left.IsZero() && late == nil && fetched.settled.IsZero() {
				s.backOff(id) // an endpoint denies what was just settled, or invents it: to settle again would cost gas each time
			}
			states[id] = now
		}
		return late
	})
}

// views reads channels from a node that knows the block least, as of its newest block: the older of two endpoints', so that one
// that claims to be ahead holds up no settlement.
func (s *Settler) views(ctx context.Context, ids []common.Hash, least uint64) ([]chain.Confirmed, error) {
	_, newest, err := chain.Heads(ctx, s.Contract.Backend())
	if err != nil {
		return nil, fmt.Errorf("reading the newest block: %w", err)
	}
	views, head, err := s.Contract.Confirmed(ctx, ids, 1)
	if err != nil {
		return nil, err
	}
	if n := newest.Number.Uint64(); head < n {
		return nil, fmt.Errorf("%w: it reads channels at block %d, and its newest is %d", errLagging, head, n)
	}
	if head < least {
		return nil, fmt.Errorf("the endpoint is at block %d and the settlement in block %d", head, least)
	}
	return views, nil
}

// book records what the contract says of a channel, and adds for the caller what was fetched ahead of it.
func (s *Settler) book(ctx context.Context, state channel.State, view chain.Confirmed) (channel.State, ahead, error) {
	v := view.Latest
	if state.Deposit.Lt(&v.Deposit) && !v.Finalized { // of a channel that is over nothing is promised, and nobody looks again
		v.Deposit = state.Deposit
	}
	if v.Settled.Gt(&v.Deposit) {
		v.Settled = v.Deposit
	}
	now, err := s.Payee.Observe(ctx, state.ID, v)
	if err != nil {
		return now, ahead{}, err
	}
	fetched, err := s.fetched(ctx, state.ID, view)
	return fetched.count(now), fetched, err
}

// batches sorts channels into transactions: those of one purse together, contract accounts' alone, as the contract wants
// it, in the order of First.
func (s *Settler) batches(states []channel.State) [][]channel.State {
	first := s.First
	if first == nil {
		first = closingFirst
	}
	slices.SortStableFunc(states, first)
	var order []purse
	var batches [][]channel.State
	purses := make(map[purse][]channel.State)
	for _, state := range states {
		if s.Payee.Domain.Verify(state.Voucher(), state.Terms.Signer()) != nil {
			batches = append(batches, []channel.State{state})
			continue
		}
		key := purseOf(state)
		if purses[key] == nil {
			order = append(order, key)
		}
		purses[key] = append(purses[key], state)
	}
	for _, key := range order {
		for batch := range slices.Chunk(purses[key], min(cmp.Or(s.Policy.MaxBatch, DefaultMaxBatch), mostBatch)) {
			batches = append(batches, batch)
		}
	}
	return batches
}

// closingFirst puts what is closing first, and the most money before the least.
func closingFirst(a, b channel.State) int {
	x, y := a.Unsettled(), b.Unsettled()
	return cmp.Or(cmp.Compare(b.Status, a.Status), y.Cmp(&x))
}

// settle brings one batch onto the chain. What the contract refuses as a whole is halved until the channel that it
// refuses stands alone, and so is what is too much for one transaction; what there is no coin for is halved, too, so that
// what is most at risk, which stands first (batches), is settled with the coin that there is.
//
// read is when the batch's states were read, or before. sent is called when a transaction of it is in the outbox.
func (s *Settler) settle(ctx context.Context, batch []channel.State, read time.Time, sent func()) error {
	err := s.transact(ctx, batch, read, sent)
	var refused *chain.Revert
	var reverted *chain.Reverted
	poor := errors.Is(err, chain.ErrFunds)
	if err == nil || !(poor || errors.Is(err, chain.ErrTooLarge) || errors.As(err, &refused) || errors.As(err, &reverted)) {
		return err
	}
	if len(batch) == 1 {
		if poor {
			return err
		}
		if settledMeanwhile(ctx, s, batch[0].ID) {
			return nil
		}
		s.backOff(batch[0].ID)
		s.log().Error("channel cannot be settled; it is retried alone", "channel", batch[0].ID, "unsettled", amountOf(batch[0]), "err", err)
		return Unsettled(batch[0].ID, err)
	}
	half := len(batch) / 2
	if poor {
		if err := s.settle(ctx, batch[:half], read, sent); err != nil {
			return err // the rest waits for coin
		}
		return s.settle(ctx, batch[half:], read, sent)
	}
	return errors.Join(s.settle(ctx, batch[:half], read, sent), s.settle(ctx, batch[half:], read, sent))
}

// settledMeanwhile reports whether the contract paid everything while we were
// about to ask for it: a close does, and anybody may settle.
func settledMeanwhile(ctx context.Context, s *Settler, id common.Hash) bool {
	states, err := s.observe(ctx, []common.Hash{id}, 0)
	state, known := states[id]
	left := state.Unsettled()
	return err == nil && known && left.IsZero()
}

func amountOf(state channel.State) string {
	unsettled := state.Unsettled()
	return unsettled.Dec()
}

func (s *Settler) transact(ctx context.Context, batch []channel.State, read time.Time, sent func()) error {
	call, err := s.Contract.SettlementCall(ctx, batch)
	if err != nil {
		return err
	}
	fault.Point(fault.SettlementChosen)
	id, err := s.Sender.Submit(ctx, call)
	if err != nil {
		return err
	}
	sent()
	before := make(map[common.Hash]channel.State, len(batch))
	for _, state := range batch {
		before[state.ID] = state
	}
	result, err := s.await(ctx, id, call.Channels, before)
	if err != nil {
		s.expect(ctx, call.Channels) // it may be on the chain all the same
		return err
	}
	err = errors.Join(s.restart(ctx, result, before, read), s.report(ctx, result, before))
	s.Expect(batch[0].Terms) // whoever settles has it paid out when the channels are given back: a payout holds none
	return err
}

// restart has what came in since the batch was read wait from then on: it must not look as old as what is settled.
func (s *Settler) restart(ctx context.Context, o brought, before map[common.Hash]channel.State, read time.Time) error {
	var settled []common.Hash
	for id, old := range before {
		now := o.after[id]
		if was := old.Payable(); !now.Settled.Lt(&was) {
			settled = append(settled, id)
		}
	}
	return s.Sender.Store.Restart(ctx, s.Contract.ChainID(), s.Contract.Address(), settled, read)
}

// A brought is a mined transaction and what the contract says of its channels since. Where no endpoint shows its receipt, it has
// none.
type brought struct {
	*chain.Result
	after map[common.Hash]channel.State
}

// await waits for a transaction and reads its channels from a node that has its block. They are claimed meanwhile: where the
// receipt does not come, it waits until the nonce is used or the contract shows what the transaction is for, and no longer.
// before are the states that it settles; nil: it is not known what for.
func (s *Settler) await(ctx context.Context, id chain.TxID, channels []common.Hash, before map[common.Hash]channel.State) (brought, error) {
	result, err := outcome.Wait(ctx, s.Sender, id, 1, func(ctx context.Context) bool { return s.settled(ctx, channels, before) })
	var block uint64
	switch {
	case errors.Is(err, outcome.ErrUnseen):
		spend(s, id)
		result = &chain.Result{ID: id, Cost: new(big.Int)}
		s.log().Warn("the receipt of a settlement does not come: the contract says what it brought", "tx", id, "channels", len(channels))
	case err != nil:
		return brought{}, err
	default:
		block = result.Receipt.BlockNumber.Uint64()
		s.payouts.settledAt(ctx, channels, block)
	}
	pace := chain.Backoff{Least: 500 * time.Millisecond, Most: 10 * time.Second}
	for try := 0; ; try++ {
		after, err := s.observe(ctx, channels, block)
		if err == nil || errors.Is(err, errUnknownYet) && try >= knownSoon {
			fault.Point(fault.SettlementObserved)
			return brought{result, after}, nil
		}
		if try == 8 { // the next pass reads them again before it does anything
			return brought{}, fmt.Errorf("reading what transaction %s settled: %w", result.Hash, err)
		}
		if err := chain.Pause(ctx, pace.Next()); err != nil {
			return brought{}, err
		}
	}
}

// settled reports whether the contract shows of each channel what a transaction is for: as much as there was to pay, or all that
// there is now where that is not known.
func (s *Settler) settled(ctx context.Context, channels []common.Hash, before map[common.Hash]channel.State) bool {
	now, err := s.observe(ctx, channels, 0)
	if err != nil {
		s.log().Warn("whether a settlement did what it is for is not known: it is waited for", "channels", len(channels), "err", err)
	}
	if err != nil || len(now) == 0 {
		return false
	}
	for id, state := range now {
		left, old := state.Unsettled(), before[id]
		if wanted := old.Payable(); before != nil {
			left.Clear()
			if state.Settled.Lt(&wanted) {
				left = wanted
			}
		}
		if !left.IsZero() && state.Status != channel.Finalized {
			return false
		}
	}
	return true
}

// report says what a transaction brought. A row that the contract skipped though it still has money to fetch is an error
// that names it.
func (s *Settler) report(ctx context.Context, o brought, before map[common.Hash]channel.State) error {
	settlement := Settlement{Tx: o.Hash, Gas: o.Cost}
	if o.Receipt != nil {
		settlement.Skipped = s.Contract.Skipped(o.Receipt)
	}
	skipped := make(map[common.Hash]chain.SkipReason)
	for _, row := range settlement.Skipped {
		skipped[row.Channel] = row.Reason
	}
	var failed error
	for id, old := range before {
		reason, bad := skipped[id]
		now := o.after[id]
		if !now.Settled.Lt(&old.Accepted) {
			s.queue.served(id)
		}
		if !bad && now.Settled.Gt(&old.Settled) {
			gain := new(uint256.Int).Sub(&now.Settled, &old.Settled)
			settlement.Paid.Add(&settlement.Paid, gain)
			settlement.Channels = append(settlement.Channels, id)
		}
		if left := now.Unsettled(); bad && !left.IsZero() && now.Status != channel.Finalized {
			s.backOff(id)
			s.log().Error("channel was left out of a settlement; it is retried alone", "channel", id, "reason", reason, "unsettled", left.Dec(), "tx", o.Hash)
			failed = errors.Join(failed, Unsettled(id, fmt.Errorf("the contract skipped it: %s", reason)))
		}
		if was := old.Payable(); o.Receipt == nil && now.Settled.Lt(&was) && now.Status != channel.Finalized {
			s.backOff(id) // to settle it again costs gas
			failed = errors.Join(failed, Unsettled(id, fmt.Errorf("transaction %s: %w, and the contract does not show it settled", o.ID, errors.Join(outcome.ErrUnseen, s.Sender.Untold(ctx, id)))))
		}
	}
	s.log().Info("settled", "tx", o.Hash, "channels", len(settlement.Channels), "skipped", len(settlement.Skipped), "paid", settlement.Paid.Dec(), "gas_wei", settlement.Gas)
	if s.OnSettled != nil {
		s.OnSettled(settlement)
	}
	return failed
}
