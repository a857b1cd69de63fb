package remote

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/nodelink"
	"github.com/gpupay/gpupay/sdk/internal/placement"
	"github.com/gpupay/gpupay/sdk/wire"
)

// written is when a lease that begins was written down. It fails if another gateway has ended it since.
func (n *Nodes) written(ctx context.Context, req placement.Request) (int64, error) {
	row, err := n.Config.Store.Leases.ByID(ctx, req.LeaseID.Hex())
	if err == nil && row.Term != req.Term {
		err = errors.Join(leasestore.Elsewhere(req.Channel.ID), fmt.Errorf("lease %s: %w", req.LeaseID, leasestore.ErrNotOwner))
	}
	return row.StartedAt, err
}

// deposed is why no node begins a lease any more of which one says that it is another gateway's: the table says so too, and the node
// has not failed. It is nil where it is ours in the table, and the newest of its channel: then the node is broken, or has heard of
// a table that is newer than this one, and another node begins it.
func (n *Nodes) deposed(ctx context.Context, q nodelink.Start, refusal error) error {
	if !errors.Is(refusal, &nodelink.Deposed) {
		return nil
	}
	newest, ok, err := n.Config.Store.Leases.Newest(ctx, q.Terms.ID())
	if err != nil || !ok || newest.ID != q.LeaseID.Hex() || newest.Term != *q.Term || newest.State != wire.StateAllocating {
		return errors.Join(leasestore.Elsewhere(q.Terms.ID()), refusal, err)
	}
	n.Config.Log.Error("node says that another gateway runs a lease, and the database does not: see \"Which gateway is heard\" in docs/nodes.md", "lease", q.LeaseID, "error", refusal)
	return nil
}

// notBegun ends what a node may have begun of a lease and not said so. It is nil where another node can begin it.
func (n *Nodes) notBegun(ctx context.Context, c *nodelink.Client, q nodelink.Start, why error) error {
	ended := c.End(context.WithoutCancel(ctx), nodelink.Timeout, q.LeaseID, nodelink.End{Reason: "another node begins it", Closed: true, Fence: q.Fence})
	if ended == nil || errors.Is(why, &nodelink.Deposed) && errors.Is(ended, &nodelink.Deposed) {
		return nil // it has it no more, if it ever had
	}
	return errors.Join(wire.Unavailable.With("the GPUs' host could not be reached: try again"), why)
}

// outpaced is why a gateway does not go on with a lease whose node refused what it said in a term. The table says who is right.
// Where the lease is another's, or gone, the error is leasestore.ErrNotOwner. Where it is ours after all the table is a copy from before a
// take-over: it takes up the node's term, the error is leasestore.ErrNotOwner too, and whoever runs the lease next does so in a newer one.
// A process does that once for a lease: each time that it takes one up it allows its records the credit once more (NewLease),
// and a node that was broken into could have that again and again.
func (n *Nodes) outpaced(ctx context.Context, lease common.Hash, term int64, refusal error) error {
	now, err := n.Config.Store.Leases.Term(ctx, lease)
	switch {
	case errors.Is(err, sql.ErrNoRows), err == nil && now != term:
		return fmt.Errorf("lease %s: %w: %w", lease, leasestore.ErrNotOwner, refusal)
	case err != nil:
		return errors.Join(err, refusal)
	}
	heard := heardTerm(refusal)
	if !n.Config.Shared || heard < term || !n.mayOutdo(lease) {
		return refusal
	}
	if err := n.Config.Store.Leases.RaiseTerm(ctx, lease, term, heard+1); err != nil {
		return errors.Join(err, refusal)
	}
	n.Config.Log.Warn("this database is from before another gateway ran a lease, as its node says: it is taken up again", "lease", lease, "term", heard+1)
	return fmt.Errorf("lease %s: %w: %w", lease, leasestore.ErrNotOwner, refusal)
}

// heardTerm is the term that a node names in its refusal; below any where it names none, and such that a term can follow it.
func heardTerm(refusal error) int64 {
	var problem *wire.Problem
	if !errors.As(refusal, &problem) || problem.Term == nil {
		return math.MinInt64
	}
	return min(*problem.Term, math.MaxInt64>>1)
}

// mayOutdo is true once for a lease.
func (n *Nodes) mayOutdo(lease common.Hash) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	before := n.outdone[lease]
	n.outdone[lease] = true
	return !before
}

// outpaced lets go of the lease where another gateway runs it, as a write does that finds no row.
func (r *Lease) outpaced(ctx context.Context, err error) error {
	if errors.Is(err, &nodelink.Deposed) {
		err = r.lostTerm(ctx, err)
		r.lease.Fence.Check(err)
	}
	return err
}
