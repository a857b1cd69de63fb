package sidecar_test

import (
	"sync"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/renter"
)

// TestTwoRentersShareOneGPU: each pays a third of the GPU for the time of its requests, by its own clock at most, to the base unit on the
// chain, and both together no more than the GPU.
func TestTwoRentersShareOneGPU(t *testing.T) {
	s := newShop(t)
	began := time.Now()
	guests := []*guest{s.guest(renter.Options{}), s.guest(renter.Options{})}
	took := make([]time.Duration, len(guests))
	var wait sync.WaitGroup
	for i, g := range guests {
		wait.Add(1)
		go func() {
			defer wait.Done()
			for _, millis := range []int{700, 300, 1100} {
				took[i] += g.must(millis)
			}
		}()
	}
	wait.Wait()
	var all uint64
	for i, g := range guests {
		paid := g.close(s.chain)
		most, least := uint64(took[i].Seconds()*price/3)+1, uint64(2.1*price/3)
		if paid > most || paid < least*95/100 {
			t.Errorf("renter %d paid %d, its requests took %s: %d at most, and %d by what it asked for (%s)", i, paid, took[i], most, least, s.records(g.rental.ID()))
		}
		all += paid
	}
	if most := uint64(time.Since(began).Seconds() * price); all > most {
		t.Errorf("both paid %d for a GPU that costs %d", all, most)
	}
}
