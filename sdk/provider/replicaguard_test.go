package provider

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// wirecut stands before a server and can be cut. Or it can swallow what the server
// answers to who only reads: such connections are dead and do not say so.
type wirecut struct {
	mu    sync.Mutex
	cut   bool
	conns []net.Conn
	deaf  atomic.Bool
}

// through is the server's address through a wirecut.
func through(t *testing.T, address string) (string, *wirecut) {
	t.Helper()
	at, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	query := at.Query()
	socket := query.Get("host") + "/.s.PGSQL.5432"
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	l := &wirecut{}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go l.carry(client, socket)
		}
	}()
	query.Set("host", "127.0.0.1")
	query.Set("port", fmt.Sprint(listener.Addr().(*net.TCPAddr).Port))
	query.Set("sslmode", "disable")
	at.RawQuery = query.Encode()
	return at.String(), l
}

func (l *wirecut) carry(client net.Conn, socket string) {
	defer client.Close()
	server, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer server.Close()
	l.mu.Lock()
	cut := l.cut
	l.conns = append(l.conns, client, server)
	l.mu.Unlock()
	if cut {
		return
	}
	var reads atomic.Bool
	go func() {
		defer server.Close()
		for buffer := make([]byte, 1<<16); ; {
			n, err := client.Read(buffer)
			if bytes.Contains(buffer[:n], []byte("default_transaction_read_only")) {
				reads.Store(true)
			}
			if _, failed := server.Write(buffer[:n]); err != nil || failed != nil {
				return
			}
		}
	}()
	for buffer := make([]byte, 1<<16); ; {
		n, err := server.Read(buffer)
		if err != nil {
			return
		}
		if l.deaf.Load() && reads.Load() {
			continue
		}
		if _, err := client.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// TestDeafGatewayLetsGo: a gateway that writes and gets no answer to what it reads does not
// say that it lives. Its lease goes on at another one, where it hears of the voucher.
func TestDeafGatewayLetsGo(t *testing.T) {
	shared := pgtest.URL(t)
	address, line := through(t, shared)
	quiet := func(c *Config) { c.Takeover, c.Log = 2*time.Second, slog.New(slog.DiscardHandler) }
	a := newRig(t, quiet, func(c *Config) { c.Database = address })
	b := rigOn(t, a.chain, func(*rig) *channel.Key { return a.payer }, quiet, func(c *Config) { c.Database = shared })
	lease := a.open(1, 500_000, "")
	lease.record()
	old := a.provider.leases.Running(lease.terms.ID())
	line.deaf.Store(true)
	waitFor(t, func() bool { return b.provider.leases.Running(lease.terms.ID()) != nil })
	select {
	case <-old.Done:
	case <-time.After(20 * time.Second):
		t.Fatal("the deaf gateway runs it, too")
	}
	s, err := b.provider.payee.State(t.Context(), lease.terms.ID())
	if err != nil {
		t.Fatal(err)
	}
	lease.at(b).pay(s.Spent.Uint64())
	waitFor(t, func() bool { return lease.at(b).row().State == wire.StateActive })
	line.deaf.Store(false)
}

// TestTakeoverReadsWhatItTakes: a gateway whose database answers what it writes and not what it reads afterwards takes a lease with
// what was written of it last, or not at all: never to leave it with nobody who meters it.
func TestTakeoverReadsWhatItTakes(t *testing.T) {
	shared := pgtest.URL(t)
	address, line := through(t, shared)
	quiet := func(c *Config) { c.Takeover, c.Log = time.Minute, slog.New(slog.DiscardHandler) }
	a := newRig(t, quiet, func(c *Config) { c.Database = shared })
	b := rigOn(t, a.chain, func(*rig) *channel.Key { return a.payer }, quiet, func(c *Config) { c.Database = address })
	lease := a.open(1, 500_000, "")
	lease.record()
	row := lease.row()
	line.deaf.Store(true)
	defer line.deaf.Store(false)
	a.shut()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	name, last := b.provider.gateway.Identity(), row.Sequence
	if ok, err := b.provider.store.Leases.TakeOver(ctx, &row, name); err != nil || !ok || row.Owner != name || row.Sequence < last {
		t.Errorf("taken: %t, %v: %+v", ok, err, row)
	}
}

func (l *wirecut) set(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	if cut {
		for _, conn := range l.conns {
			conn.Close()
		}
		l.conns = nil
	}
}

// TestDatabaseAwayServesNoLongerThanTheCredit: while no gateway can reach the
// database nobody meters a lease. It is suspended when the credit that was left is
// used up, not ended, and goes on when the database is back.
func TestDatabaseAwayServesNoLongerThanTheCredit(t *testing.T) {
	address, line := through(t, pgtest.URL(t))
	command, calls := script(t, "")
	r := newRig(t, func(c *Config) {
		host := hostGPUs(t, 2)
		host.SuspendCommand, host.ResumeCommand, host.ReleaseCommand = append(command, "suspend"), append(command[:1:1], "resume"), append(command[:1:1], "release")
		c.Database, c.Takeover, c.Allocator, c.Log = address, time.Second, host, slog.New(slog.DiscardHandler)
	})
	lease := r.open(1, 500_000, "")
	lease.record()
	line.set(true)
	served := testclock.Stopwatch()
	waitFor(t, func() bool { return strings.Contains(calls(), "suspend") })
	if took := served(); took > r.config.Takeover+r.config.Terms.Credit+3*time.Second {
		t.Errorf("it was served for %s, of a credit of %s", took, r.config.Terms.Credit)
	}
	line.set(false)
	waitFor(t, func() bool { return strings.Contains(calls(), "resume") })
	if got := calls(); strings.Contains(got, "release") || lease.row().State == wire.StateEnded {
		t.Errorf("the lease is %s, after\n%s", lease.row().State, got)
	}
}

// TestSuspendedWhileTheDatabaseWasAway: a gateway that suspends a lease's devices, cannot write that down and dies leaves a row
// that says active. Who goes on with it bills nothing before the devices are in the renter's hands again.
func TestSuspendedWhileTheDatabaseWasAway(t *testing.T) {
	direct := pgtest.URL(t)
	address, line := through(t, direct)
	command, calls := script(t, `[ $1 != resume ] || while [ ! -e $0.mended ]; do sleep 0.05; done`)
	r := newRig(t, func(c *Config) {
		host := hostGPUs(t, 2)
		host.SuspendCommand, host.ResumeCommand = append(command, "suspend"), append(command[:1:1], "resume")
		c.Database, c.Takeover, c.Allocator, c.Log = address, 2*time.Second, host, slog.New(slog.DiscardHandler)
	})
	lease := r.open(1, 500_000, "")
	lease.record()
	line.set(true)
	waitFor(t, func() bool { return strings.Contains(calls(), "suspend") })
	r.server.Close()
	r.stop()
	<-r.ran
	r.provider.Close() // as good as killed: nothing of it reaches the database
	r.config.Database = direct
	r.start()
	if row := lease.row(); row.State != wire.StateActive {
		t.Fatalf("the lease is %s on disk", row.State)
	}
	waitFor(t, func() bool { return strings.Contains(calls(), "resume") })
	allocated := func() (ns int64) {
		t.Helper()
		waitFor(t, func() bool { // none runs where the gateway stood down, and another does afterwards
			l := r.provider.leases.Running(lease.terms.ID())
			if l != nil {
				ns = l.Meter.Allocated()
			}
			return l != nil
		})
		return ns
	}
	before := allocated()
	testclock.Sleep(500 * time.Millisecond)
	if now := allocated(); now != before {
		t.Errorf("%s are billed of devices that are suspended", time.Duration(now-before))
	}
	mend(t, command[0])
	waitFor(t, func() bool { return allocated() > before })
}

// TestDevicesThatNeedNoResume: a command that refuses to resume what is not suspended ends no lease that goes on.
func TestDevicesThatNeedNoResume(t *testing.T) {
	command, calls := script(t, `case $1 in suspend) touch $0.suspended;; resume) rm $0.suspended;; esac`)
	r := newRig(t, generousCredit, func(c *Config) {
		host := hostGPUs(t, 2)
		host.SuspendCommand, host.ResumeCommand = append(command, "suspend"), append(command[:1:1], "resume")
		c.Allocator, c.Log = host, slog.New(slog.DiscardHandler)
	})
	lease := r.open(1, 500_000, "")
	lease.record()
	r.restart()
	l := r.provider.leases.Running(lease.terms.ID())
	before := l.Meter.Allocated()
	waitFor(t, func() bool { return l.Meter.Allocated() > before })
	if got := calls(); strings.Count(got, "resume") != 2 || strings.Count(got, "suspend") != 1 {
		t.Errorf("the commands were\n%s", got)
	}
	lease.again()
	lease.record()
}

// TestCommandThatIsCutOffEndsNoLease: a process that stops, or that others may take the lease from, while a command on its devices
// goes on has not heard that it failed: the lease goes on in the next one, which resumes what may be in either state first.
func TestCommandThatIsCutOffEndsNoLease(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		slow string
		cut  func(*rig)
	}{
		"stopped during a resume":                       {"resume", (*rig).shut},
		"stopped during a suspension":                   {"suspend", (*rig).shut},
		onPostgres + ", stood down during a resume":     {"resume", func(r *rig) { r.provider.gateway.StandDown() }},
		onPostgres + ", stood down during a suspension": {"suspend", func(r *rig) { r.provider.gateway.StandDown() }},
	} {
		t.Run(name, func(t *testing.T) {
			command, calls := script(t, `[ $1 != `+test.slow+` ] || while [ ! -e $0.mended ]; do sleep 0.05; done`)
			r := newRig(t, func(c *Config) {
				host := hostGPUs(t, 2)
				host.SuspendCommand, host.ResumeCommand = append(command, "suspend"), append(command[:1:1], "resume")
				c.Allocator, c.Takeover, c.Log = host, 3*time.Second, slog.New(slog.DiscardHandler)
			})
			lease := r.open(1, 500_000, "")
			waitFor(t, func() bool { return strings.Contains(calls(), "suspend") })
			if test.slow == "resume" {
				lease.status(leasestore.Suspended)
			}
			lease.pay(400_000)
			waitFor(t, func() bool { return strings.Contains(calls(), test.slow) })
			test.cut(r)
			before := calls()
			mend(t, command[0])
			if r.server == nil {
				r.start()
			}
			var since int64 // nanoseconds, what was metered when it had been resumed
			waitFor(t, func() bool {
				l := r.provider.leases.Running(lease.terms.ID())
				if lease.row().State == wire.StateEnded {
					return true
				}
				if l == nil || l.Status.State() != leasestore.Active || !strings.Contains(strings.TrimPrefix(calls(), before), "resume") {
					return false
				}
				if since == 0 {
					since = l.Meter.Allocated()
				}
				return l.Meter.Allocated() > since
			})
			if row := lease.row(); row.State == wire.StateEnded {
				t.Errorf("the lease is ended: %q", row.Reason)
			}
		})
	}
}

// TestNewNameRunsOutToo: what a gateway takes up under a new name is not its own for
// ever where the database goes away before it has heard that the name could be said.
func TestNewNameRunsOutToo(t *testing.T) {
	address, line := through(t, pgtest.URL(t))
	r := newRig(t, func(c *Config) {
		c.Database, c.Takeover, c.Log = address, time.Second, slog.New(slog.DiscardHandler)
	})
	line.set(true)
	r.provider.gateway.StandDown()
	select {
	case <-r.provider.gateway.Tenure().Done():
	case <-time.After(time.Minute):
		t.Fatal("what is taken up now is served without an end")
	}
}

// TestDeposedOwnerLeavesTheDevicesAlone: a command of a gateway that runs the lease
// no more is not begun, also where it has not heard of that yet, and one that is
// under way when others may take the lease is cut off. Each has the term that it is
// of in its environment.
func TestDeposedOwnerLeavesTheDevicesAlone(t *testing.T) {
	terms := filepath.Join(t.TempDir(), "terms")
	command, calls := script(t, "echo $GPUPAY_TERM >> "+terms+"\n[ $1 != slow ] || sleep 20")
	a, _ := fleet(t, func(c *Config) {
		host := hostGPUs(t, 2)
		host.SuspendCommand, host.ResumeCommand = append(command, "suspend"), append(command[:1:1], "slow")
		c.Allocator, c.Log = host, slog.New(slog.DiscardHandler)
	})
	lease := a.open(1, 500_000, "")
	lease.record()
	old := a.provider.leases.Running(lease.terms.ID())
	ended := make(chan error, 1)
	go func() { ended <- old.Fence.Command(context.Background(), old.Deps.Placer.Resume) }()
	waitFor(t, func() bool { return strings.Contains(calls(), "slow") })
	began := time.Now()
	a.provider.gateway.StandDown()
	if err := <-ended; err == nil || time.Since(began) > 15*time.Second {
		t.Errorf("a command ran on for %s when others may run the lease: %v", time.Since(began), err)
	}
	if text, err := os.ReadFile(terms); err != nil || strings.TrimSpace(string(text)) != fmt.Sprint(old.Term) {
		t.Errorf("its term was %q, %v", text, err)
	}

	waitFor(t, func() bool {
		l := a.provider.leases.Running(lease.terms.ID())
		return l != nil && l != old || lease.row().Owner != a.provider.gateway.Identity()
	})
	second := a.open(2, 500_000, "")
	l := a.provider.leases.Running(second.terms.ID())
	err := a.provider.db.Update(t.Context(), func(tx *sqlx.Tx) error {
		_, err := tx.Exec(`UPDATE leases SET term = term + 1 WHERE id = $1`, second.lease.LeaseID.Hex())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	before := calls()
	if err := l.Fence.Command(t.Context(), l.Deps.Placer.Suspend); !errors.Is(err, leasestore.ErrNotOwner) || strings.Contains(strings.TrimPrefix(calls(), before), second.lease.LeaseID.Hex()) {
		t.Errorf("it touches the devices of another gateway: %v, %s", err, calls())
	}
}
