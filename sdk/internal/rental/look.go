package rental

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
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Sight is what the chain says as of one block.
type Sight struct {
	Moment
	channel.ChainView
	There bool                 // the escrow knows the channel
	used  map[common.Hash]bool // the authorizations in the books
}

// ended reports whether an authorization can never move anything any more.
func (s Sight) ended(a *wire.Authorization) bool {
	return !s.used[a.Nonce] && s.time >= a.ValidBefore.Uint64()
}

// Look reads what became of the channel and of the authorizations for it, and
// brings the row up to it.
func (l *Deposits) Look(ctx context.Context, confirmations uint64) (Sight, error) {
	at, err := l.account.Moment(ctx, confirmations)
	if err != nil {
		return Sight{}, fmt.Errorf("channel %s: %w", l.ID, err)
	}
	s := Sight{Moment: at, used: make(map[common.Hash]bool)}
	promises := slices.Clone(l.Row.Promises)
	for i, p := range promises {
		if promises[i].Used, err = l.Wallet.Token.AuthorizationUsedAt(ctx, l.Row.Terms.Payer, p.Nonce, at.Block); err != nil {
			return s, fmt.Errorf("channel %s: asking the token what became of an authorization: %w", l.ID, err)
		}
		s.used[p.Nonce] = promises[i].Used
	}
	s.ChainView, err = l.Escrow.View(ctx, l.ID, at.Block)
	if s.There = err == nil; err != nil && !errors.Is(err, channel.ErrUnknown) {
		return s, err
	}
	l.Row.Promises = promises
	if err := l.unseen(ctx, at.time); err != nil {
		return s, err
	}
	l.Row.retire(at.time)
	if s.There {
		l.Row.deposited(&s)
	}
	return s, nil
}

// unseen has the caps go on counting what was given away and ended unused, where
// one endpoint alone says that it is.
func (l *Deposits) unseen(ctx context.Context, now uint64) error {
	for _, p := range l.Row.Promises {
		if !l.Wallet.Alone || p.Used || !p.Given || now < p.Until {
			continue
		}
		if err := l.Payer.Unseen(ctx, l.Row.Terms, p.Nonce, p.Value, time.Unix(int64(p.Until), 0)); err != nil {
			return err
		}
	}
	return nil
}

// deposited takes the chain's word for what was paid into the channel. That never
// falls but by a re-org: what was seen once counts, against the caps too, until
// as many blocks lie over it as undo no more.
func (row *Row) deposited(s *Sight) {
	block := s.Block.Uint64()
	if !s.Finalized && s.Deposit.Lt(&row.Deposit) && row.Seen != 0 && block < row.Seen+Finality {
		s.Deposit = row.Deposit
		return
	}
	if row.Deposit != s.Deposit {
		row.Deposit, row.Seen = s.Deposit, 0
	}
	row.sighted(s.Moment)
}

// sighted remembers the newest block that the chain was seen at.
func (row *Row) sighted(at Moment) {
	if block := at.Block.Uint64(); block >= row.Seen {
		row.Seen, row.SeenTime = block, int64(at.mined)
	}
}

// behind reports whether a sight is of an older block than one that the chain was seen at: by no more than a re-org undoes,
// or of no later time. Of an endpoint that lags it is no word on what came later. A block that is only numbered
// lower, as where an endpoint once claimed to be far ahead, is believed.
func (row *Row) behind(s Sight) bool {
	block := s.Block.Uint64()
	return block < row.Seen && (row.Seen <= block+Finality || int64(s.mined) <= row.SeenTime)
}

// Finality is how many blocks lie over an end before it is left alone, as for
// our own transactions.
const Finality = 32

// Over reports whether the rental has ended on the chain, and looks again while a
// re-org could undo that: what is undone is open again. An endpoint that does not
// answer changes nothing.
func (l *Channel) Over(ctx context.Context) (bool, error) {
	if l.Row.Phase != PhaseClosed {
		return l.Row.Phase == PhaseFinished, nil
	}
	return l.StillOver(ctx)
}

// StillOver is over for a rental that is over in the books, final or not.
func (l *Channel) StillOver(ctx context.Context) (bool, error) {
	now, err := l.Look(ctx, l.Wallet.Confirmations)
	switch {
	case err == nil && l.Row.behind(now):
		return true, nil
	case err == nil && !l.ended(now):
		return false, l.undone(ctx, now)
	}
	if l.Row.Phase == PhaseFinished {
		return true, nil
	}
	var deep Sight
	if err == nil {
		deep, err = l.Look(ctx, Finality+1)
		if errors.Is(err, chain.ErrNoContract) { // it is younger than that, and the rental's end with it
			return true, nil
		}
	}
	if err != nil {
		boundlog.Warn(l.Wallet.Log, "whether the end of a rental is final is not known yet", l.ID, err)
		return true, nil
	}
	if !l.ended(deep) || !deep.There && deep.time < l.Row.fallbackBy() {
		return true, nil
	}
	if err := l.Wallet.Sync(ctx, l.ID); err != nil {
		boundlog.Warn(l.Wallet.Log, "a rental is over, and what became of its transactions is not known yet", l.ID, err)
		return true, nil
	}
	return true, l.Enter(ctx, PhaseFinished)
}

// ended reports whether the chain shows the end that is in the books: the channel
// closed or, where it was never funded, not there and with nothing to come.
func (l *Channel) ended(s Sight) bool {
	return s.Finalized || !s.There && l.Row.Closed.Deposit.IsZero() && s.time >= l.Row.fundedBy()
}

// undone takes a rental up again whose end a re-org took back, or an endpoint
// made up.
func (l *Channel) undone(ctx context.Context, s Sight) error {
	l.Wallet.Log.Warn("rental is open again: the chain took its end back", "channel", l.ID, "on the chain", s.There)
	l.Row.Closed = nil
	if s.There {
		if _, err := l.Payer.Observe(ctx, l.ID, s.ChainView); err != nil {
			return err
		}
	}
	if s.There && l.Row.Checker != nil {
		return l.Enter(ctx, PhaseClosing)
	}
	return l.Enter(ctx, PhaseOpening)
}

// AwaitChain asks whether the channel is closed already, and waits out an
// endpoint that does not answer.
func (l *Channel) AwaitChain(ctx context.Context) (closed bool, err error) {
	pace := chain.Backoff{Least: l.Wallet.Poll, Most: max(l.Wallet.Poll, 15*time.Second)}
	for {
		view, err := l.SettledView(ctx)
		if err == nil || !errors.Is(err, chain.ErrUnreachable) {
			return view.Finalized, err
		}
		wait := pace.Next()
		boundlog.Warn(l.Wallet.Log, "the chain cannot be read: waiting for it", l.ID, err, "retry", wait)
		if err := chain.Pause(ctx, wait); err != nil {
			return false, err
		}
	}
}

// SettledView is the channel at the depth at which a transaction counts.
func (l *Channel) SettledView(ctx context.Context) (channel.ChainView, error) {
	head, err := l.Wallet.Backend.BlockNumber(ctx)
	if err != nil {
		return channel.ChainView{}, fmt.Errorf("channel %s: %w", l.ID, chain.Unread("the newest block", err))
	}
	depth := min(l.Wallet.Confirmations-1, head)
	return l.Escrow.View(ctx, l.ID, new(big.Int).SetUint64(head-depth))
}

// AwaitClosed believes the chain, not the provider.
func (l *Channel) AwaitClosed(ctx context.Context) error {
	_, err := l.finalView(ctx)
	if err == nil || ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("channel %s: %w: it said so, the chain does not: leave it: %w", l.ID, peer.ErrRefused, err)
}

// finalView is the channel as it ended. Endpoints have many nodes: one that is
// behind the one that was asked before is waited for, or the books would say
// what was settled before the end. One that does not answer is waited out.
func (l *Channel) finalView(ctx context.Context) (channel.ChainView, error) {
	limit := time.Now().Add(max(l.Wallet.Patience, 10*l.Wallet.Poll))
	for {
		began := time.Now()
		var view channel.ChainView
		at, err := l.account.Moment(ctx, l.Wallet.Confirmations)
		if err == nil {
			view, err = l.Escrow.View(ctx, l.ID, at.Block)
		}
		if err == nil && view.Finalized {
			l.Row.sighted(at)
			return view, nil
		}
		if errors.Is(err, chain.ErrUnreachable) {
			boundlog.Warn(l.Wallet.Log, "closing: the chain cannot be read", l.ID, err)
			limit = limit.Add(time.Since(began) + l.Wallet.Poll)
		} else if time.Now().After(limit) {
			return view, errors.Join(fmt.Errorf("channel %s is not closed on the chain", l.ID), err)
		}
		if err := chain.Pause(ctx, l.Wallet.Poll); err != nil {
			return view, err
		}
	}
}

// Ending reports how the channel ended and closes the rental.
func (l *Channel) Ending(ctx context.Context, forced bool) (Closing, error) {
	view, err := l.finalView(ctx)
	if err != nil {
		return Closing{}, err
	}
	paid, err := l.Payer.Observe(ctx, l.ID, view)
	if err != nil {
		return Closing{}, err
	}
	if err := l.awaitTold(ctx); err != nil {
		return Closing{}, err
	}
	c := Closing{
		Channel: l.ID, Deposit: view.Deposit, Owed: l.Owed(), Signed: paid.Cost(), Settled: view.Settled, Forced: forced,
	}
	c.Refunded.Sub(&view.Deposit, &view.Settled)
	c.Note = l.refundWaits(ctx)
	return c, l.finish(ctx, c)
}

// toldTries is how often the end of a rental asks what became of its transactions.
const toldTries = 10

// awaitTold has the books say which of our transactions about the channel were mined before it closed. The refund is here
// whatever became of them: what the node does not show by then is asked for again before the end counts as final.
func (l *Channel) awaitTold(ctx context.Context) error {
	for try := 1; ; try++ {
		err := l.Wallet.Sync(ctx, l.ID)
		if err == nil {
			return nil
		}
		if try == toldTries {
			boundlog.Warn(l.Wallet.Log, "closing: what became of the rental's transactions is not known yet", l.ID, err)
			return nil
		}
		l.Wallet.Log.Debug("closing: it is asked again what became of the rental's transactions", "channel", l.ID, "error", err)
		if err := chain.Pause(ctx, l.Wallet.Poll); err != nil {
			return err
		}
	}
}

// refundWaits says so if the token refused to pay the refund out, or another before it: then the escrow owes it, without a
// deadline.
func (l *Channel) refundWaits(ctx context.Context) string {
	credit, err := l.Escrow.Credit(ctx, l.Terms.Payer, l.Terms.Token, nil)
	if err != nil || credit.Amount.IsZero() {
		return ""
	}
	return fmt.Sprintf("token %s refused to pay: escrow %s owes %s %s base units of it, which anyone can have paid out to it (withdrawCreditWithAuthorization)",
		l.Terms.Token, l.Terms.Escrow, l.Terms.Payer, credit.Amount.Dec())
}
