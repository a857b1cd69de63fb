package nodelink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestNodesKeepRoomForDeposits: a lease is on one host, and so is what is kept for
// one that is to come.
func TestNodesKeepRoomForDeposits(t *testing.T) {
	n := &Pool{status: map[string]Status{"a": {Free: 4}, "b": {Free: 2}, "c": {Free: 4}},
		enlisted: map[string][]wire.OfferDevices{"a": nil, "b": nil, "c": nil}}
	for _, c := range []struct {
		kept []int
		free int
	}{{nil, 4}, {[]int{4}, 4}, {[]int{4, 4}, 2}, {[]int{4, 4, 2}, 0}, {[]int{2, 2}, 2}, {[]int{8}, 4}, {[]int{1, 4}, 3}} {
		if got := n.FreeBeside(c.kept, Any); got != c.free {
			t.Errorf("beside %v: %d are free, not %d", c.kept, got, c.free)
		}
	}
}

// TestListsAreLookedAtInTime: a node that says something else each time has the list of nodes looked at, and written, as often as enlistBurst
// says, and not each time.
func TestListsAreLookedAtInTime(t *testing.T) {
	p, err := NewPool([]*Client{{Name: "south"}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l, looks := newLedger(t, false), 0
	for i := range 3 * enlistBurst {
		now := l.now.Add(time.Duration(i) * time.Millisecond)
		p.SetClock(func() time.Time { return now })
		p.status["south"] = Status{Devices: gpus("a", "b", "c")[:1+i%3]}
		if err := p.enlist(t.Context(), l.list.DB); err != nil {
			t.Fatal(err)
		}
		if p.enlistedAt.Equal(now) {
			looks++
		}
	}
	if looks < enlistBurst || looks > 2*enlistBurst {
		t.Errorf("of %d lists %d are looked at at once", 3*enlistBurst, looks)
	}
}

// TestSlicesOfAnothersGPU: a record of slices that are said to be cut from another node's GPU is refused.
func TestSlicesOfAnothersGPU(t *testing.T) {
	n := &Pool{known: map[string][]metering.Device{"north": {{UUID: "GPU-n"}}, "south": {{UUID: "MIG-s", Parent: "GPU-s"}}}}
	for parent, refused := range map[string]bool{"": false, "GPU-s": false, "GPU-n": true} {
		bill := []metering.DeviceEvidence{{Device: metering.Device{UUID: "MIG-s", Parent: parent}}}
		if err := n.CheckSlices("south", bill); (err != nil) != refused {
			t.Errorf("slices of %q: %v", parent, err)
		}
	}
}

// TestNodeWhoseErrorsAreMany: a node of which hundreds of errors are made each second, or that comes and goes, has a bounded part of them
// logged, and not each time; another node's are said.
func TestNodeWhoseErrorsAreMany(t *testing.T) {
	var log bytes.Buffer
	p, err := NewPool([]*Client{{Name: "south"}, {Name: "north"}}, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	p.SetClock(func() time.Time { return now })
	const seconds = 600
	for second := range seconds {
		now = now.Add(time.Second)
		p.Go(t.Context(), "reconcile", "south", func(context.Context) error {
			var all error
			for i := range 20 {
				all = errors.Join(all, fmt.Errorf("%d: é%s", second+i, strings.Repeat("x", 900)))
			}
			return all
		})
		p.Wait()
		p.update("south", Status{Problem: fmt.Sprint(second)}, nil)
		p.update("south", Status{}, errors.New("it is away"))
	}
	lines, most := strings.Count(log.String(), "\n"), 2*(saysBurst+seconds/60+1)
	if lines > most || lines < seconds/60 || log.Len() > most*2*maxBrief {
		t.Errorf("%d lines and %d bytes are logged in %d seconds", lines, log.Len(), seconds)
	}
	p.Go(t.Context(), "reconcile", "north", func(context.Context) error { return errors.New("north has failed") })
	p.Wait()
	if !strings.Contains(log.String(), "north has failed") {
		t.Error("what another node does is not said")
	}
}
