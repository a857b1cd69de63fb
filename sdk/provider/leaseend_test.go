package provider

import (
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// fails has writes of a kind fail, as on a disk that is full, until mended.
func (r *rig) fails(when string) (mended func()) {
	r.Helper()
	exec := func(query string) {
		r.Helper()
		if err := r.provider.db.Update(r.Context(), func(tx *sqlx.Tx) error { _, err := tx.Exec(query); return err }); err != nil {
			r.Fatal(err)
		}
	}
	exec(`CREATE TRIGGER full BEFORE ` + when + ` BEGIN SELECT RAISE(FAIL, 'the disk is full'); END`)
	return func() { exec(`DROP TRIGGER full`) }
}

// commanded is a rig whose commands are written down.
func commanded(t *testing.T) (*rig, func() string) {
	command, calls := script(t, "")
	host := hostGPUs(t, 2)
	host.SuspendCommand, host.ResumeCommand, host.ReleaseCommand = append(command, "suspend"), append(command[:1:1], "resume"), append(command[:1:1], "release")
	return newRig(t, func(c *Config) { c.Allocator, c.Log = host, slog.New(slog.DiscardHandler) }), calls
}

func (t *tab) row() leasestore.Row {
	t.Helper()
	row, err := t.provider.store.Leases.ByID(t.Context(), t.lease.LeaseID.Hex())
	if err != nil {
		t.Fatal(err)
	}
	return row
}

// tryRelease is release where it may be refused.
func (t *tab) tryRelease() error {
	t.Helper()
	cred := &wire.Credential{Challenge: t.challenge(), Payload: wire.Payload{Action: wire.ActionRelease, ChannelID: t.terms.ID(), LeaseSecret: t.lease.Secret}}
	return problemIn(wire.Unavailable, t.do("POST", "", cred))
}

// TestNothingIsGivenBackBeforeItsEndIsOnDisk: while the final record cannot be
// written, the renter hears so and its devices are suspended; they are taken back,
// once, when it is.
func TestNothingIsGivenBackBeforeItsEndIsOnDisk(t *testing.T) {
	r, calls := commanded(t)
	lease := r.open(1, 500_000, "")
	lease.record()
	mended := r.fails(`INSERT ON records`)
	if err := lease.tryRelease(); err != nil {
		t.Errorf("a release that could not be written: %v", err)
	}
	waitFor(t, func() bool { return strings.Contains(calls(), "suspend") })
	if got := calls(); strings.Contains(got, "release") {
		t.Errorf("with nothing of its end on disk the commands were\n%s", got)
	}
	if row := lease.row(); row.State != wire.StateActive {
		t.Errorf("the row says %s", row.State)
	}
	mended()
	lease.status(leasestore.Ended)
	last, err := r.provider.store.Records.Last(t.Context(), lease.lease.LeaseID)
	if row := lease.row(); err != nil || !last.Final || row.State != wire.StateEnded || strings.Count(calls(), "release") != 1 {
		t.Errorf("then the lease is %s, final: %t, %v, after\n%s", row.State, last.Final, err, calls())
	}
}

// TestProcessThatDiesBetweenReleaseAndEnd: it suspends nothing that it has given
// back, and the next one neither meters the lease nor, where its device is in another lease by then, takes that from its renter.
func TestProcessThatDiesBetweenReleaseAndEnd(t *testing.T) {
	r, calls := commanded(t)
	lease := r.open(1, 200_000, "?gpus=2")
	lease.record()
	r.fails(`UPDATE ON leases WHEN NEW.state = 'ended'`)
	if err := lease.tryRelease(); err != nil {
		t.Error(err)
	}
	if row := lease.row(); row.State != wire.StateEnding || strings.Count(calls(), "release") != 1 {
		t.Fatalf("the row says %s, after\n%s", row.State, calls())
	}
	next := r.open(2, 200_000, "?gpus=2")
	final, err := r.provider.store.Records.Last(t.Context(), lease.lease.LeaseID)
	if err != nil {
		t.Fatal(err)
	}
	r.shut()
	if strings.Contains(calls(), "suspend") {
		t.Errorf("devices that were given back were suspended:\n%s", calls())
	}
	r.mend()
	r.start()
	s, err := r.provider.payee.State(t.Context(), lease.terms.ID())
	if row := lease.row(); err != nil || row.State != wire.StateEnded || s.Spent != final.Owed {
		t.Errorf("the lease is %s, %s is charged of %s, %v", row.State, s.Spent.Dec(), final.Owed.Dec(), err)
	}
	if strings.Count(calls(), "release") != 1 || r.provider.leases.Running(next.terms.ID()) == nil {
		t.Errorf("the next renter lost its device:\n%s", calls())
	}
}

// mend is what fails returns, for a provider that is shut.
func (r *rig) mend() {
	r.Helper()
	db, err := database.Open(r.Context(), r.config.Database, "provider", leasestore.Migrations, "migrations/provider")
	if err != nil {
		r.Fatal(err)
	}
	err = db.Update(r.Context(), func(tx *sqlx.Tx) error { _, err := tx.Exec(`DROP TRIGGER full`); return err })
	if err != nil {
		r.Error(err)
	}
	if err := db.Close(); err != nil {
		r.Error(err)
	}
}

// TestSuspensionNeedsNoDisk: an unpaid lease is suspended though nothing can be
// written, is not ended for that, and goes on when it is paid.
func TestSuspensionNeedsNoDisk(t *testing.T) {
	r, calls := commanded(t)
	lease := r.open(1, 500_000, "")
	lease.record()
	mended := r.fails(`UPDATE ON leases`)
	lease.status(leasestore.Suspended)
	time.Sleep(300 * time.Millisecond)
	if got := calls(); got == "" || strings.Contains(got, "release") || strings.Contains(got, "resume") {
		t.Errorf("the commands were\n%s", got)
	}
	mended()
	waitFor(t, func() bool { return lease.row().State == wire.StateSuspended })
	waitFor(t, func() bool {
		s, err := r.provider.payee.State(t.Context(), lease.terms.ID())
		return err == nil && s.Spent.Uint64() > 1500
	})
	s, err := r.provider.payee.State(t.Context(), lease.terms.ID())
	if err != nil {
		t.Fatal(err)
	}
	lease.pay(s.Spent.Uint64())
	lease.status(leasestore.Active)
	waitFor(t, func() bool { return lease.row().State == wire.StateActive })
}

// TestOneFailedReadEndsNoLease: a start that cannot read what it needs says so and
// leaves the lease alone.
func TestOneFailedReadEndsNoLease(t *testing.T) {
	r, calls := commanded(t)
	lease := r.open(1, 500_000, "")
	lease.record()
	r.shut()
	rename := func(from, to string) {
		t.Helper()
		db, err := database.Open(t.Context(), r.config.Database, "provider", leasestore.Migrations, "migrations/provider")
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if err := db.Update(t.Context(), func(tx *sqlx.Tx) error { _, err := tx.Exec(`ALTER TABLE ` + from + ` RENAME TO ` + to); return err }); err != nil {
			t.Fatal(err)
		}
	}
	rename("records", "hidden")
	if p, err := New(t.Context(), r.config); err == nil || !strings.Contains(err.Error(), "start again") {
		t.Errorf("a start that cannot read the records: %v", err)
		if err == nil {
			p.Close()
		}
	}
	rename("hidden", "records")
	r.start()
	if got := calls(); r.provider.leases.Running(lease.terms.ID()) == nil || strings.Contains(got, "release") {
		t.Errorf("the lease is %s, after\n%s", lease.row().State, got)
	}
}

// TestOneFailedReadInATakeoverEndsNoLease: it is left to who tries next.
func TestOneFailedReadInATakeoverEndsNoLease(t *testing.T) {
	quiet := func(c *Config) { c.Log = slog.New(slog.DiscardHandler) }
	command, calls := script(t, "")
	a, b := fleet(t, quiet, func(c *Config) {
		host := hostGPUs(t, 2)
		host.ReleaseCommand = append(command, "release")
		c.Allocator = host
	})
	lease := a.open(1, 500_000, "")
	lease.record()
	a.shut()
	rename := func(from, to string) {
		t.Helper()
		if err := b.provider.db.Update(t.Context(), func(tx *sqlx.Tx) error { _, err := tx.Exec(`ALTER TABLE ` + from + ` RENAME TO ` + to); return err }); err != nil {
			t.Fatal(err)
		}
	}
	rename("records", "hidden")
	deadline := time.Now().Add(time.Minute)
	for tried := 0; tried < 3; tried++ {
		if err := b.provider.gateway.Sweep(t.Context()); err == nil && time.Now().After(deadline) {
			t.Fatal("it was not tried")
		}
	}
	if row, err := b.provider.store.Leases.ByID(t.Context(), lease.lease.LeaseID.Hex()); err != nil || row.State != wire.StateActive || calls() != "" {
		t.Errorf("the lease is %s, %v, after %q", row.State, err, calls())
	}
	rename("hidden", "records")
	waitFor(t, func() bool { return b.provider.leases.Running(lease.terms.ID()) != nil })
}

// TestDevicesOfALeaseThatIsNotOnDisk: what an allocator gave to a lease that could not be written goes back to it at once, and not when the disk is well.
func TestDevicesOfALeaseThatIsNotOnDisk(t *testing.T) {
	host := oneGPU{make(chan gpu.Allocation, 8)}
	r := newRig(t, quiet, generousCredit, func(c *Config) { c.Allocator = host })
	mended := r.fails("UPDATE ON leases")
	terms := r.terms(r.payer.Address(), 1)
	if resp := r.do("GET", "", r.openCredential(r.payer, terms, 300_000, 0)); resp.StatusCode != http.StatusInternalServerError {
		t.Errorf("a lease that is on no disk: %v", wire.ParseProblem(resp))
	}
	select {
	case <-host.released:
	case <-time.After(5 * time.Second):
		t.Error("its device is held until the disk is well")
	}
	mended()
	(&tab{rig: r, key: r.payer, terms: terms}).attachNow()
}
