package chain

import (
	"context"
	"fmt"
	"math/big"
	"time"

	"github.com/gpupay/gpupay/channel/store"
)

// sequence gives transactions their nonces, each the next one, and doubts an endpoint that would leave some out.
type sequence struct {
	*account
	signing *signing
	doubt   doubt // signing.submitting guards it
}

// nonce is the first that neither the outbox nor a node has seen: of two endpoints the lower answer counts, so that none of them
// alone has a transaction signed that cannot be mined before all between are paid for. The caller holds submitting.
func (s *sequence) nonce(ctx context.Context, chain uint64) (uint64, error) {
	seen, sure, err := s.shown(ctx)
	if err != nil {
		return 0, err
	}
	ours, err := s.store.nextNonce(ctx, chain, s.address())
	if err != nil {
		return 0, err
	}
	if seen <= ours {
		s.doubt = doubt{}
		return ours, nil
	}
	if seen > maxNonce {
		return 0, &incomplete{"eth_getTransactionCount", fmt.Sprintf("it says %d of %s", seen, s.address())}
	}
	if sure {
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
func (s *sequence) credible(ctx context.Context, chain, seen, ours uint64) error {
	known := ours
	if s.marks != nil {
		marked, err := s.marks.NextNonce(ctx, s.address(), chain)
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
func (s *sequence) doubted(ctx context.Context, seen uint64) (time.Duration, error) {
	head, err := s.backend.BlockNumber(ctx)
	if err != nil {
		return 0, Unread("the newest block", err)
	}
	at := new(big.Int).SetUint64(head - min(head, s.finality))
	deep, err := s.backend.NonceAt(ctx, s.address(), at)
	if err != nil {
		return 0, Unread("the nonce of "+s.address().String()+" of a deep block", err)
	}
	long := 2 * s.patience
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
		left = s.poll
	}
	return max(left, 0), nil
}

func (s *sequence) unbelieved(seen, known uint64, left time.Duration) error {
	return &incomplete{"eth_getTransactionCount", fmt.Sprintf("it alone says that %s has sent %d transactions, and %d are known here: nothing is signed before it has said so for %s more, and of a block %d blocks deep",
		s.address(), seen, known, left.Round(time.Second), s.finality)}
}

// enqueue gives the call a nonce, signs it and writes it to the outbox.
func (s *sequence) enqueue(ctx context.Context, chain uint64, call Call, gas uint64, f fees) (Tx, error) {
	if err := s.signing.submitting.Enter(ctx); err != nil {
		return Tx{}, err
	}
	defer s.signing.submitting.Leave()
	for try := 0; ; try++ {
		nonce, err := s.nonce(ctx, chain)
		if err != nil {
			return Tx{}, err
		}
		tx, err := s.signing.write(ctx, chain, nonce, call, gas, f)
		if try == nonceTries || !store.Conflict(err) {
			return tx, err
		} // another process with this key was faster: the outbox holds each nonce once
	}
}
