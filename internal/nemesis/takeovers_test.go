package nemesis

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// failingTakeovers is a fault that is aimed at the moments in which leases change hands.
const failingTakeovers = "a read fails as a lease is taken over"

// TestTakeoversInWhichReadsFail: that fault alone, once.
func TestTakeoversInWhichReadsFail(t *testing.T) {
	for _, fleet := range []struct {
		name  string
		nodes bool
	}{{"gateways that meter", false}, {"gateways over a node", true}} {
		t.Run(fleet.name, func(t *testing.T) {
			inhabit(t, fleet.nodes, func(w *world) int {
				w.inflict(fault{failingTakeovers, w.failTakeovers}, rand.New(rand.NewPCG(w.seed, 0)))
				return 1
			})
		})
	}
}

// failTakeovers: what fails for a moment as leases are taken over ends none, neither a
// read between two writes that work, nor the node that is to go on. It fails a few
// times, and then a gateway must have the leases.
func (w *world) failTakeovers(rng *rand.Rand) {
	for _, stopped := range w.gateways {
		s := &snag{rng: rand.New(rand.NewPCG(rng.Uint64(), 0)), left: 2 * clients, failed: make(map[string]int), also: func() {}}
		if len(w.hosts) > 0 {
			s.also = func() {
				w.hosts[0].Wire.Cut(true)
				time.AfterFunc(term/10, func() { w.hosts[0].Wire.Cut(false) })
			}
		}
		for _, g := range w.gateways {
			g.books.Watch(s.passes)
			defer g.books.Watch(nil)
		}
		stopped.Signal(syscall.SIGSTOP)
		_ = pause(w.ctx, while(rng, term, 2*term))
		w.comes("a gateway takes the leases of one that is stopped, where reads failed", w.living)
		stopped.Signal(syscall.SIGCONT)
		w.tell("gateway %s: %s", stopped.name, s)
	}
}

// snag has reads fail that follow on the writes which make a gateway the owner of a
// lease. Whatever else that gateway reads or writes works.
type snag struct {
	also func() // what fails in the same moments

	mu     sync.Mutex
	rng    *rand.Rand
	wait   int // for which read after the newest takeover, 0: for none
	left   int // what is still to fail
	failed map[string]int
}

// takes is the statement that begins a lease's next term.
const takes = "SET owner = $1, term = term + 1"

// passes is false for a statement that is to fail.
func (s *snag) passes(statement string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if strings.Contains(statement, takes) && s.left > 0 {
		s.wait = s.rng.IntN(4)
		if s.wait == 0 {
			s.left--
			s.failed["other links"]++
			s.also()
		}
		return true
	}
	for _, table := range []string{"records", "payee_channels", "offers"} { // of which a lease is made again
		if s.wait > 0 && strings.HasPrefix(statement, "SELECT") && strings.Contains(statement, "FROM "+table+" WHERE") {
			if s.wait--; s.wait > 0 {
				return true
			}
			s.left--
			s.failed[table]++
			return false
		}
	}
	return true
}

func (s *snag) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf("%v failed", s.failed)
}
