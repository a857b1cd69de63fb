package chain

import (
	"context"

	"github.com/ethereum/go-ethereum/common"
)

// Marks remembers, outside the outbox's database, which nonces a key has signed for: a database that was restored from a backup
// does not, and what was signed since can be mined whoever kept it, until its nonce is used.
type Marks interface {
	// NextNonce is one above the highest nonce that was raised, 0 if none was.
	NextNonce(ctx context.Context, key common.Address, chain uint64) (uint64, error)
	// RaiseNonce returns when it is on disk that a transaction of this nonce is about to be signed.
	RaiseNonce(ctx context.Context, key common.Address, chain, nonce uint64) error
}

// Unknown counts the transactions of this key that may still be mined and that the outbox does not know: those that any endpoint
// has on its way, and those that Marks remembers. None is ever sent that is not in the outbox before:
// they are those of a database of which this one is an older copy, or of another program.
func (s *Sender) Unknown(ctx context.Context) (uint64, error) {
	chain, err := s.chainID(ctx)
	if err != nil {
		return 0, err
	}
	mined, next, err := s.span(ctx, chain)
	if err != nil || next <= mined {
		return 0, err
	}
	known, err := s.Store.countKnown(ctx, chain, s.Address(), mined, next, Fill) // what only uses a nonce up may still lose it
	return next - mined - min(known, next-mined), err
}

// span is from the first nonce that is not used up to the first that nobody can have used.
func (s *Sender) span(ctx context.Context, chain uint64) (mined, next uint64, err error) {
	said, err := all(ctx, s.Backend, func(ctx context.Context, b Backend) (n [2]uint64, err error) {
		if n[0], err = b.NonceAt(ctx, s.Address(), nil); err == nil {
			n[1], err = b.PendingNonceAt(ctx, s.Address())
		}
		return n, err
	})
	if err != nil {
		return 0, 0, Unread("the nonce of "+s.Address().String(), err)
	}
	mined = said[0].say[0]
	for _, by := range said {
		mined = min(mined, by.say[0])
		if by.say[1] <= maxNonce {
			next = max(next, by.say[1])
		}
	}
	if s.Marks == nil {
		return mined, next, nil
	}
	marked, err := s.Marks.NextNonce(ctx, s.Address(), chain)
	return mined, max(next, marked), err
}

// reclaim uses up the nonces of transactions that a restored database does not know and no node shows: somebody may have kept
// them, and while none is mined nothing could be served. It looks until nothing is unknown, once for each run.
func (s *Sender) reclaim(ctx context.Context, chain uint64) error {
	if s.Marks == nil || s.whole {
		return nil
	}
	unknown, err := s.Unknown(ctx)
	if err != nil {
		return err
	}
	if s.whole = unknown == 0; s.whole {
		return nil
	}
	mined, next, err := s.span(ctx, chain)
	if err != nil {
		return err
	}
	seen, err := s.Backend.PendingNonceAt(ctx, s.Address())
	if err != nil {
		return err
	}
	f, err := s.fees(ctx)
	if err != nil {
		return err
	}
	if err := s.submitting.enter(ctx); err != nil {
		return err
	}
	defer s.submitting.leave()
	for nonce := max(mined, seen); nonce < min(next, mined+maxFill); nonce++ {
		known, err := s.Store.countKnown(ctx, chain, s.Address(), nonce, nonce+1, "")
		if err != nil {
			return err
		}
		if known > 0 {
			continue
		}
		s.log().Warn("database is from before a transaction that no node shows: its nonce is used up, and nothing begins before", "sender", s.Address(), "nonce", nonce)
		if err := s.useUp(ctx, chain, nonce, f); err != nil {
			return err
		}
	}
	return nil
}

// useUp sends what does nothing but use a nonce up. The caller holds submitting.
func (s *Sender) useUp(ctx context.Context, chain, nonce uint64, f fees) error {
	tx, err := s.write(ctx, chain, nonce, Call{Kind: Fill, To: s.Address()}, fillGas, f)
	if err != nil {
		return err
	}
	return s.broadcast(ctx, tx.Attempts[0])
}
