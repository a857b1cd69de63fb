package chain

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/ethereum/go-ethereum/core/types"

	"github.com/gpupay/gpupay/sdk/internal/refusal"
)

// ErrTooLarge is a call that is more than nodes take in one transaction: nothing moved, and what it does for many channels can be
// done for fewer at a time.
var ErrTooLarge = errors.New("it is more than one transaction may have, or may pay: nothing moved, send it for fewer channels")

// maxCalldata is how much data a call may have, in bytes: three quarters of the least that a node is known to take (go-ethereum's
// 128 KiB, which its envelope counts to).
const maxCalldata = 96 << 10

// sized refuses a call that no node would take for its data, before a nonce is signed for it that nothing behind could pass.
func sized(call Call) error {
	if len(call.Data) > maxCalldata {
		return fmt.Errorf("chain: %s has %d bytes of data, and may have %d: %w", call, len(call.Data), maxCalldata, ErrTooLarge)
	}
	return nil
}

// roomy refuses a call for several channels that takes more than half of a block, which a block seldom has left. limit is a block's.
func roomy(call Call, gas, limit uint64) error {
	if len(call.Channels) > 1 && gas > limit/2 {
		return fmt.Errorf("chain: %s takes %d gas, and half of a block is %d: %w", call, gas, limit/2, ErrTooLarge)
	}
	return nil
}

// beyondAllowance is ErrTooLarge where a node stopped an estimate at the gas that it allows any call.
func beyondAllowance(call Call, err error) error {
	if len(call.Channels) > 1 && strings.Contains(strings.ToLower(err.Error()), "gas required exceeds") {
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	}
	return err
}

// relent signs, in place of a version that no endpoint takes at any higher fee, one at a lower fee or, where that is no use, one that
// does nothing but use the nonce up, so that what the call does can be sent in smaller parts: what stays on disk as it is blocks
// the key for ever. It must not be mistaken about whether somebody has the refused version after all, as one who was silent, and is
// not harmed where it is: all versions have one nonce, so that only one is ever mined, and which one is read from the chain before
// anything is sent in place of the call. It reports false where there is nothing better to sign now.
func (r *replacing) relent(ctx context.Context, tx Tx, newest Attempt, g glance) (bool, error) {
	if r.waits.waited(tx, newest.CreatedAt) < r.patience {
		return false, nil
	}
	now, err := r.prices.feesAt(ctx, g.head)
	if err != nil {
		return false, err
	}
	now.data = tx.DataFee
	cancels := tx.cancels(newest, g)
	if tx.gaveWay(newest.Signed) {
		tx = tx.filling()
	}
	held := tx.held()
	f, lower := now.within(tx).lower(newest.Signed, held)
	if newest.Answer == refusal.TooLarge || !lower {
		if !cancels {
			return false, nil
		}
		if f = now; held != nil {
			replaces := false
			if f, replaces = now.bump(held); !replaces || held.GasFeeCap().Cmp(g.head.leastFee) >= 0 {
				return false, nil // it is mined, or dropped, first
			}
		}
		tx = tx.filling()
	}
	if !tx.adds(f) {
		return false, nil
	}
	if shown, err := r.shows(ctx, tx); shown || err != nil {
		return false, err
	}
	r.log.Warn("every endpoint refuses a transaction as it is: another version takes its place",
		"tx", tx.ID, "call", tx.Call.String(), "nonce", tx.Nonce, "answer", newest.Answer, "fee_wei", newest.Signed.GasFeeCap(), "new_fee_wei", f.cap, "gas", tx.Gas)
	return r.supersede(ctx, tx, g, f)
}

// cancels reports whether a transaction whose newest version is refused is to be cancelled where no fee helps: if it is too large, if
// it is too dear for all of its channels together, or if it is a gift that holds up one of our own.
func (tx Tx) cancels(newest Attempt, g glance) bool {
	switch {
	case tx.Call.Kind == Fill || tx.gaveWay(newest.Signed):
		return false
	case newest.Answer == refusal.TooDear && tx.Most != nil:
		return g.waiting && g.lastOwn > tx.Nonce
	case newest.Answer == refusal.TooDear:
		return len(tx.Call.Channels) > 1
	}
	return newest.Answer == refusal.TooLarge
}

// held is the dearest version under the nonce that somebody may have: what replaces it has to offer more. nil where every one was
// refused.
func (tx Tx) held() (dearest *types.Transaction) {
	for _, a := range tx.Attempts {
		if a.Signed.Nonce() == tx.Nonce && !a.Answer.Refused() && (dearest == nil || a.Signed.GasFeeCap().Cmp(dearest.GasFeeCap()) > 0) {
			dearest = a.Signed
		}
	}
	return dearest
}

// shows reports whether an endpoint has a version that every one refused when it was last sent.
func (r *replacing) shows(ctx context.Context, tx Tx) (bool, error) {
	said, err := all(ctx, r.backend, func(ctx context.Context, b Backend) (bool, error) {
		for _, a := range tx.Attempts {
			if a.Signed.Nonce() != tx.Nonce || !a.Answer.Refused() {
				continue
			}
			if _, _, err := b.TransactionByHash(ctx, a.Signed.Hash()); err == nil {
				return true, nil
			}
		}
		return false, nil
	})
	if err != nil {
		return false, err
	}
	for _, by := range said {
		if by.say {
			return true, nil
		}
	}
	return false, nil
}

// whyFilled is why only the nonce of a transaction was used up.
func (tx Tx) whyFilled() error {
	if tx.Most == nil {
		return ErrTooLarge
	}
	return ErrGaveWay
}

// lower is what takes the place of a version that is too dear for every node: three quarters of it, or what a new transaction would
// offer if that is less. It reports false where no block would take that at the present base fee, and where it does not replace
// the version that somebody may have (held; nil: none).
func (f fees) lower(old, held *types.Transaction) (fees, bool) {
	next := f
	next.cap = smaller(f.cap, new(big.Int).Sub(old.GasFeeCap(), new(big.Int).Rsh(old.GasFeeCap(), 2)))
	next.tip = smaller(f.tip, next.cap)
	next.leastCap = smaller(f.leastCap, next.cap)
	least := new(big.Int).Add(raise(f.head.leastFee), smaller(next.tip, f.leastTip))
	if held != nil {
		next.tip = larger(next.tip, raise(held.GasTipCap()))
		least = larger(least, larger(raise(held.GasFeeCap()), next.tip))
		next.leastCap = next.cap
	}
	return next, next.cap.Cmp(least) >= 0
}
