package renting

import (
	"errors"
	"testing"
	"time"
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
