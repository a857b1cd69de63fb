package chain

import (
	"context"
	"fmt"
	"math/big"
	"time"
)

// nonce is the first that neither the outbox nor a node has seen: of two endpoints the lower answer counts, so that none of them
// alone has a transaction signed that cannot be mined before all between are paid for. The caller holds submitting.
func (s *Sender) nonce(ctx context.Context, chain uint64) (uint64, error) {
	said, err := two(ctx, s.Backend, func(ctx context.Context, b Backend) (uint64, error) { return b.PendingNonceAt(ctx, s.Address()) })
	if err != nil {
		return 0, Unread("the nonce of "+s.Address().String(), err)
	}
	ours, err := s.Store.nextNonce(ctx, chain, s.Address())
	if err != nil {
		return 0, err
	}
	seen := said[0].say
	for _, by := range said[1:] {
		seen = min(seen, by.say)
	}
	if seen <= ours {
		s.doubt = doubt{}
		return ours, nil
	}
	if seen > maxNonce {
		return 0, &incomplete{"eth_getTransactionCount", fmt.Sprintf("it says %d of %s", seen, s.Address())}
	}
	if len(said) > 1 { // two say so
		return seen, nil
	}
	return seen, s.credible(ctx, chain, seen, ours)
}

// A doubt is since when the only endpoint that answers has said that the key has a nonce far beyond what is known of it here.
type doubt struct {
	since time.Time
	looks int
	block uint64
}

// credible refuses a nonce that one endpoint alone says, as ErrAnswer, where it is more than maxFill above what the outbox and the
// marks know, until the endpoint has said so over some time and blocks, and of a deep block too: what is signed for it stays in
// the marks, and where it is false nothing is served before it is explained. Where nothing was ever sent from here, as with a
// new database of a key that is used elsewhere, it is believed.
func (s *Sender) credible(ctx context.Context, chain, seen, ours uint64) error {
	known := ours
	if s.Marks != nil {
		marked, err := s.Marks.NextNonce(ctx, s.Address(), chain)
		if err != nil {
			return err
		}
		known = max(known, marked)
	}
	if known == 0 || seen <= known+maxFill {
		s.doubt = doubt{}
		return nil
	}
	left, err := s.doubted(ctx, seen)
	if left <= 0 || err != nil {
		return err
	}
	return s.unbelieved(seen, known, left)
}

// doubted is how much longer an endpoint must say so; 0 once it is believed.
func (s *Sender) doubted(ctx context.Context, seen uint64) (time.Duration, error) {
	head, err := s.Backend.BlockNumber(ctx)
	if err != nil {
		return 0, Unread("the newest block", err)
	}
	at := new(big.Int).SetUint64(head - min(head, s.finality()))
	deep, err := s.Backend.NonceAt(ctx, s.Address(), at)
	if err != nil {
		return 0, Unread("the nonce of "+s.Address().String()+" of a deep block", err)
	}
	long := 2 * either(s.Stuck, defaultStuck)
	if seen > deep+maxFill {
		s.doubt = doubt{}
		return long, nil
	}
	now := s.now()
	if d := &s.doubt; d.since.IsZero() || now.Before(d.since) {
		*d = doubt{since: now, looks: 1, block: head}
	} else if head > d.block {
		d.looks, d.block = d.looks+1, head
	}
	left := long - now.Sub(s.doubt.since)
	if left <= 0 && s.doubt.looks < absentLooks {
		left = s.poll()
	}
	return max(left, 0), nil
}

func (s *Sender) unbelieved(seen, known uint64, left time.Duration) error {
	return &incomplete{"eth_getTransactionCount", fmt.Sprintf("it alone says that %s has sent %d transactions, and %d are known here: nothing is signed before it has said so for %s more, and of a block %d blocks deep",
		s.Address(), seen, known, left.Round(time.Second), s.finality())}
}
