package provider

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/nodelink"
	"github.com/gpupay/gpupay/sdk/wire"
)

// What one node does at the beginning of a lease costs no other node, and no renter, the lease.

// asleep enlists the nodes, and has whichever of them rests do so for as long as the test.
func (r *rig) asleep() {
	r.Helper()
	r.enlist()
	now := time.Now()
	r.provider.nodes.SetClock(func() time.Time { return now })
}

// rest are the nodes that get no new lease for now.
func (r *rig) rest() string { return fmt.Sprint(r.provider.nodes.Resting()) }

// TestNodeThatNamesAnotherGateway: a node that says of each lease, as it begins and as it ends, that another gateway runs it, where
// the table says nothing of the kind, rests, and another node begins it. Where the table says so too, the node is none the worse for it.
func TestNodeThatNamesAnotherGateway(t *testing.T) {
	r, north, south := overBoth(t)
	r.asleep()
	var asked, other atomic.Int64
	north.begins(func() { other.Add(1) }, nil)
	south.begins(nil, func() *wire.Problem {
		asked.Add(1)
		r.sql(`UPDATE leases SET term = term + 1, owner = 'another'`)
		return nodelink.Deposed.With("another gateway runs it")
	})
	terms := r.terms(r.payer.Address(), 9)
	resp := r.do("GET", "", r.openCredential(r.payer, terms, 100_000, 0))
	if err := problemIn(wire.Unavailable, resp); err != nil || asked.Load() != 1 || other.Load() != 0 || r.rest() != "[]" {
		t.Errorf("a lease that another gateway has by now: %v; the nodes were asked %d and %d times, and %s rest", err, asked.Load(), other.Load(), r.rest())
	}
	south.mu.Lock()
	south.refuse = func(path string) *wire.Problem {
		if path == "/leases" {
			asked.Add(1)
		}
		if strings.HasPrefix(path, "/leases") {
			return nodelink.Deposed.With("another gateway runs it")
		}
		return nil
	}
	south.mu.Unlock()
	asked.Store(0)
	for salt := range byte(2) {
		if lease := r.open(salt+1, 100_000, "?gpus=1"); r.runsAt(lease) != "north" {
			t.Errorf("lease %d runs at %s", salt, r.runsAt(lease))
		}
	}
	if asked.Load() != 1 || r.rest() != "[south]" {
		t.Errorf("the node was asked %d times, and %s rest", asked.Load(), r.rest())
	}
}

// TestSlowRefusal: a node that takes its time to say that it has no GPU free, after all, leaves the next one enough to begin the lease,
// and rests.
func TestSlowRefusal(t *testing.T) {
	r, north, south := overBoth(t, func(c *Config) { c.Commands.Timeout = 4 * time.Second })
	r.asleep()
	south.begins(func() { time.Sleep(3 * time.Second) }, func() *wire.Problem { return wire.NoCapacity.With("none") })
	north.begins(func() { time.Sleep(1500 * time.Millisecond) }, nil) // as a container that starts
	lease := r.open(1, 100_000, "")
	if r.runsAt(lease) != "north" || r.rest() != "[south]" {
		t.Errorf("the lease runs at %s, and %s rest", r.runsAt(lease), r.rest())
	}
}

// TestCutOffByTheSlownessOfAnother: a node that has less time to begin a lease, since one that was asked before it did not answer, does
// not rest for that.
func TestCutOffByTheSlownessOfAnother(t *testing.T) {
	west := newNamedGPUs(t, "west", 3)
	r, north, south := overBoth(t, func(c *Config) {
		c.Commands.Timeout = time.Second
		c.Nodes.Links = append(c.Nodes.Links, NodeLink{Name: "west", URL: west.server.URL})
	})
	r.asleep()
	over := make(chan struct{})
	t.Cleanup(sync.OnceFunc(func() { close(over) }))
	var asked atomic.Int64
	for _, o := range []*outpost{north, south, west} {
		o.begins(func() { asked.Add(1); <-over }, func() *wire.Problem { return wire.Unavailable.With("too late") })
	}
	resp := r.do("GET", "", r.openCredential(r.payer, r.terms(r.payer.Address(), 1), 100_000, 0))
	if resp.StatusCode != http.StatusServiceUnavailable || asked.Load() < 2 || r.rest() != "[south]" {
		t.Errorf("answered %d; %d nodes were asked, and %s rest", resp.StatusCode, asked.Load(), r.rest())
	}
}

// TestAccessOfANodeIsBounded: a node whose access document is longer than a renter takes begins no lease, and rests; one of just the
// length is handed on.
func TestAccessOfANodeIsBounded(t *testing.T) {
	r, _, south := overBoth(t)
	r.asleep()
	var size atomic.Int64
	lies(south, "/leases", func(l *nodelink.Lease) {
		l.Allocation = &gpu.Allocation{LeaseID: l.LeaseID, Devices: l.Allocation.Devices, Access: json.RawMessage(`"` + strings.Repeat("x", int(size.Load())-2) + `"`)}
	})
	size.Store(64 << 10)
	if lease := r.open(1, 100_000, "?gpus=1"); r.runsAt(lease) != "south" || len(lease.lease.Access) != 64<<10 {
		t.Errorf("it runs at %s, reached by %d bytes", r.runsAt(lease), len(lease.lease.Access))
	}
	size.Add(1)
	if lease := r.open(2, 100_000, "?gpus=1"); r.runsAt(lease) != "north" || r.rest() != "[south]" {
		t.Errorf("it runs at %s, reached by %d bytes, and %s rest", r.runsAt(lease), len(lease.lease.Access), r.rest())
	}
	var longest int
	if err := r.provider.db.View().Get(&longest, `SELECT MAX(LENGTH(allocation)) FROM leases`); err != nil || longest > 65<<10 {
		t.Errorf("%d bytes are in the table (%v)", longest, err)
	}
}
