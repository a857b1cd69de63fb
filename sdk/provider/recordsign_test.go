package provider

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/highwater"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// notary is a metering key that remembers what it signed, and may fail before or
// after it did.
type notary struct {
	*channel.Key
	mu     sync.Mutex
	before func(digest common.Hash) error
	signed []common.Hash
}

func newNotary(t *testing.T) *notary {
	t.Helper()
	private, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return &notary{Key: channel.NewKey(private)}
}

func (n *notary) Sign(ctx context.Context, digest common.Hash) ([]byte, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.before != nil {
		if err := n.before(digest); err != nil {
			return nil, err
		}
	}
	n.signed = append(n.signed, digest)
	return n.Key.Sign(ctx, digest)
}

func (n *notary) set(before func(common.Hash) error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.before = before
}

// distinct is how many records it signed.
func (n *notary) distinct() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := make(map[common.Hash]bool)
	for _, digest := range n.signed {
		all[digest] = true
	}
	return len(all)
}

func (r *rig) row(id common.Hash) leasestore.Row {
	r.Helper()
	row, err := r.provider.store.Leases.ByID(r.Context(), id.Hex())
	if err != nil {
		r.Fatal(err)
	}
	return row
}

func quiet(c *Config) { c.Log = slog.New(slog.DiscardHandler) }

// TestRecordIsStoredBeforeItIsSigned: when a key is asked for a signature, the record is in the database and its digest
// in the file beside it.
func TestRecordIsStoredBeforeItIsSigned(t *testing.T) {
	key := newNotary(t)
	r := newRig(t, func(c *Config) { c.Metering.Key = key })
	key.set(func(digest common.Hash) error {
		var pending []string
		if err := r.provider.db.View().Select(&pending, `SELECT pending FROM leases WHERE pending <> ''`); err != nil || len(pending) != 1 {
			t.Errorf("%d records are about to be signed, %v", len(pending), err)
			return nil
		}
		row := leasestore.Row{Pending: pending[0]}
		_, _, draft, err := row.Resume(nil)
		domain := metering.Domain(r.provider.escrow.ChainID(), r.chain.Escrow)
		if err != nil || draft.Record.Digest(domain) != digest {
			t.Errorf("another record is on disk than the one that is signed, %v", err)
			return nil
		}
		mark, err := r.provider.leases.Deps.Marks.Get(t.Context(), key.Address(), draft.Record.LeaseID)
		if want := (highwater.Mark{Sequence: draft.Record.Sequence, Digest: digest}); err != nil || mark != want {
			t.Errorf("the mark is %+v, want %+v, %v", mark, want, err)
		}
		return nil
	})
	lease := r.open(1, 500_000, "")
	for range 3 {
		lease.record()
	}
	if final := lease.release(); int(final.Sequence) != key.distinct() {
		t.Errorf("%d records were signed, the last is number %d", key.distinct(), final.Sequence)
	}
	if row := r.row(lease.lease.LeaseID); row.Pending != "" {
		t.Errorf("%.60q is still about to be signed", row.Pending)
	}
}

// TestRecordThatIsBeingSignedIsNotForgotten: what a record says that is about to be signed is charged with that record, and not
// before by a request that comes meanwhile: a lease that is charged more than its records say would end when it is taken up.
func TestRecordThatIsBeingSignedIsNotForgotten(t *testing.T) {
	key := newNotary(t)
	r := newRig(t, quiet, func(c *Config) { c.Metering.Key = key })
	var looks atomic.Int64
	key.set(func(common.Hash) error {
		states, err := r.provider.payee.Channels(t.Context())
		if err != nil || len(states) != 1 {
			t.Errorf("%d channels, %v", len(states), err)
			return nil
		}
		looks.Add(1)
		if got, err := sessionOf(r.provider).Records.Remember(t.Context(), states[0]); err != nil || got.Spent != states[0].Spent {
			t.Errorf("charged are %s before the record is signed, of %s: %v", got.Spent.Dec(), states[0].Spent.Dec(), err)
		}
		return nil
	})
	lease := r.open(1, 500_000, "")
	for range 3 {
		lease.record()
	}
	if lease.release(); looks.Load() < 3 {
		t.Errorf("%d records were looked at", looks.Load())
	}
}

// TestRecordThatFailedIsSignedAgain: a signer or a disk that fails, and a restart between, leave one record a number.
func TestRecordThatFailedIsSignedAgain(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name        string
		spoil, mend func(r *rig, key *notary)
	}{
		{"signer",
			func(_ *rig, key *notary) { key.set(func(common.Hash) error { return errors.New("the key is away") }) },
			func(_ *rig, key *notary) { key.set(nil) }},
		{"signer that did sign",
			func(_ *rig, key *notary) {
				key.set(func(d common.Hash) error {
					key.signed = append(key.signed, d)
					return errors.New("the answer got lost")
				})
			},
			func(_ *rig, key *notary) { key.set(nil) }},
		{"disk",
			func(r *rig, _ *notary) {
				r.sql(`CREATE TRIGGER broken BEFORE INSERT ON records BEGIN SELECT RAISE(ABORT, 'broken on purpose'); END`)
			},
			func(r *rig, _ *notary) { r.sql(`DROP TRIGGER broken`) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			key := newNotary(t)
			r := newRig(t, quiet, func(c *Config) { c.Metering.Key = key })
			lease := r.open(1, 500_000, "")
			lease.record()
			test.spoil(r, key)
			id := lease.lease.LeaseID
			for r.row(id).Pending == "" {
				time.Sleep(5 * time.Millisecond)
			}
			time.Sleep(250 * time.Millisecond) // some more tries
			broken := r.row(id)
			r.shut()
			r.startWith(func() { test.mend(r, key) })
			for r.row(id).Sequence <= broken.Sequence+1 {
				time.Sleep(5 * time.Millisecond)
			}
			lease.again()
			var last metering.SignedRecord
			domain := metering.Domain(r.provider.escrow.ChainID(), r.chain.Escrow)
			for last.Sequence <= uint64(broken.Sequence)+1 {
				rec := lease.record()
				if rec.Sequence != last.Sequence+1 || last.Sequence > 0 && rec.Previous != last.Digest(domain) {
					t.Fatalf("record %d after %d does not follow", rec.Sequence, last.Sequence)
				}
				last = rec
			}
			final := lease.release()
			if int(final.Sequence) != key.distinct() {
				t.Errorf("%d records were signed of %d numbers: a fork", key.distinct(), final.Sequence)
			}
		})
	}
}

// TestDraftedFinalRecordEndsTheLease: a program that died before it could sign a lease's final record signs that one when
// it is back, and ends the lease.
func TestDraftedFinalRecordEndsTheLease(t *testing.T) {
	key := newNotary(t)
	r := newRig(t, quiet, func(c *Config) { c.Metering.Key = key })
	lease := r.open(1, 500_000, "")
	lease.record()
	key.set(func(common.Hash) error { return errors.New("the key is away") })
	id := lease.lease.LeaseID
	for r.row(id).Pending == "" {
		time.Sleep(5 * time.Millisecond)
	}
	key.set(func(common.Hash) error { // the one before the final record is signed, and that is not
		key.before = func(common.Hash) error { return errors.New("the key is away") }
		return nil
	})
	release := &wire.Credential{Challenge: lease.challenge(), Payload: wire.Payload{Action: wire.ActionRelease, ChannelID: lease.terms.ID(), LeaseSecret: lease.lease.Secret}}
	if resp := lease.do("POST", "", release); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a release whose final record is not signed: %s", resp.Status)
	}
	r.sql(`UPDATE leases SET state = 'active'`) // as it was on disk until the end was
	r.shut()
	key.set(nil)
	r.start()
	for r.row(id).State != wire.StateEnded {
		time.Sleep(5 * time.Millisecond)
	}
	last, err := r.provider.store.Records.Last(t.Context(), id)
	if err != nil || !last.Final || int(last.Sequence) != key.distinct() {
		t.Errorf("%d records were signed, the last is %+v, %v", key.distinct(), last, err)
	}
}

// sql writes to the provider's database behind its back.
func (r *rig) sql(query string, args ...any) {
	r.Helper()
	err := r.provider.db.Update(r.Context(), func(tx *sqlx.Tx) error {
		_, err := tx.Exec(tx.Rebind(query), args...)
		return err
	})
	if err != nil {
		r.Fatal(err)
	}
}

// startWith starts the provider and does something at once.
func (r *rig) startWith(do func()) {
	r.Helper()
	r.start()
	do()
}

// backup is a copy of the provider's database, made while it is down for a moment.
func (r *rig) backup() (restore func()) {
	r.Helper()
	r.shut()
	data, err := os.ReadFile(r.config.Database)
	if err != nil {
		r.Fatal(err)
	}
	r.start()
	return func() {
		r.Helper()
		r.shut()
		if err := errors.Join(os.WriteFile(r.config.Database, data, 0o600), remove(r.config.Database+"-wal"), remove(r.config.Database+"-shm")); err != nil {
			r.Fatal(err)
		}
		r.start()
	}
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// again takes the stream up behind what the renter has.
func (t *tab) again(header ...string) {
	t.Helper()
	cred, secret := t.credential(wire.ActionVoucher, 0), t.lease.Secret
	cred.Payload.LeaseSecret = secret
	t.attach(t.do("GET", "", cred, header...))
	t.lease.Secret = secret
}

// TestDeposedGatewaySignsNothing: a gateway whose lease another one took over, and that does not know it, makes no
// signature; one that was about to makes that of the record which the other signs, too.
func TestDeposedGatewaySignsNothing(t *testing.T) {
	keyA, keyB := newNotary(t), (*notary)(nil)
	keyB = &notary{Key: keyA.Key}
	a, b := fleet(t, quiet, func(c *Config) {
		c.Metering.Key = keyA
		if keyA.before != nil { // the second
			c.Metering.Key = keyB
		}
		keyA.before = func(common.Hash) error { return nil }
	})
	lease := a.open(1, 500_000, "")
	lease.record()
	id := lease.lease.LeaseID
	held, let := make(chan common.Hash, 1), make(chan struct{})
	keyA.set(func(d common.Hash) error {
		select {
		case held <- d:
			<-let // stopped in the moment before it signs
		default:
		}
		return nil
	})
	about := <-held
	for b.provider.leases.Running(lease.terms.ID()) == nil {
		cut(t, a)
		if err := b.provider.gateway.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for sequence := b.row(id).Sequence; b.row(id).Sequence < sequence+3; {
		time.Sleep(5 * time.Millisecond)
	}
	old := a.provider.leases.Running(lease.terms.ID())
	close(let)
	select {
	case <-old.Done:
	case <-time.After(time.Minute):
		t.Fatal("the gateway that was cut off goes on")
	}
	before := keyA.distinct()
	old.Fence.Lost.Store(false)                                                                                                   // it does not know
	old.Records.Unstored = nil                                                                                                    // nor what became of its last record
	if err := old.Records.Make(t.Context(), true); !errors.Is(err, leasestore.ErrNotOwner) && !errors.Is(err, context.Canceled) { // as it was let go
		t.Errorf("a record of the old owner: %v", err)
	}
	if n := keyA.distinct(); n != before {
		t.Errorf("it signed %d records more", n-before)
	}
	var next leasestore.Pending
	next.Record.LeaseID, next.Record.Sequence = id, uint64(b.row(id).Sequence)+1
	if err := old.Deps.Store.Records.Reserve(t.Context(), old.Term, next); !errors.Is(err, leasestore.ErrNotOwner) {
		t.Errorf("the number after the newest is reserved by the old owner: %v", err)
	}
	final := lease.at(b).release()
	keyB.mu.Lock()
	same := false
	for _, d := range keyB.signed {
		same = same || d == about
	}
	all := append([]common.Hash(nil), keyB.signed...)
	keyB.mu.Unlock()
	if !same {
		t.Error("the new owner signed another record of the number that the old one was about to sign")
	}
	keyA.mu.Lock()
	keyA.signed = append(keyA.signed, all...)
	keyA.mu.Unlock()
	if n := keyA.distinct(); n != int(final.Sequence) {
		t.Errorf("%d records were signed of %d numbers: a fork", n, final.Sequence)
	}
}

// TestRestoredProviderSignsNoFork: with a copy of the database from before, a provider ends the leases that ran on or
// ended since, signs nothing of them, and their channels are paid and closed.
func TestRestoredProviderSignsNoFork(t *testing.T) {
	key := newNotary(t)
	r := newRig(t, quiet, generousCredit, func(c *Config) { c.Metering.Key = key })
	runs, ended := r.open(1, 200_000, ""), r.open(2, 200_000, "")
	runs.record()
	ended.record()
	restore := r.backup()
	runs.again()
	last := runs.record()
	for last.Sequence < uint64(r.row(runs.lease.LeaseID).Sequence) || last.Sequence < 8 {
		last = runs.record()
	}
	final := ended.release()
	restore()
	signed := key.distinct()
	for _, id := range []common.Hash{runs.lease.LeaseID, ended.lease.LeaseID} {
		if row := r.row(id); row.State != wire.StateEnded || row.Reason != leasestore.ErrRolledBack.Error() {
			t.Errorf("the lease is %s (%s)", row.State, row.Reason)
		}
	}
	runs.again("Last-Event-ID", "8")
	if s := runs.status(leasestore.Ended); !strings.Contains(s.Reason, "backup") {
		t.Errorf("the renter is told %q", s.Reason)
	}
	for tab, owed := range map[*tab]uint64{runs: owedIn(last), ended: owedIn(final)} {
		if receipt := tab.close(owed); receipt.TxHash == nil || receipt.AcceptedCumulative.Uint64() != owed {
			t.Errorf("closed: %+v, owed is %d", receipt, owed)
		}
	}
	if n := key.distinct(); n != signed {
		t.Errorf("%d records were signed after the restore", n-signed)
	}
	io.Copy(io.Discard, runs.body)
}
