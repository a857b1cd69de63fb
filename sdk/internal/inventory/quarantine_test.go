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
	devices := []string{sim.UUID(0), sim.UUID(1)}
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
