package sdk

import (
	"context"
	"crypto/rand"
	"math/big"

	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/x402"
)

// A payer's voucher is for what it was told as charged, its base, and the price of
// the request. Nobody was ever told more than the newest voucher is for. So a base
// above that shows that these books are old ones, of a backup, and what they forgot:
// the payer says that it was charged so much. It is asked to sign for it once more,
// less a few base units, so that neither a voucher that can be read from the chain
// nor one that is sent again charges anything; then it is charged.

// maxRebate bounds the base units by which a payer that is asked again is asked for
// less; an eighth of the request's price bounds them too.
const maxRebate = 64

// based is the base of a request's voucher, zero if it is for less than the price.
func (r *x402Request) based() (base uint256.Int) {
	if r.payment.Payload.Type == x402.TypeRefund {
		return r.voucher.Cumulative
	}
	if r.voucher.Cumulative.Gt(&r.route.most) {
		base.Sub(&r.voucher.Cumulative, &r.route.most)
	}
	return base
}

// behind is what a payer of whose base these books are behind is asked to sign for
// next: nil if they are not.
func (d *x402Desk) behind(ctx context.Context, r *x402Request, tab x402Tab) (*corrective, error) {
	base := r.based()
	if !tab.known || !base.Gt(&tab.Accepted) || base.Gt(&tab.Deposit) {
		return nil, nil
	}
	less, err := rebate(r.route.most)
	if err != nil {
		return nil, err
	}
	base.Sub(&base, less) // a base is above an eighth of a price
	if !base.Gt(&tab.charged) {
		return nil, nil
	}
	tab.charged, tab.Accepted, tab.Signature = base, r.voucher.Cumulative, r.voucher.Signature
	expect := r.voucher.Cumulative
	expect.Sub(&expect, less)
	d.config.Log.Warn("the books of a channel are behind its payer's voucher: its database is an old one", "channel", r.id, "signed", base.Dec())
	err = d.notesOf(r).assert(ctx, r.id, base)
	return &corrective{tab: tab, expect: expect, got: r.voucher.Cumulative}, err
}

// rebate is from 2 base units on, at random, where the price allows it: vouchers that
// differ by one are public where one was outdated.
func rebate(price uint256.Int) (*uint256.Int, error) {
	span := price.Rsh(&price, 3)
	if !span.IsUint64() || span.Uint64() > maxRebate {
		span.SetUint64(maxRebate)
	}
	if span.Uint64() < 2 {
		return uint256.NewInt(1), nil
	}
	n, err := rand.Int(rand.Reader, new(big.Int).SetUint64(span.Uint64()-1))
	if err != nil {
		return nil, err
	}
	return uint256.NewInt(2 + n.Uint64()), nil
}

// recalled charges what these books forgot, if a request brings the voucher that its
// payer was asked for. The lease of the old books ends, and the next one begins on the
// new ones.
func (d *x402Desk) recalled(ctx context.Context, r *x402Request, tab x402Tab) (x402Tab, error) {
	base := r.based()
	if base.IsZero() || base != tab.note.Asserted || !base.Gt(&tab.charged) || base.Gt(&tab.Deposit) {
		return tab, nil
	}
	if err := d.endNewest(ctx, r, "its books are older than its payer's voucher"); err != nil {
		return tab, err
	}
	db, book, notes := d.booksOf(r)
	err := db.Update(ctx, func(tx *sqlx.Tx) error {
		if err := db.Charge(ctx, tx, r.id, base); err != nil {
			return err
		}
		return notes.set(tx, r.id, "reserved", base)
	})
	if err != nil {
		return tab, err
	}
	s, err := d.book.State(ctx, r.id)
	if err == nil && !r.voucher.Cumulative.Gt(&s.Deposit) { // else its deposit comes first
		var receipt channel.Receipt
		receipt, err = book.Accept(ctx, r.voucher)
		s = receipt.State
	}
	if err != nil {
		return tab, err
	}
	return d.tab(ctx, s)
}
