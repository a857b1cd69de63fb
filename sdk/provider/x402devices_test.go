package provider

import (
	"errors"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/placement"
	"github.com/gpupay/gpupay/sdk/internal/x402scheme"
	"github.com/gpupay/gpupay/sdk/wire"
)

// gate is the handler of a metered route that runs until it is let go.
type gate struct{ began, end chan struct{} }

func newGate() gate { return gate{make(chan struct{}, 8), make(chan struct{})} }

func (g gate) ServeHTTP(_ http.ResponseWriter, req *http.Request) {
	g.began <- struct{}{}
	select {
	case <-g.end:
	case <-req.Context().Done():
	}
}

func onOneGPU(c *Config) { c.Source = testclock.GPUs(1) }

// routed serves metered routes of a minute on the provider's first GPU, beside its own.
func routed(r *payRig, routes map[string]http.Handler) {
	r.Helper()
	mux := http.NewServeMux()
	mux.Handle("/", r.provider)
	for path, h := range routes {
		handler, err := r.provider.Metered(Route{Devices: []string{sim.UUID(0)}, MaxTime: time.Minute}, h)
		if err != nil {
			r.Fatal(err)
		}
		mux.Handle(path, handler)
	}
	r.server.Config.Handler = mux
}

// opens sends a channel's first payment and returns where its answer comes.
func (b *buyer) opens() <-chan *http.Response {
	b.Helper()
	pay, answer := b.depositing(b.next(), 300_000), make(chan *http.Response, 1)
	go func() { answer <- b.pay(pay) }()
	return answer
}

// isFull checks that a channel's first payment is refused for want of a GPU, and that no deposit of it is sent.
func (b *buyer) isFull() {
	b.Helper()
	answer := b.opens()
	eventually(b.T, "an answer, or a deposit that should not be", func() bool { return len(answer) > 0 || len(b.transactions(b)) > 0 })
	if len(b.transactions(b)) > 0 {
		b.Fatalf("%s: a deposit was sent", b.path)
	}
	resp := <-answer
	if err := problemIn(wire.NoCapacity, resp); err != nil || resp.StatusCode != http.StatusServiceUnavailable || len(b.transactions(b)) != 0 {
		b.Errorf("%s: %s, want no capacity: %v; sent: %v", b.path, resp.Status, err, b.transactions(b))
	}
}

func (b *buyer) isServed(answer <-chan *http.Response) {
	b.Helper()
	if resp := <-answer; resp.StatusCode != http.StatusOK {
		b.Fatalf("%s: %s %v", b.path, resp.Status, wire.ParseProblem(resp))
	}
}

// TestMeteredRequestsAndLeasesOnOneGPU: who asks for a GPU on which a lease or a metered request of another runs, or is about to,
// is refused before its money moves, and nothing but that keeps the GPU: who comes afterwards has it.
func TestMeteredRequestsAndLeasesOnOneGPU(t *testing.T) {
	t.Parallel()
	for name, second := range map[string]string{"a tick beside a request": "/tick", "a stream beside a request": "/lease", "another route": "/other"} {
		t.Run(name, func(t *testing.T) {
			r, g := newPayRig(t, onOneGPU), newGate()
			routed(r, map[string]http.Handler{"/infer": g, "/other": http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})})
			a, b := r.buyer("/infer"), r.buyer(second)
			r.chain.Automine(t, false)
			answer := a.opens()
			r.underWay(a)
			b.isFull()
			r.chain.Automine(t, true)
			r.chain.Mine(t, 1)
			<-g.began
			b.isFull()
			close(g.end)
			a.isServed(answer)
			if free := r.provider.config.Allocator.(gpu.Capacity).Free(); free != 1 {
				t.Errorf("%d free", free)
			}
			b.isServed(b.opens())
		})
	}
	t.Run("a tick beside a later request", func(t *testing.T) {
		r, g := newPayRig(t, onOneGPU), newGate()
		routed(r, map[string]http.Handler{"/infer": g, "/other": http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})})
		a, b := r.buyer("/other"), r.buyer("/tick")
		a.take(<-a.opens())
		a.path = "/infer"
		pay, answer := a.payment(a.next()), make(chan *http.Response, 1)
		go func() { answer <- a.pay(pay) }()
		<-g.began
		b.isFull()
		close(g.end)
		a.isServed(answer)
	})
	t.Run("a request beside a lease", func(t *testing.T) {
		r, g := newPayRig(t, onOneGPU), newGate()
		close(g.end)
		routed(r, map[string]http.Handler{"/infer": g})
		a, b := r.buyer("/tick"), r.buyer("/infer")
		r.chain.Automine(t, false)
		answer := a.opens()
		r.underWay(a)
		b.isFull()
		r.chain.Automine(t, true)
		r.chain.Mine(t, 1)
		a.isServed(answer)
		b.isFull()
		a.idle()
		b.isServed(b.opens())
	})
}

// TestMeteredRequestWhoseDevicesLapsed: what is kept for a metered request ends by itself where a database is shared. If its devices
// are in a lease by the time that it begins, it is refused, and not billed beside that.
func TestMeteredRequestWhoseDevicesLapsed(t *testing.T) {
	r := newPayRig(t, onOneGPU)
	route, err := r.provider.Metered(Route{Devices: []string{sim.UUID(0)}, MaxTime: time.Minute}, newGate())
	if err != nil {
		t.Fatal(err)
	}
	place := func(id byte) error {
		_, _, err := r.provider.leases.Deps.Placer.Place(t.Context(), placement.Request{Request: gpu.Request{LeaseID: common.Hash{id}, GPUs: 1}})
		return err
	}
	lease := r.buyer("/tick")
	lease.isServed(lease.opens())
	route.(x402scheme.Handler).RunsAs(common.Hash{2})
	if err := place(2); !errors.Is(err, gpu.ErrNoCapacity) {
		t.Errorf("a request beside a lease: %v", err)
	}
}

// TestLeasesLeaveARouteItsGPU: a lease is given GPUs of no Metered route while there are any, so that the route is served
// beside it, and a route's GPU only when no other is left.
func TestLeasesLeaveARouteItsGPU(t *testing.T) {
	r, g := newPayRig(t, func(c *Config) { c.Source = testclock.GPUs(3) }), newGate()
	close(g.end)
	routed(r, map[string]http.Handler{"/infer": g, "/other": g})
	b := r.buyer("/infer")
	lease := func(id byte, want string) {
		t.Helper()
		a, _, err := r.provider.placer().Place(t.Context(), placement.Request{Request: gpu.Request{LeaseID: common.Hash{id}, GPUs: 1}})
		if err != nil || len(a.Devices) != 1 || a.Devices[0] != want {
			t.Fatalf("lease %d has %v (%v), want %s", id, a.Devices, err, want)
		}
	}
	lease(1, sim.UUID(1))
	lease(2, sim.UUID(2))
	b.isServed(b.opens())
	lease(3, sim.UUID(0))
}

// TestAllocatorThatKnowsNoMeteredRoute: a GPU that an allocator of the operator's own gives to a lease while a metered request
// runs on it is given back, and is the next one's.
func TestAllocatorThatKnowsNoMeteredRoute(t *testing.T) {
	gpu := oneGPU{make(chan gpu.Allocation, 8)}
	r, g := newPayRig(t, onOneGPU, func(c *Config) { c.Allocator = gpu }), newGate()
	routed(r, map[string]http.Handler{"/infer": g, "/other": g})
	a, b, c := r.buyer("/infer"), r.buyer("/tick"), r.buyer("/other")
	answer := a.opens()
	<-g.began
	c.isFull()
	if resp := <-b.opens(); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a lease beside a request: %s %v", resp.Status, wire.ParseProblem(resp))
	}
	if len(gpu.released) != 1 {
		t.Errorf("%d released, want the one that was not begun", len(gpu.released))
	}
	close(g.end)
	a.isServed(answer)
	b.again()
	c.isFull()
}

// TestManyRequestsOfARouteAreServed: requests of many payers for one route wait for their turn, each one's first included.
func TestManyRequestsOfARouteAreServed(t *testing.T) {
	r := newPayRig(t, onOneGPU)
	routed(r, map[string]http.Handler{"/infer": http.HandlerFunc(func(http.ResponseWriter, *http.Request) { testclock.Sleep(time.Millisecond) })})
	for range 2 {
		var payers []*buyer
		var answers []<-chan *http.Response
		for range 4 {
			b := r.buyer("/infer")
			payers, answers = append(payers, b), append(answers, b.opens())
		}
		for i, b := range payers {
			b.isServed(answers[i])
		}
	}
}

// TestGatewaysKeepAMeteredGPU: a GPU has one meter, also where two gateways share it; what one of them kept that died ends.
func TestGatewaysKeepAMeteredGPU(t *testing.T) {
	database := pgtest.URL(t)
	change := func(c *Config) {
		onOneGPU(c)
		c.Database, c.Takeover = database, 20*time.Second
		c.Records.HighWater = filepath.Join(t.TempDir(), "signed")
	}
	one := newPayRig(t, change)
	two, g := payRigOn(t, one.chain, change), newGate()
	if err := two.provider.gateway.Devices().Keep(t.Context(), common.Hash{1}, []string{sim.UUID(0)}, func(common.Hash) bool { return false }, time.Millisecond); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what a gateway kept that died ends", func() bool { return one.provider.config.Allocator.(gpu.Capacity).Free() == 1 })
	routed(one, map[string]http.Handler{"/infer": g})
	routed(two, map[string]http.Handler{"/infer": g})
	a, b, c := one.buyer("/infer"), two.buyer("/tick"), two.buyer("/infer")
	one.chain.Automine(t, false)
	answer := a.opens()
	one.underWay(a)
	b.isFull()
	c.isFull()
	one.chain.Automine(t, true)
	one.chain.Mine(t, 1)
	<-g.began
	b.isFull()
	c.isFull()
	close(g.end)
	a.take(<-answer)
	c.isServed(c.opens())
	b.isServed(b.opens())
	if err := problemIn(wire.NoCapacity, a.pay(a.payment(a.next()))); err != nil {
		t.Error("a channel that has money: ", err)
	}
}
