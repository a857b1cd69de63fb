package nemesis

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/fleet"
)

func TestMain(m *testing.M) { os.Exit(fleet.Main(m, "./device")) }

// number is what the environment wants, or something else.
func number(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s=%q is no number", name, text)
	}
	return n
}

// TestGatewaysThatMeter: two gateways over one host's GPUs.
func TestGatewaysThatMeter(t *testing.T) { torment(t, false) }

// TestGatewaysOverANode: two gateways, and a node that meters for them.
func TestGatewaysOverANode(t *testing.T) { torment(t, true) }

// torment does to a fleet what the nemesis can, for GPUPAY_NEMESIS_SECONDS, each kind of
// fault once and then at random by GPUPAY_NEMESIS_SEED. GPUPAY_NEMESIS_ONLY names the
// one kind that is to be done.
func torment(t *testing.T, nodes bool) {
	length := time.Duration(number(t, "GPUPAY_NEMESIS_SECONDS", 30)) * time.Second
	inhabit(t, nodes, func(w *world) int { return w.torture(length) })
}

// inhabit lets renters rent and pay in a fleet to which something is done, and looks at
// what everybody saw. What is done says how many faults it was.
func inhabit(t *testing.T, nodes bool, do func(w *world) int) {
	if testing.Short() {
		t.Skip("runs for a minute")
	}
	w := newWorld(t, number(t, "GPUPAY_NEMESIS_SEED", 1), nodes)
	over := make(chan struct{})
	var renters sync.WaitGroup
	for n := range clients {
		renters.Go(func() { w.live(n, over) })
	}
	for n := range programs {
		renters.Go(func() { w.livePrograms(n, over) })
	}
	w.comes("every renter rents", func() (bool, string) {
		n := len(w.running())
		return n >= clients, fmt.Sprintf("%d do", n)
	})
	faults := do(w)
	if !w.kept() { // what comes after it shows no more, and a renter whose lease is gone waits for ever
		w.stop()
	}
	close(over)
	renters.Wait()
	if w.kept() {
		w.settled()
		w.check()
	}
	w.report(faults)
}

// torture does one thing after the other to the fleet.
func (w *world) torture(length time.Duration) (done int) {
	rng := rand.New(rand.NewPCG(w.seed, 0))
	all := w.faults()
	order := rng.Perm(len(all))
	if only := os.Getenv("GPUPAY_NEMESIS_ONLY"); only != "" {
		order = slices.DeleteFunc(order, func(i int) bool { return all[i].name != only })
	}
	for began := time.Now(); time.Since(began) < length && w.kept(); done++ {
		if pause(w.ctx, time.Duration(500+rng.IntN(1500))*time.Millisecond) != nil {
			return done
		}
		next := order[rng.IntN(len(order))]
		if done < len(order) {
			next = order[done]
		}
		w.inflict(all[next], rng)
	}
	return done
}

// inflict does one thing, and waits until everybody is up again.
func (w *world) inflict(f fault, rng *rand.Rand) {
	w.tell("%s", f.name)
	f.do(rng)
	w.tell("%s is over", f.name)
	w.steady()
}

func (w *world) report(faults int) {
	var acked, signed uint64
	for _, r := range w.allRentals() {
		acked, signed = acked+r.acked, signed+r.signed
	}
	channels := len(w.rentals)
	for _, u := range w.users {
		channels += u.channels
	}
	fmt.Printf("nemesis: seed %d, %d faults in %s, %d rentals, %d base units acknowledged of %d signed, %d promises broken\n",
		w.seed, faults, time.Since(w.began).Round(time.Second), channels, acked, signed, len(w.broken))
	if len(w.broken) == 0 {
		return
	}
	for _, line := range w.story {
		w.Log(line)
	}
	for _, line := range w.broken {
		w.Error(line)
	}
}
