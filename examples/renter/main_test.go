package main

import (
	"errors"
	"path/filepath"
	"strings"
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

// TestMistakesNameFlags: what is wrong is called what the user typed, or can type.
func TestMistakesNameFlags(t *testing.T) {
	t.Setenv("GPUPAY_KEY", strings.Repeat("1", 64))
	t.Setenv("GPUPAY_TOKEN", "")
	t.Setenv("GPUPAY_DB", filepath.Join(t.TempDir(), "renter.db"))
	for _, row := range []struct{ args, says string }{
		{"--gpus 0", "--gpus 0"}, {"--gpus -1", "--gpus -1"}, {"--minutes -1", "--minutes"}, {"--pay-every 60", "60s"},
		{"", "--token ($GPUPAY_TOKEN) is empty"}, {"", "devchain.env"}, {"--db=", "--token"},
		{"--db= --token 0x" + strings.Repeat("1", 40), "--db ($GPUPAY_DB) is empty"},
		{"--rpc= --token 0x" + strings.Repeat("1", 40), "--rpc ($GPUPAY_RPC) is empty"},
	} {
		o, err := parse(strings.Fields(row.args))
		if err == nil {
			err = o.flags.Named(rent(t.Context(), o), fields)
		}
		if err == nil || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%q: %v", row.args, err)
		}
	}
	o, err := parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	for field, name := range fields {
		if o.flags.Lookup(name) == nil {
			t.Errorf("%s: no flag is --%s", field, name)
		}
	}
}
