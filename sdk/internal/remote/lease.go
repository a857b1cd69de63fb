package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"golang.org/x/time/rate"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/nodelink"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Lease is a gateway's view of a lease that a node meters. It believes no
// record before it has checked it as a renter would.
type Lease struct {
	lease   *lease.Lease
	shares  *Shares
	node    *nodelink.Client
	Checker *verify.Checker // of what the node signs
	failing bool            // the last Sync failed, and was logged
	foreign func([]metering.DeviceEvidence) error

	lostTerm func(ctx context.Context, refusal error) error // see Nodes.outpaced

	heard bool          // it has answered this process, or the lease has ended: what it says of its share is no news
	gave  int64         // the newest version of a share that this process told it
	shown *rate.Limiter // of what it says of its state
}

// ErrInvalidRecord is a node whose records do not hold: nothing of them is charged, and
// the lease ends.
var ErrInvalidRecord = errors.New("the node's records do not hold")

// NewLease is what a gateway has of a lease on a node: the checker goes on after
// the last record on disk, whichever gateway wrote it. It takes records of the key
// that is bound to the lease alone: no other node can sign for it.
func (n *Nodes) NewLease(l *lease.Lease, row leasestore.Row, terms metering.Lease, meter common.Address, last *metering.SignedRecord) (lease.Engine, error) {
	name := l.Allocation.Node
	c := n.Client(name)
	if c == nil {
		return nil, fmt.Errorf("node %q of lease %s is not among provider.Config.Nodes (%s)", name, terms.ID, n.Names())
	}
	config := verify.Config{Lease: terms, Key: meter, Tolerance: n.Config.Tolerance, RecordEvery: metering.MinRecordEvery}
	if row.EndedAt > 0 {
		config.Clock, config.Tolerance = stoppedClock{at: row.EndedAt}, min(config.Tolerance, EndTolerance)
	}
	state := checkedTo(last, terms, row.StartedAt)
	if last != nil && row.EndedAt == 0 {
		state.Elapsed += int64(n.Config.Credit) // of one GPU: what was served while we did not look, and our wall clock may not know of
	}
	checker, err := verify.Resume(config, state)
	foreign := func(billed []metering.DeviceEvidence) error { return n.CheckSlices(name, billed) }
	lostTerm := func(ctx context.Context, refusal error) error { return n.outpaced(ctx, terms.ID, row.Term, refusal) }
	return &Lease{lease: l, shares: n.Config.Shares, node: c, Checker: checker, foreign: foreign, lostTerm: lostTerm, heard: row.EndedAt > 0, shown: rate.NewLimiter(1, StatesAtOnce)}, err
}

// StatesAtOnce is how many states and reasons of a node are shown at once; each takes a log line, a row and an event, and there is
// one a second from then on.
const StatesAtOnce = 10

// EndTolerance is what a lease may be billed beyond when it was asked to end, for each GPU: as the renter's own tolerance. The
// beginning and the end are of the gateways' clocks, and what ran in between is of the node's.
const EndTolerance = 2 * time.Second

// stoppedClock stands where a lease was asked to end: a checker that has it takes no record of more time than passed by then,
// whatever the clock of the node says.
type stoppedClock struct {
	metering.Clock
	at int64 // unix seconds
}

func (c stoppedClock) Now() metering.Instant {
	return metering.Instant{Wall: c.at * int64(time.Second)}
}
func (stoppedClock) BootID() string { return "" }

// checkedTo is the state of a checker that has seen a lease's records up to last: as much time passed as they bill, at least,
// though the wall clock was set back.
// startedAt is unix nanoseconds, before the node was asked to begin.
func checkedTo(last *metering.SignedRecord, terms metering.Lease, startedAt int64) verify.State {
	s := verify.State{Owed: terms.OwedBefore, Start: metering.Instant{Wall: startedAt}}
	if last == nil {
		return s
	}
	s.Last, s.Sequence = last.Digest(metering.Domain(terms.ChainID, terms.Escrow)), last.Sequence
	s.Nanos, s.Owed, s.Final = last.Nanos, last.Owed, last.Final
	s.Devices, s.Rest = verify.Ends(last.Evidence), last.Evidence.Rest()
	for _, d := range s.Devices {
		s.Elapsed = max(s.Elapsed, d.Total)
	}
	return s
}

// Follow keeps a lease that a node meters until it ends: it passes on what the
// channel holds and takes the node's records. It is to such a lease what loop is
// to one that is metered here, and the node holds it to its credit.
func (r *Lease) Follow(ctx context.Context) lease.Stop {
	tick := time.NewTicker(min(r.lease.Deps.Timing.Tick, time.Second))
	defer tick.Stop()
	now := make(chan time.Time)
	close(now)
	for {
		got, err := r.Sync(ctx)
		switch {
		case r.lease.Fence.Lost.Load():
			return lease.Stop{Reason: "another gateway runs it"}
		case errors.Is(err, ErrInvalidRecord):
			return lease.Stop{Reason: ErrInvalidRecord.Error()}
		case got.ended:
			return lease.Stop{Reason: got.reason}
		}
		if v := r.lease.Status.Look(); v.State == leasestore.Active {
			r.lease.Balance.Remind(v)
		}
		next := tick.C
		if got.more {
			next = now
		}
		select {
		case <-ctx.Done():
			return lease.Stop{Reason: "the provider stops", Keep: true}
		case <-next:
		case <-r.lease.Inbox.Notify:
		}
		if mail, _ := r.lease.Inbox.Take(); mail.Stop != nil {
			return *mail.Stop
		}
	}
}

// Synced is what came of one question to a lease's node.
type Synced struct {
	ended  bool // the lease has, there
	reason string
	more   bool // it has records that did not fit into its answer
}

// syncAll is Sync until the node has no more records. A node may always say that it has: ctx bounds it.
func (r *Lease) syncAll(ctx context.Context) error {
	for {
		if got, err := r.Sync(ctx); err != nil || !got.more {
			return err
		}
	}
}

// Sync tells the node what is vouchered and takes what it answers.
func (r *Lease) Sync(ctx context.Context) (got Synced, err error) {
	defer func() { r.logFailure(ctx, err) }()
	if err := r.lease.Records.SaveState(ctx); err != nil {
		return got, err
	}
	if r.lease.Records.Unstored != nil {
		if err := r.lease.Records.Commit(ctx); err != nil {
			return got, err
		}
	}
	part, err := r.portion(ctx)
	if err != nil {
		return got, err
	}
	v, _ := r.lease.Status.Snapshot()
	counts := v.Accepted
	if part.Tell.IsZero() { // see limit
		counts = v.Collectible
	}
	var there nodelink.Lease
	err = r.node.Call(ctx, nodelink.Timeout, "POST", "/leases/"+r.lease.ID.Hex()+"/sync",
		nodelink.Sync{Money: nodelink.MoneyOf(counts, v.Deposit).WithCredit(part.Tell, part.Version), Fence: nodelink.InTerm(r.lease.Term), After: v.Sequence}, &there)
	switch {
	case nodelink.Gone(err):
		return Synced{ended: true, reason: "its node knows nothing of it"}, nil
	case errors.Is(err, &nodelink.SpoolRolledBack):
		return got, fmt.Errorf("%w: %w", ErrInvalidRecord, err)
	case err != nil:
		return got, r.outpaced(ctx, err)
	}
	if err := r.told(ctx, part, there); err != nil {
		return got, err
	}
	for _, rec := range there.Records {
		if err := r.take(ctx, rec); err != nil {
			return got, err
		}
	}
	now, _ := r.lease.Status.Snapshot()
	switch {
	case now.Sequence < there.Sequence && now.Sequence == v.Sequence:
		return got, fmt.Errorf("node %s has %d records of lease %s and does not give them", r.node.Name, there.Sequence, r.lease.ID)
	case now.Sequence < there.Sequence:
		return Synced{more: true}, nil
	case there.State == wire.StateEnded:
		return Synced{ended: true, reason: there.Reason}, nil
	}
	return got, r.mirrorState(ctx, there)
}

// take checks a record and has it and its charge on disk before anyone sees it.
// One that came before changes nothing.
func (r *Lease) take(ctx context.Context, rec metering.SignedRecord) error {
	if v, _ := r.lease.Status.Snapshot(); rec.LeaseID == r.lease.ID && rec.Sequence <= v.Sequence {
		return r.same(ctx, rec)
	}
	if err := r.foreign(rec.Evidence.Devices); err != nil {
		return fmt.Errorf("%w: node %s: %w", ErrInvalidRecord, r.node.Name, err)
	}
	if err := r.Checker.Check(rec); err != nil {
		if errors.Is(err, verify.ErrClock) {
			return fmt.Errorf("node %s: %w", r.node.Name, err) // our own clock may be behind: asked again
		}
		return fmt.Errorf("%w: node %s: %w", ErrInvalidRecord, r.node.Name, err)
	}
	r.lease.Records.Unstored = &rec
	return r.lease.Records.Commit(ctx)
}

// same makes sure that a record which was delivered before is the one on disk.
func (r *Lease) same(ctx context.Context, rec metering.SignedRecord) error {
	kept, err := r.lease.Deps.Store.Records.After(ctx, r.lease.ID, rec.Sequence-1, 1)
	if err != nil {
		return err
	}
	was, _ := json.Marshal(kept)
	is, _ := json.Marshal([]metering.SignedRecord{rec})
	if string(was) != string(is) {
		return fmt.Errorf("%w: node %s: %w: it gives another record %d of lease %s than the one on disk",
			ErrInvalidRecord, r.node.Name, verify.ErrForked, rec.Sequence, r.lease.ID)
	}
	return nil
}

// mirrorState keeps whether the node serves the lease, and shows it.
func (r *Lease) mirrorState(ctx context.Context, there nodelink.Lease) error {
	v, _ := r.lease.Status.Snapshot()
	state := leasestore.State(there.State)
	if state != leasestore.Active && state != leasestore.Suspended || state == v.State && there.Reason == v.Reason {
		return nil
	}
	if !r.shown.Allow() {
		return nil // the next answer says so again
	}
	r.lease.Records.Enter(ctx, state, there.Reason)
	return nil
}

// logFailure logs the first of a row of failures.
func (r *Lease) logFailure(ctx context.Context, err error) {
	switch {
	case errors.Is(err, leasestore.ErrNotOwner): // see drop
	case err == nil && r.failing:
		r.lease.Deps.Log.Info("lease is in touch with its node again", "lease", r.lease.ID, "node", r.node.Name)
	case errors.Is(err, ErrInvalidRecord):
		r.lease.Deps.Log.Error("record refused: nothing of it is charged, and the lease ends", "lease", r.lease.ID, "channel", r.lease.Terms.ID(), "error", err)
	case err != nil && !r.failing && ctx.Err() == nil:
		r.lease.Deps.Log.Warn("lease is out of touch with its node: it goes on within its credit", "lease", r.lease.ID, "error", err)
	}
	r.failing = err != nil
}

// Collect ends a lease at its node and takes its last records. If the gateway
// stops, the lease goes on and there is nothing to do.
func (r *Lease) Collect(ctx context.Context, req lease.Stop) error {
	if req.Keep {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.lease.Deps.Timing.CallTimeout)
	defer cancel()
	if err := r.node.End(ctx, r.lease.Deps.Timing.CallTimeout, r.lease.ID, nodelink.End{Reason: req.Reason, Fence: nodelink.InTerm(r.lease.Term)}); err != nil {
		return r.outpaced(ctx, err)
	}
	return r.syncAll(ctx)
}
