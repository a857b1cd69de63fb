package sdk

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
)

// startTimeout bounds the look at all channels before the first request.
const startTimeout = time.Minute

// catchUp compares the channels with the chain before anything is served from
// them. Where it has settled more than this database knows of, the database is
// from before that, and what was paid for was served: it is charged when that has stayed so (unseen), and nothing is begun
// before. Its voucher is public and buys nothing any more.
func catchUp(ctx context.Context, p *Provider) error {
	states, err := p.payee.Channels(ctx, channel.Open, channel.Closing)
	if err != nil || len(states) == 0 {
		return err
	}
	ids := make([]common.Hash, len(states))
	for i, s := range states {
		ids[i] = s.ID
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return p.escrow.Record(func() error {
		views, _, err := p.escrow.Confirmed(ctx, ids, p.config.Confirmations)
		if err != nil {
			return fmt.Errorf("what the chain says of %d channels: %w", len(ids), err)
		}
		for i, s := range states {
			err = errors.Join(err, catchUpOne(ctx, p, s, views[i].View))
		}
		return err
	})
}

// catchUpOne also keeps what else changed, where nobody else may be about to do
// that and to act on it.
func catchUpOne(ctx context.Context, p *Provider, s channel.State, view channel.ChainView) (err error) {
	if s.Settled = view.Settled; s.Behind() {
		p.unseen.note(s)
	}
	if p.replicas == nil {
		_, err = p.payee.Observe(ctx, s.ID, view)
	}
	return err
}

// unseen are the channels of which the chain says that more is settled than these books know. What was settled was served, and is
// charged; but a charge stands for ever, and an endpoint that is wrong for a moment must not have a payer charged what it did not
// use. So it is charged when the chain has said so for Finality blocks, and forgotten when it says otherwise. Until then nothing
// is begun on the channel, and no voucher taken.
type unseen struct {
	p  *Provider
	mu sync.Mutex
	at map[common.Hash]sighting
}

// sighting is what the chain said of a channel since a block.
type sighting struct {
	since   uint64      // the block; 0: it is to be read yet
	settled uint256.Int // the least since then
}

// unknown reports whether more is settled than is known here. What x402 claims is charged before.
func unknown(s channel.State) bool {
	return s.Behind() || s.Terms.Scheme == channel.BatchSettlement && s.Settled.Gt(&s.Spent)
}

// note has a channel looked at until it is known whether what is settled of it stays so.
func (u *unseen) note(s channel.State) {
	u.mu.Lock()
	_, noted := u.at[s.ID]
	if !noted {
		u.at[s.ID] = sighting{}
	}
	u.mu.Unlock()
	if !noted {
		u.p.config.Log.Error("the chain has settled more of a channel than this database knows: it was restored from a backup, or somebody settled a voucher that was not shown here, or an endpoint is wrong; nothing is begun on it until that has stayed so, then it is charged, and buys nothing more",
			"channel", s.ID, "settled", s.Settled.Dec(), "accepted", s.Accepted.Dec(), "charged", s.Spent.Dec(), "blocks", u.p.config.Finality)
	}
}

// hold refuses what a channel is wanted for until what is settled of it is known to stay.
func (u *unseen) hold(s channel.State) error {
	u.note(s)
	return wire.Unavailable.With("the chain says that %s base units of channel %s are settled, for which this provider knows no voucher: nothing is begun on it before %d blocks have said so; send the same request again then",
		s.Settled.Dec(), s.ID, u.p.config.Finality)
}

// has reports whether a channel is looked at.
func (u *unseen) has(id common.Hash) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	_, noted := u.at[id]
	return noted
}

// run looks at them until ctx ends.
func (u *unseen) run(ctx context.Context) {
	for chain.Pause(ctx, u.p.config.Poll) == nil {
		for _, contract := range u.p.contracts() {
			if err := u.look(ctx, contract); err != nil && ctx.Err() == nil {
				u.p.config.Log.Warn("what the chain has settled is not known here, and could not be read again", "error", err)
			}
		}
	}
}

// of lists those of a contract, as the books have them.
func (u *unseen) of(ctx context.Context, book *channel.Payee) (ids []common.Hash, err error) {
	u.mu.Lock()
	noted := make([]common.Hash, 0, len(u.at))
	for id := range u.at {
		noted = append(noted, id)
	}
	u.mu.Unlock()
	if len(noted) == 0 {
		return nil, nil
	}
	states, err := u.p.db.States(ctx, noted)
	for _, s := range states {
		if book.Domain.Holds(s.Terms) == nil {
			ids = append(ids, s.ID)
		}
	}
	return ids, err
}

// look reads those of a contract once.
func (u *unseen) look(ctx context.Context, contract chain.Contract) error {
	book := &channel.Payee{Store: u.p.db.Payee(), Domain: contract.Domain()}
	ids, err := u.of(ctx, book)
	if err != nil || len(ids) == 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var due []channel.State
	err = contract.Record(func() error {
		views, at, err := contract.Confirmed(ctx, ids, u.p.config.Confirmations)
		if err != nil {
			return err
		}
		for i, id := range ids {
			s, proven, failed := u.judge(ctx, book, id, views[i].View.Settled, at)
			if err = errors.Join(err, failed); proven {
				due = append(due, s)
			}
		}
		return err
	})
	for _, s := range due { // a lease may take its time to end, and others wait for the record
		failed := chargeUnseen(ctx, u.p, book, s)
		if err = errors.Join(err, failed); failed == nil {
			u.forget(s.ID)
		}
	}
	return err
}

// judge takes the chain's word of one channel at a block, and returns what is to be charged, if that is proven.
func (u *unseen) judge(ctx context.Context, book *channel.Payee, id common.Hash, settled uint256.Int, at uint64) (channel.State, bool, error) {
	s, err := book.State(ctx, id)
	if err != nil {
		return s, false, err
	}
	said := s
	if said.Settled = settled; !unknown(said) {
		u.forget(id)
		u.p.config.Log.Warn("what the chain had settled of a channel is known by now, or the chain takes it back: the channel is served as before", "channel", id, "settled", settled.Dec())
		return s, false, lower(ctx, book, s, settled)
	}
	proven := false
	said.Settled, proven = u.stays(id, settled, at)
	return said, proven, nil
}

// stays is the least that the chain said since a channel was noted, and whether that is long enough.
func (u *unseen) stays(id common.Hash, settled uint256.Int, at uint64) (proven uint256.Int, due bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	seen := u.at[id]
	if seen.since == 0 || at < seen.since {
		seen = sighting{since: max(at, 1), settled: settled}
	}
	seen.settled = u256.Min(seen.settled, settled)
	u.at[id] = seen
	return seen.settled, at >= seen.since+u.p.config.Finality
}

func (u *unseen) forget(id common.Hash) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.at, id)
}

// lower has the books say no more of what is settled than the chain does: whatever else it says is for who watches it.
func lower(ctx context.Context, book *channel.Payee, s channel.State, settled uint256.Int) error {
	if !settled.Lt(&s.Settled) {
		return nil
	}
	_, err := book.Observe(ctx, s.ID, channel.ChainView{Deposit: s.Deposit, Settled: settled,
		CloseRequestedAt: s.CloseRequestedAt, Finalized: s.Status == channel.Finalized})
	return err
}

// settledUnseen ends the lease that runs on a channel of which more is settled than is known here: its records may have been
// signed before. What is settled is charged when it has stayed so.
func settledUnseen(p *Provider, s channel.State) {
	p.unseen.note(s)
	if l := p.running(s.ID); l != nil && l.remote == nil {
		l.mute()
	}
}

// chargeUnseen charges what is settled of a channel and not known here, and ends a lease on it, at whatever gateway. What a node
// meters goes on: it has all records and delivers them.
func chargeUnseen(ctx context.Context, p *Provider, book *channel.Payee, s channel.State) error {
	if s.Terms.Scheme == channel.BatchSettlement {
		_, err := book.Charge(ctx, s.ID, s.Settled)
		if errors.Is(err, channel.ErrLower) { // charged meanwhile
			return nil
		}
		return err
	}
	if _, err := book.CatchUp(ctx, s.ID, s.Settled); err != nil {
		return err
	}
	row, ok, err := p.store.newest(ctx, s.ID)
	if err != nil || !ok || row.State == wire.StateEnded {
		return err
	}
	if a, err := row.allocation(); err != nil || a.Node != "" {
		return err
	}
	return p.muteLease(ctx, s.ID, row)
}
