package main

import (
	"os"
	"runtime"
	"testing"
)

// programs is where the example programs are, built once.
var programs string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "gpupay-crash-")
	if err != nil {
		panic(err)
	}
	h := &host{}
	build(h, dir)
	programs = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// TestKills is the short run: 25 kills of the provider and 25 of its renters.
// The long one is `go run ./internal/crash --kills 500`.
func TestKills(t *testing.T) {
	if testing.Short() {
		t.Skip("runs for a minute")
	}
	runtime.LockOSThread()
	r := crash(t, config{bin: programs, kills: 25, renters: 6, seed: 1})
	r.print(os.Stdout)
	for _, line := range r.wrong {
		t.Error(line)
	}
	if r.count["provider"] < 25 || r.count["renter"] < 25 || r.acknowledged == 0 || r.channels == 0 {
		t.Errorf("%d and %d kills, %d vouchers, %d channels: the test showed too little", r.count["provider"], r.count["renter"], r.acknowledged, r.channels)
	}
}
