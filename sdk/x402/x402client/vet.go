package x402client

import (
	"context"
	"fmt"
	"slices"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/internal/x402account"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// vet holds a server to what is known of its payee and its site, whatever its newest 402 says: who was caught is not
// paid from another channel, and while one channel with it holds money no second one is opened.
func (b *payment) vet(ctx context.Context) error {
	payee := b.terms.Payee
	if err := b.x.w.Vet(ctx, payee, peer.Site(b.req.URL)); err != nil {
		return err
	}
	related, err := b.x.accounts().Related(ctx, payee, b.site)
	if err != nil {
		return err
	}
	for _, s := range related {
		if err := b.oneChannel(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// oneChannel refuses to open another channel with a payee at a site while the one that is there holds money: a server
// that names other terms with every 402 would have the balance locked bit by bit.
func (b *payment) oneChannel(ctx context.Context, s x402account.Account) error {
	other, err := b.other(ctx, s)
	if err != nil || other == nil {
		return err
	}
	return fmt.Errorf("%s: %w: it names other terms than those of channel %s, which holds %s that is not charged: take a refund of it, or leave it, before another is opened",
		b.req.URL.Host, ErrNotOffered, s.ID, b.x.w.Format(other.free()))
}

// other is the payment of a related channel that stands in this one's place: with
// the same payee, site and salt, and money in it. It is nil if that is not so.
func (b *payment) other(ctx context.Context, s x402account.Account) (*payment, error) {
	if s.ID == b.id {
		return nil, nil
	}
	paid, err := b.x.payer.State(ctx, s.ID)
	if err != nil || s.Turn(paid.Terms) != b.turn() {
		return nil, err
	}
	return b.holding(ctx, s, paid.Terms)
}

// holding is the payment from a known channel if that holds money that is not charged, nil if it does not.
func (b *payment) holding(ctx context.Context, s x402account.Account, terms channel.Terms) (*payment, error) {
	other := *b
	other.terms, other.id, other.account, other.fresh = terms, s.ID, s, false
	if _, _, err := other.observe(ctx); err != nil { // it may have been refunded
		return nil, err
	}
	if free := other.free(); free.IsZero() && s.Deposit == nil { // empty
		return nil, nil
	}
	return &other, nil
}

// retarget makes a refund's channel the one that holds money at this site, whatever terms the server names now, and
// whatever payee: a server that takes another key can still refund what it was paid under the last one.
func (b *payment) retarget(ctx context.Context) error {
	related, err := b.x.accounts().Related(ctx, b.terms.Payee, b.site)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(related, func(s x402account.Account) bool { return s.ID == b.id }); i > 0 {
		related[0], related[i] = related[i], related[0] // the one that it names now comes first
	}
	for _, s := range related {
		paid, err := b.x.payer.State(ctx, s.ID)
		if err != nil {
			return err
		}
		turn := s.Turn(paid.Terms)
		turn.Payee = b.terms.Payee
		if turn != b.turn() {
			continue
		}
		other, err := b.holding(ctx, s, paid.Terms)
		if err != nil {
			return err
		}
		if other != nil {
			b.terms, b.id = other.terms, other.id
			return nil
		}
	}
	return b.retargetOld(ctx)
}

// retargetOld makes a refund's channel the one with the client's bare salt, where this database knows neither and only that holds
// money: it was paid by a stock client, or by a version before this whose database is lost. Nothing is paid from it.
func (b *payment) retargetOld(ctx context.Context) error {
	old := b.terms
	old.Salt = b.salt
	for _, id := range []common.Hash{b.id, old.ID()} {
		if known, err := b.x.accounts().Load(ctx, id); err != nil || known != nil {
			return err
		}
	}
	own, err := b.x.escrow.State(ctx, b.id)
	if err != nil || !own.View.Deposit.IsZero() {
		return err
	}
	if s, err := b.x.escrow.State(ctx, old.ID()); err != nil || s.View.Deposit.IsZero() {
		return err
	}
	b.terms, b.id = old, old.ID()
	return nil
}

// turn is the turn of a ledger's channel.
func (b *ledger) turn() wallet.TurnKey { return wallet.TurnOf(b.terms, b.salt, b.site) }
