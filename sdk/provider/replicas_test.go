package provider

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/usage"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/cluster"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

func TestMain(m *testing.M) {
	os.Exit(pgtest.Main(m))
}

// onPostgres names the tests whose provider keeps its database on a server.
const onPostgres = "postgres"

// TestProvider: a lone gateway on PostgreSQL does what one with a file does.
func TestProvider(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]func(*testing.T){
		"open to refund": TestLeaseFromOpenToRefund,
		"suspend":        TestSuspendsAtItsCreditAndResumesWhenPaid,
		"connection":     TestLeaseOutlivesItsConnection,
		"stream":         TestNewStreamReplacesTheOld,
		"restart":        TestRestartGoesOnWithLeases,
		"top up":         TestTopUpLetsALeaseGoOn,
		"close request":  TestCloseRequestOnChainEndsTheLeaseAndIsSettled,
		"drain":          TestDrainEndsLeasesAndSettles,
	} {
		t.Run(onPostgres+" "+name, test)
	}
}

// fleet is two gateways over one database and one host's two GPUs. They take each other for dead only where a test has
// them do so: see cut.
func fleet(t *testing.T, change ...func(*Config)) (a, b *rig) {
	t.Helper()
	address := pgtest.URL(t)
	change = append([]func(*Config){func(c *Config) { c.Database, c.Takeover = address, 20*time.Second }}, change...)
	a = newRig(t, change...)
	b = rigOn(t, a.chain, func(*rig) *channel.Key { return a.payer }, change...)
	return a, b
}

// at is the renter of a lease that turns to another gateway.
func (t *tab) at(r *rig) *tab {
	other := *t
	other.rig = r
	return &other
}

// TestVoucherAtAnotherGatewayReachesTheLease: a lease that waits for money goes
// on when any gateway gets it.
func TestVoucherAtAnotherGatewayReachesTheLease(t *testing.T) {
	a, b := fleet(t)
	lease := a.open(1, 500_000, "")
	lease.status(leasestore.Suspended)
	s, err := b.provider.payee.State(t.Context(), lease.terms.ID())
	if err != nil {
		t.Fatal(err)
	}
	if receipt := lease.at(b).pay(s.Spent.Uint64()); receipt.AcceptedCumulative.Int != s.Spent {
		t.Fatalf("receipt over %s for %s", receipt.AcceptedCumulative.Dec(), s.Spent.Dec())
	}
	lease.status(leasestore.Active)
	if a.provider.leases.Running(lease.terms.ID()) == nil || b.provider.leases.Running(lease.terms.ID()) != nil {
		t.Error("the lease moved")
	}
}

// TestStreamAtAnotherGateway: a renter that comes back through another gateway
// sees every record, each change of state and the end; its old stream ends.
func TestStreamAtAnotherGateway(t *testing.T) {
	a, b := fleet(t)
	lease := a.open(1, 500_000, "")
	first := lease.record()
	cred := lease.credential(wire.ActionVoucher, 0)
	cred.Payload.LeaseSecret = lease.lease.Secret
	there := lease.at(b)
	there.attach(b.do("GET", "", cred))
	if there.lease.LeaseID != lease.lease.LeaseID || !slices.Equal(there.lease.Devices, lease.lease.Devices) {
		t.Fatalf("another lease: %+v", there.lease)
	}
	for n := uint64(1); n <= 3; n++ {
		rec := there.record()
		if rec.Sequence != n || (n == 1 && rec.Record != first.Record) {
			t.Fatalf("record %d is %+v", n, rec.Record)
		}
	}
	for _, err := lease.in.Next(); err == nil; _, err = lease.in.Next() { // the old one ends
	}
	there.status(leasestore.Suspended)
	there.next(wire.EventNeedVoucher)
	s, err := a.provider.payee.State(t.Context(), lease.terms.ID())
	if err != nil {
		t.Fatal(err)
	}
	lease.pay(s.Spent.Uint64())
	there.status(leasestore.Active)
	final := lease.release()
	if got := there.status(leasestore.Ended); got.Reason != "released by the renter" {
		t.Errorf("ended because %q", got.Reason)
	}
	var receipt wire.Receipt
	there.read(wire.EventReceipt, &receipt)
	if receipt.Spent.Int != final.Owed {
		t.Errorf("the last receipt says %s, the final record %s", receipt.Spent.Dec(), final.Owed.Dec())
	}
	eventually(t, "the lease is watched for nobody no more", func() bool { return b.provider.gateway.Shown() == 0 })
}

// TestReleaseAndCloseAtAnotherGateway: the wish reaches the lease's owner, and
// every base unit its owner.
func TestReleaseAndCloseAtAnotherGateway(t *testing.T) {
	a, b := fleet(t, generousCredit)
	lease := a.open(1, 100_000, "")
	lease.record()
	final := lease.at(b).release()
	if !final.Final {
		t.Fatalf("not final: %+v", final.Record)
	}
	lease.status(leasestore.Ended)
	owed := final.Owed.Uint64()
	lease.at(b).pay(owed)
	lease.at(b).close(owed)
	if got := a.balance(a.payer.Address()); got != 1_000_000-owed {
		t.Errorf("the payer has %d, want %d", got, 1_000_000-owed)
	}
	second := a.open(2, 100_000, "")
	second.record()
	if receipt := second.at(b).close(0); receipt.TxHash == nil { // ends the lease first
		t.Error("a close without a transaction")
	}
	second.status(leasestore.Ended)
}

// TestGatewaysDoNotShareADevice: two gateways on one host rent out its GPUs once.
func TestGatewaysDoNotShareADevice(t *testing.T) {
	a, b := fleet(t, generousCredit)
	one, two := a.open(1, 100_000, ""), b.open(2, 100_000, "")
	if slices.Equal(one.lease.Devices, two.lease.Devices) {
		t.Errorf("both have %v", one.lease.Devices)
	}
	for _, r := range []*rig{a, b} {
		resp := r.do("GET", "", r.openCredential(r.payer, r.terms(r.payer.Address(), 3), 100_000, 0))
		if err := problemIn(wire.NoCapacity, resp); err != nil {
			t.Error(err)
		}
	}
	one.at(b).release()
	a.open(4, 100_000, "")
}

// cut has the other gateways take a gateway for dead, which does not know it.
func cut(t *testing.T, r *rig) {
	t.Helper()
	if err := (cluster.Members{DB: r.provider.db}).Deregister(t.Context(), r.provider.gateway.Identity()); err != nil {
		t.Fatal(err)
	}
}

// TestLeaseIsTakenOver: the gateway that takes a lease over goes on with its
// chain of records; the one that was cut off writes nothing more, leaves the
// devices alone, and what it measured in between is billed by nobody.
func TestLeaseIsTakenOver(t *testing.T) {
	quiet := func(c *Config) { c.Log = slog.New(slog.DiscardHandler) }
	a, b := fleet(t, quiet)
	lease := a.open(1, 500_000, "")
	lease.record()
	old := a.provider.leases.Running(lease.terms.ID())
	for b.provider.leases.Running(lease.terms.ID()) == nil {
		cut(t, a)
		if err := b.provider.gateway.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-old.Done:
	case <-time.After(time.Minute):
		t.Fatal("the gateway that was cut off goes on")
	}
	if v, _ := old.Status.Snapshot(); v.State == leasestore.Ended || a.provider.leases.Running(lease.terms.ID()) != nil {
		t.Errorf("the lease was ended by who lost it: %+v", v)
	}
	sequence := old.Status.Look().Sequence
	err := a.provider.store.Records.Append(t.Context(), old.Term, metering.SignedRecord{Record: metering.Record{LeaseID: old.ID, ChannelID: old.Terms.ID(), Sequence: sequence + 1, Owed: *uint256.NewInt(400_000)}}, usage.State{}, nil)
	if !errors.Is(err, leasestore.ErrNotOwner) {
		t.Errorf("a record of the old owner: %v", err)
	}
	if err := a.provider.store.Leases.SetState(t.Context(), old.ID, old.Term, leasestore.Ended, "", 0); !errors.Is(err, leasestore.ErrNotOwner) {
		t.Errorf("a state of the old owner: %v", err)
	}
	there := lease.at(b)
	cred := lease.credential(wire.ActionVoucher, 0)
	cred.Payload.LeaseSecret = lease.lease.Secret
	there.attach(b.do("GET", "", cred))
	domain := metering.Domain(lease.terms.ChainID, lease.terms.Escrow)
	var last metering.SignedRecord
	for last.Sequence < sequence+3 {
		rec := there.record()
		if rec.Sequence != last.Sequence+1 || (last.Sequence > 0 && rec.Previous != last.Digest(domain)) {
			t.Fatalf("record %d after %d does not follow", rec.Sequence, last.Sequence)
		}
		last = rec
	}
	if held, err := b.provider.gateway.Devices().Held(t.Context()); err != nil || len(held) != 1 {
		t.Errorf("devices held: %v, %v", held, err)
	}
	// A request that found the lease here a moment before it was lost ends it where it is now.
	if err := a.provider.leases.Enlist(old); err != nil {
		t.Fatal(err)
	}
	final := lease.release()
	s, err := a.provider.payee.State(t.Context(), lease.terms.ID())
	if err != nil || !final.Final || s.Spent != final.Owed {
		t.Errorf("charged %s, the final record says %s, %v", s.Spent.Dec(), final.Owed.Dec(), err)
	}
}

// TestUnreachableDatabaseStopsALease: a gateway that could not say for too long
// that it lives lets go, before it has heard that another one has its leases.
func TestUnreachableDatabaseStopsALease(t *testing.T) {
	quiet := func(c *Config) { c.Log = slog.New(slog.DiscardHandler) }
	a, _ := fleet(t, quiet, func(c *Config) { c.Takeover = 4 * time.Second })
	lease := a.open(1, 500_000, "")
	lease.record()
	before, old := a.provider.gateway.Identity(), a.provider.leases.Running(lease.terms.ID())
	a.provider.gateway.StandDown()
	select {
	case <-old.Done:
	case <-time.After(time.Minute):
		t.Fatal("the lease goes on")
	}
	if a.provider.gateway.Identity() == before {
		t.Error("it could take its leases for its own")
	}
	// Somebody takes it up when the old name has run out.
	waitFor(t, func() bool {
		row, ok, err := a.provider.store.Leases.Newest(t.Context(), lease.terms.ID())
		if err != nil || !ok {
			t.Fatalf("nobody runs it: %+v, %v", row, err)
		}
		return row.Owner != before && row.State != wire.StateEnded && row.Term > old.Term
	})
}

// TestLeaseWhoseHostIsGone: no other host can reach its devices, so nobody meters
// it; the renter can still end it and is billed nothing for the time since; and
// the devices are taken back when their host is there again.
func TestLeaseWhoseHostIsGone(t *testing.T) {
	quiet := func(c *Config) { c.Log = slog.New(slog.DiscardHandler) }
	a, b := fleet(t, quiet)
	lease := a.open(1, 500_000, "")
	last := lease.record()
	b.shut()
	a.shut()
	b.config.Source = testclock.GPUs(2)
	b.config.Allocator = &gpu.HostAllocator{Devices: []string{"ELSEWHERE-0"}}
	b.start()
	row, _, err := b.provider.store.Leases.Newest(t.Context(), lease.terms.ID())
	if err != nil || row.State != wire.StateActive || b.provider.leases.Running(lease.terms.ID()) != nil {
		t.Fatalf("the lease is %q here, %v", row.State, err)
	}
	final := lease.at(b).release()
	if !final.Final || final.Owed.Lt(&last.Owed) || final.Nanos > last.Nanos+uint64(2*time.Second) {
		t.Errorf("final record %+v after %+v", final.Record, last.Record)
	}
	if held, err := b.provider.gateway.Devices().Held(t.Context()); err != nil || len(held) != 1 {
		t.Errorf("its device is free though nobody took it back: %v, %v", held, err)
	}
	a.start()
	if held, err := a.provider.gateway.Devices().Held(t.Context()); err != nil || len(held) != 0 {
		t.Errorf("its device was not taken back: %v, %v", held, err)
	}
}

// sticky is an allocator that may not get its devices back.
type sticky struct {
	*gpu.HostAllocator
	stuck atomic.Bool
}

func (s *sticky) Release(ctx context.Context, a gpu.Allocation) error {
	if s.stuck.Load() {
		return errors.New("the container does not stop")
	}
	return s.HostAllocator.Release(ctx, a)
}

// TestWhatFailedIsTriedAgain: devices that could not be taken back, and a lease
// whose end did not reach the table, are not forgotten for as long as the gateway
// runs.
func TestWhatFailedIsTriedAgain(t *testing.T) {
	quiet := func(c *Config) { c.Log, c.Commands.Timeout = slog.New(slog.DiscardHandler), 2*time.Second }
	allocator := &sticky{HostAllocator: hostGPUs(t, 2)}
	a, b := fleet(t, quiet, func(c *Config) { c.Allocator = allocator })
	lease := a.open(1, 500_000, "")
	allocator.stuck.Store(true)
	lease.release()
	held := func() int {
		devices, err := b.provider.gateway.Devices().Held(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(devices)
	}
	if held() != 1 {
		t.Fatal("a device that was not taken back is free")
	}
	allocator.stuck.Store(false)
	again := func(done func() bool) {
		t.Helper()
		waitFor(t, func() bool {
			a.provider.gateway.TryAgain()
			b.provider.gateway.TryAgain()
			return done()
		})
	}
	again(func() bool { return held() == 0 })

	second := a.open(2, 100_000, "")
	final := second.release()
	row, _, err := a.provider.store.Leases.Newest(t.Context(), second.terms.ID())
	if err != nil {
		t.Fatal(err)
	}
	if err := a.provider.store.Leases.SetState(t.Context(), second.lease.LeaseID, row.Term, leasestore.Active, "", 0); err != nil {
		t.Fatal(err)
	}
	again(func() bool {
		row, _, err = b.provider.store.Leases.Newest(t.Context(), second.terms.ID())
		return err == nil && row.State == wire.StateEnded
	})
	if s, err := b.provider.payee.State(t.Context(), second.terms.ID()); err != nil || s.Spent != final.Owed {
		t.Errorf("charged %s for %s, %v", s.Spent.Dec(), final.Owed.Dec(), err)
	}
}

// TestSettlementByWhoLeads: what one gateway took is settled by the one that
// leads, whoever asks.
func TestSettlementByWhoLeads(t *testing.T) {
	a, b := fleet(t, generousCredit)
	for i, r := range []*rig{a, b} {
		lease := r.open(byte(i+1), 100_000, "")
		lease.at([]*rig{b, a}[i]).pay(uint64(500 + i))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := r.provider.Settle(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if got := a.balance(a.config.Key.Address()); got != 1001 {
		t.Errorf("the payee has %d, want 1001", got)
	}
}

// TestPostgresThatIsNotThere is one clear line.
func TestPostgresThatIsNotThere(t *testing.T) {
	_, err := database.Open(t.Context(), "postgres://gpupay@127.0.0.1:1/gpupay", "provider", leasestore.Migrations, "migrations/provider")
	if err == nil || !strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("got %v", err)
	}
}

// TestLeaseOfAGatewayThatLivesAfterAll: when the server's clock steps ahead every
// gateway looks dead. Those of other hosts leave its leases alone, and it goes on.
func TestLeaseOfAGatewayThatLivesAfterAll(t *testing.T) {
	quiet := func(c *Config) { c.Log = slog.New(slog.DiscardHandler) }
	a, b := fleet(t, quiet)
	b.shut()
	b.config.Source, b.config.Allocator = testclock.GPUs(2), &gpu.HostAllocator{Devices: []string{"ELSEWHERE-0"}}
	b.start()
	lease := a.open(1, 500_000, "")
	lease.record()
	old := a.provider.leases.Running(lease.terms.ID())
	for range 3 {
		cut(t, a)
		b.provider.gateway.TryAgain()
		if err := b.provider.gateway.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if row := lease.row(); row.Term != old.Term || row.State != wire.StateActive {
		t.Errorf("the lease is %s in term %d, it was in %d", row.State, row.Term, old.Term)
	}
	lease.record()
	lease.record()
	if a.provider.leases.Running(lease.terms.ID()) != old {
		t.Error("its owner let it go")
	}
}
