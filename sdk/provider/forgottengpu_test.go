package provider

import (
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/placement"
)

// databaseAt is the address of another database of the same server.
func databaseAt(t *testing.T, address, name string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}

// snapshot is the address of a copy of a server's database, to which nobody may be connected.
func snapshot(t *testing.T, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	from := strings.TrimPrefix(u.Path, "/")
	c, err := pgx.Connect(t.Context(), databaseAt(t, address, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(t.Context())
	if _, err := c.Exec(t.Context(), `CREATE DATABASE `+from+`_copy TEMPLATE `+from); err != nil {
		t.Fatal(err)
	}
	return databaseAt(t, address, from+"_copy")
}

// putBack has a database be as its snapshot again.
func putBack(t *testing.T, address, snapshot string) {
	t.Helper()
	from, err := url.Parse(snapshot)
	if err != nil {
		t.Fatal(err)
	}
	c, err := pgx.Connect(t.Context(), databaseAt(t, address, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(t.Context())
	copied := strings.TrimPrefix(from.Path, "/")
	name := strings.TrimSuffix(copied, "_copy")
	for _, statement := range []string{`DROP DATABASE ` + name, `CREATE DATABASE ` + name + ` TEMPLATE ` + copied} {
		if _, err := c.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
}

// handingOver is handing of a gateway on a server.
func handingOver(t *testing.T, address *string) (change func(*Config), calls func() string, fails func(bool)) {
	return handingOverOf(t, address, testclock.GPUs(1))
}

// handingOverOf is handingOver of a gateway whose host has a source's GPUs.
func handingOverOf(t *testing.T, address *string, source metering.Source) (change func(*Config), calls func() string, fails func(bool)) {
	fresh, calls, fails := handingOf(t, source)
	signed := filepath.Join(t.TempDir(), "signed")
	return func(c *Config) {
		quiet(c)
		generousCredit(c)
		c.Allocator, c.Commands.Timeout = fresh(), 8*time.Second // of which a renter waits a quarter
		c.Database, c.Records.HighWater, c.Takeover, c.Source = *address, signed, 2*time.Second, source
	}, calls, fails
}

// nextRenter is a lease of another payer.
func (r *rig) nextRenter(salt byte) *tab {
	r.Helper()
	r.payer = r.fund(r.T, 1_000_000)
	return r.open(salt, 300_000, "")
}

// nextRenterAtLast is nextRenter, who asks again while there is no GPU.
func (r *rig) nextRenterAtLast(salt byte) *tab {
	r.Helper()
	r.payer = r.fund(r.T, 1_000_000)
	t := &tab{rig: r, key: r.payer}
	eventually(r.T, "a GPU", func() bool {
		t.terms = r.terms(r.payer.Address(), salt)
		salt++
		resp := r.do("GET", "", r.openCredential(r.payer, t.terms, 300_000, 0))
		if resp.StatusCode == http.StatusServiceUnavailable {
			resp.Body.Close()
			return false
		}
		t.attach(resp)
		return true
	})
	return t
}

// refusesLease has another payer want a lease in vain, whose money does not move.
func (r *rig) refusesLease(salt byte) {
	r.Helper()
	r.payer = r.fund(r.T, 1_000_000)
	resp := r.do("GET", "", r.openCredential(r.payer, r.terms(r.payer.Address(), salt), 300_000, 0))
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		r.Errorf("%s for who wants a GPU that another renter still has", resp.Status)
	}
	if has := r.balance(r.payer.Address()); has != 1_000_000 {
		r.Errorf("who was refused a GPU has %d left of what it had", has)
	}
}

// opensWithout is a gateway's first lease, and the gateway's next start finds its database without it, as it is from a backup.
func (r *rig) opensWithout(address *string, change func(*Config)) *tab {
	r.Helper()
	r.shut()
	copied := snapshot(r.T, *address)
	change(&r.config)
	r.start()
	first := r.open(1, 300_000, "")
	first.record()
	r.shut()
	*address = copied
	change(&r.config)
	return first
}

// waitFree waits until a GPU is.
func (r *rig) waitFree() {
	r.Helper()
	eventually(r.T, "the GPU to be free", func() bool { return r.config.Allocator.(gpu.Capacity).Free() == 1 })
}

// takenBackBefore fails unless a lease's GPU was taken back before it was given to the next.
func (t *tab) takenBackBefore(next *tab, calls string) {
	t.Helper()
	device := t.lease.Devices[0]
	back := strings.Index(calls, "release "+device+" "+t.lease.LeaseID.Hex())
	if again := strings.LastIndex(calls, "allocate "+device+" "+next.lease.LeaseID.Hex()); back < 0 || back > again {
		t.Errorf("lease %s has the GPU, and lease %s gets it:\n%s", t.lease.LeaseID, next.lease.LeaseID, calls)
	}
}

// TestBackupWithAnOlderLease: by a backup an older lease has the GPU which the renter of a forgotten one has. It is taken back from that one
// all the same, before the next renter gets it.
func TestBackupWithAnOlderLease(t *testing.T) {
	address := pgtest.Database(t)
	change, calls, _ := handingOver(t, &address)
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
	first := r.nextRenter(2)
	first.record()
	r.shut()
	putBack(t, address, copied)
	change(&r.config)
	r.start()
	r.waitFree()
	first.takenBackBefore(r.nextRenter(3), calls())
}

// TestBackupWhoseReleaseFails: the same of a lone provider, that cannot take the GPU back at first. Nobody gets it before that is done,
// which is tried again without another start.
func TestBackupWhoseReleaseFails(t *testing.T) {
	fresh, calls, fails := handing(t)
	r := newRig(t, generousCredit, func(c *Config) { c.Allocator = fresh(); c.Commands.Timeout = time.Second; quiet(c) })
	zero := r.open(1, 300_000, "")
	zero.record()
	r.config.Allocator = fresh()
	restore := r.backup()
	eventually(t, "the first lease to go on", func() bool { return r.provider.leases.Running(zero.terms.ID()) != nil })
	zero.release()
	first := r.nextRenter(2)
	first.record()
	r.config.Allocator = fresh()
	fails(true)
	restore()
	r.refusesLease(3)
	fails(false)
	r.waitFree()
	first.takenBackBefore(r.nextRenter(4), calls())
}

// TestRestoredUnderAnotherAddress: a backup is put back onto another server, or into another file. Its leases are known by the name that is in it.
func TestRestoredUnderAnotherAddress(t *testing.T) {
	t.Parallel()
	t.Run("server", func(t *testing.T) {
		address := pgtest.Database(t)
		change, calls, _ := handingOver(t, &address)
		r := newRig(t, change)
		first := r.opensWithout(&address, change)
		r.start()
		first.takenBackBefore(r.nextRenter(2), calls())
	})
	t.Run("file", func(t *testing.T) {
		fresh, calls, _ := handing(t)
		dir := t.TempDir()
		r := newRig(t, quiet, func(c *Config) { c.Allocator = fresh(); c.Records.HighWater = filepath.Join(dir, "signed") })
		r.shut()
		data, err := os.ReadFile(r.config.Database)
		if err != nil {
			t.Fatal(err)
		}
		r.config.Allocator = fresh()
		r.start()
		first := r.open(1, 300_000, "")
		first.record()
		r.shut()
		r.config.Database, r.config.Allocator = filepath.Join(dir, "copy.db"), fresh()
		if err := os.WriteFile(r.config.Database, data, 0o600); err != nil {
			t.Fatal(err)
		}
		r.start()
		first.takenBackBefore(r.nextRenter(2), calls())
	})
}

// TestFailOverToAnOlderLease: a running gateway fails over to a server that is behind: the row of the lease that runs is gone, and the one
// before it has its GPU again.
func TestFailOverToAnOlderLease(t *testing.T) {
	address := pgtest.URL(t)
	change, calls, _ := handingOver(t, &address)
	r := newRig(t, change)
	zero := r.open(1, 300_000, "")
	for range 3 {
		zero.record()
	}
	before := make(map[string]any)
	id := zero.lease.LeaseID.Hex()
	if err := r.provider.db.View().QueryRowxContext(t.Context(), `SELECT * FROM leases WHERE id = $1`, id).MapScan(before); err != nil {
		t.Fatal(err)
	}
	zero.release()
	first := r.nextRenter(2)
	first.record()
	first.forgetBehind(func(tx *sqlx.Tx) error {
		if _, err := tx.Exec(`INSERT INTO lease_devices (device, lease) VALUES ($1, $2)`, first.lease.Devices[0], id); err != nil {
			return err
		}
		_, err := tx.Exec(`UPDATE leases SET state = $2, ended_at = $3, reason = $4, held = $5, owner = $6, term = $7 WHERE id = $1`, id,
			before["state"], before["ended_at"], before["reason"], before["held"], before["owner"], before["term"])
		return err
	})
	eventually(t, "the lease to be let go", func() bool { return r.provider.leases.Running(first.terms.ID()) == nil })
	r.waitFree()
	first.takenBackBefore(r.nextRenter(3), calls())
}

// TestRestoreBesideARunningGateway: a gateway dies, the server is exchanged for one that is behind, and another gateway of the host goes on.
// Who wants a GPU then gets none that the renter of a forgotten lease has, and gets it when it was taken back: at once, if it can be.
func TestRestoreBesideARunningGateway(t *testing.T) {
	address := pgtest.URL(t)
	behind, line := through(t, address)
	change, calls, fails := handingOver(t, &address)
	b := newRig(t, change)
	a := gatewayBeside(t, b, func(c *Config) { change(c); c.Database = behind })
	first := a.open(1, 300_000, "")
	first.record()
	a.kill(line)
	first.rig = b
	fails(true)
	name := "forgotten " + first.lease.LeaseID.Hex() // a third gateway is about to take it back
	if ok, err := b.provider.store.Locks.Try(t.Context(), name, "third", time.Minute); err != nil || !ok {
		t.Fatal(ok, err)
	}
	first.forget()
	b.refusesLease(6)
	if err := b.provider.store.Locks.Drop(t.Context(), name, "third"); err != nil {
		t.Fatal(err)
	}
	for salt := range byte(2) {
		b.refusesLease(salt + 2)
	}
	fails(false)
	first.takenBackBefore(b.nextRenterAtLast(7), calls())
}

// TestAllocatorThatAdoptsNothing: an allocator that cannot be told of a forgotten lease gives its GPU to the next: that one is refused, before
// its deposit moves, and also as it begins, until the GPU was taken back.
func TestAllocatorThatAdoptsNothing(t *testing.T) {
	fresh, calls, fails := handing(t)
	r := newRig(t, quiet, func(c *Config) { c.Allocator = struct{ gpu.Allocator }{fresh()}; c.Commands.Timeout = time.Second })
	first := r.open(1, 300_000, "")
	first.record()
	r.shut()
	lose(t, r.config.Database)
	fails(true)
	r.config.Allocator = struct{ gpu.Allocator }{fresh()}
	r.start()
	r.refusesLease(2)
	begins, placer := gpu.Request{LeaseID: randomHash(), GPUs: 1}, r.provider.leases.Deps.Placer
	if a, _, err := placer.Place(t.Context(), placement.Request{Request: begins}); !errors.Is(err, gpu.ErrNoCapacity) {
		t.Errorf("a lease begins on %v: %v", a.Devices, err)
	}
	fails(false)
	if err := placer.Release(t.Context(), gpu.Allocation{LeaseID: begins.LeaseID}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the GPU to be taken back", func() bool {
		return strings.Count(calls(), "release "+first.lease.Devices[0]+" "+first.lease.LeaseID.Hex()) > 2
	})
	first.takenBackBefore(r.nextRenterAtLast(3), calls())
}

// TestForgottenLeasesAreTakenBackTogether: one whose command hangs holds up no other. Here each waits for the other.
func TestForgottenLeasesAreTakenBackTogether(t *testing.T) {
	command, calls := script(t, `[ "$1" = allocate ] && exit; touch $0.$GPUPAY_LEASE; until [ $(ls $0.* | wc -l) = 2 ]; do sleep 0.1; done`)
	fresh := func() *gpu.HostAllocator {
		host := hostGPUs(t, 2)
		host.AllocateCommand, host.ReleaseCommand = append(command, "allocate"), append(command[:1:1], "release")
		return host
	}
	r := newRig(t, quiet, func(c *Config) { c.Allocator = fresh() })
	r.open(1, 300_000, "").record()
	r.nextRenter(2).record()
	r.shut()
	lose(t, r.config.Database)
	host := fresh()
	r.config.Allocator, r.config.Commands.Timeout = host, 5*time.Second
	r.start()
	if host.Free() != 2 {
		t.Errorf("%d are free, after\n%s", host.Free(), calls())
	}
}

// TestLaterLeaseKeepsItsGPU: who takes back what a lease had, and comes when the next one has got it, leaves it alone, also where it could not
// be written down that it was taken back before.
func TestLaterLeaseKeepsItsGPU(t *testing.T) {
	fresh, calls, _ := handing(t)
	r := newRig(t, quiet, func(c *Config) { c.Allocator = fresh() })
	first := r.open(1, 300_000, "")
	had := r.provider.leases.Running(first.terms.ID()).Allocation
	first.release()
	r.nextRenter(2).record()
	name, err := r.provider.store.Secrets.Get(t.Context(), "database")
	if err := errors.Join(err, r.provider.leases.Deps.Marks.Hand(t.Context(), hex.EncodeToString(name), had.LeaseID, had.Devices, false)); err != nil {
		t.Fatal(err)
	}
	before := calls()
	if err := placement.Reclaim(t.Context(), r.provider.leases.Deps.Placer, had); !errors.Is(err, inventory.ErrTaken) || calls() != before {
		t.Errorf("%v, after\n%s", err, calls())
	}
}
