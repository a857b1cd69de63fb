package provider

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/gpu"
	leasing "github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// brittle is an allocator whose operations fail when told to.
type brittle struct {
	*gpu.HostAllocator
	mu    sync.Mutex
	fails map[string]bool
}

func newBrittle(t *testing.T) *brittle {
	return &brittle{HostAllocator: hostGPUs(t, 2), fails: map[string]bool{}}
}

func (b *brittle) fail(op string, on bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fails[op] = on
}

func (b *brittle) try(op string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fails[op] {
		return errors.New(op + " fails on purpose")
	}
	return nil
}

func (b *brittle) Allocate(ctx context.Context, req gpu.Request) (gpu.Allocation, error) {
	if err := b.try("allocate"); err != nil {
		return gpu.Allocation{}, err
	}
	return b.HostAllocator.Allocate(ctx, req)
}

func (b *brittle) Suspend(context.Context, gpu.Allocation) error { return b.try("suspend") }
func (b *brittle) Resume(context.Context, gpu.Allocation) error  { return b.try("resume") }

func TestLeaseThatCannotBeSuspendedEnds(t *testing.T) {
	allocator := newBrittle(t)
	allocator.fail("suspend", true)
	r := newRig(t, func(c *Config) { c.Allocator = allocator; c.Terms.Credit = time.Second })
	lease := r.open(1, 500_000, "")
	if s := lease.status(leasestore.Ended); !strings.Contains(s.Reason, "suspended") {
		t.Errorf("ended because %q", s.Reason)
	}
	if allocator.Free() != 2 {
		t.Errorf("%d devices are free", allocator.Free())
	}
	s, err := r.provider.payee.State(t.Context(), lease.terms.ID())
	if err != nil || s.Spent.Uint64() > 1000 {
		t.Errorf("charged %s over a credit of 1000 (%v)", s.Spent.Dec(), err)
	}
}

func TestFailedAllocationLosesNothing(t *testing.T) {
	allocator := newBrittle(t)
	allocator.fail("allocate", true)
	r := newRig(t, func(c *Config) { c.Allocator = allocator })
	terms := r.terms(r.payer.Address(), 1)
	resp := r.do("GET", "", r.openCredential(r.payer, terms, 100_000, 0))
	if err := problemIn(wire.Internal, resp); err != nil {
		t.Fatal(err)
	}
	if body := wire.ParseProblem(resp); strings.Contains(body.Detail, "on purpose") {
		t.Errorf("the provider's own error reached the renter: %s", body.Detail)
	}
	// The deposit is in the channel; the renter comes back and uses it.
	allocator.fail("allocate", false)
	lease := &tab{rig: r, key: r.payer, terms: terms}
	cred := lease.credential(wire.ActionVoucher, 0)
	cred.Payload.Proof = lease.proof(cred.Challenge.ID, "attach")
	lease.attach(r.do("GET", "", cred))
	lease.record()
}

// A process that died while it allocated releases what it may have allocated.
func TestHalfAllocatedLeaseIsReleasedAtStart(t *testing.T) {
	r := newRig(t)
	command, calls := script(t, "")
	lease := r.open(1, 500_000, "")
	if err := r.provider.store.Leases.SetState(t.Context(), lease.lease.LeaseID, 0, leasestore.Allocating, "", 0); err != nil {
		t.Fatal(err)
	}
	host := hostGPUs(t, 2)
	host.ReleaseCommand = append(command, "release")
	r.config.Allocator = host
	r.restart()
	if got := calls(); !strings.Contains(got, lease.lease.LeaseID.Hex()) {
		t.Errorf("release saw %q", got)
	}
	row, ok, err := r.provider.store.Leases.Newest(t.Context(), lease.terms.ID())
	if err != nil || !ok || row.State != wire.StateEnded || host.Free() != 2 {
		t.Errorf("the lease is %s, %d devices are free (%v)", row.State, host.Free(), err)
	}
}

func TestDrainEndsLeasesAndSettles(t *testing.T) {
	r := newRig(t)
	lease := r.open(1, 500_000, "")
	lease.record()
	paid := owedIn(lease.record())
	lease.pay(paid)
	if err := r.provider.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	lease.status(leasestore.Ended)
	if got := r.balance(r.config.Key.Address()); got != paid {
		t.Errorf("settled %d of %d", got, paid)
	}
	if err := problemIn(wire.Unavailable, r.do("GET", "", r.openCredential(r.payer, r.terms(r.payer.Address(), 2), 100_000, 0))); err != nil {
		t.Error(err)
	}
}

// A renter that was away when its lease ended hears how, and gets the records it
// missed; it does not get another lease.
func TestSecretOfAnEndedLeaseTellsItsEnd(t *testing.T) {
	r := newRig(t)
	lease := r.open(1, 500_000, "")
	lease.record()
	lease.body.Close()
	final := lease.release()
	id, secret := lease.lease.LeaseID, lease.lease.Secret
	cred := lease.credential(wire.ActionVoucher, 1)
	cred.Payload.LeaseSecret = secret
	lease.attach(r.do("GET", "", cred, "Last-Event-ID", "1"))
	if lease.lease.LeaseID != id || string(lease.lease.Access) != "null" || lease.lease.State != wire.StateEnded {
		t.Fatalf("attached to %+v", lease.lease)
	}
	rec := lease.record()
	for rec.Sequence < final.Sequence {
		rec = lease.record()
	}
	if !rec.Final || rec.Owed != final.Owed {
		t.Errorf("the last record is %+v", rec.Record)
	}
	lease.status(leasestore.Ended)
	lease.next(wire.EventReceipt)
	if free := r.provider.config.Allocator.(*gpu.HostAllocator).Free(); free != 2 {
		t.Errorf("%d devices are free: another lease began", free)
	}
}

// losing is a source whose devices fall off the bus when told to.
type losing struct {
	*sim.Source
	lost atomic.Bool
}

func (l *losing) Read(ctx context.Context, uuid string) (metering.Reading, error) {
	r, err := l.Source.Read(ctx, uuid)
	if l.lost.Load() {
		r.Health = metering.Lost
	}
	return r, err
}

// A device that is lost stops the bill, and the lease of nothing else is suspended
// until it is back.
func TestLostDeviceIsNotBilled(t *testing.T) {
	source := &losing{Source: testclock.GPUs(1)}
	r := newRig(t, func(c *Config) { c.Source = source; c.Terms.Credit = time.Hour })
	lease := r.open(1, 500_000, "")
	for lease.record().Nanos == 0 {
	}
	source.lost.Store(true)
	if s := lease.status(leasestore.Suspended); s.Reason != leasing.ReasonUnmetered {
		t.Errorf("suspended because %q", s.Reason)
	}
	nanos := lease.record().Nanos
	for range 10 {
		if rec := lease.record(); rec.Nanos != nanos {
			t.Fatalf("a lost device is billed on and on: %d ns, then %d", nanos, rec.Nanos)
		}
	}
	source.lost.Store(false)
	lease.status(leasestore.Active)
	for lease.record().Nanos == nanos { // until the meter goes on
	}
}

func TestOffersStayAtTheirURL(t *testing.T) {
	r := newRig(t)
	get := func(path string) (int, []byte, string) {
		resp, err := http.Get(r.server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, body, resp.Header.Get("ETag")
	}
	_, document, tag := get("/offer")
	old, err := wire.ParseOffer(document)
	if err != nil || tag != `"`+old.Hash.Hex()+`"` || !old.Simulated || old.Devices[0].Count != 2 {
		t.Fatalf("%+v %s %v", old, tag, err)
	}
	r.config.PricePerGPUHour = "7.20"
	r.restart()
	_, document, _ = get("/offer")
	now, err := wire.ParseOffer(document)
	if err != nil || now.Hash == old.Hash || now.Amount.Dec() != "2000" {
		t.Fatalf("%+v %v", now, err)
	}
	if _, document, _ = get("/offer/" + old.Hash.Hex()); !strings.Contains(string(document), `"amount":"1000"`) {
		t.Errorf("the old offer is gone: %s", document)
	}
	if code, _, _ := get("/offer/0x01"); code != http.StatusNotFound {
		t.Errorf("an offer that never was: %d", code)
	}
}
