package provider

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/internal/testclock"
)

// obeying is a host whose commands do what docs/replicas.md asks of those on devices that several hosts reach: one with a lower term than was
// seen of its lease does nothing. What they did is in the calls as "did ..".
func obeying(t *testing.T, address *string) (change func(*Config), calls func() string) {
	command, calls := script(t, `seen=$(cat $0.$GPUPAY_LEASE 2>/dev/null || echo 0)
[ $GPUPAY_TERM -ge $seen ] || { echo "left alone, by term $GPUPAY_TERM after $seen" >> $(dirname $0)/calls; exit 0; }
echo $GPUPAY_TERM > $0.$GPUPAY_LEASE
echo "did $1 $NVIDIA_VISIBLE_DEVICES $GPUPAY_LEASE" >> $(dirname $0)/calls`)
	signed := filepath.Join(t.TempDir(), "signed")
	return func(c *Config) {
		quiet(c)
		generousCredit(c)
		host := hostGPUs(t, 1)
		host.AllocateCommand, host.SuspendCommand, host.ResumeCommand, host.ReleaseCommand = append(command, "allocate"), append(command[:1:1], "suspend"), append(command[:1:1], "resume"), append(command[:1:1], "release")
		c.Allocator, c.Source, c.Commands.Timeout = host, testclock.GPUs(1), 8*time.Second
		c.Database, c.Records.HighWater, c.Takeover = *address, signed, 2*time.Second
	}, calls
}

// TestReleaseOfATermThatCounts: what a command is told of the lease's term after a restore is no lower than what it was told before. Else a
// command that obeys it leaves the GPU with a renter whose lease is over for us, and the next one gets it.
func TestReleaseOfATermThatCounts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		forgotten bool
		restarts  int
	}{
		{"the lease is forgotten", true, 3},
		{"the lease is forgotten, and was never resumed", true, 0},
		{"the lease is of an earlier term", false, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			address := pgtest.Database(t)
			change, calls := obeying(t, &address)
			r := newRig(t, change)
			again := func() {
				t.Helper()
				r.shut()
				change(&r.config)
				r.start()
			}
			var first *tab
			var copied string
			save := func() {
				r.shut()
				copied = snapshot(t, address)
				change(&r.config)
				r.start()
			}
			if c.forgotten {
				save()
			}
			first = r.open(1, 300_000, "")
			first.record()
			if !c.forgotten {
				save()
				eventually(t, "the lease to go on", func() bool { return r.provider.leases.Running(first.terms.ID()) != nil })
				time.Sleep(3 * time.Second) // more is signed of it than the backup knows
			}
			for range c.restarts {
				again()
				eventually(t, "the lease to go on", func() bool { return r.provider.leases.Running(first.terms.ID()) != nil })
			}
			time.Sleep(time.Second)
			r.shut()
			address = copied
			change(&r.config)
			r.start()
			second := r.nextRenterAtLast(2)
			back := strings.Index(calls(), fmt.Sprintf("did release %s %s", first.lease.Devices[0], first.lease.LeaseID))
			next := strings.Index(calls(), fmt.Sprintf("did allocate %s %s", second.lease.Devices[0], second.lease.LeaseID))
			if back < 0 || back > next {
				t.Errorf("lease %s has the GPU still, and lease %s gets it:\n%s", first.lease.LeaseID, second.lease.LeaseID, calls())
			}
		})
	}
}
