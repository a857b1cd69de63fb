package settle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
)

const (
	defaultWatchPoll = 2 * time.Second
	// subscribedPoll is the safety net under a subscription, which can go quiet without an error.
	subscribedPoll = 10 * time.Second
	// lookTimeout is when an endpoint that does not answer is as good as down.
	lookTimeout = time.Minute
	// sweepEvery bounds how long anything that slipped through can stay unseen.
	sweepEvery = 5 * time.Minute
	// apartEvery is the same while two endpoints are over chain.FarBehind apart: one has stopped following the chain, or says that it is
	// ahead: no events say what happened between them.
	apartEvery = 10 * time.Second
	// trailLength is how many blocks are remembered: deeper re-orgs are handled too, they only lose their depth.
	trailLength = 128
	// manyBlocks is how many at once are not searched for events.
	manyBlocks = 1000
	// patience is how many looks at an endpoint that is behind what it said before pass for lag; after that it is a re-org.
	patience = 5
	// servedBlocks is how many blocks pass at most between two readings of a channel that is served.
	servedBlocks = 3
	// servedBatch bounds how many of them are read in one look; with more, each waits its turn.
	servedBatch = 1000
	// reopenable is how long after its close a channel is read again, with all others: the chain may take that back.
	reopenable = 24 * time.Hour
	// disputable is the same for one with a voucher that was not settled: it is money, and an endpoint that was wrong may be so for long.
	disputable = 30 * 24 * time.Hour
	// defaultFinality is how many blocks must deny the end of a channel before it is undone, as a Sender's Finality.
	defaultFinality = 32
)

var errLagging = errors.New("the endpoint is behind what it said before")

// A Watcher keeps a payee's channels as the chain has them. Close requests and closes count as of the newest block: what
// is metered after them might never be paid. Deposits count when they have Confirmations. What it records is always the
// contract's state, read anew, never the sum of events; so a re-org is one more reading. When it starts it reads all live
// channels before anything else, since a payer may have asked to close while nobody looked. Fields are set before first
// use.
type Watcher struct {
	Contract      chain.Contract
	Payee         *channel.Payee
	Confirmations uint64        // of a deposit; 0 and 1: the newest block counts
	Poll          time.Duration // 0: 2 s, and 10 s where the endpoint announces blocks by itself
	Timeout       time.Duration // of one look; 0: 1 min
	Finality      uint64        // blocks that no re-org undoes: for as long the end of a channel is looked at again, and denied before it is undone; 0: 32
	Store         *chain.Store  // remembers the blocks acted on, so that a re-org during a stop is seen; nil: does not

	// Served lists the channels that service is given on now. They are read every three blocks, whatever the endpoint says of
	// events: one that leaves them out must not hide a close request. With more than a thousand, a thousand at a time. It may
	// be nil.
	Served func(context.Context) ([]common.Hash, error)

	// OnChange is told of each change after it is on disk, closing channels first. It may be nil, and must not call the
	// watcher. What a crash kept from it is in the states it can read at the start.
	OnChange func(old, now channel.State)
	// OnLook is told of each look that read all it had to and recorded it. It may be nil.
	OnLook func()
	Log    *slog.Logger
	Now    func() time.Time

	mu          sync.Mutex
	trail       []chain.Block
	loaded      bool
	swept       time.Time
	older       uint64      // the newest block that both of two endpoints had at the last look
	served      uint64      // the block at which channels that are served were read last
	turn        common.Hash // the last of them
	lagging     int
	looked      atomic.Pointer[time.Time] // of the last look that succeeded
	unconfirmed map[common.Hash]bool
	ended       map[common.Hash]uint64 // channels that were just seen to end, and the block at which
	denied      map[common.Hash]uint64 // those whose end the chain does not know any more, and since which block
	doubted     sync.Map               // see Doubt
}

// Run watches until the context ends. Failures of the endpoint are logged and retried with growing, jittered pauses.
func (w *Watcher) Run(ctx context.Context) error {
	heads := &headFeed{backend: w.Contract.Backend(), log: w.log()}
	defer heads.close()
	var pace chain.Backoff
	for {
		heads.open(ctx)
		wait := cmp.Or(w.Poll, defaultWatchPoll)
		if heads.live() {
			wait = cmp.Or(w.Poll, subscribedPoll)
		}
		err := w.Check(ctx)
		if err != nil {
			wait = max(wait, pace.Next())
			w.log().Warn("watching the escrow", "err", err, "retry", wait)
			if err := chain.Pause(ctx, wait); err != nil {
				return err
			}
			continue
		}
		pace.Reset()
		if err := heads.next(ctx, wait); err != nil {
			return err
		}
	}
}

// Check looks at the chain once and records what changed.
func (w *Watcher) Check(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(w.Timeout, lookTimeout))
	defer cancel()
	if err := w.load(ctx); err != nil {
		return err
	}
	head, older, err := chain.Heads(ctx, w.Contract.Backend())
	if err != nil {
		return fmt.Errorf("reading the newest block: %w", err)
	}
	kept, reorged, err := w.follow(ctx, head)
	if err != nil {
		return err
	}
	far := head.Number.Uint64()-older.Number.Uint64() > chain.FarBehind
	ids, sweep, err := w.concerned(ctx, head, kept, reorged, far)
	if err != nil {
		return err
	}
	if err := w.read(ctx, ids, older.Number.Uint64(), w.keeper(reorged)); err != nil {
		return err
	}
	if sweep {
		w.swept = w.now()
	}
	if err := w.advance(ctx, kept, head); err != nil {
		return err
	}
	w.older = older.Number.Uint64()
	looked := w.now()
	w.looked.Store(&looked)
	if w.OnLook != nil {
		w.OnLook()
	}
	return nil
}

// Doubt has a channel read at the next look, though no event names it: who says so read what contradicts the books.
func (w *Watcher) Doubt(id common.Hash) { w.doubted.Store(id, struct{}{}) }

// Looked is when the chain was last seen, all of it to its newest block; zero if it never was. It has a reading of the
// monotonic clock: how long ago that is does not change when the wall clock is set.
func (w *Watcher) Looked() time.Time {
	if at := w.looked.Load(); at != nil {
		return *at
	}
	return time.Time{}
}

// load restores the trail of the last run.
func (w *Watcher) load(ctx context.Context) error {
	if w.loaded {
		return nil
	}
	w.unconfirmed = make(map[common.Hash]bool)
	w.ended, w.denied = make(map[common.Hash]uint64), make(map[common.Hash]uint64)
	if w.Store != nil {
		trail, err := w.Store.Trail(ctx, w.Contract.ChainID(), w.Contract.Address())
		if err != nil {
			return err
		}
		w.trail = trail
	}
	w.loaded = true
	return nil
}

// follow finds how much of the trail the chain still stands by. It reports a re-org if that is not all.
func (w *Watcher) follow(ctx context.Context, head *types.Header) ([]chain.Block, bool, error) {
	kept := w.trail
	for len(kept) > 0 {
		last := kept[len(kept)-1]
		same, err := w.stands(ctx, head, last)
		if err != nil {
			return nil, false, err
		}
		if same {
			break
		}
		kept = kept[:len(kept)-1]
	}
	w.lagging = 0
	if len(kept) == len(w.trail) {
		return kept, false, nil
	}
	newest := w.trail[len(w.trail)-1]
	w.log().Warn("re-org: reading all channels again", "from", newest.Number, "hash", newest.Hash, "records_undone", len(w.trail)-len(kept), "head", head.Number)
	return kept, true, nil
}

func (w *Watcher) stands(ctx context.Context, head *types.Header, b chain.Block) (bool, error) {
	if b.Number == head.Number.Uint64() {
		return b.Hash == head.Hash(), nil
	}
	if b.Number > head.Number.Uint64() {
		if w.lagging++; w.lagging <= patience {
			return false, fmt.Errorf("%w: at block %d, before at %d (a test chain that was started anew wants another database)", errLagging, head.Number, b.Number)
		}
		return false, nil
	}
	header, err := w.Contract.Backend().HeaderByNumber(ctx, new(big.Int).SetUint64(b.Number))
	if errors.Is(err, ethereum.NotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading block %d: %w", b.Number, err)
	}
	return header.Hash() == b.Hash, nil
}

// concerned lists the channels to read: all live ones at the start, after a re-org and from time to time, else those that
// events name and those whose deposit waits for confirmations. Blocks that one of two endpoints did not have at the last look
// are searched again: who said that it had them may have left their events out. While they are far apart all are read often.
func (w *Watcher) concerned(ctx context.Context, head *types.Header, kept []chain.Block, reorged, far bool) ([]common.Hash, bool, error) {
	every := sweepEvery
	if far {
		every = apartEvery
	}
	if reorged || len(kept) == 0 || w.swept.IsZero() || w.now().Sub(w.swept) >= every {
		ids, err := w.all(ctx)
		return ids, true, err
	}
	last, newest := kept[len(kept)-1].Number, head.Number.Uint64()
	if !far {
		last = min(last, w.older)
	}
	if last == newest {
		return nil, false, nil
	}
	set, err := w.touched(ctx, last+1, newest)
	if err != nil {
		w.log().Debug("no events; reading all channels instead", "err", err)
		ids, err := w.all(ctx)
		return ids, true, err
	}
	for id := range w.unconfirmed {
		set[id] = true
	}
	w.doubted.Range(func(id, _ any) bool {
		w.doubted.Delete(id)
		set[id.(common.Hash)] = true
		return true
	})
	for _, doubtful := range []map[common.Hash]uint64{w.ended, w.denied} {
		for id := range doubtful {
			set[id] = true
		}
	}
	if err := w.addServed(ctx, newest, set); err != nil {
		return nil, false, err
	}
	ids := make([]common.Hash, 0, len(set))
	for id := range set {
		state, err := w.Payee.State(ctx, id)
		if errors.Is(err, channel.ErrUnknown) {
			continue // somebody else's
		}
		if err != nil {
			return nil, false, err
		}
		if w.Payee.Domain.Holds(state.Terms) == nil { // not another contract's
			ids = append(ids, id)
		}
	}
	return ids, false, nil
}

// addServed adds channels that are served, if it is time to read them, those whose turn it is.
func (w *Watcher) addServed(ctx context.Context, newest uint64, set map[common.Hash]bool) error {
	if w.Served == nil || newest < w.served+servedBlocks && newest >= w.served {
		return nil
	}
	ids, err := w.Served(ctx)
	if err != nil {
		return err
	}
	slices.SortFunc(ids, func(a, b common.Hash) int { return a.Cmp(b) })
	from, found := slices.BinarySearchFunc(ids, w.turn, func(a, b common.Hash) int { return a.Cmp(b) })
	if found {
		from++
	}
	for i := range min(len(ids), servedBatch) {
		w.turn = ids[(from+i)%len(ids)]
		set[w.turn] = true
	}
	if len(ids) <= servedBatch {
		w.served = newest
	}
	return nil
}

var errManyBlocks = errors.New("too many blocks")

// touched asks for events, unless there are so many blocks that reading the channels themselves is less.
func (w *Watcher) touched(ctx context.Context, from, to uint64) (map[common.Hash]bool, error) {
	if to-from >= manyBlocks {
		return nil, errManyBlocks
	}
	return w.Contract.Touched(ctx, from, to)
}

// all lists the live channels, and those that were closed not long ago: an end is read from one block, and a re-org, or an
// endpoint that was wrong, takes it back.
func (w *Watcher) all(ctx context.Context) ([]common.Hash, error) {
	states, err := w.Payee.Channels(ctx)
	if err != nil {
		return nil, err
	}
	var ids []common.Hash
	for _, state := range states {
		since, lost := w.now().Sub(state.UpdatedAt), state.Unsettled()
		if state.Status != channel.Finalized || since < reopenable || !lost.IsZero() && since < disputable {
			ids = append(ids, state.ID)
		}
	}
	return ids, nil
}

type change struct{ old, now channel.State }

// keep records a view of a channel.
type keep func(context.Context, common.Hash, channel.ChainView) (channel.State, error)

// keeper is how views are recorded: only where there was a re-org does one look alone reopen a channel.
func (w *Watcher) keeper(reorged bool) keep {
	if reorged {
		return w.Payee.Reopen
	}
	return w.Payee.Observe
}

// denial is how a view is recorded that knows nothing of a channel's end: as ever, which keeps it, until all looks of Finality
// blocks have said so. What is behind has caught up by then. A close of ours that is in the outbox comes again: what it fetches
// is as it was signed.
func (w *Watcher) denial(ctx context.Context, id common.Hash, view chain.Confirmed, at uint64, keep keep) (keep, error) {
	if view.View.Finalized || view.Disputed {
		delete(w.denied, id)
		return keep, nil
	}
	since, known := w.denied[id]
	if !known || at < since {
		w.denied[id] = at
		return keep, nil
	}
	if at < since+w.finality() {
		return keep, nil
	}
	delete(w.denied, id)
	delete(w.ended, id)
	again, err := w.closes(ctx, id)
	if err != nil {
		return nil, err
	}
	w.log().Warn("the chain takes back the end of a channel: an endpoint was wrong, or a deep re-org undid it", "channel", id, "blocks", at-since)
	if again {
		return w.Payee.Reopen, nil
	}
	return w.Payee.Revive, nil
}

// closes reports whether a close of the channel is in the outbox that was mined, or may yet be.
func (w *Watcher) closes(ctx context.Context, id common.Hash) (bool, error) {
	if w.Store == nil {
		return false, nil
	}
	txs, err := (&chain.Sender{Store: w.Store}).Find(ctx, id, chain.Close)
	return slices.ContainsFunc(txs, func(tx chain.Tx) bool { return tx.State == chain.Pending || tx.Succeeded }), err
}

func (w *Watcher) finality() uint64 { return cmp.Or(w.Finality, defaultFinality) }

// read reads channels from the contract, records what changed, and says so. It insists on an answer for the block least or
// a later one: what an earlier one lacks would be taken out of the books, and not looked for again.
func (w *Watcher) read(ctx context.Context, ids []common.Hash, least uint64, keep keep) error {
	if len(ids) == 0 {
		return nil
	}
	var changes []change
	err := w.Contract.Record(func() error {
		views, at, err := w.Contract.Confirmed(ctx, ids, w.Confirmations)
		if err != nil {
			return err
		}
		if at < least {
			return fmt.Errorf("%w: it reads channels at block %d, and its newest is %d", errLagging, at, least)
		}
		for i, id := range ids {
			delete(w.unconfirmed, id)
			if views[i].Pending() || views[i].Disputed {
				w.unconfirmed[id] = true
			}
			changed, err := w.record(ctx, id, views[i], at, keep)
			if err != nil {
				return err
			}
			changes = append(changes, changed...)
		}
		return nil
	})
	w.tell(changes) // also what was recorded before an error: it will not be news again
	return err
}

func (w *Watcher) record(ctx context.Context, id common.Hash, read chain.Confirmed, at uint64, keep keep) ([]change, error) {
	view := read.View
	old, err := w.Payee.State(ctx, id)
	if err != nil {
		return nil, err
	}
	if ended, known := w.ended[id]; known && at >= ended+w.finality() {
		delete(w.ended, id)
	}
	if old.Status == channel.Finalized {
		if keep, err = w.denial(ctx, id, read, at, keep); err != nil {
			return nil, err
		}
	}
	if old.Status == channel.Finalized && view.Finalized {
		view.Deposit = read.Latest.Deposit // of a channel that is over nothing is promised
	}
	if sees(old, view) {
		return nil, nil
	}
	now, err := keep(ctx, id, view)
	if err != nil || view.Finalized != (now.Status == channel.Finalized) {
		return nil, err // it stays finalized, whatever a node that is behind says
	}
	if view.Finalized && old.Status != channel.Finalized {
		w.ended[id] = at
	}
	return []change{{old, now}}, nil
}

// sees reports whether the state says what the chain says.
func sees(s channel.State, v channel.ChainView) bool {
	return s.Deposit == v.Deposit && s.Settled == v.Settled && s.CloseRequestedAt == v.CloseRequestedAt &&
		(s.Status == channel.Finalized) == v.Finalized
}

// tell passes changes on, those that stop the meter first.
func (w *Watcher) tell(changes []change) {
	slices.SortStableFunc(changes, func(a, b change) int { return int(b.now.Status) - int(a.now.Status) })
	for _, c := range changes {
		w.log().Info("channel changed on the chain", "channel", c.now.ID, "status", c.now.Status.String(),
			"deposit", c.now.Deposit.Dec(), "settled", c.now.Settled.Dec(), "was", c.old.Status.String())
		if lost := c.now.Unsettled(); c.now.Status == channel.Finalized && !lost.IsZero() {
			w.log().Error("channel was closed with a voucher that was not settled: if the chain takes that back, it is settled then", "channel", c.now.ID, "lost", lost.Dec())
		}
		if w.OnChange != nil {
			w.OnChange(c.old, c.now)
		}
	}
}

// advance remembers that everything up to head was acted on.
func (w *Watcher) advance(ctx context.Context, kept []chain.Block, head *types.Header) error {
	next := chain.Block{Number: head.Number.Uint64(), Hash: head.Hash()}
	if len(kept) > 0 && kept[len(kept)-1] == next && len(kept) == len(w.trail) {
		return nil
	}
	kept = slices.Clone(kept)
	if len(kept) > 0 && kept[len(kept)-1] == next {
		kept = kept[:len(kept)-1]
	}
	kept = kept[max(0, len(kept)+1-trailLength):]
	if w.Store != nil {
		if err := w.Store.Extend(ctx, w.Contract.ChainID(), w.Contract.Address(), kept, next); err != nil {
			return err
		}
	}
	w.trail = append(kept, next)
	return nil
}

func (w *Watcher) now() time.Time {
	if w.Now != nil {
		return w.Now()
	}
	return time.Now()
}

func (w *Watcher) log() *slog.Logger {
	if w.Log != nil {
		return w.Log
	}
	return slog.New(slog.DiscardHandler)
}
