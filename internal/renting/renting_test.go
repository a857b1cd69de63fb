package renting

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/renter"
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
		o := &Renting{Resume: row.resume, Options: renter.Options{For: row.say}}
		if got := remaining(o, renter.State{For: row.begun, GPUs: row.gpus, Nanos: uint64(row.metered)}); got != row.want {
			t.Errorf("%+v: %s", row, got)
		}
	}
}

// TestResumeChooses: of several rentals the one that holds a deposit is gone on with, and none where that is not one alone.
func TestResumeChooses(t *testing.T) {
	until := time.Unix(1_800_000_000, 0)
	promise := renter.State{Channel: common.Hash{1}, Phase: renter.PhaseOpening, Until: until}
	running := renter.State{Channel: common.Hash{2}, Phase: "running"}
	closing := renter.State{Channel: common.Hash{3}, Phase: renter.PhaseClosing}
	sent := renter.State{Channel: common.Hash{4}, Phase: renter.PhaseOpening} // by the renter itself: it may be there
	closed := renter.State{Channel: common.Hash{5}, Phase: renter.PhaseClosed}
	type list = []renter.State
	for _, row := range []struct {
		all         list
		named, want common.Hash
		mustBe      string
	}{
		{all: list{promise, running}, want: running.Channel},
		{all: list{running, promise}, want: running.Channel},
		{all: list{promise, closed}, want: promise.Channel},
		{all: list{closed, closing}, want: closing.Channel},
		{all: list{promise, running, closing}, mustBe: "--channel"},
		{all: list{sent, running}, mustBe: "--channel"},
		{all: list{promise, running, closing}, named: closing.Channel, want: closing.Channel},
		{all: list{promise, running}, named: promise.Channel, want: promise.Channel},
		{all: list{closed}, mustBe: "no unfinished rental"},
		{all: list{running}, named: closing.Channel, mustBe: "no unfinished rental"},
		{mustBe: "no unfinished rental"},
	} {
		got, err := choose(unfinished(row.all, row.named), "renter.db")
		if got.Channel != row.want || (err == nil) != (row.mustBe == "") || err != nil && !strings.Contains(err.Error(), row.mustBe) {
			t.Errorf("%+v: %s, %v", row, got.Channel, err)
		}
	}
}
