package received

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/internal/pgtest"
)

func newFleet(t *testing.T, channels int) *fleet {
	t.Helper()
	b, err := newBook(channels)
	if err != nil {
		t.Fatal(err)
	}
	f, err := openFleet(t.Context(), b, pgtest.URL(t), 3, 2)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestFleetPaysWhatItSays: three processes that are not this one take every
// channel's vouchers, and what they used is counted.
func TestFleetPaysWhatItSays(t *testing.T) {
	const channels = 7
	f := newFleet(t, channels)
	pids := map[int]bool{os.Getpid(): true}
	for _, p := range f.processes {
		pids[p.command.Process.Pid] = true
	}
	if len(pids) != 4 {
		t.Errorf("%d processes, want this one and three", len(pids))
	}
	for range 2 {
		if err := f.prepare(4 * channels); err != nil {
			t.Fatal(err)
		}
		before := f.used()
		if err := f.run(t.Context(), 4*channels); err != nil {
			t.Fatal(err)
		}
		if after := f.used(); after.Allocs <= before.Allocs || after.Processor <= before.Processor {
			t.Errorf("used %+v before, %+v after", before, after)
		}
	}
	if f.done != 8 {
		t.Errorf("%d of each channel's vouchers count, want 8", f.done)
	}
	if err := f.check(t.Context()); err != nil {
		t.Error(err)
	}
	for _, p := range f.processes {
		if !p.command.ProcessState.Success() {
			t.Errorf("a process ended with %s", p.command.ProcessState)
		}
	}
}

// TestFleetThatLosesAGatewayIsNoContender: neither its silence nor what it did
// not keep counts as payments.
func TestFleetThatLosesAGatewayIsNoContender(t *testing.T) {
	f := newFleet(t, 3)
	if err := f.prepare(2 * 3); err != nil {
		t.Fatal(err)
	}
	if err := f.processes[1].command.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := f.run(t.Context(), 2*3); err == nil || !strings.Contains(err.Error(), "gateway's process") {
		t.Errorf("a payment to a dead process: %v", err)
	}
	if err := f.check(context.Background()); err == nil || !strings.Contains(err.Error(), "kept a voucher for 0") {
		t.Errorf("what it did not keep: %v", err)
	}
}
