package provider

import (
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/nodelink"
)

// TestNodeThatBeginsNoLeaseRests: a node that answers and begins no lease has most free, and would get every one: the
// next node begins it, and this one is not asked again before its rest is over.
func TestNodeThatBeginsNoLeaseRests(t *testing.T) {
	good, bad := newOutpost(t), newNamedOutpost(t, "south")
	command, calls := script(t, `[ -e $0.mended ] || exit 1`)
	bad.stop()
	host := hostGPUs(t, 8)
	host.AllocateCommand = append(command, "allocate")
	bad.config.Source, bad.config.Allocator, bad.config.MeterKey = nil, host, good.config.MeterKey
	bad.config.Source = host.Source
	bad.start()
	var ahead atomic.Int64
	r := newRig(t, good.link, generousCredit, func(c *Config) {
		c.Nodes.Links = append(c.Nodes.Links, NodeLink{Name: "south", URL: bad.server.URL})
		c.Log = slog.New(slog.DiscardHandler)
	})
	began := time.Now()
	n := r.provider.nodes
	n.SetClock(func() time.Time { return began.Add(time.Duration(ahead.Load())) })
	if free := n.Free(); free != 8 {
		t.Fatalf("%d free", free)
	}
	first := r.open(1, 300_000, "")
	if got := strings.Count(calls(), "allocate"); got != 1 {
		t.Errorf("the node was asked %d times", got)
	}
	if free := n.Free(); free > 2 {
		t.Errorf("a node that begins nothing has room for %d", free)
	}
	second := r.open(2, 300_000, "")
	if got := strings.Count(calls(), "allocate"); got != 1 {
		t.Errorf("the node was asked %d times, within its rest", got)
	}
	for _, lease := range []*tab{first, second} {
		if l := r.provider.leases.Running(lease.terms.ID()); l == nil || l.Allocation.Node != "north" {
			t.Errorf("it runs at %+v", l)
		}
	}
	if err := bad.config.Allocator.Release(t.Context(), gpu.Allocation{LeaseID: first.lease.LeaseID}); err != nil {
		t.Error(err)
	}
	mend(t, command[0])
	ahead.Store(int64(nodelink.MostRest))
	third := r.open(3, 300_000, "")
	if l := r.provider.leases.Running(third.terms.ID()); l == nil || l.Allocation.Node != "south" {
		t.Errorf("after its rest it gets none: %+v", l)
	}
}

func mend(t *testing.T, script string) {
	t.Helper()
	if err := os.WriteFile(script+".mended", nil, 0o600); err != nil {
		t.Fatal(err)
	}
}
