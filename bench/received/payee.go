package received

import (
	"context"
	"errors"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
)

// ours is what is measured: the payee of a Provider over a store.
type ours struct {
	payee *channel.Payee
	store *store.DB
}

// openOurs opens a gateway on a database.
func openOurs(ctx context.Context, domain channel.Domain, address string) (*ours, error) {
	db, err := store.Open(ctx, address)
	if err != nil {
		return nil, err
	}
	return &ours{&channel.Payee{Store: db.Payee(), Domain: domain}, db}, nil
}

// openOnly opens the one gateway of a new database, and the book's channels.
func openOnly(ctx context.Context, b *book, address string) (gateway, error) {
	o, err := openOurs(ctx, b.domain, address)
	if err != nil {
		return nil, err
	}
	if err := b.open(ctx, o.payee); err != nil {
		return nil, errors.Join(err, o.close())
	}
	return o, nil
}

func (o *ours) accept(ctx context.Context, waiting []channel.Voucher) error {
	if len(waiting) > 1 {
		_, err := o.payee.AcceptNewest(ctx, waiting)
		return err
	}
	_, err := o.payee.Accept(ctx, waiting[0])
	return err
}

func (o *ours) kept(ctx context.Context, t channel.Terms) (uint64, error) {
	s, err := o.payee.State(ctx, t.ID())
	return s.Accepted.Uint64(), err
}

func (o *ours) close() error { return o.store.Close() }
