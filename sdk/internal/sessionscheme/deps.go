package sessionscheme

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/admit"
	"github.com/gpupay/gpupay/sdk/internal/highwater"
	"github.com/gpupay/gpupay/sdk/internal/keyed"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/scheme"
)

// Deps is what the scheme needs of the provider that it is mounted on.
type Deps struct {
	Key      channel.Signer   // the payee's
	PastKeys []channel.Signer // payee's keys from before Key
	Meter    common.Address   // of the key that signs records here
	Gasless  bool             // deposits of renters that ERC-3009 authorizes are sent

	Credit            time.Duration // GPU time that one lease may owe
	Tick, RecordEvery time.Duration // between readings, and between records
	OpenTimeout       time.Duration // how long a request waits for the chain
	Poll              time.Duration // between looks at the chain
	Confirmations     uint64        // before a deposit counts
	MinTransfer       uint256.Int   // base units that are worth a transaction

	DB          *store.DB
	Store       leasestore.Store
	Escrow      *chain.Escrow
	Payee       *channel.Payee
	Sender      *chain.Sender
	Limiter     *admit.Limiter
	Sponsor     *admit.GasSponsor
	Marks       *highwater.Marks
	Metrics     scheme.Metrics
	OpenStreams Gauge        // counts the streams that are open
	Starts      *keyed.Mutex // one lease start or close at a time on a channel
	Log         *slog.Logger

	Leases scheme.Leases
	GPUs   scheme.GPUs
	Debts  scheme.Debts
	Outbox scheme.Outbox
	Front  scheme.Front
	Mute   func(ctx context.Context, channelID common.Hash, row leasestore.Row) error // ends a lease, wherever it runs, without another signature
}

// Gauge is a number that goes up and down.
type Gauge interface {
	Inc()
	Dec()
}

// core reads channels for all parts of the scheme: from the books, and from the chain into them.
type core struct{ *Deps }

// find returns a channel of this protocol: those of another one are not ours to
// act on here, though the store has them, too.
func (d *core) find(ctx context.Context, id common.Hash) (channel.State, error) {
	s, err := d.Payee.State(ctx, id)
	if err == nil && d.Payee.Domain.Holds(s.Terms) != nil {
		return channel.State{}, fmt.Errorf("channel %s: %w: it is one of another protocol", id, channel.ErrUnknown)
	}
	return s, err
}

// record reads a channel from a node that knows the block least, and keeps what
// it says while no other reading of it is kept: an answer that came late must
// not land on top of a newer one, or a channel that is over would be served.
func (d *core) record(ctx context.Context, id common.Hash, least uint64, keep func(context.Context, channel.ChainView) (channel.State, error)) (s channel.State, err error) {
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	return s, d.Escrow.Record(func() error {
		views, head, err := d.Escrow.Fresh(ctx, []common.Hash{id}, d.Confirmations)
		if err != nil {
			return err
		}
		if head < least || views[0].Disputed && views[0].Known < least {
			return fmt.Errorf("%w: it is at block %d, before at %d", errBehind, min(head, views[0].Known), least)
		}
		s, err = keep(ctx, views[0].View)
		return err
	})
}

// observed keeps a view of a known channel.
func (d *core) observed(id common.Hash) func(context.Context, channel.ChainView) (channel.State, error) {
	return func(ctx context.Context, view channel.ChainView) (channel.State, error) {
		return d.Payee.Observe(ctx, id, view)
	}
}

// recordTimeout bounds one reading that others wait for.
const recordTimeout = 15 * time.Second

// errBehind is an endpoint that has not heard of a block yet, which another look
// mends.
var errBehind = errors.New("the endpoint is behind")
