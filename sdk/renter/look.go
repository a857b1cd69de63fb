package renter

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/wire"
)

// moment is a block and its time, or our own clock's where that is earlier: one
// false time of an endpoint ends no authorization in the books. What is read as of it is read after its time
// is known: an authorization that ended before it, and that it does not show
// used, never will be. In the other order a deposit that arrives between the two
// looks would be taken for one that never came.
type moment struct {
	block *big.Int
	time  time.Time // by the chain, and no later than our clock says
	mined time.Time // by the chain, and no later than our clock may be off
}

// moment is the newest block that has the given number of confirmations.
func (r *Client) moment(ctx context.Context, confirmations uint64) (moment, error) {
	header, err := r.w.Backend.HeaderByNumber(ctx, nil)
	if err != nil {
		return moment{}, chain.Unread("the newest block", err)
	}
	if depth := min(confirmations-1, header.Number.Uint64()); depth > 0 {
		block := new(big.Int).SetUint64(header.Number.Uint64() - depth)
		if header, err = r.w.Backend.HeaderByNumber(ctx, block); err != nil {
			return moment{}, chain.Unread("block "+block.String(), err)
		}
	}
	now, mined := r.w.Now(), time.Unix(int64(header.Time), 0)
	return moment{block: header.Number, time: earlier(mined, now), mined: earlier(mined, now.Add(r.w.ClockOff))}, nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// sight is what the chain says as of one block.
type sight struct {
	moment
	channel.ChainView
	there bool                 // the escrow knows the channel
	used  map[common.Hash]bool // the authorizations in the books
}

// ended reports whether an authorization can never move anything any more.
func (s sight) ended(a *wire.Authorization) bool {
	return !s.used[a.Nonce] && uint64(s.time.Unix()) >= a.ValidBefore.Uint64()
}

// look reads what became of the channel and of the authorizations for it, and
// brings the row up to it.
func (l *deposits) look(ctx context.Context, confirmations uint64) (sight, error) {
	at, err := l.r.moment(ctx, confirmations)
	if err != nil {
		return sight{}, fmt.Errorf("channel %s: %w", l.id, err)
	}
	s := sight{moment: at, used: make(map[common.Hash]bool)}
	promises := slices.Clone(l.row.Promises)
	for i, p := range promises {
		if promises[i].Used, err = l.r.w.Token.AuthorizationUsedAt(ctx, l.row.Terms.Payer, p.Nonce, at.block); err != nil {
			return s, fmt.Errorf("channel %s: asking the token what became of an authorization: %w", l.id, err)
		}
		s.used[p.Nonce] = promises[i].Used
	}
	s.ChainView, err = l.escrow.View(ctx, l.id, at.block)
	if s.there = err == nil; err != nil && !errors.Is(err, channel.ErrUnknown) {
		return s, err
	}
	l.row.Promises = promises
	if err := l.unseen(ctx, uint64(at.time.Unix())); err != nil {
		return s, err
	}
	l.row.retire(uint64(at.time.Unix()))
	if s.there {
		l.row.deposited(&s)
	}
	return s, nil
}

// deposited takes the chain's word for what was paid into the channel. That never
// falls but by a re-org: what was seen once counts, against the caps too, until
// as many blocks lie over it as undo no more.
func (row *rentalRow) deposited(s *sight) {
	block := s.block.Uint64()
	if !s.Finalized && s.Deposit.Lt(&row.Deposit) && row.Seen != 0 && block < row.Seen+finality {
		s.Deposit = row.Deposit
		return
	}
	if row.Deposit != s.Deposit {
		row.Deposit, row.Seen = s.Deposit, 0
	}
	row.sighted(s.moment)
}

// sighted remembers the newest block that the chain was seen at.
func (row *rentalRow) sighted(at moment) {
	if block := at.block.Uint64(); block >= row.Seen {
		row.Seen, row.SeenTime = block, at.mined.Unix()
	}
}

// behind reports whether a sight is of an older block than one that the chain was seen at: by no more than a re-org undoes,
// or of no later time. Of an endpoint that lags it is no word on what came later. A block that is only numbered
// lower, as where an endpoint once claimed to be far ahead, is believed.
func (row *rentalRow) behind(s sight) bool {
	block := s.block.Uint64()
	return block < row.Seen && (row.Seen <= block+finality || s.mined.Unix() <= row.SeenTime)
}

// finality is how many blocks lie over an end before it is left alone, as for
// our own transactions.
const finality = 32

// over reports whether the rental has ended on the chain, and looks again while a
// re-org could undo that: what is undone is open again. An endpoint that does not
// answer changes nothing.
func (l *onChain) over(ctx context.Context) (bool, error) {
	if l.row.Phase != PhaseClosed {
		return l.row.Phase == PhaseFinished, nil
	}
	return l.stillOver(ctx)
}

// stillOver is over for a rental that is over in the books, final or not.
func (l *onChain) stillOver(ctx context.Context) (bool, error) {
	now, err := l.look(ctx, l.r.w.Confirmations)
	switch {
	case err == nil && l.row.behind(now):
		return true, nil
	case err == nil && !l.ended(now):
		return false, l.undone(ctx, now)
	}
	if l.row.Phase == PhaseFinished {
		return true, nil
	}
	var deep sight
	if err == nil {
		deep, err = l.look(ctx, finality+1)
		if errors.Is(err, chain.ErrNoContract) { // it is younger than that, and the rental's end with it
			return true, nil
		}
	}
	if err != nil {
		boundlog.Warn(l.r.w.Log, "whether the end of a rental is final is not known yet", l.id, err)
		return true, nil
	}
	if !l.ended(deep) || !deep.there && uint64(deep.time.Unix()) < l.row.fallbackBy() {
		return true, nil
	}
	if err := l.r.w.Sync(ctx, l.id); err != nil {
		boundlog.Warn(l.r.w.Log, "a rental is over, and what became of its transactions is not known yet", l.id, err)
		return true, nil
	}
	return true, l.enter(ctx, PhaseFinished)
}

// ended reports whether the chain shows the end that is in the books: the channel
// closed or, where it was never funded, not there and with nothing to come.
func (l *onChain) ended(s sight) bool {
	return s.Finalized || !s.there && l.row.Closed.Deposit.IsZero() && uint64(s.time.Unix()) >= l.row.fundedBy()
}

// undone takes a rental up again whose end a re-org took back, or an endpoint
// made up.
func (l *onChain) undone(ctx context.Context, s sight) error {
	l.r.w.Log.Warn("rental is open again: the chain took its end back", "channel", l.id, "on the chain", s.there)
	l.row.Closed = nil
	if s.there {
		if _, err := l.payer.Observe(ctx, l.id, s.ChainView); err != nil {
			return err
		}
	}
	if s.there && l.row.Checker != nil {
		return l.enter(ctx, PhaseClosing)
	}
	return l.enter(ctx, PhaseOpening)
}
