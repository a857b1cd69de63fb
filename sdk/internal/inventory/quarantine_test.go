package inventory

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
)

// TestHungListingHoldsNobodyUp: whoever asks what is free while a listing hangs hears
// what was known.
func TestHungListingHoldsNobodyUp(t *testing.T) {
	slow := &slowList{Source: testclock.GPUs(2), wait: make(chan struct{})}
	var q Quarantine
	devices := func() []string { return []string{sim.UUID(0), sim.UUID(1)} }
	slow.free()
	if fit := q.Lately(slow, devices); len(fit) != 2 {
		t.Fatal(fit)
	}
	q.at = time.Now().Add(-time.Hour)
	slow.hang()
	for range 100 {
		if fit := q.Lately(slow, devices); len(fit) != 2 {
			t.Fatal(fit)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := q.Fit(ctx, slow, devices); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	slow.free()
}

type slowList struct {
	*sim.Source
	wait chan struct{}
}

func (s *slowList) free() { close(s.wait) }
func (s *slowList) hang() { s.wait = make(chan struct{}) }

func (s *slowList) Devices(ctx context.Context) ([]metering.Device, error) {
	<-s.wait
	return s.Source.Devices(ctx)
}

// TestRest: a device that a lease cannot read goes into no new lease for a minute, twice as long each time that this was not enough,
// an hour at most; one that is metered again is let at once after its first rest, and is a new one after an hour. With no source, too.
func TestRest(t *testing.T) {
	for name, source := range map[string]metering.Source{"a source": testclock.GPUs(2), "none": nil} {
		var q Quarantine
		devices := func() []string { return []string{sim.UUID(0), sim.UUID(1)} }
		fit := func() int {
			fit, err := q.Fit(t.Context(), source, devices)
			if err != nil || len(fit) != len(q.Lately(source, devices)) {
				t.Error(name, fit, err)
			}
			return len(fit)
		}
		over := func() { q.rests[sim.UUID(0)] = rest{until: time.Now(), span: q.rests[sim.UUID(0)].span} }
		want := leastRest
		for range 10 {
			q.Fails(sim.UUID(0))
			q.Fails(sim.UUID(0)) // within one failure
			if r := q.rests[sim.UUID(0)]; fit() != 1 || r.span != want || time.Until(r.until) > want {
				t.Errorf("%s: %d are fit, for %s, want %s", name, fit(), r.span, want)
			}
			over()
			if fit() != 2 {
				t.Errorf("%s: after its rest %d are fit", name, fit())
			}
			want = min(2*want, mostRest)
		}
		q.Withhold([]string{sim.UUID(0)}, time.Minute)
		if q.Heals(sim.UUID(0)); fit() != 1 {
			t.Errorf("%s: one that is withheld is let", name)
		}
		q.Withhold([]string{sim.UUID(0)}, 0)
		if fit() != 2 {
			t.Errorf("%s: what was withheld is not let again", name)
		}
		q.Fails(sim.UUID(0))
		if q.Heals(sim.UUID(0)); fit() != 1 {
			t.Errorf("%s: one that failed again and again is let at its first good reading", name)
		}
		well := q.rests[sim.UUID(0)]
		well.healed = well.healed.Add(-mostRest)
		q.rests[sim.UUID(0)] = well
		if q.Fails(sim.UUID(0)); q.rests[sim.UUID(0)].span != leastRest {
			t.Errorf("%s: after an hour in which it was well a failure rests %s", name, q.rests[sim.UUID(0)].span)
		}
		if q.Heals(sim.UUID(0)); fit() != 2 {
			t.Errorf("%s: healed after a first failure, %d are fit", name, fit())
		}
		if q.Fails(sim.UUID(0)); q.rests[sim.UUID(0)].span != 2*leastRest {
			t.Errorf("%s: a failure soon after rests %s", name, q.rests[sim.UUID(0)].span)
		}
	}
}
