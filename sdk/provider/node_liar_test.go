package provider

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/gateways"
	"github.com/gpupay/gpupay/sdk/internal/nodelink"
	"github.com/gpupay/gpupay/sdk/internal/remote"
	"github.com/gpupay/gpupay/sdk/wire"
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
	var one sync.Mutex // several are asked at a time
	o.set(false, func(p string, answer []byte) []byte {
		if !strings.HasSuffix(p, path) {
			return answer
		}
		var said T
		if err := json.Unmarshal(answer, &said); err != nil {
			o.Error(err)
		}
		one.Lock()
		change(&said)
		one.Unlock()
		raw, err := json.Marshal(said)
		if err != nil {
			o.Error(err)
		}
		return raw
	})
}

// overBoth is a gateway over a well node, north, of two GPUs, and south, of four, that lies.
func overBoth(t *testing.T, change ...func(*Config)) (r *rig, north, south *outpost) {
	north, south = newNamedGPUs(t, "north", 2), newNamedGPUs(t, "south", 4)
	r = newRig(t, append([]func(*Config){north.link, generousCredit, func(c *Config) {
		c.Nodes.Links = append(c.Nodes.Links, NodeLink{Name: "south", URL: south.server.URL})
		c.Log = slog.New(slog.DiscardHandler)
	}}, change...)...)
	return r, north, south
}

// runsAt is the node of a lease.
func (r *rig) runsAt(l *tab) string {
	r.Helper()
	run := r.provider.leases.Running(l.terms.ID())
	if run == nil {
		r.Fatal("the lease does not run")
	}
	return run.Allocation.Node
}

// TestOfferDoesNotGrowWithWhatANodeLists: a node that lists as many GPUs as it likes, each with another memory and others each time,
// makes the offer no longer than one kind takes, nor renewed more often than it may; renters of the other node notice nothing.
func TestOfferDoesNotGrowWithWhatANodeLists(t *testing.T) {
	r, _, south := overBoth(t)
	south.set(true, nil)
	r.enlist()
	lease := r.open(1, 300_000, "")
	lease.record()
	count := 300
	var simulated atomic.Bool
	lies(south, "/status", func(s *nodelink.Status) {
		count++
		d := s.Devices[0]
		s.Devices, s.Free = nil, 0
		for i := range count {
			d.UUID, d.MemoryBytes, d.Simulated = fmt.Sprintf("GPU-south-%d", i), d.MemoryBytes+1, simulated.Load() && i == 0
			s.Devices = append(s.Devices, d)
		}
	})
	seen := map[string]bool{}
	for range 3 * remote.OfferBurst {
		r.enlist()
		r.provider.nodes.Publish(t.Context())
		o := r.provider.Offer()
		seen[o.Hash.Hex()] = true
		if len(o.Devices) != 1 || o.Simulated || len(o.Document) > 1500 {
			t.Fatalf("offer of %d bytes, simulated %v: %+v", len(o.Document), o.Simulated, o.Devices)
		}
	}
	if n := len(seen); n > remote.OfferBurst+3 {
		t.Errorf("%d offers were made", n)
	}
	if n := r.provider.Offer().Devices[0].Count; n <= 302 {
		t.Errorf("the other node's GPUs are not offered: this shows nothing (%d)", n)
	}
	if accepted := lease.pay(100).AcceptedCumulative; accepted.Uint64() != 100 {
		t.Errorf("accepted %s", accepted.Dec())
	}
	lease.release()
	simulated.Store(true)
	r.enlist()
	if why := r.provider.nodes.Refused()["south"]; !strings.Contains(why, "simulated") {
		t.Errorf("a node with a simulated GPU among real ones is not refused: %q", why)
	}
	if next := r.open(2, 300_000, ""); r.runsAt(next) != "north" {
		t.Error("it runs at the other node")
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
	lies(south, "/leases", func(l *nodelink.Lease) {
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
	lies(south, "/status", func(s *nodelink.Status) { s.Devices[0].UUID = stolen })
	refused := func(when string) {
		t.Helper()
		r.enlist()
		if why := r.provider.nodes.Refused(); len(why) != 1 || !strings.Contains(why["south"], "node north's") {
			t.Errorf("%s: refused are %v", when, why)
		}
	}
	refused("both are there")
	r.config.Nodes.Links[0], r.config.Nodes.Links[1] = r.config.Nodes.Links[1], r.config.Nodes.Links[0]
	north.set(true, nil)
	r.restart()
	refused("north is away")
	lost := 0
	lies(north, "/status", func(s *nodelink.Status) { s.Devices, lost = s.Devices[1:], lost+1 })
	refused("north has lost it for a while")
	north.set(false, nil)
	refused("north is back")
	lease.again()
	lease.record()
	if lost == 0 {
		t.Error("north was not asked: this shows nothing")
	}
	lies(north, "/status", func(s *nodelink.Status) { s.Devices = s.Devices[1:] })
	r.sql(`UPDATE enlisted_devices SET seen = seen - ? WHERE device = ?`, nodelink.DeviceKept.Milliseconds()+1, theirs)
	refused("north has lost it for an hour, and south has waited for that")
	r.sql(`UPDATE enlisted_rivals SET seen = seen - ? WHERE device = ?`, nodelink.RivalKept.Milliseconds()+1, theirs)
	r.enlist()
	if why := r.provider.nodes.Refused(); len(why) != 0 {
		t.Errorf("north has not listed it for a day: %v", why)
	}
	lease.release()
}

// TestGPUInDoubtCostsNoOther: of a node of which another one that lies listed a GPU first, that GPU goes into no lease and the others do:
// it says that so many are free, hands out none but those, and does not rest.
func TestGPUInDoubtCostsNoOther(t *testing.T) {
	north, south := newNamedGPUs(t, "north", 1), newNamedGPUs(t, "south", 3)
	devices, err := south.config.Source.Devices(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lies(north, "/status", func(s *nodelink.Status) { s.Devices, s.Free = append(s.Devices, devices[0]), 0 })
	r := newRig(t, north.link, generousCredit, quiet, func(c *Config) {
		c.Nodes.Links = append(c.Nodes.Links, NodeLink{Name: "south", URL: south.server.URL})
	})
	r.enlist()
	n := r.provider.nodes
	free := func(want int) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d to be free", want), func() bool { return n.Free() == want })
	}
	free(2)
	if why := r.health().Refused; len(why) != 1 || !strings.Contains(why["south"], devices[0].UUID) || len(n.Devices()) != 4 {
		t.Errorf("refused are %v, of %v", why, n.Devices())
	}
	lease := r.open(1, 300_000, "?gpus=2")
	if got := r.provider.leases.Running(lease.terms.ID()).Allocation; got.Node != "south" || slices.Contains(got.Devices, devices[0].UUID) {
		t.Errorf("it has %v", got)
	}
	lease.record()
	lease.release()
	free(2) // it does not rest
	north.set(false, nil)
	r.sql(`DELETE FROM enlisted_devices WHERE device = ?`, devices[0].UUID)
	r.sql(`DELETE FROM enlisted_rivals`)
	r.enlist()
	if why := r.health().Refused; len(why) != 0 || len(n.Devices()) != 4 {
		t.Errorf("refused are %v, of %v", why, n.Devices())
	}
}

// TestShareThatNoGatewayGave: a node that says it was told of all of its payer's credit, and of a version that is newer each time,
// keeps no more of it than its share: the payer's other lease begins.
func TestShareThatNoGatewayGave(t *testing.T) {
	r, _, south := overBoth(t)
	var said atomic.Int64
	lies(south, "/sync", func(l *nodelink.Lease) {
		all := wireAmount(1 << 40)
		l.Credit, l.CreditVersion = &all, math.MaxInt64/4+1000*said.Add(1)
	})
	first := r.open(1, 300_000, "?gpus=1")
	if r.runsAt(first) != "south" {
		t.Fatal("the first lease runs at the node that does not lie: this shows nothing")
	}
	asked := said.Load()
	eventually(t, "the node to have said so often", func() bool { return said.Load() >= asked+3 })
	r.open(2, 300_000, "?gpus=1")
	var version int64
	if err := r.provider.db.View().Get(&version, r.provider.db.View().Rebind(`SELECT version FROM credit_shares WHERE lease = ?`), first.lease.LeaseID.Hex()); err != nil {
		t.Fatal(err)
	}
	if most := math.MaxInt64/4 + 1000 + said.Load(); version > most {
		t.Errorf("the share has version %d: the node was believed more than once", version)
	}
}

// TestNodeThatEndsNothing: a node that lists a lease which another one had, and does not answer when it is told to end it, has the
// gateway neither hear less of the others nor give back their shares.
func TestNodeThatEndsNothing(t *testing.T) {
	r, north, south := overBoth(t)
	lies(south, "/status", func(s *nodelink.Status) { s.Free = 0 })
	r.enlist()
	lease := r.open(1, 300_000, "")
	if r.runsAt(lease) != "north" {
		t.Fatal("it runs at the node that lies: this shows nothing")
	}
	lease.record()
	lease.release()
	waitFor(t, func() bool { return lease.row().Held == 0 })
	hangs, hung, heard := make(chan struct{}), atomic.Int64{}, atomic.Int64{}
	defer close(hangs)
	south.mu.Lock()
	south.hang = func(path string) {
		if strings.HasSuffix(path, "/end") {
			hung.Add(1)
			<-hangs
		}
	}
	south.mu.Unlock()
	lies(south, "/status", func(s *nodelink.Status) {
		s.Free, s.Leases = 0, []nodelink.Lease{{LeaseID: lease.lease.LeaseID, State: wire.StateEnded}}
	})
	lies(north, "/status", func(*nodelink.Status) { heard.Add(1) })
	eventually(t, "the gateway to wait for the node", func() bool { return hung.Load() > 0 })
	before := heard.Load()
	eventually(t, "the gateway to hear of the other one", func() bool { return heard.Load() > before+3 })
	if n := hung.Load(); n != 1 {
		t.Errorf("%d requests wait for one node", n)
	}
}

// TestNodeThatAlwaysHasMore: a node that answers each question with one good record, and always says that there are more, keeps no
// renter from giving its lease back.
func TestNodeThatAlwaysHasMore(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, o.link, generousCredit, quiet, func(c *Config) { c.Commands.Timeout = 2 * time.Second })
	disk := o.disk
	lies(o, "/sync", func(l *nodelink.Lease) {
		after := l.Sequence - uint64(len(l.Records))
		for len(l.Records) == 0 && t.Context().Err() == nil {
			time.Sleep(10 * time.Millisecond)
			row, err := disk.Leases.ByID(t.Context(), l.LeaseID.Hex())
			if l.Records, _ = disk.Records.After(t.Context(), l.LeaseID, after, 1); err != nil || row.State == wire.StateEnded {
				break
			}
		}
		l.Records, l.Sequence = l.Records[:min(1, len(l.Records))], 1_000_000
	})
	lease := r.open(1, 300_000, "")
	lease.record()
	lease.record()
	cred := lease.credential(wire.ActionRelease, 0)
	cred.Payload.CumulativeAmount, cred.Payload.Signature = nil, nil
	cred.Payload.LeaseSecret = lease.lease.Secret
	done := make(chan int, 1)
	go func() { done <- r.do("POST", "", cred).StatusCode }()
	select {
	case code := <-done:
		if code != http.StatusOK {
			t.Errorf("it is answered %d", code)
		}
	case <-time.After(30 * time.Second):
		t.Error("it is not given back")
	}
}

// TestNodeThatTalks: what a node gives as reasons costs a gateway a line of bounded length, and not one for each answer.
func TestNodeThatTalks(t *testing.T) {
	o := newOutpost(t)
	var said atomic.Int64
	lies(o, "/sync", func(l *nodelink.Lease) { l.Reason = fmt.Sprint(said.Add(1), strings.Repeat("x\n", 1<<16)) })
	var log tally
	r := newRig(t, o.link, generousCredit, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	lease := r.open(1, 300_000, "")
	began := time.Now()
	eventually(t, "the node to have talked", func() bool { return said.Load() > 4*remote.StatesAtOnce })
	if reason := r.provider.leases.Running(lease.terms.ID()).Status.Look().Reason; len(reason) > nodelink.MaxText || strings.Contains(reason, "\n") {
		t.Errorf("its reason has %d bytes", len(reason))
	}
	lines := log.holding("xx") + log.holding("x x")
	if most := remote.StatesAtOnce + int64(time.Since(began)/time.Second) + 2; lines > most {
		t.Errorf("%d lines were logged of it", lines)
	}
	if bytes := log.bytes.Load(); bytes > 1<<18 {
		t.Errorf("%d bytes were logged", bytes)
	}
}

// tally is a log of which only counts are kept.
type tally struct {
	bytes atomic.Int64
	mu    sync.Mutex
	lines []string
}

func (c *tally) Write(line []byte) (int, error) {
	c.bytes.Add(int64(len(line)))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lines = append(c.lines, string(line[:min(len(line), 2000)]))
	return len(line), nil
}

// holding is how many lines hold a text.
func (c *tally) holding(text string) (n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, line := range c.lines {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// upgraded is a source whose driver was upgraded: it reads its GPUs, and cannot list them.
type upgraded struct {
	metering.Source
	was atomic.Bool
}

func (u *upgraded) Devices(ctx context.Context) ([]metering.Device, error) {
	if u.was.Load() {
		return nil, metering.ErrRestart
	}
	return u.Source.Devices(ctx)
}

// TestNodeWhoseGPUsCannotBeListed: it begins no lease, and its gateways go on with those that run there: one is given back, its
// node says what it used, and the channel has another lease at another node.
func TestNodeWhoseGPUsCannotBeListed(t *testing.T) {
	north := newOutpost(t)
	north.stop()
	source := &upgraded{Source: testclock.GPUs(2)}
	north.config.Source, north.config.Log = source, slog.New(slog.DiscardHandler)
	north.start()
	r := newRig(t, north.link, generousCredit, quiet)
	lease := r.open(1, 300_000, "")
	lease.record()
	source.was.Store(true)
	n := r.provider.nodes
	eventually(t, "the gateway to hear of it", func() bool { return n.Answers("north") && n.Free() == 0 })
	lease.record()
	lease.release()
	waitFor(t, func() bool { return lease.row().Held == 0 })
	if offer := r.provider.Offer(); len(offer.Devices) != 1 {
		t.Errorf("its GPUs are offered no more: %+v", offer.Devices)
	}
	source.was.Store(false)
	eventually(t, "its GPUs to be free", func() bool { return n.Free() == 2 })
}

// TestGatewayWhoseClockWasSetBack: a gateway that starts with its wall clock an hour behind when a lease began takes the records of
// its node, and goes on with the lease.
func TestGatewayWhoseClockWasSetBack(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, o.link, quiet, func(c *Config) { c.Terms.Credit = time.Minute })
	lease := r.open(1, 300_000, "")
	last := lease.record()
	r.sql(`UPDATE leases SET started_at = started_at + ?`, int64(time.Hour))
	s, err := r.provider.payee.State(t.Context(), lease.terms.ID())
	if err != nil {
		t.Fatal(err)
	}
	view, err := gateways.Image(t.Context(), &r.provider.leases, lease.row(), s)
	if err != nil {
		t.Fatal(err)
	}
	if ran, least := view.Remote.(*remote.Lease).Checker.Elapsed(), int64(last.Nanos)+int64(time.Minute); ran < least || ran > least+int64(30*time.Minute) {
		t.Errorf("it allows %s of each GPU, the last record bills %s", time.Duration(ran), time.Duration(last.Nanos))
	}
	r.restart()
	lease.again()
	for range 3 {
		lease.pay(owedIn(lease.record()))
	}
	lease.release()
	o.same(r, lease.lease.LeaseID)
}
