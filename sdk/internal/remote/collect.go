package remote

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/nodelink"
	"github.com/gpupay/gpupay/sdk/wire"
)

// CollectFor is how long a gateway's process waits for a node, which was out of reach when a lease ended, to say what it metered:
// by its monotonic clock, since wall clocks of gateways disagree and are set, and only while it asked: see waited. Meanwhile the payer's
// credit is without the lease's share, and no other lease begins on its channel; after it, what was not said is given up.
const CollectFor = time.Hour

// AskedEvery is the most between two asks of a node that counts as time in which it did not answer: a process that was stopped, or had
// no database, did not ask it.
const AskedEvery = time.Second + nodelink.Timeout

// Collect takes over what nodes metered of leases that ended here while they were out of reach, whichever gateway ended them,
// and gives up what it waited for too long.
func (n *Nodes) Collect(ctx context.Context) error {
	n.passes.Lock()
	defer n.passes.Unlock()
	rows, err := n.Config.Store.Leases.StillHeld(ctx)
	if err != nil {
		return err
	}
	waited, there := n.waited(rows), make(map[string][]leasestore.Row)
	for _, row := range rows {
		a, bad := row.Allocated()
		switch {
		case bad != nil || a.Node == "": // a gateway's own
		case n.Answers(a.Node):
			there[a.Node] = append(there[a.Node], row)
		case waited[row.ID] > CollectFor:
			err = errors.Join(err, n.giveUp(ctx, row, fmt.Errorf("node %s is out of reach", a.Node)))
		}
	}
	for name, rows := range there {
		n.Go(ctx, "collect", name, func(ctx context.Context) (err error) {
			for _, row := range rows {
				failed := n.Config.Resolve(ctx, row)
				if failed != nil && waited[row.ID] > CollectFor {
					failed = n.giveUp(ctx, row, failed)
				}
				if !errors.Is(failed, lease.ErrHeld) { // of this it was said
					err = errors.Join(err, failed)
				}
			}
			return err
		})
	}
	return err
}

// giveUp asks no more for what a node metered of a lease. Passes that overlap, of this gateway or of another, may give up the same
// lease: it is counted by the one that has it on disk.
func (n *Nodes) giveUp(ctx context.Context, row leasestore.Row, why error) error {
	held, err := n.Config.Store.Leases.GiveUp(ctx, row.ID)
	if err != nil {
		return err
	}
	if held {
		n.forgo(row, why)
	}
	return n.Config.Shares.end(ctx, common.HexToHash(row.ID))
}

// absence is for how long a node that was asked has not said what it metered of a lease.
type absence struct {
	length   time.Duration
	last     time.Time // when it was asked last
	sequence int64     // of the newest record by then
}

// waited is for how long this process has asked for what is to be told of each of the leases, and was told nothing.
func (n *Nodes) waited(rows []leasestore.Row) map[string]time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	now, waited, absent := n.now(), make(map[string]time.Duration), make(map[string]absence)
	for _, row := range rows {
		a, seen := n.absent[row.ID]
		if seen && row.Sequence == a.sequence { // else it has told something since
			a.length += min(now.Sub(a.last), AskedEvery)
		}
		a.last, a.sequence = now, row.Sequence
		absent[row.ID], waited[row.ID] = a, a.length
	}
	n.absent = absent
	return waited
}

// SetCollectClock has it measure by a clock for how long nodes were asked in vain.
func (n *Nodes) SetCollectClock(now func() time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.now = now
}

// forgo says that what a lease used is billed to nobody.
func (n *Nodes) forgo(row leasestore.Row, why error) {
	n.Config.Forgone.Inc()
	n.Config.Log.Error("what a node metered of a lease is given up: it is billed to nobody", "lease", row.ID, "channel", row.Channel, "records", row.Sequence, "error", why)
}

// TakeOver ends a lease at its node and has on disk, with their charges, its records that are not there yet, up to when it was
// asked to end: what the node metered beyond that, before it heard so, is billed to nobody.
func (n *Nodes) TakeOver(ctx context.Context, c *nodelink.Client, row leasestore.Row) error {
	a, err := row.Allocated()
	if err != nil || a.Node == "" {
		return nil // its renter never had it
	}
	ctx, cancel := context.WithTimeout(ctx, 2*n.Config.CallTimeout) // what was taken by then is on disk: the rest is asked for again
	defer cancel()
	last, err := n.Config.Store.Records.Last(ctx, a.LeaseID)
	if err != nil || last != nil && last.Final {
		return err
	}
	s, err := n.Config.Payee.State(ctx, common.HexToHash(row.Channel))
	if err != nil {
		return err
	}
	l, err := n.Config.Image(ctx, row, s)
	if err != nil {
		return err
	}
	var there nodelink.Lease
	remote := l.Remote.(*Lease)
	if err := c.Call(ctx, n.Config.CallTimeout, "POST", "/leases/"+row.ID+"/end", nodelink.End{Reason: row.Reason, Fence: nodelink.InTerm(row.Term)}, &there); nodelink.Gone(err) {
		return fmt.Errorf("%w: %w", ErrInvalidRecord, err)
	} else if err != nil {
		return remote.outpaced(ctx, err)
	}
	err = remote.syncAll(ctx)
	if errors.Is(err, verify.ErrClock) {
		n.Config.Log.Warn("what a node metered of a lease after it was asked to end is billed to nobody", "lease", row.ID, "channel", row.Channel, "error", err)
		err = nil
	}
	return err
}

// booked refuses a lease on a channel of which a node may still say what another one used: its charge would be lost in the
// charges of this one.
func (n *Nodes) booked(ctx context.Context, s channel.State) error {
	held, err := n.Config.Store.Leases.Holds(ctx, s.ID)
	if err != nil {
		return err
	}
	now, err := n.Config.Payee.State(ctx, s.ID)
	if err != nil {
		return err
	}
	if held || now.Spent.Gt(&s.Spent) {
		return wire.Unavailable.With("what the last lease on channel %s used is still to be heard from its GPUs' host: try again, or open another channel", s.ID)
	}
	return nil
}
