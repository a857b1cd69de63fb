// Package outcome waits for transactions for those who keep others waiting meanwhile: no receipt that does not come holds them up.
package outcome

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/chain"
)

// ErrUnseen is a transaction that can change nothing any more, or of which everything is done already, and whose receipt does not
// come: its nonce is used, by itself or by another. What it did the contract says; the outbox looks for its receipt all the same.
var ErrUnseen = errors.New("its nonce is used, or what it is for is done, and no endpoint shows its receipt")

// apart is how far apart looks are where the Sender does not say: a node that is behind at one has come that far at the next.
const apart = 15 * time.Second

// lookTimeout bounds one look.
const lookTimeout = time.Minute

// Wait is the Sender's Wait that ends with ErrUnseen, too, once two looks, one after the other, find the transaction's nonce used
// with the wanted confirmations, or that done says so; nil: only the nonce counts.
func Wait(ctx context.Context, s *chain.Sender, id chain.TxID, confirmations uint64, done func(context.Context) bool) (*chain.Result, error) {
	every := cmp.Or(s.Unseen, apart)
	if end, bounded := ctx.Deadline(); bounded {
		every = min(every, time.Until(end)/4) // two looks, and time for what they say
	}
	for over := false; ; {
		until, cancel := context.WithTimeout(ctx, every)
		result, err := s.Wait(until, id, confirmations)
		cancel()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return result, err
		}
		was := over
		if over = Used(ctx, s, id, confirmations) || done != nil && done(ctx); over && was {
			return nil, fmt.Errorf("transaction %s: %w", id, ErrUnseen)
		}
	}
}

// Used reports whether the nonce of a transaction is used, with the wanted confirmations and by the word of two endpoints where
// there are two: whatever it moves has moved, or does not before it is signed anew.
func Used(ctx context.Context, s *chain.Sender, id chain.TxID, confirmations uint64) bool {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	used := false
	tx, err := s.Store.Get(ctx, id)
	if err == nil {
		used, err = chain.Passed(ctx, s.Backend, tx, max(confirmations, 1))
	}
	if err != nil && s.Log != nil {
		s.Log.Warn("whether a transaction's nonce is used is not known", "tx", id, "err", err)
	}
	return err == nil && used
}

// Allow is the token's Allow that goes by the token where the receipt of an approval does not come. What was sent is waited for
// until its nonce is used, and not sent again before. To read, sign and send takes as long as the endpoint takes.
func Allow(ctx context.Context, token *chain.Token, s *chain.Sender, spender common.Address, amount uint256.Int, confirmations uint64) error {
	for {
		err := token.AllowBy(ctx, s, spender, amount, func(id chain.TxID) error {
			_, err := Wait(ctx, s, id, confirmations, nil)
			return err
		})
		if !errors.Is(err, ErrUnseen) { // otherwise the token says what came of it
			return err
		}
	}
}
