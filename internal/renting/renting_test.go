package renting

import (
	"errors"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk"
)

// TestAllAreLeftAtOnce: no channel waits for another one's grace period, and one that cannot be left keeps none.
func TestAllAreLeftAtOnce(t *testing.T) {
	begun, stuck := make(chan int, 2), errors.New("stuck")
	both := make(chan struct{})
	go func() { <-begun; <-begun; close(both) }()
	got := 0
	err := together([]int{0, 1}, func(i int) error {
		begun <- i
		select {
		case <-both:
		case <-time.After(10 * time.Second): // of a program that leaves one after another
			t.Errorf("channel %d waits for the other one", i)
		}
		if i == 0 {
			return stuck
		}
		got++
		return nil
	})
	if !errors.Is(err, stuck) || got != 1 {
		t.Errorf("%v, %d left", err, got)
	}
}

// TestRemaining: a rental that is resumed goes on for what is left of its time, and never without end where it had one.
func TestRemaining(t *testing.T) {
	for _, row := range []struct {
		resume           bool
		say, begun, want time.Duration
		gpus             int
		metered          time.Duration // of all GPUs
	}{
		{resume: false, say: 5 * time.Minute, gpus: 1, want: 5 * time.Minute},
		{resume: true, begun: 30 * time.Minute, gpus: 1, want: 30 * time.Minute},
		{resume: true, begun: 30 * time.Minute, gpus: 2, metered: 20 * time.Minute, want: 20 * time.Minute},
		{resume: true, begun: 30 * time.Minute, say: time.Minute, gpus: 1, metered: 20 * time.Minute, want: time.Minute},
		{resume: true, begun: 30 * time.Minute, gpus: 1, metered: 31 * time.Minute, want: time.Millisecond},
		{resume: true, gpus: 1, metered: time.Minute, want: 0},
	} {
		o := &Renting{Resume: row.resume, Options: sdk.RentOptions{For: row.say}}
		if got := remaining(o, sdk.RentalState{For: row.begun, GPUs: row.gpus, Nanos: uint64(row.metered)}); got != row.want {
			t.Errorf("%+v: %s", row, got)
		}
	}
}
