package chain

import (
	"context"
	"fmt"
	"sync"

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

// A lowerer is Marks that can forget a nonce that was signed for by an endpoint's false word.
type lowerer interface {
	// LowerNonce has the highest nonce that was raised be one below next, if it is higher.
	LowerNonce(ctx context.Context, key common.Address, chain, next uint64) error
}

// claims are what endpoints said first of the key's transactions. What one of several says alone later than that cannot be of
// before this run, and nothing of this run is unknown: it is not believed.
type claims struct {
	mu    sync.Mutex
	first map[string]uint64 // by endpoint, the first nonce that it had nothing for
	base  *uint64           // the nonce that was next when a mark was first seen to be far above the chain's
}

// bounded is a claim of an endpoint of several, held to its first, which is no more than maxFill above what is mined.
func (c *claims) bounded(by string, next, mined uint64) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first == nil {
		c.first = make(map[string]uint64)
	}
	if _, heard := c.first[by]; !heard {
		c.first[by] = min(next, mined+maxFill)
	}
	return min(next, c.first[by])
}

// window is how far the nonces reach that a mark far above the chain's may hide.
func (c *claims) window(mined uint64) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.base == nil {
		c.base = &mined
	}
	return *c.base + maxGap
}

// strangers are transactions of the key that may still be mined and that the outbox does not know. Their nonces are used up, once
// for each run.
type strangers struct {
	outgoing
	claims claims
	unseen gap  // since when the first of them is the next to be mined; the one who steps has it
	whole  bool // there are none, and none can come any more; the one who steps has it
}

// Unknown counts the transactions of this key that may still be mined and that the outbox does not know: those that any endpoint
// has on its way, and those that Marks remembers. None is ever sent that is not in the outbox before:
// they are those of a database of which this one is an older copy, or of another program.
func (s *Sender) Unknown(ctx context.Context) (uint64, error) {
	p := s.parts()
	chain, err := p.chainID(ctx)
	if err != nil {
		return 0, err
	}
	sp, err := p.strangers.span(ctx, chain)
	if err != nil {
		return 0, err
	}
	return p.strangers.unknown(ctx, chain, sp)
}

func (s *strangers) unknown(ctx context.Context, chain uint64, sp span) (uint64, error) {
	if sp.unsure {
		return 1, nil
	}
	if sp.next <= sp.mined {
		return 0, nil
	}
	missing, err := s.unlisted(ctx, chain, sp)
	if err != nil || missing == 0 {
		return 0, err
	}
	if err := s.signing.submitting.Enter(ctx); err != nil { // a nonce is marked as signed for before its transaction is in the outbox
		return 0, err
	}
	s.signing.submitting.Leave()
	return s.unlisted(ctx, chain, sp)
}

// unlisted counts the nonces of a span that the outbox has no transaction for.
func (s *strangers) unlisted(ctx context.Context, chain uint64, sp span) (uint64, error) {
	known, err := s.store.countKnown(ctx, chain, s.address(), sp.mined, sp.next, Fill) // what only uses a nonce up may still lose it
	return sp.next - sp.mined - min(known, sp.next-sp.mined), err
}

// A span is where the nonces are that somebody may have used and the outbox may not know.
type span struct {
	mined uint64 // the first that is not used up, as any endpoint says
	next  uint64 // the first that nobody can have used
	fill  uint64 // the same of what is worth gas to use up
	shown uint64 // the first that not every endpoint has a transaction for
	wrong uint64 // a mark that no chain comes near; 0: none
	// unsure is whether endpoints contradict each other by so much that it is not known where the key is.
	unsure bool
}

// span asks every endpoint. What one of several says alone counts as far as its first word went; what an only one says counts, and
// is paid for no further than that; a mark that is more than maxGap above the chain was signed for by a false word,
// and hides at most maxGap nonces.
func (s *strangers) span(ctx context.Context, chain uint64) (sp span, err error) {
	said, err := all(ctx, s.backend, func(ctx context.Context, b Backend) (n [2]uint64, err error) {
		if n[0], err = b.NonceAt(ctx, s.address(), nil); err == nil {
			n[1], err = b.PendingNonceAt(ctx, s.address())
		}
		return n, err
	})
	if err != nil {
		return sp, Unread("the nonce of "+s.address().String(), err)
	}
	sp.mined, sp.shown = said[0].say[0], said[0].say[1]
	most := sp.mined
	for _, by := range said {
		sp.mined, most, sp.shown = min(sp.mined, by.say[0]), max(most, by.say[0]), min(sp.shown, by.say[1])
	}
	if sp.mined != most {
		final, err := s.store.nextFinal(ctx, chain, s.address())
		if err != nil {
			return sp, err
		}
		sp.mined = max(sp.mined, min(final, most))
	}
	var highest, second uint64
	for _, by := range said {
		next := min(by.say[1], sp.mined+maxGap) // no node has more on their way
		highest, second = max(highest, next), max(second, min(highest, next))
		if by.say[1] <= sp.mined+maxGap {
			sp.fill = max(sp.fill, s.claims.bounded(by.by, next, sp.mined))
		}
	}
	sp.next = max(sp.fill, second)
	if len(said) > 1 {
		sp.fill = sp.next
	} else {
		sp.next = max(sp.next, highest)
	}
	if s.marks == nil {
		return sp, nil
	}
	marked, err := s.marks.NextNonce(ctx, s.address(), chain)
	if err != nil {
		return sp, err
	}
	if marked > most+maxGap {
		if sp.unsure = most > sp.mined+maxGap; sp.unsure { // one of two is wrong: what the mark hides is not known before they agree
			return sp, nil
		}
		sp.wrong, marked = marked, min(marked, s.claims.window(most))
	}
	sp.next, sp.fill = max(sp.next, marked), max(sp.fill, marked)
	return sp, nil
}

// reclaim uses up the nonces of transactions that a restored database does not know and no node shows: somebody may have kept
// them, and while none is mined nothing could be served. What nodes show is waited for as long as a fee may be stuck. It looks
// until nothing is unknown, once for each run.
func (s *strangers) reclaim(ctx context.Context, chain uint64) error {
	if s.marks == nil || s.whole {
		return nil
	}
	sp, err := s.span(ctx, chain)
	if err != nil {
		return err
	}
	unknown, err := s.unknown(ctx, chain, sp)
	if err != nil {
		return err
	}
	if unknown == 0 {
		s.whole = true
		return s.correct(ctx, chain, sp)
	}
	from := max(sp.mined, sp.shown)
	if s.unseen.lasts(s.now(), sp.mined, s.patience) {
		from = sp.mined
	}
	last := min(sp.fill, sp.mined+maxFill)
	if from >= last || sp.unsure {
		return nil
	}
	f, err := s.prices.fees(ctx)
	if err != nil {
		return err
	}
	if err := s.signing.submitting.Enter(ctx); err != nil {
		return err
	}
	defer s.signing.submitting.Leave()
	for nonce := from; nonce < last; nonce++ {
		known, err := s.store.countKnown(ctx, chain, s.address(), nonce, nonce+1, "")
		if err != nil {
			return err
		}
		if known > 0 {
			continue
		}
		s.log.Warn("database is from before a transaction that no node shows: its nonce is used up, and nothing begins before", "sender", s.address(),
			"nonce", nonce, "last", sp.fill-1)
		if err := s.signing.useUp(ctx, chain, nonce, f); err != nil {
			return err
		}
	}
	return nil
}

// correct lowers a mark that no chain comes near to what the outbox knows, once all nonces are used up that it could have hidden:
// it was signed for by an endpoint's false word, and what was signed cannot be mined before all between are.
func (s *strangers) correct(ctx context.Context, chain uint64, sp span) error {
	marks, able := s.marks.(lowerer)
	if sp.wrong == 0 || !able {
		return nil
	}
	if err := s.signing.submitting.Enter(ctx); err != nil {
		return err
	}
	defer s.signing.submitting.Leave()
	ours, err := s.store.nextNonce(ctx, chain, s.address())
	if err != nil {
		return err
	}
	next := max(ours, sp.mined)
	if next >= sp.wrong {
		return nil
	}
	if err := marks.LowerNonce(ctx, s.address(), chain, next); err != nil {
		return fmt.Errorf("chain: correcting the highest nonce of %s: %w", s.address(), err)
	}
	s.log.Warn("a nonce that an endpoint once gave is far above the chain's and is forgotten; whatever it hid is used up", "sender", s.address(), "nonce", sp.wrong-1, "next", next)
	return nil
}
