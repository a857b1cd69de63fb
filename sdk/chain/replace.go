package chain

import (
	"bytes"
	"context"
	"errors"
	"math/big"
	"slices"
)

// replacing signs another version of a transaction that is stuck: at a higher fee or, where a gift holds up one of our own, one that
// does nothing. The one who steps calls it.
type replacing struct {
	outgoing
}

// stuck: it has waited long enough, and waits for its own fee, not for a transaction before it.
func (r *replacing) stuck(tx Tx, newest Attempt, g glance) bool {
	if r.waits.waited(tx, newest.CreatedAt) < r.patience {
		return false
	}
	return tx.Nonce == g.mined || slices.Contains(g.said, tx.Nonce) || newest.Signed.GasFeeCap().Cmp(g.head.baseFee) < 0
}

// replace signs a version at a higher fee. It reports false where none can be: the transaction goes on waiting as it is.
func (r *replacing) replace(ctx context.Context, tx Tx, newest Attempt, g glance) (bool, error) {
	now, err := r.prices.feesAt(ctx, g.head)
	if err != nil {
		return false, err
	}
	now.data = tx.DataFee
	if tx.gaveWay(newest.Signed) {
		tx = tx.filling()
	}
	f, allowed := now.within(tx).bump(newest.Signed)
	if tx.yields() && (!allowed || f.cap.Cmp(g.head.leastFee) < 0) {
		return r.giveWay(ctx, tx, newest, g, now)
	}
	if !allowed {
		r.log.Warn("transaction is stuck and its fee is at the allowed maximum: wait for the chain's fees to fall, or raise MaxFee",
			"tx", tx.ID, "call", tx.Call.String(), "fee_wei", newest.Signed.GasFeeCap(), "max_fee_wei", now.most)
		return false, nil
	}
	done, err := r.supersede(ctx, tx, g, f)
	if !done && err == nil && tx.yields() {
		return r.giveWay(ctx, tx, newest, g, now)
	}
	return done, err
}

// supersede signs another version of a transaction and broadcasts it. It reports false where that cannot be paid.
func (r *replacing) supersede(ctx context.Context, tx Tx, g glance, f fees) (bool, error) {
	f, err := r.prices.payable(ctx, tx.Call, tx.Gas, f)
	if errors.Is(err, ErrFunds) {
		r.log.Warn("transaction is stuck and a higher fee cannot be paid", "tx", tx.ID, "err", err)
		return false, nil
	} else if err != nil {
		return false, err
	}
	if !tx.adds(f) {
		return false, nil
	}
	signed, err := r.signing.sign(ctx, tx, f)
	for err == nil && tx.has(signed.Hash()) { // fees came back to what they were: the same would be signed, which is on disk
		if f.cap.Cmp(f.most) >= 0 {
			return false, nil
		}
		f.cap = new(big.Int).Add(f.cap, big.NewInt(1))
		signed, err = r.signing.sign(ctx, tx, f)
	}
	if err != nil {
		return false, err
	}
	r.log.Info("transaction is stuck; signing another version", "tx", tx.ID, "call", tx.Call.String(), "nonce", tx.Nonce, "fee", f.cap, "hash", signed.Hash())
	attempt := Attempt{Signed: signed, CreatedAt: r.now()}
	if err := r.store.attempt(ctx, tx, attempt); err != nil {
		return false, err
	}
	r.waits.born(signed.Hash(), g.head)
	return true, r.signing.broadcast(ctx, attempt)
}

// maxVersions is how many versions of a transaction are signed for a fee within the range of those before.
const maxVersions = 24

// adds reports whether a version at these fees is worth signing. Once there are many only one beyond all of them is, or an endpoint
// that calls one fee too low and the next too high had one signed for ever: within their range the old ones are offered again.
func (tx Tx) adds(f fees) bool {
	var offered []*big.Int
	for _, a := range tx.Attempts {
		if a.Signed.Nonce() == tx.Nonce && bytes.Equal(a.Signed.Data(), tx.Call.Data) {
			offered = append(offered, a.Signed.GasFeeCap())
		}
	}
	return len(offered) < maxVersions || f.cap.Cmp(raise(slices.MaxFunc(offered, (*big.Int).Cmp))) >= 0 || f.cap.Cmp(slices.MinFunc(offered, (*big.Int).Cmp)) < 0
}

// giveWay replaces a stuck transaction that may cost no more by one that only uses up its nonce, if one without a budget waits
// behind it: that one is money of ours, this one a gift. Either version may be mined, and only one of them: both have the nonce.
// It reports false where nothing waits, or where no fee is allowed that would replace it.
func (r *replacing) giveWay(ctx context.Context, tx Tx, newest Attempt, g glance, now fees) (bool, error) {
	if !g.waiting || g.lastOwn < tx.Nonce {
		return false, nil
	}
	f, allowed := now.bump(newest.Signed)
	if !allowed {
		r.log.Warn("a transaction for somebody else holds up one of our own, and no fee up to MaxFee replaces it: raise MaxFee",
			"tx", tx.ID, "call", tx.Call.String(), "fee_wei", newest.Signed.GasFeeCap(), "max_fee_wei", now.most)
		return false, nil
	}
	r.log.Warn("a transaction for somebody else may cost no more and holds up one of our own: it is given up",
		"tx", tx.ID, "call", tx.Call.String(), "nonce", tx.Nonce, "most_wei", tx.Most)
	return r.supersede(ctx, tx.filling(), g, f)
}
