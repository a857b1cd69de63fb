package x402client

import (
	"context"
	"errors"
	"fmt"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/internal/ticks"
	"github.com/gpupay/gpupay/sdk/internal/x402account"
)

// ledger is what is known of a channel: its account, as on disk, and what the chain says. Whoever has the channel's turn owns it.
type ledger struct {
	x       *Client
	terms   channel.Terms
	id      common.Hash
	site    string      // whose channel it is
	salt    common.Hash // of the client, which the channel's may be made of
	account x402account.Account
	view    channel.ChainView // as last read
	fresh   bool              // nothing is on disk yet
	found   bool              // fresh, and the chain held money for it when the request began
	prior   uint256.Int       // the most that was signed for before this request, or said to be claimed of a channel that is not known
	own     uint256.Int       // the most that this database knows to be signed for, by then
}

// load finds the channel's account. A channel that this database does not know may
// be on the chain nevertheless: it is the same for the same key, site and server.
func (b *payment) load(ctx context.Context) error {
	if err := b.vet(ctx); err != nil {
		return err
	}
	known, err := b.x.accounts().Load(ctx, b.id)
	if err != nil {
		return err
	}
	if known == nil {
		return b.begin(ctx)
	}
	if b.account = *known; b.account.Leaving {
		return fmt.Errorf("channel %s: %w: its deposit is being got back: finish Leave before paying on", b.id, channel.ErrClosing)
	}
	paid, err := b.x.payer.State(ctx, b.id)
	b.prior, b.own = paid.Signed, paid.Signed
	return err
}

func (x *Client) accounts() x402account.Store { return x402account.Store{Store: x.w.Store} }

// begin takes a channel up that this database does not know. What was claimed of it is an endpoint's word: the first
// voucher is for the price alone, which is worth nothing where more was claimed, and the server shows what we signed
// before. Nothing is kept of it until something is signed: whoever answers 402 does not fill the disk.
func (b *payment) begin(ctx context.Context) error {
	s, err := b.x.escrow.State(ctx, b.id)
	if err != nil {
		return err
	}
	b.view, b.fresh, b.found, b.prior = s.View, true, !s.View.Deposit.IsZero(), s.View.Settled
	b.account = x402account.Account{ID: b.id, URL: origin(b.req.URL), Site: b.site, Salt: b.salt, Book: ticks.Book{Found: !s.View.Settled.IsZero()}}
	paid, err := b.x.payer.State(ctx, b.id)
	if errors.Is(err, channel.ErrUnknown) {
		return nil
	}
	b.prior, b.own = paid.Cost(), paid.Signed // a crash came before the account
	return err
}

// enter puts a channel on disk that is about to be signed for, and where.
func (b *payment) enter(ctx context.Context) error {
	if b.fresh {
		if _, err := b.x.payer.Adopt(ctx, b.terms, b.view); err != nil {
			return err
		}
	}
	if isNew := b.account.AddSite(peer.Site(b.req.URL), b.terms.Payee); !isNew && !b.fresh {
		return nil
	}
	b.fresh = false
	return b.save(ctx)
}

func (b *ledger) save(ctx context.Context) error { return b.x.accounts().Save(ctx, &b.account) }

// observe reads what the chain says of the channel and, if it is kept, records it.
func (b *ledger) observe(ctx context.Context) (channel.PayerState, channel.ChainView, error) {
	s, err := b.x.escrow.State(ctx, b.id)
	if err != nil {
		return channel.PayerState{}, s.View, err
	}
	b.view = s.View
	if b.fresh {
		return channel.PayerState{ID: b.id, Terms: b.terms, Deposit: s.View.Deposit, Settled: s.View.Settled, Signed: b.prior}, s.View, nil
	}
	if b.view, err = b.agreed(ctx, s.View); err != nil {
		return channel.PayerState{}, s.View, err
	}
	paid, err := b.x.payer.Observe(ctx, b.id, b.view)
	b.own = u256.Max(b.own, paid.Signed)
	return paid, b.view, err
}

// agreed is a view with the deposit that two endpoints agree on, where there are two
// and a deposit would be signed, or count no more in the caps, on the word of one: that
// the channel holds less than is known, or that what was authorized has arrived.
func (b *ledger) agreed(ctx context.Context, v channel.ChainView) (channel.ChainView, error) {
	paid, err := b.x.payer.State(ctx, b.id)
	if err != nil {
		return v, err
	}
	less, arrived := v.Deposit.Lt(&paid.Deposit), !paid.Authorized.IsZero() && !v.Deposit.Lt(&paid.Authorized)
	if !less && !arrived {
		return v, nil
	}
	least, most, err := b.held(ctx)
	if err != nil {
		return v, err
	}
	if v.Deposit = least; less {
		v.Deposit = u256.Max(least, u256.Min(most, paid.Deposit))
	}
	v.Settled = u256.Min(v.Settled, v.Deposit)
	return v, nil
}

// held is the least and the most that the channel holds, by the newest words of two
// endpoints; the same where there is one.
func (b *ledger) held(ctx context.Context) (least, most uint256.Int, err error) {
	on, _, err := b.x.escrow.Confirmed(ctx, []common.Hash{b.id}, 1)
	if err != nil {
		return least, most, err
	}
	return on[0].View.Deposit, on[0].Latest.Deposit, nil
}

// free is what the channel holds, as last read, and is neither charged nor claimed.
func (b *ledger) free() (free uint256.Int) {
	return u256.SaturatingSub(b.view.Deposit, b.spent())
}

// spent is what is known to be charged, or was claimed, of what we signed: an endpoint's word for more counts for nothing.
func (b *ledger) spent() uint256.Int {
	return u256.Max(b.account.Charged, u256.Min(b.view.Settled, b.own))
}
