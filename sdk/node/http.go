package node

import (
	"context"
	"crypto/tls"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/contain"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/nodelink"
	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/wire"
)

func (n *Agent) routes() {
	n.mux = http.NewServeMux()
	n.mux.HandleFunc("GET /status", n.handle(n.getStatus))
	n.mux.HandleFunc("POST /refusal", n.handle(n.postRefusal))
	n.mux.HandleFunc("POST /leases", n.handle(n.postLease))
	n.mux.HandleFunc("POST /leases/{id}/sync", n.handle(n.postSync))
	n.mux.HandleFunc("POST /leases/{id}/end", n.handle(n.postEnd))
}

// ServeHTTP serves the node's gateways, and nobody else: serve it with the TLS of Agent.TLS, and not behind a proxy that
// ends TLS.
func (n *Agent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	serve.Hurry(w)
	w.Header().Set("Cache-Control", "no-store")
	if !n.config.Identity.FromGateway(r) {
		w.Header().Set("Connection", "close")
		nodelink.Unauthorized.With("this node serves gateways that its certificate authority knows").Write(w)
		return
	}
	n.mux.ServeHTTP(w, r)
}

// TLS is what to serve the node with: gateways of its own certificate authority are let in, nobody else.
func (n *Agent) TLS() *tls.Config { return n.config.Identity.ServeTLS() }

// handle answers with what do returns, or with the problem that it had.
func (n *Agent) handle(do func(r *http.Request, body []byte) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		_ = control.SetReadDeadline(time.Now().Add(serve.BodyTimeout))
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, nodelink.MaxRequest))
		_ = control.SetReadDeadline(time.Time{})
		var answer any
		switch {
		case err == nil:
			answer, err = do(r, body)
		case !errors.As(err, new(*http.MaxBytesError)):
			err = wire.BadRequest.With("%v", err)
		}
		serve.Hurry(w)
		if err != nil {
			problem := problemOf(err)
			if problem.Status == http.StatusInternalServerError {
				n.config.Log.Error("request failed", "path", r.URL.Path, "error", err)
			}
			problem.Write(w)
			return
		}
		serve.JSON(w, http.StatusOK, answer)
	}
}

// problemOf is what a gateway is told of an error.
func problemOf(err error) *wire.Problem {
	var problem *wire.Problem
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &problem):
		return problem
	case errors.As(err, &large):
		return wire.TooLarge.With("at most %d bytes are read", large.Limit)
	case errors.Is(err, sql.ErrNoRows):
		return nodelink.NoLease.With("this node has no such lease")
	case errors.Is(err, gpu.ErrNoCapacity):
		return wire.NoCapacity.With("%v", err)
	case errors.Is(err, leasestore.ErrRolledBack):
		return nodelink.SpoolRolledBack.With("%v", err)
	case errors.Is(err, lease.ErrClosed):
		return wire.Unavailable.With("the node stops")
	}
	return wire.Internal.With("%v", err) // to our own gateway, who should know
}

func (n *Agent) getStatus(r *http.Request, _ []byte) (any, error) {
	rows, err := n.spool.Unclosed(r.Context())
	if err != nil {
		return nil, err
	}
	status := nodelink.Status{Meter: n.named(), Leases: []nodelink.Lease{}}
	if status.Devices, status.Free, err = n.rentable(r.Context()); err != nil {
		status.Devices, status.Free, status.Problem = []metering.Device{}, 0, err.Error()
	}
	for _, row := range rows {
		status.Leases = append(status.Leases, rowLease(row))
	}
	return status, nil
}

// rentable is what the node has, and how much of it is free.
func (n *Agent) rentable(ctx context.Context) ([]metering.Device, int, error) {
	devices, err := n.config.Source.Devices(ctx)
	if err != nil {
		return nil, 0, err
	}
	left, ok, err := contain.Free(n.config.Log, n.config.Allocator)
	if !ok {
		left = len(devices)
	}
	return devices, left, err
}

// named is the metering key that offers of before may name.
func (n *Agent) named() common.Address {
	if len(n.leases.PastKeys) > 0 {
		return n.leases.PastKeys[0].Address()
	}
	return n.leases.MeterKey.Address()
}

// refusal is what a gateway said last of why it begins no lease here.
type refusal struct {
	reason string
	at     time.Time
}

// refused is why gateways begin no lease at the node; empty if none has said so for
// a minute.
func (n *Agent) refused() string {
	if r := n.refusal.Load(); r != nil && time.Since(r.at) < nodelink.EnlistedFor {
		return r.reason
	}
	return ""
}

// postRefusal hears why a gateway begins no lease here, for the operator to see, or none on some devices: those go into none then.
func (n *Agent) postRefusal(_ *http.Request, body []byte) (any, error) {
	var q nodelink.Refusal
	if err := nodelink.Parse(body, &q); err != nil {
		return nil, wire.BadRequest.With("%v", err)
	}
	why := "a gateway begins no lease here: " + q.Reason
	if len(q.Devices) > 0 {
		why = fmt.Sprintf("a gateway has %d GPUs of this node in no lease, and its others in leases: %s", len(q.Devices), q.Reason)
	}
	if n.refused() != why {
		n.config.Log.Error("leases that run here go on", "error", why, "devices", q.Devices)
	}
	n.refusal.Store(&refusal{why, time.Now()})
	for _, quarantine := range n.leases.Deps.Sick {
		quarantine.Withhold(q.Devices, nodelink.EnlistedFor)
	}
	return struct{}{}, nil
}

func rowLease(row leasestore.Row) nodelink.Lease {
	return nodelink.Lease{LeaseID: common.HexToHash(row.ID), State: row.State, Reason: row.Reason, Sequence: uint64(row.Sequence)}
}

// postLease begins a lease, once: who asks again is told of the first.
func (n *Agent) postLease(r *http.Request, body []byte) (any, error) {
	var q nodelink.Start
	if err := nodelink.Parse(body, &q); err != nil {
		return nil, wire.BadRequest.With("%v", err)
	}
	offer, err := q.Check()
	if err != nil {
		return nil, wire.BadRequest.With("%v", err)
	}
	if named := common.Address(offer.Meter); offer.NamesMeter() && n.leases.Signer(named).Address() != named {
		return nil, wire.NotServed.With("the offer's records are signed by %s, this node signs as %s", offer.Meter, n.named())
	}
	if n.config.Payee != (common.Address{}) && common.Address(offer.Payee) != n.config.Payee {
		return nil, wire.NotServed.With("this node meters for payee %s, the offer is %s's", n.config.Payee, offer.Payee)
	}
	defer n.starts.Lock(q.LeaseID)()
	row, err := n.store.Leases.ByID(r.Context(), q.LeaseID.Hex())
	if errors.Is(err, sql.ErrNoRows) {
		err = n.begin(r.Context(), q, offer)
		if err == nil {
			row, err = n.store.Leases.ByID(r.Context(), q.LeaseID.Hex())
		}
	}
	if err == nil {
		err = n.spool.Fence(r.Context(), q.LeaseID, q.Fence)
	}
	if err != nil {
		return nil, err
	}
	if row.State == wire.StateEnded {
		return nil, nodelink.LeaseEnded.With("lease %s has ended: %s", q.LeaseID, row.Reason)
	}
	if n.leases.Runs(row) == nil { // what failed halfway is ended soon
		return nil, wire.Unavailable.With("lease %s does not run here: ask again", q.LeaseID)
	}
	a, err := row.Allocated()
	answer, meter := rowLease(row), row.SigningKey(offer)
	answer.Allocation, answer.Meter = &a, &meter
	return answer, err
}

// begin ends what runs on the lease's channel, has on disk what the gateway said, and begins the lease.
func (n *Agent) begin(ctx context.Context, q nodelink.Start, offer wire.SignedOffer) error {
	if !n.leases.Accepts() {
		return wire.Unavailable.With("this node takes no new leases")
	}
	s := q.ChannelState()
	if old := n.leases.Running(s.ID); old != nil { // its gateway could not wait for us
		if err := n.spool.Precedes(ctx, old.ID, q); err != nil {
			return err
		}
		if err := old.End(ctx, lease.Stop{Reason: "another lease begins on its channel"}); err != nil {
			return err
		}
	}
	err := errors.Join(n.store.Offers.Put(ctx, offer), n.spool.Put(ctx, q))
	if err == nil {
		err = n.spool.Fence(ctx, q.LeaseID, q.Fence)
	}
	if err != nil {
		return err
	}
	_, err = n.leases.Start(ctx, leasestore.Row{
		ID: q.LeaseID.Hex(), Channel: s.ID.Hex(), Offer: offer.Hash.Hex(), GPUs: q.GPUs, Allocation: "{}",
		OwedBefore: q.OwedBefore.Dec(), State: wire.StateAllocating, StartedAt: time.Now().UnixNano(),
	}, s, offer, nil)
	return err
}

// lease finds a lease by the id in the request's path.
func (n *Agent) lease(r *http.Request) (leasestore.Row, error) {
	return n.store.Leases.ByID(r.Context(), common.HexToHash(r.PathValue("id")).Hex())
}

// postSync hears what a lease's channel holds and tells what the gateway does not
// have yet.
func (n *Agent) postSync(r *http.Request, body []byte) (any, error) {
	var q nodelink.Sync
	if err := nodelink.Parse(body, &q); err != nil {
		return nil, wire.BadRequest.With("%v", err)
	}
	row, err := n.lease(r)
	if err != nil {
		return nil, err
	}
	answer := rowLease(row)
	if err := n.sync(r.Context(), row, q, &answer); err != nil {
		return nil, err
	}
	if answer.Sequence == q.After {
		return answer, nil
	}
	records, err := n.store.Records.After(r.Context(), answer.LeaseID, q.After, nodelink.MaxRecords)
	answer.Records = page(records)
	return answer, err
}

// sync keeps what a gateway says of a lease's money, if it runs the lease, has the lease act on it, and
// answers with the share that counts.
func (n *Agent) sync(ctx context.Context, row leasestore.Row, q nodelink.Sync, answer *nodelink.Lease) error {
	defer n.hears.Lock(answer.LeaseID)() // else an older share, or a deposed gateway's word, could land on a newer one
	if err := n.spool.Fence(ctx, answer.LeaseID, q.Fence); err != nil {
		return err
	}
	if q.After > uint64(row.Sequence) {
		return n.abort(row, q.After)
	}
	heard, s, err := n.spool.Sync(ctx, row, q)
	if err != nil {
		return err
	}
	share, err := heard.Share()
	if err != nil {
		return err
	}
	if share != nil {
		credit := wire.NewAmount(*share)
		answer.Credit, answer.CreditVersion = &credit, heard.Version
	}
	l := n.leases.Runs(row)
	if l == nil {
		return nil
	}
	if share != nil {
		l.Balance.Allow(*share)
	}
	if v, _ := l.Status.Snapshot(); s.Accepted != v.Accepted || s.Deposit != v.Deposit {
		l.Balance.Observe(s)
	}
	return nil
}

// page is what fits into an answer, and at least one record.
func page(records []metering.SignedRecord) []metering.SignedRecord {
	size := 0
	for i, rec := range records {
		raw, err := json.Marshal(rec)
		if size += len(raw); err != nil || (i > 0 && size > nodelink.PageBytes) {
			return records[:i]
		}
	}
	return records
}

// abort ends a lease without another record: the spool has forgotten some that a gateway has, and a second one of the same number would be a
// fork that the payee signed. The lease runs until its devices are taken back, so that nobody else takes them back meanwhile.
func (n *Agent) abort(row leasestore.Row, delivered uint64) error {
	n.config.Log.Error("a gateway has records that this spool does not", "lease", row.ID, "delivered", delivered, "spooled", row.Sequence)
	if l := n.leases.Runs(row); l != nil {
		l.Abort()
	}
	return leasestore.ErrRolledBack
}

// postEnd ends a lease, and answers when its last record is in the spool.
func (n *Agent) postEnd(r *http.Request, body []byte) (any, error) {
	var q nodelink.End
	if err := nodelink.Parse(body, &q); err != nil {
		return nil, wire.BadRequest.With("%v", err)
	}
	id := common.HexToHash(r.PathValue("id"))
	defer n.starts.Lock(id)() // not while it begins
	row, err := n.lease(r)
	if err == nil {
		err = n.spool.Fence(r.Context(), id, q.Fence)
	}
	if err != nil {
		return nil, err
	}
	if l := n.leases.Runs(row); l != nil {
		if err := l.End(r.Context(), lease.Stop{Reason: q.Reason}); err != nil {
			return nil, err
		}
		if row, err = n.lease(r); err != nil {
			return nil, err
		}
	}
	if q.Closed && row.State == wire.StateEnded {
		err = n.spool.SetClosed(r.Context(), id)
	}
	return rowLease(row), err
}
