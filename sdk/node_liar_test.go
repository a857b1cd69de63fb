package sdk

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
)

// What a node that is broken into can do to the gateway, to other nodes and to the renters there.

// named is a host whose GPUs pass for real ones, of UUIDs that are its own.
type named struct {
	metering.Source
	host string
}

func (s named) Devices(ctx context.Context) ([]metering.Device, error) {
	all, err := s.Source.Devices(ctx)
	for i := range all {
		all[i].UUID, all[i].Simulated = strings.Replace(all[i].UUID, "SIM-GPU", s.host, 1), false
	}
	return all, err
}

func (s named) Read(ctx context.Context, uuid string) (metering.Reading, error) {
	r, err := s.Source.Read(ctx, strings.Replace(uuid, s.host, "SIM-GPU", 1))
	r.Device, r.Seen, r.Simulated = uuid, strings.Replace(r.Seen, "SIM-GPU", s.host, 1), false
	return r, err
}

// newNamedGPUs is a node whose GPUs have UUIDs of their own.
func newNamedGPUs(t *testing.T, name string, gpus int) *outpost {
	o := newNamedOutpost(t, name)
	o.stop()
	o.config.Source, o.config.Allocator, o.config.Log = named{testclock.GPUs(gpus), "GPU-" + name}, nil, slog.New(slog.DiscardHandler)
	o.start()
	return o
}

// lies has a node's answers of a path changed before its gateway has them.
func lies[T any](o *outpost, path string, change func(*T)) {
	o.set(false, func(p string, answer []byte) []byte {
		if !strings.HasSuffix(p, path) {
			return answer
		}
		var said T
		if err := json.Unmarshal(answer, &said); err != nil {
			o.Error(err)
		}
		change(&said)
		raw, err := json.Marshal(said)
		if err != nil {
			o.Error(err)
		}
		return raw
	})
}

// overBoth is a gateway over a well node, north, of two GPUs, and south, of four, that lies.
func overBoth(t *testing.T, change ...func(*ProviderConfig)) (r *rig, north, south *outpost) {
	north, south = newNamedGPUs(t, "north", 2), newNamedGPUs(t, "south", 4)
	r = newRig(t, append([]func(*ProviderConfig){north.link, generousCredit, func(c *ProviderConfig) {
		c.Nodes = append(c.Nodes, NodeLink{Name: "south", URL: south.server.URL})
		c.Log = slog.New(slog.DiscardHandler)
	}}, change...)...)
	return r, north, south
}

// runsAt is the node of a lease.
func (r *rig) runsAt(l *tab) string {
	r.Helper()
	run := r.provider.running(l.terms.ID())
	if run == nil {
		r.Fatal("the lease does not run")
	}
	return run.allocation.Node
}

// TestOfferDoesNotGrowWithWhatANodeLists: a node that lists as many GPUs as it likes, each with another memory and others each time,
// makes the offer no longer than one kind takes, nor renewed more often than offerPace; renters of the other node notice nothing.
func TestOfferDoesNotGrowWithWhatANodeLists(t *testing.T) {
	r, _, south := overBoth(t)
	south.set(true, nil)
	r.enlist()
	lease := r.open(1, 300_000, "")
	lease.record()
	count, simulated := 300, false
	lies(south, "/status", func(s *nodeStatus) {
		count++
		d := s.Devices[0]
		s.Devices, s.Free = nil, 0
		for i := range count {
			d.UUID, d.MemoryBytes, d.Simulated = fmt.Sprintf("GPU-south-%d", i), d.MemoryBytes+1, simulated && i == 0
			s.Devices = append(s.Devices, d)
		}
	})
	seen := map[string]bool{}
	for range 3 * offerBurst {
		r.enlist()
		r.provider.nodes.publish(t.Context())
		o := r.provider.Offer()
		seen[o.Hash.Hex()] = true
		if len(o.Devices) != 1 || o.Simulated || len(o.Document) > 1500 {
			t.Fatalf("offer of %d bytes, simulated %v: %+v", len(o.Document), o.Simulated, o.Devices)
		}
	}
	if n := len(seen); n > offerBurst+3 {
		t.Errorf("%d offers were made", n)
	}
	if n := r.provider.Offer().Devices[0].Count; n <= 302 {
		t.Errorf("the other node's GPUs are not offered: this shows nothing (%d)", n)
	}
	if accepted := lease.pay(100).AcceptedCumulative; accepted.Uint64() != 100 {
		t.Errorf("accepted %s", accepted.Dec())
	}
	lease.release()
	simulated = true
	r.enlist()
	if why := r.provider.nodes.refusals()["south"]; !strings.Contains(why, "simulated") {
		t.Errorf("a node with a simulated GPU among real ones is not refused: %q", why)
	}
	if next := r.open(2, 300_000, ""); r.runsAt(next) != "north" {
		t.Error("it runs at the other node")
	}
}

// TestListsThatNoNodeGives: a node is refused that lists too many GPUs, one twice or without a name, or one whose name is none.
func TestListsThatNoNodeGives(t *testing.T) {
	good := metering.Device{UUID: "GPU-1", Name: "H200", MemoryBytes: 1 << 37}
	with := func(change func(*metering.Device)) []metering.Device {
		bad := good
		bad.UUID = "GPU-2"
		change(&bad)
		return []metering.Device{good, bad}
	}
	if err := listable(with(func(*metering.Device) {})); err != nil {
		t.Error(err)
	}
	var many []metering.Device
	for i := range maxListed + 1 {
		many = append(many, metering.Device{UUID: fmt.Sprint(i)})
	}
	for name, list := range map[string][]metering.Device{
		"too many": many, "twice": {good, good}, "without a UUID": with(func(d *metering.Device) { d.UUID = "" }),
		"a long UUID": with(func(d *metering.Device) { d.UUID = strings.Repeat("x", maxListedText+1) }),
		"a long name": with(func(d *metering.Device) { d.Name = strings.Repeat("x", maxListedText+1) }),
		"a new line":  with(func(d *metering.Device) { d.Name = "H200\nlevel=ERROR" }),
		"no text":     with(func(d *metering.Device) { d.Parent = "\xff" }),
	} {
		if listable(list) == nil {
			t.Errorf("%s is no reason to refuse a node", name)
		}
	}
}

// TestOneGPUIsOneNodes: a node that lists a GPU of another one is refused, whichever of the two is away and after a restart; the
// node that listed it first, and its leases, notice nothing. A node that allocates what it does not list begins no lease.
func TestOneGPUIsOneNodes(t *testing.T) {
	r, north, south := overBoth(t)
	devices, err := north.config.Source.Devices(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	theirs := devices[0].UUID
	lies(south, "/leases", func(l *nodeLease) {
		if l.Allocation != nil {
			l.Allocation.Devices = []string{theirs}
		}
	})
	lease := r.open(1, 300_000, "") // south has most free
	if node := r.runsAt(lease); node != "north" {
		t.Errorf("a lease of GPU %s runs at %s", theirs, node)
	}
	lease.record()

	stolen := theirs
	lies(south, "/status", func(s *nodeStatus) { s.Devices[0].UUID = stolen })
	refused := func(when string) {
		t.Helper()
		r.enlist()
		if why := r.provider.nodes.refusals(); len(why) != 1 || !strings.Contains(why["south"], "node north's") {
			t.Errorf("%s: refused are %v", when, why)
		}
	}
	refused("both are there")
	r.config.Nodes[0], r.config.Nodes[1] = r.config.Nodes[1], r.config.Nodes[0]
	north.set(true, nil)
	r.restart()
	refused("north is away")
	lost := 0
	lies(north, "/status", func(s *nodeStatus) { s.Devices, lost = s.Devices[1:], lost+1 })
	refused("north has lost it for a while")
	north.set(false, nil)
	refused("north is back")
	lease.again()
	lease.record()
	if lost == 0 {
		t.Error("north was not asked: this shows nothing")
	}
	lies(north, "/status", func(s *nodeStatus) { s.Devices = s.Devices[1:] })
	r.sql(`UPDATE enlisted_devices SET seen = seen - ? WHERE device = ?`, enlistedDevice.Milliseconds()+1, theirs)
	r.enlist()
	if why := r.provider.nodes.refusals(); len(why) != 0 {
		t.Errorf("its GPU was moved to the other host an hour ago: %v", why)
	}
	lease.release()
}

// TestSlicesOfAnothersGPU: a record of slices that are said to be cut from another node's GPU is refused.
func TestSlicesOfAnothersGPU(t *testing.T) {
	n := &nodes{known: map[string][]metering.Device{"north": {{UUID: "GPU-n"}}, "south": {{UUID: "MIG-s", Parent: "GPU-s"}}}}
	for parent, refused := range map[string]bool{"": false, "GPU-s": false, "GPU-n": true} {
		bill := []metering.DeviceEvidence{{Device: metering.Device{UUID: "MIG-s", Parent: parent}}}
		if err := n.slicesOfAnother("south", bill); (err != nil) != refused {
			t.Errorf("slices of %q: %v", parent, err)
		}
	}
}
