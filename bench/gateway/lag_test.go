package gateway

import (
	"context"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
)

// TestLagIsSeen: what was not read for long is late, and over MaxGap it is counted.
func TestLagIsSeen(t *testing.T) {
	o := Options{Leases: 1, Tick: time.Second}
	clock := &fakeSource{}
	l := newLag(clock, o, 3*time.Second)
	for _, at := range []time.Duration{1, 2, 3, 7, 8, 9, 10, 11, 12, 13} {
		clock.at = int64(at * time.Second)
		if _, err := l.Read(context.Background(), "SIM-GPU-0"); err != nil {
			t.Fatal(err)
		}
	}
	got := l.report()
	want := LagReport{Readings: 9, P50: lateStep, P99: 3001 * time.Millisecond, Longest: 4 * time.Second, Over: 1, Unbilled: 4 * time.Second}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if again := l.report(); again != (LagReport{}) {
		t.Errorf("it does not begin anew: %+v", again)
	}
}

// fakeSource reads one device at a time that the test says.
type fakeSource struct {
	metering.Source
	at int64
}

func (f *fakeSource) Read(_ context.Context, uuid string) (metering.Reading, error) {
	return metering.Reading{Device: uuid, At: metering.Instant{Mono: f.at}}, nil
}
