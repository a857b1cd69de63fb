package sdk

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/ethereum/go-ethereum/common"
)

// reservations keep GPUs for leases whose deposits are on their way to the chain:
// of two payers after the last GPU one is refused before its money moves. Those of
// gateways that share a database are in its rows, too, where all see them.
type reservations struct {
	mu   sync.Mutex
	held map[*reservation]struct{}
}

// reservation is what one request keeps; nil keeps nothing.
type reservation struct {
	in      *reservations
	channel common.Hash
	gpus    int    // beside those that the channel's lease gives back
	drop    func() // lets the other gateways have them; nil: there are none
}

// others is how many GPUs each channel but one keeps, the most of its requests: a
// channel has one lease at a time. The largest come first.
func (r *reservations) others(id common.Hash) []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.beside(id)
}

// beside is others for who holds mu.
func (r *reservations) beside(id common.Hash) []int {
	most := make(map[common.Hash]int)
	for s := range r.held {
		if s.channel != id {
			most[s.channel] = max(most[s.channel], s.gpus)
		}
	}
	var all []int
	for _, gpus := range most {
		all = append(all, gpus)
	}
	slices.SortFunc(all, func(a, b int) int { return b - a })
	return all
}

// add keeps GPUs for a channel, if fits agrees to what the others keep.
func (r *reservations) add(id common.Hash, gpus int, fits func(others []int) error) (*reservation, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := fits(r.beside(id)); err != nil {
		return nil, err
	}
	s := &reservation{in: r, channel: id, gpus: gpus}
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

// reserve keeps GPUs for a channel until its lease has begun. Of them back are
// about to come back from its own lease.
func (p *Provider) reserve(ctx context.Context, id common.Hash, gpus, back int) (*reservation, error) {
	fits := func(others []int) error { return p.roomBeside(others, gpus, back) }
	s, err := p.reserved.add(id, max(gpus-back, 0), fits)
	if err != nil || p.replicas == nil {
		return s, err
	}
	row := reservationRow{ID: newGatewayID(), Pool: p.pool(), Channel: id.Hex(), GPUs: s.gpus}
	if err := p.store.keepGPUs(ctx, row, p.config.OpenTimeout+p.config.CallTimeout, fits); err != nil {
		s.release()
		return nil, err
	}
	s.drop = func() {
		if err := p.store.dropGPUs(context.WithoutCancel(ctx), row.ID); err != nil {
			p.config.Log.Warn("a reservation was not given back: it ends by itself", "channel", id, "error", err)
		}
	}
	return s, nil
}

// pool names the gateways that rent out the same devices: one's reservations are
// nothing to those of another host.
func (p *Provider) pool() string {
	if p.nodes != nil {
		return "nodes"
	}
	var all []string
	for _, d := range p.devices {
		all = append(all, d.UUID)
	}
	slices.Sort(all)
	return fmt.Sprintf("%x", sha256.Sum256([]byte(strings.Join(all, "\n"))))
}

// others is how many GPUs each channel but one keeps, at whatever gateway.
func (p *Provider) others(ctx context.Context, id common.Hash) ([]int, error) {
	if p.replicas == nil {
		return p.reserved.others(id), nil
	}
	return p.store.keptGPUs(ctx, p.pool(), id)
}

// reserveFor keeps what a session's request wants, if it wants a lease to begin.
func (p *Provider) reserveFor(r *request, id common.Hash) (err error) {
	if r.Method == http.MethodGet && !p.begun(r.Context(), id) {
		r.seat, err = p.reserve(r.Context(), id, r.gpus, 0)
	}
	return err
}

// reserveFor keeps what an x402 request wants, if it wants a lease to begin.
func (d *x402Desk) reserveFor(r *x402Request) error {
	if r.metered != nil {
		return d.keepDevices(r.Context(), r)
	}
	gpus, current, err := d.runs(r.Context(), r.id)
	if err == nil && !current {
		r.seat, err = d.reserve(r.Context(), r.id, r.route.gpus, gpus)
	}
	return err
}

// room refuses more devices than are free and not kept for others, those that are
// about to come back included.
func (p *Provider) room(ctx context.Context, id common.Hash, gpus, back int) error {
	others, err := p.others(ctx, id)
	if err != nil {
		return err
	}
	return p.roomBeside(others, gpus, back)
}

func (p *Provider) roomBeside(others []int, gpus, back int) error {
	left, err := p.left(others)
	if left = max(left, 0) + back; err == nil && left < gpus {
		return fmt.Errorf("%w: %d wanted, %d free", ErrNoCapacity, gpus, left)
	}
	return err
}

// left is how many devices are free beside what others keep, and how many there
// are where the allocator does not say what is free.
func (p *Provider) left(others []int) (int, error) {
	if p.nodes != nil {
		return p.nodes.freeBeside(others), nil
	}
	left, ok, err := free(p.config.Log, p.config.Allocator)
	if !ok {
		left = len(p.devices)
	}
	for _, kept := range others {
		left -= kept
	}
	return left, err
}
