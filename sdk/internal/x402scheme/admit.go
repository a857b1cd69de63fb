package x402scheme

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/admit"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/keyed"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/scheme"
	"github.com/gpupay/gpupay/sdk/internal/x402server"
	"github.com/gpupay/gpupay/sdk/settle"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Deps is what the scheme needs of the provider that it is mounted on.
type Deps struct {
	Tick                     time.Duration // of readings
	OpenTimeout, CallTimeout time.Duration // of a deposit, and of a command of the allocator
	MaxReply                 int           // bytes of an answer that is kept, and of a request's body
	Line, Waiting            int           // requests of one channel, and of all, that may wait
	AllowedOrigins           []string
	Allocator                gpu.Allocator
	Credit                   uint256.Int   // base units that one payer may owe on channels that no claim is worth
	Shared                   bool          // other gateways serve the same channels
	GatewayPoll              time.Duration // how often each looks at what the others wrote

	Store      leasestore.Store
	Settlement *settle.Service // nil where another process settles
	Sponsor    *admit.GasSponsor
	Metrics    scheme.Metrics
	Named      *Named
	Starts     *keyed.Mutex          // one lease start at a time on a channel
	Devices    func() inventory.Book // where the devices of metered requests are, beside those of leases

	Leases scheme.Leases
	GPUs   scheme.GPUs
	Debts  scheme.Debts
	Outbox scheme.Outbox
	Front  scheme.Front
}

// core has the lease of a channel run on what its requests pay for.
type core struct {
	*Deps
	*x402server.Accounts
}

// running is the lease that runs on a channel, as far as another request may have it go on.
type running struct {
	gpus    int    // 0: none runs
	class   string // of them
	sold    bool   // one begins under that name that gets such GPUs
	current bool   // it is of the price of a request
}

// running is what runs under an offer.
func (d *core) running(gpus int, offer wire.SignedOffer, current bool) running {
	now, err := d.Leases.Of(offer.ClassID())
	return running{gpus, offer.ClassID(), err == nil && offer.Sells(now.Offer), current}
}

// runs is what runs on a request's channel.
func (d *core) runs(ctx context.Context, r *Request) (running, error) {
	if l := d.Leases.Running(r.ID); l != nil {
		return d.running(len(l.Allocation.Devices), *l.Offer, l.Price == r.Route.Price), nil
	}
	if !d.Shared {
		return running{}, nil
	}
	row, ok, err := d.Store.Leases.Newest(ctx, r.ID)
	if err != nil || !ok || row.State == wire.StateEnded {
		return running{}, err
	}
	offer, err := d.Store.Offers.Get(ctx, common.HexToHash(row.Offer))
	if err != nil {
		return running{}, err
	}
	price, err := offer.Price()
	return d.running(row.GPUs, offer, price == r.Route.Price), err
}

// fits refuses a request for GPUs of another class than the channel's lease has, unless nobody can ask for those any more; is reports
// whether the lease goes on for it. Where it is of another price, or of GPUs that there are by no name, it ends and the next one begins.
func (d *core) fits(r *Request, now running) (is bool, err error) {
	if now.gpus == 0 {
		return false, nil
	}
	if now.class != r.Route.Class {
		if !now.sold {
			return false, nil
		}
		return false, errConflict.With("the lease that runs on channel %s has GPUs of class %q, the request is for class %q: take a refund, which ends it, or wait until it ends", r.ID, now.class, r.Route.Class)
	}
	if now.current && now.gpus != r.Route.GPUs {
		return false, misfit(r, now.gpus)
	}
	return now.current, nil
}

// back is how many GPUs of the request's class the lease gives back that ends for it.
func (now running) back(r *Request) int {
	if now.class != r.Route.Class || !now.sold {
		return 0
	}
	return now.gpus
}

// attach lets the lease that runs on a channel go on, or begins one, under what
// a request pays for. The caller owes a detach.
func (d *core) attach(ctx context.Context, r *Request, tab x402server.Account, note *x402server.Entry) (*lease.Lease, error) {
	defer d.Starts.Lock(r.ID)()
	defer func() { r.seat.Release() }()
	l, err := d.Leases.Serving(ctx, tab.State)
	if err != nil {
		return nil, err
	}
	if l == nil {
		if r.seat, err = d.GPUs.Seated(ctx, r.seat, r.Route.Class, r.ID, r.Route.GPUs); err != nil {
			return nil, err
		}
		note.Lease = r.seat.Lease.Hex()
		if err := d.Admit(ctx, r, *note, nil); err != nil {
			return nil, err
		}
		return d.Let(ctx, r, tab, r.Route.GPUs, note.Lease)
	}
	n := len(l.Allocation.Devices)
	goesOn, err := d.fits(r, d.running(n, *l.Offer, l.Price == r.Route.Price))
	if err != nil {
		d.Leases.Detach(l)
		return nil, err
	}
	if n != r.Route.GPUs {
		d.Leases.Detach(l)
		return nil, misfit(r, n)
	}
	v, _ := l.Status.Snapshot()
	note.Lease, note.Sequence = l.ID.Hex(), int64(v.Sequence)
	if err := d.Admit(ctx, r, *note, l); err != nil {
		d.Leases.Detach(l)
		return nil, err
	}
	if !goesOn { // it ends with the record that answers this request, and the next one begins another
		if err := d.EndNewest(ctx, r, "the price changed"); err != nil {
			d.Leases.Detach(l)
			return nil, err
		}
	}
	return l, nil
}

// EndNewest ends the lease that runs on a request's channel, wherever it does: not one
// that began under another's claim.
func (d *core) EndNewest(ctx context.Context, r *Request, reason string) error {
	row, ok, err := d.Store.Leases.Newest(ctx, r.ID)
	if err != nil || !ok {
		return err
	}
	if err := r.Claim.Held(ctx); err != nil {
		return err
	}
	return d.Leases.EndLease(ctx, r.ID, &row, reason)
}

// Let begins a lease on a channel of x402. It has no secret: each request shows
// a voucher that only its payer can have signed.
func (d *core) Let(ctx context.Context, r *Request, tab x402server.Account, gpus int, id string) (*lease.Lease, error) {
	offer, err := d.Leases.Of(r.Route.Class)
	if err != nil {
		return nil, err
	}
	row := leasestore.Row{
		ID: id, Channel: tab.ID.Hex(), Offer: offer.Hash.Hex(), GPUs: gpus,
		Allocation: "{}", OwedBefore: tab.Spent.Dec(), State: wire.StateAllocating, StartedAt: time.Now().UnixNano(),
	}
	return d.Leases.BeginLease(ctx, row, tab.State, offer, r.Claim)
}

// Admit lets a lease use what a request pays for: on disk first, then in force. A lease that is not yet there, or runs
// at another gateway, finds it on disk. The last base unit of the voucher is never used: see Supersede.
func (d *core) Admit(ctx context.Context, r *Request, note x402server.Entry, l *lease.Lease) error {
	most, err := note.Reserves()
	if err != nil {
		return err
	}
	if err := d.JournalOf(&r.PaidRequest).Admit(ctx, note, most); err != nil {
		return err
	}
	if l != nil && !l.Mirror {
		l.Balance.Reserve(most)
	}
	return nil
}

// await waits until a lease has a newer record. Where none comes, because its
// devices cannot be metered, the lease is asked for one of what there is.
func (d *core) await(ctx context.Context, l *lease.Lease, after uint64) error {
	patience := time.NewTimer(2*d.Window + d.Slack)
	defer patience.Stop()
	given := time.NewTimer(2*d.Window + d.Slack + time.Minute)
	defer given.Stop()
	for {
		v, changed := l.Status.Snapshot()
		if v.Sequence > after {
			return nil
		}
		select {
		case <-changed:
		case <-l.Done:
			if last, _ := l.Status.Snapshot(); last.Sequence > after {
				return nil
			}
			return wire.Unavailable.With("the lease on channel %s stopped before anything was metered: nothing was charged, try again", l.Terms.ID())
		case <-patience.C:
			l.Inbox.CutNow()
		case <-given.C:
			return wire.Unavailable.With("nothing was metered on channel %s: nothing was charged, try again", l.Terms.ID())
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// recordOf finds the record that states what a tick used: nil if there is none.
func (d *core) recordOf(ctx context.Context, note x402server.Entry) (*metering.SignedRecord, leasestore.Row, error) {
	row, err := d.Store.Leases.ByID(ctx, note.Lease)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, row, nil // it could not be begun
	}
	if err != nil {
		return nil, row, fmt.Errorf("lease %s: %w", note.Lease, err)
	}
	records, err := d.Store.Records.After(ctx, common.HexToHash(note.Lease), uint64(note.Sequence), 1)
	if err != nil || len(records) == 0 {
		return nil, row, err
	}
	return &records[0], row, nil
}

// carries has a lease's final record carry what it leaves uncharged.
func (d *core) carries(l *lease.Lease) {
	closing := func(tx *sqlx.Tx, rec metering.SignedRecord) error {
		_, err := d.Carry(tx, l.Price, rec)
		return err
	}
	l.Records.Closing.Store(&closing)
}
