package provider

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/gpu"
)

// stuckHost is a host on which the release of some leases alone fails.
func stuckHost(t *testing.T, gpus int) (fresh func() *gpu.HostAllocator, calls func() string, stick func(common.Hash)) {
	command, calls := script(t, `[ "$1" != release ] || [ ! -e $0.$GPUPAY_LEASE ]`)
	source := testclock.GPUs(gpus)
	fresh = func() *gpu.HostAllocator {
		host, err := gpu.NewHostAllocator(t.Context(), source)
		if err != nil {
			t.Fatal(err)
		}
		host.AllocateCommand, host.SuspendCommand, host.ReleaseCommand = append(command, "allocate"), append(command[:1:1], "suspend"), append(command[:1:1], "release")
		return host
	}
	return fresh, calls, func(lease common.Hash) {
		if err := os.WriteFile(command[0]+"."+lease.Hex(), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// letsTheThird has one payer get the only GPU that is well, and another be refused, and runs nothing on those of a forgotten lease.
func (r *rig) letsTheThird(forgotten *tab, calls func() string) {
	r.Helper()
	free := *r.provider.free("")
	r.payer = r.fund(r.T, 1_000_000)
	resp := r.do("GET", "", r.openCredential(r.payer, r.terms(r.payer.Address(), 3), 300_000, 0))
	if resp.StatusCode != http.StatusOK || free != 1 {
		r.Errorf("%d are free, and the GPU that is well is not let: %s; the payer has %d of 1000000 left", free, resp.Status, r.balance(r.payer.Address()))
	}
	r.refusesLease(4)
	for _, device := range forgotten.lease.Devices {
		if got := calls(); strings.LastIndex(got, "allocate "+device) > strings.Index(got, forgotten.lease.LeaseID.Hex()) {
			r.Errorf("it is let while the renter of a forgotten lease has it:\n%s", got)
		}
	}
}

// TestForgottenBesideAnOlderLease: a backup has an older lease on one of the two GPUs of a forgotten one, and neither can be taken back. The
// host's third GPU is let all the same, and nobody's deposit moves for the forgotten lease's other GPU.
func TestForgottenBesideAnOlderLease(t *testing.T) {
	fresh, calls, stick := stuckHost(t, 3)
	r := newRig(t, generousCredit, quiet, func(c *Config) {
		c.Allocator, c.Source, c.Commands.Timeout = fresh(), testclock.GPUs(3), 2*time.Second
	})
	zero := r.open(1, 300_000, "")
	zero.record()
	r.config.Allocator = fresh()
	restore := r.backup()
	eventually(t, "the first lease to go on", func() bool { return r.provider.leases.Running(zero.terms.ID()) != nil })
	zero.release()
	r.payer = r.fund(t, 1_000_000)
	first := r.open(2, 300_000, "?gpus=2")
	first.record()
	if !slices.Contains(first.lease.Devices, zero.lease.Devices[0]) {
		t.Fatalf("%v then %v", zero.lease.Devices, first.lease.Devices)
	}
	r.config.Allocator = fresh()
	stick(zero.lease.LeaseID)
	stick(first.lease.LeaseID)
	restore()
	r.letsTheThird(first, calls)
}

// TestForgottenBesideAnOlderLeaseAtAGateway: TestForgottenBesideAnOlderLease over a server.
func TestForgottenBesideAnOlderLeaseAtAGateway(t *testing.T) {
	address := pgtest.Database(t)
	fresh, calls, stick := stuckHost(t, 3)
	signed := filepath.Join(t.TempDir(), "signed")
	change := func(c *Config) {
		quiet(c)
		generousCredit(c)
		c.Allocator, c.Source, c.Commands.Timeout = fresh(), testclock.GPUs(3), 2*time.Second
		c.Database, c.Records.HighWater, c.Takeover = address, signed, 2*time.Second
	}
	r := newRig(t, change)
	zero := r.open(1, 300_000, "")
	zero.record()
	r.shut()
	copied := snapshot(t, address)
	change(&r.config)
	r.start()
	eventually(t, "the first lease to go on", func() bool { return r.provider.leases.Running(zero.terms.ID()) != nil })
	time.Sleep(3 * time.Second) // more is signed of it than the backup knows
	zero.release()
	r.payer = r.fund(t, 1_000_000)
	first := r.open(2, 300_000, "?gpus=2")
	first.record()
	if !slices.Contains(first.lease.Devices, zero.lease.Devices[0]) {
		t.Fatalf("%v then %v", zero.lease.Devices, first.lease.Devices)
	}
	r.shut()
	stick(zero.lease.LeaseID)
	stick(first.lease.LeaseID)
	putBack(t, address, copied)
	change(&r.config)
	r.start()
	r.letsTheThird(first, calls)
}

// countless is an allocator that can be told of leases, and does not say what is free.
type countless struct {
	gpu.Allocator
	gpu.Adopter
}

// TestAllocatorThatDoesNotCount: no deposit moves for the only GPU, which the renter of a forgotten lease still has.
func TestAllocatorThatDoesNotCount(t *testing.T) {
	fresh, _, fails := handing(t)
	change := func(c *Config) {
		host := fresh()
		c.Source, c.Allocator, c.Commands.Timeout = testclock.GPUs(1), countless{host, host}, time.Second
	}
	r := newRig(t, quiet, generousCredit, change)
	r.open(1, 300_000, "").record()
	r.shut()
	lose(t, r.config.Database)
	fails(true)
	change(&r.config)
	r.start()
	r.refusesLease(2)
}
