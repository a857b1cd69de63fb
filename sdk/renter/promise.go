package renter

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// promise is an authorization that this renter signed and may have handed out:
// whoever has it can move its value into the channel, once, until it ends.
type promise struct {
	Nonce common.Hash `json:"nonce"`
	Value uint256.Int `json:"value"`
	Until uint64      `json:"until"`           // unix seconds: the token refuses it from then on
	Used  bool        `json:"used"`            // as of the newest look; a re-org may undo it
	Given bool        `json:"given,omitempty"` // the provider may have it
}

// promised keeps an authorization in the books, before it is handed out.
func (row *rentalRow) promised(a *wire.Authorization) {
	if a == nil || slices.ContainsFunc(row.Promises, func(p promise) bool { return p.Nonce == a.Nonce && p.Until == a.ValidBefore.Uint64() }) {
		return
	}
	row.Promises = append(row.Promises, promise{Nonce: a.Nonce, Value: a.Value.Int, Until: a.ValidBefore.Uint64()})
}

// give marks an authorization before it is sent to the provider. It reports whether
// that is new, and to be kept first.
func (row *rentalRow) give(a *wire.Authorization) (fresh bool) {
	for i, p := range row.Promises {
		if a != nil && p.Nonce == a.Nonce && !p.Given {
			row.Promises[i].Given, fresh = true, true
		}
	}
	return fresh
}

// unseen has the caps go on counting what was given away and ended unused, where
// one endpoint alone says that it is.
func (l *deposits) unseen(ctx context.Context, now uint64) error {
	for _, p := range l.row.Promises {
		if !l.r.w.Alone || p.Used || !p.Given || now < p.Until {
			continue
		}
		if err := l.payer.Unseen(ctx, l.row.Terms, p.Nonce, p.Value, time.Unix(int64(p.Until), 0)); err != nil {
			return err
		}
	}
	return nil
}

// outstanding is what signed authorizations may still move into the channel.
func (row *rentalRow) outstanding() uint256.Int {
	return sumOf(row.Promises, func(p promise) bool { return !p.Used })
}

// moved is what deposits of ours have moved into the channel: what is there at
// least, whatever an endpoint says.
func (row *rentalRow) moved() uint256.Int {
	sum := sumOf(row.Promises, func(p promise) bool { return p.Used })
	return *sum.Add(&sum, &row.Moved)
}

// retire takes authorizations that have ended out of the books. What they moved
// stays in Moved.
func (row *rentalRow) retire(now uint64) {
	var left, ended []promise
	for _, p := range row.Promises {
		if now < p.Until {
			left = append(left, p)
		} else {
			ended = append(ended, p)
		}
	}
	moved := sumOf(ended, func(p promise) bool {
		return p.Used && !slices.ContainsFunc(left, func(q promise) bool { return q.Nonce == p.Nonce })
	})
	row.Moved.Add(&row.Moved, &moved)
	row.Promises = left
}

// sumOf adds up the promises that count. Several of one nonce, which a crash may
// leave, can move only one of their values.
func sumOf(promises []promise, counts func(promise) bool) (sum uint256.Int) {
	most := make(map[common.Hash]uint256.Int)
	for _, p := range promises {
		if before := most[p.Nonce]; counts(p) && p.Value.Gt(&before) {
			most[p.Nonce] = p.Value
		}
	}
	for _, value := range most {
		sum.Add(&sum, &value)
	}
	return sum
}

// goodUntil says what is still handed out, for an error about an open.
func (row *rentalRow) goodUntil() string {
	if until := row.until(); until != 0 {
		return fmt.Sprintf(" (the deposit that was signed for it may be sent until %s)", time.Unix(int64(until), 0).UTC().Format(time.RFC3339))
	}
	return ""
}

// fundedBy is when the deposit of the open can come no more: zero for one by our
// own transaction, which the outbox knows. A database that is a copy from before
// the authorization was signed does not have it: it is as good as one signed when
// the rental was made.
func (row *rentalRow) fundedBy() uint64 {
	if row.Funding == nil {
		return 0
	}
	if row.Funding.Authorization == nil {
		if row.Funding.Type != wire.TypeAuthorization || row.Made == 0 {
			return 0
		}
		return uint64(row.Made) + uint64(wallet.AuthorizationTTL/time.Second)
	}
	return row.Funding.Authorization.ValidBefore.Uint64()
}

// fallbackBy is when a deposit can come no more that another copy of this database
// may have signed for the provider to send, in place of the transaction that this
// one would send: zero where no provider sends any. Until then a rental that was
// never funded is over, and not for good.
func (row *rentalRow) fallbackBy() uint64 {
	if row.Funding == nil || row.Funding.Authorization != nil || !row.Sponsored || row.Made == 0 {
		return 0
	}
	return uint64(row.Made) + uint64(wallet.AuthorizationTTL/time.Second)
}

// until is when the last of the unused authorizations ends, zero if there is none.
func (row *rentalRow) until() (last uint64) {
	for _, p := range row.Promises {
		if !p.Used {
			last = max(last, p.Until)
		}
	}
	return last
}
