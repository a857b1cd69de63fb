// Package reserve keeps GPUs for leases whose deposits are on their way to the chain, or that are about to begin: of two payers after
// the last GPU one is refused before its money moves. Every lease takes its GPUs on a reservation, so that none takes what another's
// deposit was sent for.
package reserve

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/cluster"
)

// Book has the reservations of this gateway. Those of gateways that share a database are in its rows, too, where all see them.
type Book struct {
	// Before is waited for before room is counted for a lease: the same request asks more than once. nil: nothing is.
	Before func(context.Context) error
	// Left is how many devices are free beside what the others keep.
	Left   func(ctx context.Context, others []cluster.Kept) (int, error)
	Shared *Shared // nil: no other gateway rents out the same devices

	mu   sync.Mutex
	held map[*Reservation]struct{}

	table sync.Mutex // held while the rows are asked, so that those who wait for them leave connections to the one who asks
}

// Shared is where gateways that rent out the same devices see each other's reservations.
type Shared struct {
	DB   *store.DB
	Pool func() string        // names those gateways
	TTL  func() time.Duration // after which a row ends by itself
	Log  *slog.Logger
}

// Reservation is what one request keeps; nil keeps nothing.
type Reservation struct {
	Lease common.Hash // that begins on it: what that one has is not kept besides

	in      *Book
	channel common.Hash
	gpus    int       // beside those that the channel's lease gives back
	drop    func()    // lets the other gateways have them; nil: there are none
	ends    time.Time // when the other gateways have them anyway; zero: never
}

// NewLease is an identifier of a lease that is about to begin. Nobody guesses it.
func NewLease() (h common.Hash) {
	_, _ = rand.Read(h[:]) // crypto/rand.Read never fails: it ends the program instead
	return h
}

// beside is what each channel but one keeps here. The caller holds mu.
func (b *Book) beside(id common.Hash) []cluster.Kept {
	most := make(map[common.Hash]cluster.Kept)
	for s := range b.held {
		if s.channel != id {
			k := most[s.channel]
			most[s.channel] = cluster.Kept{GPUs: max(k.GPUs, s.gpus), Leases: append(k.Leases, s.Lease)}
		}
	}
	return slices.Collect(maps.Values(most))
}

// of are the reservations of a channel at this gateway.
func (b *Book) of(id common.Hash) (all []*Reservation) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for s := range b.held {
		if s.channel == id {
			all = append(all, s)
		}
	}
	return all
}

// add keeps GPUs for a channel, if fits agrees to what the others keep.
func (b *Book) add(id common.Hash, gpus int, fits func(others []cluster.Kept) error) (*Reservation, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := fits(b.beside(id)); err != nil {
		return nil, err
	}
	s := &Reservation{in: b, channel: id, Lease: NewLease(), gpus: gpus}
	if b.held == nil {
		b.held = make(map[*Reservation]struct{})
	}
	b.held[s] = struct{}{}
	return s, nil
}

// Release lets others have the GPUs: the lease has them by now, or will not begin.
func (s *Reservation) Release() {
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
func (s *Reservation) stands(gpus int) bool {
	if s == nil || s.gpus < gpus || !s.ends.IsZero() && !time.Now().Before(s.ends) {
		return false
	}
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	_, held := s.in.held[s]
	return held
}

// Seated is a reservation for a lease that begins now: the one of its request, whose
// deposit was sent for it and is not refused any more, or a new one.
func (b *Book) Seated(ctx context.Context, s *Reservation, id common.Hash, gpus int) (*Reservation, error) {
	if s.stands(gpus) {
		return s, nil
	}
	s.Release()
	return b.Reserve(ctx, id, gpus, 0)
}

// Taken ends what is kept for a channel whose lease has its GPUs.
func (b *Book) Taken(id common.Hash) {
	for _, s := range b.of(id) {
		s.Release()
	}
}

// Reserve keeps GPUs for a channel until its lease has them. Of them back are
// about to come back from its own lease.
func (b *Book) Reserve(ctx context.Context, id common.Hash, gpus, back int) (*Reservation, error) {
	if err := b.before(ctx); err != nil {
		return nil, err
	}
	fits := func(others []cluster.Kept) error { return b.roomBeside(ctx, others, gpus, back) }
	s, err := b.add(id, max(gpus-back, 0), fits)
	if err != nil || b.Shared == nil {
		return s, err
	}
	row := cluster.Reservation{ID: s.Lease.Hex(), Pool: b.Shared.Pool(), Channel: id.Hex(), GPUs: s.gpus}
	table, ttl := cluster.Reservations{DB: b.Shared.DB}, b.Shared.TTL()
	b.table.Lock()
	defer b.table.Unlock()
	s.ends = time.Now().Add(ttl)
	if err := table.Keep(ctx, row, ttl, fits); err != nil {
		s.Release()
		return nil, err
	}
	s.shared(func() {
		if err := table.Drop(context.WithoutCancel(ctx), row.ID); err != nil {
			b.Shared.Log.Warn("a reservation was not given back: it ends by itself", "channel", id, "error", err)
		}
	})
	return s, nil
}

// shared has drop end what other gateways see: at once where the channel's lease began meanwhile.
func (s *Reservation) shared(drop func()) {
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

// Others is what each channel but one keeps, at whatever gateway.
func (b *Book) Others(ctx context.Context, id common.Hash) ([]cluster.Kept, error) {
	if b.Shared == nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.beside(id), nil
	}
	return cluster.Reservations{DB: b.Shared.DB}.Others(ctx, b.Shared.Pool(), id)
}

// Room refuses more devices than are free and not kept for others, those that are
// about to come back included.
func (b *Book) Room(ctx context.Context, id common.Hash, gpus, back int) error {
	if err := b.before(ctx); err != nil {
		return err
	}
	others, err := b.Others(ctx, id)
	if err != nil {
		return err
	}
	return b.roomBeside(ctx, others, gpus, back)
}

func (b *Book) before(ctx context.Context) error {
	if b.Before == nil {
		return nil
	}
	return b.Before(ctx)
}

func (b *Book) roomBeside(ctx context.Context, others []cluster.Kept, gpus, back int) error {
	left, err := b.Left(ctx, others)
	if left = max(left, 0) + back; err == nil && left < gpus {
		return fmt.Errorf("%w: %d wanted, %d free", gpu.ErrNoCapacity, gpus, left)
	}
	return err
}
