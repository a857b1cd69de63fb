package sim

import (
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/route"
)

// steady is a server without failures and with little load of others.
func steady(id string, dollars, decode float64) Server {
	return Server{
		ID: id, Price: bySlot(dollars), Slots: 32, RTT: 20 * time.Millisecond, Prefill: 10_000, Decode: decode, Slows: 1,
		Load: Load{Mean: .3, Noise: .05},
	}
}

// share is the part of a policy's attempts that went to a server.
func share(s Stats, server int) float64 {
	all := 0
	for _, n := range s.Sent {
		all += n
	}
	return float64(s.Sent[server]) / float64(all)
}

// TestOurs: what the router does with one odd server beside three usual ones, and what each is paid for.
func TestOurs(t *testing.T) {
	half := steady("cheap, fails half of the time", .03, 80)
	half.Fails = .5
	liar := steady("claims twice its time", .06, 80)
	liar.Inflates = 2
	gone := steady("vanishes", .06, 90)
	gone.Gone = 5 * time.Minute
	full := steady("full, says 429", .06, 90)
	full.Load.Mean, full.Rejects, full.RetryAfter = 1.2, true, 5*time.Second
	for _, odd := range []Server{half, liar, gone, full, steady("slow", .06, 8)} {
		t.Run(odd.ID, func(t *testing.T) {
			w := NewWorld(7, []Server{odd, steady("a", .075, 80), steady("b", .08, 90), steady("c", .09, 70)})
			arrivals := Process{Seed: 7, Rate: 1, Burst: 3}.Arrivals(20 * time.Minute)
			oracle, s, p2c := Run(w, arrivals, Oracle), Run(w, arrivals, Ours), Run(w, arrivals, PeakEWMA)
			t.Logf("J %.0f, oracle %.0f, P2C %.0f; paid %.0f; share %.3f; failed %.4f; p95 %s", s.J, oracle.J, p2c.J, s.Paid, share(s, 0), s.Failed, s.P95)
		})
	}
}

var _ = route.Done
