package nemesis

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/gpupay/gpupay/internal/fleet"
)

// rental is one channel with one lease, as its renter knows it.
type rental struct {
	*fleet.Renter
	acked    uint64 // the most that any gateway acknowledged
	signed   uint64 // the most that was signed
	over     bool   // its renter is done with it
	closed   bool
	released bool        // the renter asked for the end
	errands  chan func() // what the nemesis wants its renter to do
	mu       sync.Mutex
}

// rate is what a lease costs: 3.60 an hour, of six decimals.
const rate = uint64(time.Second / 1000) // nanoseconds of one GPU for a base unit

// live has one renter rent again and again, until the nemesis is done.
func (w *world) live(n int, over <-chan struct{}) {
	rng, client := rand.New(rand.NewPCG(w.seed, uint64(100+n))), w.client()
	for i := 0; ; i++ {
		w.mint.Lock() // one key sends all purses
		r := &rental{Renter: fleet.NewRenter(w.T, w.chain, w.next, client, w.token, n<<16+i), errands: make(chan func())}
		w.mint.Unlock()
		r.Patience = 10 * time.Second
		w.mu.Lock()
		w.rentals = append(w.rentals, r)
		w.mu.Unlock()
		if err := w.rent(r, rng, over); err != nil {
			if !w.kept() {
				return // the run is over
			}
			w.breaks("renter %d of channel %s cannot go on: %v", n, r.Terms.ID(), err)
			return
		}
		select {
		case <-over:
			return
		default:
		}
	}
}

// rent is one rental to its end.
func (w *world) rent(r *rental, rng *rand.Rand, over <-chan struct{}) error {
	if err := r.Open(w.ctx); err != nil {
		return err
	}
	until := time.Duration(3+rng.IntN(12)) * time.Second
	lazy := rng.IntN(3) == 0
	for time.Since(r.Opened) < until || w.onStrike() {
		wait := time.Duration(100+rng.IntN(300)) * time.Millisecond
		if lazy && rng.IntN(6) == 0 {
			wait = credit + time.Duration(rng.IntN(3000))*time.Millisecond // it is suspended meanwhile
		}
		select {
		case do := <-r.errands:
			do()
			continue
		case <-over:
			until = 0
		case <-time.After(wait):
		}
		if w.onStrike() {
			continue
		}
		if err := w.pay(w.ctx, r, r.Renter, uint64(time.Since(r.Opened))/rate+uint64(rng.IntN(500))); err != nil {
			return err
		}
	}
	r.asked()
	if err := r.Release(w.ctx); err != nil {
		return err
	}
	if err := w.pay(w.ctx, r, r.Renter, r.Final.Owed.Uint64()); err != nil {
		return err
	}
	if rng.IntN(2) == 0 {
		if err := w.shut(r, rng); err != nil {
			return err
		}
	}
	r.over = true
	return nil
}

// pay has an amount acknowledged, if it is more than before.
func (w *world) pay(ctx context.Context, r *rental, line *fleet.Renter, amount uint64) error {
	if amount <= line.Amount || amount > fleet.Deposit {
		return nil
	}
	r.mu.Lock()
	r.signed = max(r.signed, amount)
	r.mu.Unlock()
	err := line.Pay(ctx, amount)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.acked = max(r.acked, line.Acked)
	return err
}

// asked notes that the renter asks for its lease's end.
func (r *rental) asked() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.released = true
}

func (r *rental) askedFor() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.released
}

func (w *world) onStrike() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.strike
}

// setStrike has all renters stop paying, or go on.
func (w *world) setStrike(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.strike = on
}

// payAll has a renter send one voucher to every gateway, at once.
func (w *world) payAll(r *rental, amount uint64) {
	var wait sync.WaitGroup
	for _, g := range w.gateways {
		line := r.Twin(g.url)
		wait.Go(func() {
			ctx, cancel := context.WithTimeout(w.ctx, r.Patience)
			defer cancel()
			_ = w.pay(ctx, r, line, amount)
		})
	}
	wait.Wait()
	r.Amount, r.Acked = max(r.Amount, amount), max(r.Acked, r.acked)
}

// shut has the channel closed, while another program of the same renter pays on: it
// is acknowledged or refused, and what is acknowledged must be paid out.
func (w *world) shut(r *rental, rng *rand.Rand) error {
	ctx, cancel := context.WithCancel(w.ctx)
	twin, pace := r.Twin(w.next), time.Duration(20+rng.IntN(200))*time.Millisecond
	var wait sync.WaitGroup
	wait.Go(func() {
		for pause(ctx, pace) == nil {
			_ = w.pay(ctx, r, twin, twin.Amount+100) // refused from some time on
		}
	})
	err := r.Close(w.ctx)
	cancel()
	wait.Wait()
	r.closed = err == nil
	return err
}
