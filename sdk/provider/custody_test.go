package provider

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// hostOf is a host of some GPUs whose commands do what a body says and then note whether they have a lease's devices suspended.
type hostOf struct {
	*testing.T
	program string
	calls   func() string
	gpus    int
}

func newHostOf(t *testing.T, gpus int, body string) hostOf {
	t.Helper()
	command, calls := script(t, body+"\n"+`case $1 in suspend) touch $0.$GPUPAY_LEASE;; resume) rm -f $0.$GPUPAY_LEASE;; esac; echo "$1 done" >> $(dirname $0)/calls`)
	return hostOf{t, command[0], calls, gpus}
}

// allocator is one gateway's of the host.
func (h hostOf) allocator() *gpu.HostAllocator {
	host := hostGPUs(h.T, h.gpus)
	host.SuspendCommand, host.ResumeCommand, host.ReleaseCommand = []string{h.program, "suspend"}, []string{h.program, "resume"}, []string{h.program, "release"}
	return host
}

// suspended reports whether the last command that ended has left a lease's devices suspended.
func (h hostOf) suspended(lease *tab) bool {
	_, err := os.Stat(h.program + "." + lease.lease.LeaseID.Hex())
	return err == nil
}

// as opens a lease for another payer.
func (r *rig) as(key *channel.Key, salt byte, deposit uint64) *tab {
	r.Helper()
	terms := r.terms(key.Address(), salt)
	t := &tab{rig: r, key: key, terms: terms}
	t.attach(r.do("GET", "", r.openCredential(key, terms, deposit, 0)))
	return t
}

// TestOneCreditWhileTheDatabaseIsAway: two leases of one payer at a gateway that cannot read or write its database are served for one
// credit together, and one of another payer for its own.
func TestOneCreditWhileTheDatabaseIsAway(t *testing.T) {
	t.Parallel()
	for _, locked := range []bool{false, true} {
		t.Run(map[bool]string{false: "the database is away", true: "the records are locked"}[locked], func(t *testing.T) {
			direct := pgtest.URL(t) + "&lock_timeout=1min" // no server gives up for us
			address, line := through(t, direct)
			host := newHostOf(t, 3, "")
			r := newRig(t, func(c *Config) {
				c.Database, c.Takeover, c.Terms.Credit, c.Source, c.Allocator, c.Log = address, 3*time.Second, 24*time.Second, testclock.GPUs(3), host.allocator(), slog.New(slog.DiscardHandler)
				if locked {
					c.Takeover = 20 * time.Second
				}
			})
			other := r.fund(t, 1_000_000)
			one, two, third := r.open(1, 300_000, ""), r.open(2, 300_000, ""), r.as(other, 3, 300_000)
			for _, lease := range []*tab{one, two, third} {
				waitFor(t, func() bool { return lease.row().Sequence > 0 })
			}
			db, err := sqlx.Open("pgx", direct)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			var before time.Duration // that the two leases have used
			for _, lease := range []*tab{one, two} {
				running := r.provider.leases.Running(lease.terms.ID())
				if running == nil {
					t.Fatal("a lease has ended already: this machine is too slow for the test")
				}
				before += time.Duration(running.Meter.Allocated())
			}
			served := testclock.Stopwatch()
			if locked {
				lock := db.MustBegin()
				lock.MustExec(`LOCK TABLE records IN ACCESS EXCLUSIVE MODE`)
				defer lock.Rollback() //nolint:errcheck // it ends with the test
			} else {
				line.set(true)
				defer line.set(false)
			}
			used := before
			ends := make(map[*tab]time.Duration)
			waitFor(t, func() bool {
				for _, lease := range []*tab{one, two, third} {
					if _, over := ends[lease]; !over && host.suspended(lease) {
						ends[lease] = served()
					}
				}
				return len(ends) == 3
			})
			used += ends[one] + ends[two]
			if most := r.config.Terms.Credit + 5*time.Second; used > most {
				t.Errorf("two leases of one payer were served for %s, of a credit of %s", used, r.config.Terms.Credit)
			}
			if ends[third] <= max(ends[one], ends[two]) {
				t.Errorf("the lease of another payer was served for %s, the others for %s and %s", ends[third], ends[one], ends[two])
			}
		})
	}
}

// TestSuspensionIsTriedUntilItStands: while the database is away and the command that suspends a lease fails, it is run again until it
// does not. The lease goes on when the database is back.
func TestSuspensionIsTriedUntilItStands(t *testing.T) {
	t.Parallel()
	const failing = `[ $1 != suspend ] || [ -e $0.mended ] || exit 1`
	t.Run("a server", func(t *testing.T) {
		address, line := through(t, pgtest.URL(t))
		host := newHostOf(t, 2, failing)
		r := newRig(t, func(c *Config) {
			c.Database, c.Takeover, c.Terms.Credit, c.Allocator, c.Log = address, time.Second, 4*time.Second, host.allocator(), slog.New(slog.DiscardHandler)
		})
		lease := r.open(1, 500_000, "")
		lease.record()
		line.set(true)
		waitFor(t, func() bool { return strings.Count(host.calls(), "suspend") >= 2 })
		mend(t, host.program)
		waitFor(t, func() bool { return host.suspended(lease) })
		line.set(false)
		waitFor(t, func() bool { return !host.suspended(lease) })
		if got := host.calls(); strings.Contains(got, "release") || lease.row().State == wire.StateEnded {
			t.Errorf("the lease is %s, after\n%s", lease.row().State, got)
		}
	})
	t.Run("a file", func(t *testing.T) {
		host := newHostOf(t, 2, failing)
		r := newRig(t, func(c *Config) { c.Allocator, c.Log = host.allocator(), slog.New(slog.DiscardHandler) })
		lease := r.open(1, 500_000, "")
		lease.record()
		mended := r.fails(`UPDATE ON leases`)
		waitFor(t, func() bool { return strings.Count(host.calls(), "suspend") >= 3 })
		mend(t, host.program)
		waitFor(t, func() bool { return host.suspended(lease) })
		if got := host.calls(); strings.Contains(got, "release") {
			t.Errorf("with nothing of its end on disk it was released:\n%s", got)
		}
		mended()
		waitFor(t, func() bool { return lease.row().State == wire.StateEnded })
	})
}

// TestResumeThatIsCutOffIsSuspended: a lease that was being resumed when its gateway lost the database may be in its renter's hands,
// whatever its state says, and nobody meters it.
func TestResumeThatIsCutOffIsSuspended(t *testing.T) {
	address, line := through(t, pgtest.URL(t))
	host := newHostOf(t, 2, `[ $1 != resume ] || [ -e $0.mended ] || { rm -f $0.$GPUPAY_LEASE; sleep 60; }`)
	r := newRig(t, func(c *Config) {
		c.Database, c.Takeover, c.Allocator, c.Log = address, 2*time.Second, host.allocator(), slog.New(slog.DiscardHandler)
	})
	lease := r.open(1, 500_000, "")
	lease.status(leasestore.Suspended)
	waitFor(t, func() bool { return lease.row().State == wire.StateSuspended })
	lease.pay(400_000) // the time since it was let go is far from using that up
	waitFor(t, func() bool { return strings.Contains(host.calls(), "resume") })
	line.set(true)
	waitFor(t, func() bool { return host.suspended(lease) })
	mend(t, host.program)
	line.set(false)
	waitFor(t, func() bool { return !host.suspended(lease) })
}

// spent is what was charged of a lease.
func (r *rig) spent(lease *tab) uint64 {
	r.Helper()
	s, err := r.provider.payee.State(r.Context(), lease.terms.ID())
	if err != nil {
		r.Fatal(err)
	}
	return s.Spent.Uint64()
}

// TestStopWhileTheDatabaseIsAway: a gateway that ends while its database is away leaves no devices with a renter, since no process that
// begins could meter them: it tries for some time where that fails. The lease goes on with the next process.
func TestStopWhileTheDatabaseIsAway(t *testing.T) {
	t.Parallel()
	const twice = `[ $1 != suspend ] || { n=$(cat $0.n 2>/dev/null || echo 0); echo $((n+1)) > $0.n; [ $n -ge 2 ] || exit 1; }`
	for name, test := range map[string]struct {
		takeover time.Duration
		credit   time.Duration
		body     string
	}{
		"it runs the lease":                           {20 * time.Second, time.Hour, ""},
		"it runs the lease, and the command fails":    {20 * time.Second, time.Hour, twice},
		"it has let it go":                            {4 * time.Second, time.Hour, ""},
		"it has let it go, and the command fails":     {4 * time.Second, time.Hour, twice},
		"it has let it go, and the credit is used up": {4 * time.Second, 8 * time.Second, `[ $1 != suspend ] || [ -e $0.mended ] || { touch $0.begun; sleep 60; }`},
	} {
		t.Run(name, func(t *testing.T) {
			direct := pgtest.URL(t)
			address, line := through(t, direct)
			host := newHostOf(t, 2, test.body)
			r := newRig(t, func(c *Config) {
				c.Database, c.Takeover, c.Terms.Credit, c.Allocator, c.Log = address, test.takeover, test.credit, host.allocator(), slog.New(slog.DiscardHandler)
			})
			lease := r.open(1, 500_000, "")
			waitFor(t, func() bool { return lease.row().Sequence > 0 && r.provider.leases.Running(lease.terms.ID()) != nil })
			old := r.provider.leases.Running(lease.terms.ID())
			line.set(true)
			if test.takeover < 20*time.Second {
				waitFor(t, func() bool { return isClosed(old.Done) })
			}
			if strings.Contains(test.body, "begun") {
				waitFor(t, func() bool { _, err := os.Stat(host.program + ".begun"); return err == nil })
				mend(t, host.program)
			} else if host.suspended(lease) {
				t.Fatal("it is suspended with credit left")
			}
			r.stop()
			<-r.ran
			r.provider.Close()
			r.server.CloseClientConnections()
			r.server.Close()
			if !host.suspended(lease) {
				t.Errorf("nobody meters it, and its renter has its devices, after\n%s", host.calls())
			}
			r.config.Database, r.config.Allocator = direct, host.allocator()
			r.start()
			waitFor(t, func() bool { return !host.suspended(lease) })
			if row := lease.row(); row.State != wire.StateActive || strings.Contains(host.calls(), "release") {
				t.Errorf("then it is %s, after\n%s", row.State, host.calls())
			}
		})
	}
}

func isClosed(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// TestGatewayThatIsCutOffLeavesALeaseAlone: of two gateways on one host the one that is cut off from the database suspends nothing that
// the other has taken over, and whose renter pays.
func TestGatewayThatIsCutOffLeavesALeaseAlone(t *testing.T) {
	direct := pgtest.URL(t)
	address, line := through(t, direct)
	host := newHostOf(t, 2, "")
	file := filepath.Join(t.TempDir(), "signed")
	var left atomic.Bool
	change := func(c *Config) {
		c.Takeover, c.Terms.Credit, c.Records.HighWater, c.Allocator = 3*time.Second, 8*time.Second, file, host.allocator()
		c.Log = slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) {
			left.Store(left.Load() || strings.Contains(string(b), "its devices are left alone"))
			return len(b), nil
		}), nil))
	}
	a := newRig(t, change, func(c *Config) { c.Database = address })
	b := rigOn(t, a.chain, func(*rig) *channel.Key { return a.payer }, change, func(c *Config) { c.Database = direct })
	lease := a.open(1, 500_000, "")
	lease.record()
	line.set(true)
	cutSince := testclock.Stopwatch()
	waitFor(t, func() bool { return b.provider.leases.Running(lease.terms.ID()) != nil })
	there := lease.at(b)
	waitFor(t, func() bool { // the credit that the gateway knows of is used up
		there.pay(b.spent(lease))
		return left.Load() || cutSince() > a.config.Terms.Credit+6*time.Second
	})
	if got := host.calls(); strings.Contains(got, "suspend") || !strings.Contains(got, "resume done") {
		t.Errorf("after\n%s", got)
	}
	line.set(false)
}

// TestTakeoverWaitsForALateSuspension: a gateway that takes a lease over resumes its devices after the one that let it go is done with
// suspending them, and not before.
func TestTakeoverWaitsForALateSuspension(t *testing.T) {
	direct := pgtest.URL(t)
	address, line := through(t, direct)
	host := newHostOf(t, 2, `[ $1 != suspend ] || sleep 8`)
	file := filepath.Join(t.TempDir(), "signed")
	change := func(c *Config) {
		c.Takeover, c.Terms.Credit, c.Records.HighWater, c.Allocator, c.Log = time.Second, 3*time.Second, file, host.allocator(), slog.New(slog.DiscardHandler)
	}
	a := newRig(t, change, func(c *Config) { c.Database = address })
	lease := a.open(1, 500_000, "")
	lease.record()
	line.set(true)
	defer line.set(false)
	waitFor(t, func() bool { return strings.Contains(host.calls(), "suspend") })
	b := rigOn(t, a.chain, func(*rig) *channel.Key { return a.payer }, change, func(c *Config) { c.Database = direct })
	waitFor(t, func() bool { return strings.Contains(host.calls(), "resume done") })
	got := host.calls()
	if first, then := strings.Index(got, "suspend done"), strings.Index(got, "resume"); first < 0 || then < first {
		t.Errorf("the commands were\n%s", got)
	}
	if b.provider.leases.Running(lease.terms.ID()) == nil {
		t.Error("the lease does not go on")
	}
}

// TestFileOfWhatWasSignedCannotBeWritten: a gateway that cannot write down what it signs begins no lease, says so to renters and in its
// health, and is well when it can.
func TestFileOfWhatWasSignedCannotBeWritten(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a file", onPostgres} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, generousCredit, func(c *Config) {
				c.Records.HighWater, c.Log = filepath.Join(t.TempDir(), "signed"), slog.New(slog.DiscardHandler)
			})
			running := r.open(1, 100_000, "")
			running.record()
			health := func() (int, string) {
				rec := httptest.NewRecorder()
				r.provider.Health().ServeHTTP(rec, httptest.NewRequest("GET", "/healthz", nil))
				var h health
				if err := json.Unmarshal(rec.Body.Bytes(), &h); err != nil {
					t.Fatal(err)
				}
				return rec.Code, h.Status
			}
			if code, status := health(); code != http.StatusOK {
				t.Fatalf("%d, %s", code, status)
			}
			db, err := sqlx.Open("sqlite3", "file:"+r.config.Records.HighWater+"?_txlock=immediate&_busy_timeout=5000")
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			lock := db.MustBegin() // as unwritable as on a disk that is full
			waitFor(t, func() bool {
				code, status := health()
				return code == http.StatusServiceUnavailable && strings.Contains(status, r.config.Records.HighWater)
			})
			resp := r.do("GET", "", r.openCredential(r.payer, r.terms(r.payer.Address(), 2), 100_000, 0))
			if err := problemIn(wire.Unavailable, resp); err != nil {
				t.Error(err)
			}
			if r.provider.leases.Running(running.terms.ID()) == nil || running.row().State != wire.StateActive {
				t.Errorf("the lease that runs is %s", running.row().State)
			}
			if err := lock.Rollback(); err != nil {
				t.Fatal(err)
			}
			waitFor(t, func() bool { code, _ := health(); return code == http.StatusOK })
			r.open(3, 100_000, "").record()
		})
	}
}
