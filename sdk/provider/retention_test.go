package provider

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"
	"weak"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestEndedLeasesAreCollected: nothing of a lease that has ended stays in memory, also before it is settled.
func TestEndedLeasesAreCollected(t *testing.T) {
	r := newRig(t, quiet, func(c *Config) { c.Commands.AliveEvery = time.Hour })
	var ended []weak.Pointer[lease.Lease]
	for salt := range byte(5) {
		tab := r.open(salt+1, 50_000, "")
		tab.record()
		ended = append(ended, weak.Make(r.provider.leases.Running(tab.terms.ID())))
		final := tab.release()
		tab.pay(final.Owed.Uint64())
		tab.body.Close()
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		runtime.GC()
		left := 0
		for _, l := range ended {
			if l.Value() != nil {
				left++
			}
		}
		if left <= 2 { // who reads a GPU, of two, may hold on to the last lease that had it until it reads it for another
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d ended leases are in memory", left, len(ended))
		}
	}
}

// TestPrune: what is closed and settled is deleted after it is in the archive; what runs, is unsettled, is young, is
// disputed or could not be archived is not.
func TestPrune(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"file", onPostgres} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, quiet, func(c *Config) {
				c.Records.Archive, c.Source, c.Terms.Credit = t.TempDir(), testclock.GPUs(4), time.Minute
			})
			tabs := make(map[string]*tab)
			for i, name := range []string{"closed", "runs", "unsettled", "disputed"} {
				tabs[name] = r.open(byte(i+1), 100_000, "")
				tabs[name].record()
			}
			for _, name := range []string{"closed", "disputed", "unsettled"} {
				final := tabs[name].release()
				if name == "unsettled" {
					tabs[name].pay(final.Owed.Uint64())
					continue
				}
				tabs[name].close(final.Owed.Uint64())
			}
			gone := tabs["closed"]
			r.sql(`INSERT INTO shown_records (lease, sequence, channel, record, shown_at) VALUES (?, 99, ?, '{}', 1)`,
				common.Hash{1}.Hex(), tabs["disputed"].terms.ID().Hex())
			later := time.Now().Add(time.Hour)
			if n, err := r.provider.Prune(t.Context(), time.Now().Add(-time.Hour), r.provider.retention.archive); n != 0 || err != nil {
				t.Errorf("%d young ones are pruned, %v", n, err)
			}
			full := errors.New("the disk is full")
			if n, err := r.provider.Prune(t.Context(), later, func(*audit.Bundle) error { return full }); n != 0 || !errors.Is(err, full) {
				t.Errorf("%d are pruned without an archive, %v", n, err)
			}
			if n, err := r.provider.Prune(t.Context(), later, r.provider.retention.archive); n != 1 || err != nil {
				t.Errorf("%d are pruned, want 1, %v", n, err)
			}
			if kept := archived(t, r.config.Records.Archive, gone.terms.ID()); len(kept) != 1 || len(kept[0].Leases) != 1 || len(kept[0].Leases[0].Records) == 0 {
				t.Errorf("the archive has %+v", kept)
			}
			for name, tab := range tabs {
				if kept := archived(t, r.config.Records.Archive, tab.terms.ID()); name != "closed" && len(kept) > 0 {
					t.Errorf("%s: the archive has %+v", name, kept)
				}
				var n int
				if err := r.provider.db.View().Get(&n, r.provider.db.View().Rebind(`SELECT count(*) FROM records JOIN leases ON id = lease WHERE channel = ?`), tab.terms.ID().Hex()); err != nil || (n == 0) != (name == "closed") {
					t.Errorf("%s: %d records are left, %v", name, n, err)
				}
			}
			if n, err := r.provider.Prune(t.Context(), later, r.provider.retention.archive); n != 0 || err != nil {
				t.Errorf("%d are pruned again, %v", n, err)
			}
		})
	}
}

// TestPruneForgetsOffers: an offer that expired long ago goes with the last lease that is under it. One of a lease whose channel is
// unsettled, disputed or runs stays, and so does one that a lease may still begin under at a gateway whose clock is behind.
func TestPruneForgetsOffers(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"file", onPostgres} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, quiet, func(c *Config) {
				c.Records.Archive, c.Source, c.Terms.Credit = t.TempDir(), testclock.GPUs(4), time.Minute
			})
			stays := map[string]bool{"closed": false, "unsettled": true, "disputed": true, "runs": true, "nobody's": false, "shown": true, "of today": true}
			hashes := make(map[string]common.Hash)
			for what := range stays {
				offer := r.provider.Offer().Offer
				offer.Expires = time.Now().Add(-48 * time.Hour).Unix()
				if what == "of today" {
					offer.Expires = time.Now().Add(-time.Hour).Unix()
				}
				offer.Credit += uint64(len(hashes)) // each is another one
				signed, err := wire.SignOffer(t.Context(), r.config.Key, offer)
				if err == nil {
					err = r.provider.store.Offers.Put(t.Context(), signed)
				}
				if err != nil {
					t.Fatal(err)
				}
				hashes[what] = signed.Hash
			}
			for i, what := range []string{"closed", "unsettled", "disputed", "runs"} {
				lease := r.open(byte(i+1), 100_000, "")
				lease.record()
				r.sql(`UPDATE leases SET offer = ? WHERE id = ?`, hashes[what].Hex(), lease.lease.LeaseID.Hex())
				switch what {
				case "closed":
					final := lease.release()
					lease.close(final.Owed.Uint64())
				case "unsettled":
					final := lease.release()
					lease.pay(final.Owed.Uint64())
				case "disputed":
					final := lease.release()
					lease.close(final.Owed.Uint64())
					shown := metering.Record{LeaseID: common.Hash{1}, ChannelID: lease.terms.ID(), Sequence: 99, OfferHash: hashes["shown"]}
					if err := r.provider.store.Shown.Put(t.Context(), wire.ShownRecord{Record: shown}, shown.Owed); err != nil {
						t.Fatal(err)
					}
				}
			}
			if _, err := r.provider.Prune(t.Context(), time.Now().Add(time.Hour), r.provider.retention.archive); err != nil {
				t.Error(err)
			}
			stays["the present one"], hashes["the present one"] = true, r.provider.Offer().Hash
			for what, hash := range hashes {
				var n int
				if err := r.provider.db.View().Get(&n, r.provider.db.View().Rebind(`SELECT count(*) FROM offers WHERE hash = ?`), hash.Hex()); err != nil || (n == 1) != stays[what] {
					t.Errorf("%s: %d offers, %v", what, n, err)
				}
			}
		})
	}
}

// TestPruneSparesALeaseThatBegins: a channel that was quiet is used again while its records are archived.
func TestPruneSparesALeaseThatBegins(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"file", onPostgres} {
		t.Run(name, func(t *testing.T) {
			r := newPayRig(t)
			b := r.buyer("/tick")
			b.open(100_000)
			b.idle()
			if err := r.provider.Settle(t.Context()); err != nil {
				t.Fatal(err)
			}
			n, err := r.provider.Prune(t.Context(), time.Now().Add(time.Hour), func(*audit.Bundle) error {
				b.again()
				return nil
			})
			if n != 0 || err != nil {
				t.Errorf("%d are pruned, %v", n, err)
			}
			if _, ok, err := r.provider.store.Leases.Newest(t.Context(), b.terms.ID()); !ok || err != nil {
				t.Fatalf("the lease's row is gone, %v", err)
			}
			if r.provider.leases.Running(b.terms.ID()) != nil {
				b.idle()
			}
			eventually(t, "its GPU is free again", func() bool { return *r.provider.free("") == 2 })
		})
	}
}

// TestPruneBesideDisputes: two gateways prune one database. What is disputed after its bundle was written, or not at its end
// any more, is kept whole; what is not is deleted once. A database that is restored from before is pruned again into the same
// bundle.
func TestPruneBesideDisputes(t *testing.T) {
	archive := t.TempDir()
	a, b := fleet(t, quiet, func(c *Config) { c.Records.Archive, c.Terms.Credit, c.Chain.Finality = archive, time.Minute, 1 })
	lease := a.open(1, 100_000, "")
	lease.record()
	final := lease.release()
	lease.close(final.Owed.Uint64())
	time.Sleep(time.Second) // the watcher looks at a new end again, and would undo what is written here
	id, later := lease.terms.ID(), time.Now().Add(time.Hour)
	records := func() (n int) {
		if err := a.provider.db.View().Get(&n, `SELECT count(*) FROM records`); err != nil {
			t.Fatal(err)
		}
		return n
	}
	whole := records()
	for what, meanwhile := range map[string][2]string{
		"disputed": {`INSERT INTO shown_records (lease, sequence, channel, record, shown_at) VALUES ('` + final.LeaseID.Hex() + `', 99, '` + id.Hex() + `', '{}', 1)`,
			`DELETE FROM shown_records`},
		"open again": {`UPDATE payee_channels SET status = 2`, `UPDATE payee_channels SET status = 4`},
	} {
		n, err := a.provider.Prune(t.Context(), later, func(*audit.Bundle) error { b.sql(meanwhile[0]); return nil })
		if n != 0 || err != nil || records() != whole {
			t.Errorf("%s: %d are pruned, and %d of %d records are left, %v", what, n, records(), whole, err)
		}
		if n, err := b.provider.Prune(t.Context(), later, b.provider.retention.archive); n != 0 || err != nil {
			t.Errorf("%s: the other gateway prunes %d, %v", what, n, err)
		}
		b.sql(meanwhile[1])
	}
	for _, copied := range []string{"leases", "records"} {
		a.sql(`CREATE TABLE copy_of_` + copied + ` AS SELECT * FROM ` + copied)
	}
	for _, restored := range []bool{false, true} {
		if restored {
			a.sql(`INSERT INTO leases SELECT * FROM copy_of_leases`)
			a.sql(`INSERT INTO records SELECT * FROM copy_of_records`)
		}
		pruned := make(chan int)
		for _, r := range []*rig{a, b} {
			go func() {
				n, err := r.provider.Prune(t.Context(), later, r.provider.retention.archive)
				if err != nil {
					t.Error(err)
				}
				pruned <- n
			}()
		}
		if n := <-pruned + <-pruned; n != 1 || records() != 0 {
			t.Errorf("restored %t: %d are pruned and %d records are left", restored, n, records())
		}
	}
	kept := archived(t, archive, id)
	if len(kept) != 1 || len(kept[0].Leases) != 1 || len(kept[0].Leases[0].Records) != whole {
		t.Errorf("the archive has %+v", kept)
	}
}

// archived reads what an archive has of a channel.
func archived(t *testing.T, dir string, id common.Hash) (all []*audit.Bundle) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, id.Hex()+"*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := audit.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b)
	}
	return all
}

// TestArchiveKeepsWhatWasPrunedBefore: a channel of x402 that is pruned, used again and pruned again has two bundles in the
// archive, and a third that says what the second does, as after a crash, is no other. None of the later ones holds together
// alone; joined, in whatever order, they do, with the chain, unless one is missing or says something else of a lease.
func TestArchiveKeepsWhatWasPrunedBefore(t *testing.T) {
	r := newPayRig(t, func(c *Config) { c.Records.Archive = t.TempDir() })
	b := r.buyer("/tick")
	later := time.Now().Add(time.Hour)
	for round := range 3 {
		if b.charged == 0 {
			b.open(100_000)
		} else {
			b.again()
		}
		b.idle()
		if err := r.provider.Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		if round == 2 { // its archive is written, and the process dies before it prunes
			kept, err := r.provider.Export(t.Context(), b.terms.ID())
			if err == nil {
				err = r.provider.retention.archive(kept)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if n, err := r.provider.Prune(t.Context(), later, r.provider.retention.archive); n != 1 || err != nil {
			t.Fatalf("%d are pruned, want 1, %v", n, err)
		}
		if kept := archived(t, r.config.Records.Archive, b.terms.ID()); len(kept) != round+1 {
			t.Fatalf("%d bundles after %d rounds", len(kept), round+1)
		}
	}
	kept := archived(t, r.config.Records.Archive, b.terms.ID())
	for range kept {
		kept = append(kept[1:], kept[0])
		joined := audit.Join(kept)
		if len(joined) != 1 || len(joined[0].Leases) != 3 {
			t.Fatalf("%d bundles, joined", len(joined))
		}
		if err := audit.Failures(audit.Verify(t.Context(), joined[0], r.chain.Backend)); err != nil {
			t.Errorf("joined: %v", err)
		}
		if joined = audit.Join(kept[1:]); audit.Failures(audit.Verify(t.Context(), joined[0], r.chain.Backend)) == nil {
			t.Error("one that is missing is not missed")
		}
	}
	other := *kept[0]
	other.Leases = []audit.Lease{kept[0].Leases[0]}
	other.Leases[0].Records = slices.Clone(other.Leases[0].Records)
	other.Leases[0].Records[0].To++
	if joined := audit.Join(append(kept, &other)); len(joined) != 2 {
		t.Errorf("%d bundles: one that contradicts the others is joined", len(joined))
	}
}
