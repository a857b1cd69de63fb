package sdk

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/cluster"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
)

// reservations keep GPUs for leases whose deposits are on their way to the chain, or
// that are about to begin: of two payers after the last GPU one is refused before its
// money moves. Every lease takes its GPUs on one, so that none takes what another's
// deposit was sent for. Those of gateways that share a database are in its rows, too,
// where all see them.
type reservations struct {
	mu   sync.Mutex
	held map[*reservation]struct{}

	table sync.Mutex // held while the rows are asked, so that those who wait for them leave connections to the one who asks
}

// reservation is what one request keeps; nil keeps nothing.
type reservation struct {
	in      *reservations
	channel common.Hash
	lease   common.Hash // that begins on it: what that one has is not kept besides
	gpus    int         // beside those that the channel's lease gives back
	drop    func()      // lets the other gateways have them; nil: there are none
	ends    time.Time   // when the other gateways have them anyway; zero: never
}

// others is what each channel but one keeps.
func (r *reservations) others(id common.Hash) []cluster.Kept {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.beside(id)
}

// beside is others for who holds mu.
func (r *reservations) beside(id common.Hash) []cluster.Kept {
	most := make(map[common.Hash]cluster.Kept)
	for s := range r.held {
		if s.channel != id {
			k := most[s.channel]
			most[s.channel] = cluster.Kept{GPUs: max(k.GPUs, s.gpus), Leases: append(k.Leases, s.lease)}
		}
	}
	return slices.Collect(maps.Values(most))
}

// of are the reservations of a channel at this gateway.
func (r *reservations) of(id common.Hash) (all []*reservation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for s := range r.held {
		if s.channel == id {
			all = append(all, s)
		}
	}
	return all
}

// add keeps GPUs for a channel, if fits agrees to what the others keep.
func (r *reservations) add(id common.Hash, gpus int, fits func(others []cluster.Kept) error) (*reservation, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := fits(r.beside(id)); err != nil {
		return nil, err
	}
	s := &reservation{in: r, channel: id, lease: randomHash(), gpus: gpus}
	if r.held == nil {
		r.held = make(map[*reservation]struct{})
	}
	r.held[s] = struct{}{}
	return s, nil
}

// release lets others have the GPUs: the lease has them by now, or will not begin.
func (s *reservation) release() {
	if s == nil {
		return
	}
	s.in.mu.Lock()
	drop := s.drop
	s.drop = nil
	delete(s.in.held, s)
	s.in.mu.Unlock()
	if drop != nil {
		drop()
	}
}

// stands reports whether so many GPUs are still kept.
func (s *reservation) stands(gpus int) bool {
	if s == nil || s.gpus < gpus || !s.ends.IsZero() && !time.Now().Before(s.ends) {
		return false
	}
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	_, held := s.in.held[s]
	return held
}

// seated is a reservation for a lease that begins now: the one of its request, whose
// deposit was sent for it and is not refused any more, or a new one.
func (p *Provider) seated(ctx context.Context, s *reservation, id common.Hash, gpus int) (*reservation, error) {
	if s.stands(gpus) {
		return s, nil
	}
	s.release()
	return p.reserve(ctx, id, gpus, 0)
}

// seatTaken ends what is kept for a channel whose lease has its GPUs.
func (p *Provider) seatTaken(id common.Hash) {
	for _, s := range p.reserved.of(id) {
		s.release()
	}
}

// reserve keeps GPUs for a channel until its lease has them. Of them back are
// about to come back from its own lease.
func (p *Provider) reserve(ctx context.Context, id common.Hash, gpus, back int) (*reservation, error) {
	fits := func(others []cluster.Kept) error { return p.roomBeside(ctx, others, gpus, back) }
	s, err := p.reserved.add(id, max(gpus-back, 0), fits)
	if err != nil || p.replicas == nil {
		return s, err
	}
	row := cluster.Reservation{ID: s.lease.Hex(), Pool: p.pool(), Channel: id.Hex(), GPUs: s.gpus}
	table, ttl := cluster.Reservations{DB: p.db}, p.config.OpenTimeout+p.leases.Deps.Timing.Begins()
	p.reserved.table.Lock()
	defer p.reserved.table.Unlock()
	s.ends = time.Now().Add(ttl)
	if err := table.Keep(ctx, row, ttl, fits); err != nil {
		s.release()
		return nil, err
	}
	s.shared(func() {
		if err := table.Drop(context.WithoutCancel(ctx), row.ID); err != nil {
			p.config.Log.Warn("a reservation was not given back: it ends by itself", "channel", id, "error", err)
		}
	})
	return s, nil
}

// shared has drop end what other gateways see: at once where the channel's lease began meanwhile.
func (s *reservation) shared(drop func()) {
	s.in.mu.Lock()
	_, held := s.in.held[s]
	if held {
		s.drop = drop
	}
	s.in.mu.Unlock()
	if !held {
		drop()
	}
}

// pool names the gateways that rent out the same devices: one's reservations are
// nothing to those of another host.
func (p *Provider) pool() string {
	if p.nodes != nil {
		return "nodes"
	}
	all := inventory.Names(p.leases.Offered.Devices) // of the start: it does not change while others count by it
	slices.Sort(all)
	return fmt.Sprintf("%x", sha256.Sum256([]byte(strings.Join(all, "\n"))))
}

// others is what each channel but one keeps, at whatever gateway.
func (p *Provider) others(ctx context.Context, id common.Hash) ([]cluster.Kept, error) {
	if p.replicas == nil {
		return p.reserved.others(id), nil
	}
	return cluster.Reservations{DB: p.db}.Others(ctx, p.pool(), id)
}

// room refuses more devices than are free and not kept for others, those that are
// about to come back included.
func (p *Provider) room(ctx context.Context, id common.Hash, gpus, back int) error {
	others, err := p.others(ctx, id)
	if err != nil {
		return err
	}
	return p.roomBeside(ctx, others, gpus, back)
}

func (p *Provider) roomBeside(ctx context.Context, others []cluster.Kept, gpus, back int) error {
	left, err := p.left(ctx, others)
	if left = max(left, 0) + back; err == nil && left < gpus {
		return fmt.Errorf("%w: %d wanted, %d free", gpu.ErrNoCapacity, gpus, left)
	}
	return err
}

// left is how many devices are free beside what others keep, and how many there
// are where the allocator does not say what is free.
func (p *Provider) left(ctx context.Context, others []cluster.Kept) (int, error) {
	if p.nodes != nil {
		return p.nodes.FreeBeside(cluster.Beside(others, nil)), nil
	}
	host, known := p.config.Allocator.(inventory.Keeper)
	if !known || len(others) == 0 {
		return p.leftBeside(cluster.Beside(others, nil))
	}
	for { // until no lease began or ended in between: one that did would count twice, or not at all
		held, err := host.Inventory().Book().Held(ctx)
		if err != nil {
			return 0, err
		}
		left, err := p.leftBeside(cluster.Beside(others, held))
		if err != nil {
			return 0, err
		}
		if now, err := host.Inventory().Book().Held(ctx); err != nil || maps.Equal(now, held) {
			return left, err
		}
	}
}

func (p *Provider) leftBeside(others []int) (int, error) {
	left, ok, err := free(p.config.Log, p.config.Allocator)
	if !ok {
		left = len(p.leases.Offered.List())
	}
	for _, kept := range others {
		left -= kept
	}
	return left, err
}
