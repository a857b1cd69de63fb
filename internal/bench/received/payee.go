package received

import (
	"context"
	"errors"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
)

// ours is what is measured: the payee of a Provider, over one store or over
// several that share a server.
type ours struct {
	payees []*channel.Payee
	stores []*store.DB
}

// openOurs opens as many gateways on one database. Several are as many handles,
// each with its own connections and commit loop, in this one process.
func openOurs(ctx context.Context, b *book, address string, gateways int) (gateway, error) {
	o := &ours{}
	for range gateways {
		db, err := store.Open(ctx, address)
		if err != nil {
			return nil, errors.Join(err, o.close())
		}
		o.stores = append(o.stores, db)
		o.payees = append(o.payees, &channel.Payee{Store: db.Payee(), Domain: b.domain})
	}
	if err := b.open(ctx, o.payees[0]); err != nil {
		return nil, errors.Join(err, o.close())
	}
	return o, nil
}

// accept goes to the channel's own gateway: a renter stays with the one that it
// reached.
func (o *ours) accept(ctx context.Context, waiting []channel.Voucher) error {
	v := waiting[0]
	p := o.payees[int(v.ChannelID[31])%len(o.payees)]
	if len(waiting) > 1 {
		_, err := p.AcceptNewest(ctx, waiting)
		return err
	}
	_, err := p.Accept(ctx, v)
	return err
}

// kept asks the last gateway, which may be another than the one that took it.
func (o *ours) kept(ctx context.Context, t channel.Terms) (uint64, error) {
	s, err := o.payees[len(o.payees)-1].State(ctx, t.ID())
	return s.Accepted.Uint64(), err
}

func (o *ours) close() error {
	var err error
	for _, db := range o.stores {
		err = errors.Join(err, db.Close())
	}
	return err
}
