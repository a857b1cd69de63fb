package sdk

import (
	"fmt"
	"net/http"
	"slices"
	"sync"

	"github.com/ethereum/go-ethereum/common"
)

// reservations keep GPUs for leases whose deposits are on their way to the chain:
// of two payers after the last GPU one is refused before its money moves. They
// are of one process; gateways that share a database do not see one another's.
type reservations struct {
	mu   sync.Mutex
	held map[*reservation]struct{}
}

// reservation is what one request keeps; nil keeps nothing.
type reservation struct {
	in      *reservations
	channel common.Hash
	gpus    int // beside those that the channel's lease gives back
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
	defer s.in.mu.Unlock()
	delete(s.in.held, s)
}

// reserve keeps GPUs for a channel until its lease has begun. Of them back are
// about to come back from its own lease.
func (p *Provider) reserve(id common.Hash, gpus, back int) (*reservation, error) {
	return p.reserved.add(id, max(gpus-back, 0), func(others []int) error { return p.roomBeside(others, gpus, back) })
}

// reserveFor keeps what a session's request wants, if it wants a lease to begin.
func (p *Provider) reserveFor(r *request, id common.Hash) (err error) {
	if r.Method == http.MethodGet && !p.begun(r.Context(), id) {
		r.seat, err = p.reserve(id, r.gpus, 0)
	}
	return err
}

// reserveFor keeps what an x402 request wants, if it wants a lease to begin.
func (d *x402Desk) reserveFor(r *x402Request) error {
	gpus, current, err := d.runs(r.Context(), r.id)
	if err == nil && !current && r.route.kind != kindMetered {
		r.seat, err = d.reserve(r.id, r.route.gpus, gpus)
	}
	return err
}

// room refuses more devices than are free and not kept for others, those that are
// about to come back included.
func (p *Provider) room(id common.Hash, gpus, back int) error {
	return p.roomBeside(p.reserved.others(id), gpus, back)
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
