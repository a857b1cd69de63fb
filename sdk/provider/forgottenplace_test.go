package provider

import (
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/internal/testclock"
)

// schemas are the addresses of two schemas of one database.
func schemas(t *testing.T) (one, two string) {
	t.Helper()
	base := pgtest.Database(t)
	c, err := pgx.Connect(t.Context(), base)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(t.Context())
	if _, err := c.Exec(t.Context(), `CREATE SCHEMA one; CREATE SCHEMA two`); err != nil {
		t.Fatal(err)
	}
	schema := func(name string) string { return base + "&options=" + url.QueryEscape("-csearch_path="+name) }
	return schema("one"), schema("two")
}

// TestSchemasOfOneDatabaseKeepTheirGPUs: two providers have a schema each in one database, by the server's options, and one key and file. The
// second one's start takes no GPU of the first one's leases, and the first one, whose file is from a program that knew the database alone,
// still has them after a restart.
func TestSchemasOfOneDatabaseKeepTheirGPUs(t *testing.T) {
	one, two := schemas(t)
	fresh, calls, _ := handing(t)
	signed := filepath.Join(t.TempDir(), "signed")
	change := func(c *Config) {
		generousCredit(c)
		c.Database, c.Allocator, c.Log, c.Records.HighWater, c.Source = one, fresh(), slog.New(slog.DiscardHandler), signed, testclock.GPUs(1)
	}
	r := newRig(t, change)
	first := r.open(1, 300_000, "")
	first.record()
	rigOn(t, r.chain, func(*rig) *channel.Key { return r.payer }, change, func(c *Config) { c.Database = two })
	if got := calls(); strings.Contains(got, "release") {
		t.Errorf("the start of a provider in another schema takes the GPU of a lease that runs:\n%s", got)
	}
	r.shut()
	older(t, signed, r.provider.db.Path())
	change(&r.config)
	r.start()
	eventually(t, "the lease to go on", func() bool { return r.provider.leases.Running(first.terms.ID()) != nil })
	if got := calls(); strings.Contains(got, "release") {
		t.Errorf("with a file from before it named the schema a lease that runs loses its GPU:\n%s", got)
	}
}

// older has the file beside a key name a server's database as a program did that did not know the schema.
func older(t *testing.T, signed, path string) {
	t.Helper()
	db, err := sqlx.Open("sqlite3", signed)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	short, _, _ := strings.Cut(path, "?")
	done, err := db.Exec(`UPDATE databases SET address = ? WHERE address = ?`, short, path)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := done.RowsAffected(); err != nil || n != 1 {
		t.Fatalf("%d databases are at %s, %v", n, path, err)
	}
}

// TestSchemasLetAGPUOnce: two providers of one host, key and file, with a schema each. The file says that a renter of one has the GPU: the
// other one lets it to nobody.
func TestSchemasLetAGPUOnce(t *testing.T) {
	one, two := schemas(t)
	fresh, calls, _ := handing(t)
	signed := filepath.Join(t.TempDir(), "signed")
	change := func(c *Config) {
		quiet(c)
		generousCredit(c)
		c.Database, c.Allocator, c.Records.HighWater, c.Source = one, fresh(), signed, testclock.GPUs(1)
	}
	r := newRig(t, change)
	first := r.open(1, 300_000, "")
	first.record()
	other := rigOn(t, r.chain, func(*rig) *channel.Key { return r.payer }, change, func(c *Config) { c.Database = two })
	other.payer = other.fund(t, 1_000_000)
	resp := other.do("GET", "", other.openCredential(other.payer, other.terms(other.payer.Address(), 2), 300_000, 0))
	if resp.StatusCode == http.StatusOK {
		t.Errorf("the GPU is let twice:\n%s", calls())
	}
	if has := r.balance(other.payer.Address()); has != 1_000_000 {
		t.Errorf("who was refused a GPU has %d left of what it had", has)
	}
	first.release()
	other.nextRenter(3).record()
}

// TestDatabaseThatWasGivenUp: a database is lost, and begun anew at another address. The GPU of its leases is let to nobody until a provider
// was started once at the address of the lost one, which takes it back.
func TestDatabaseThatWasGivenUp(t *testing.T) {
	fresh, calls, _ := handing(t)
	dir := t.TempDir()
	lost, anew := filepath.Join(dir, "lost.db"), filepath.Join(dir, "anew.db")
	r := newRig(t, quiet, generousCredit, func(c *Config) {
		c.Allocator, c.Database, c.Records.HighWater = fresh(), lost, filepath.Join(dir, "signed")
	})
	first := r.open(1, 300_000, "")
	first.record()
	startAt := func(path string) {
		r.config.Database, r.config.Allocator = path, fresh()
		r.start()
	}
	r.shut()
	lose(t, lost)
	startAt(anew)
	r.refusesLease(2)
	r.shut()
	startAt(lost)
	r.shut()
	startAt(anew)
	first.takenBackBefore(r.nextRenter(3), calls())
}

// TestAddressThatComesBack: a provider's database is moved to another address, another one is begun at the first, and is lost as the first
// one is put back there. The renter of a lease of the other one still has its GPU.
func TestAddressThatComesBack(t *testing.T) {
	t.Parallel()
	for _, looked := range []bool{false, true} {
		t.Run(map[bool]string{false: "it was moved", true: "it was looked at elsewhere"}[looked], func(t *testing.T) {
			fresh, calls, _ := handing(t)
			dir := t.TempDir()
			here, there := filepath.Join(dir, "provider.db"), filepath.Join(dir, "copy.db")
			r := newRig(t, quiet, generousCredit, func(c *Config) {
				c.Allocator, c.Database, c.Records.HighWater = fresh(), here, filepath.Join(dir, "signed")
			})
			r.shut()
			data, err := os.ReadFile(here)
			if err != nil {
				t.Fatal(err)
			}
			startAt := func(path string, content []byte) {
				t.Helper()
				if content != nil {
					lose(t, path)
					if err := os.WriteFile(path, content, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				r.config.Database, r.config.Allocator = path, fresh()
				r.start()
			}
			var first *tab
			begin := func() {
				lose(t, here)
				startAt(here, nil)
				first = r.nextRenter(1)
				first.record()
				r.shut()
			}
			look := func() {
				startAt(there, data)
				r.shut()
			}
			if looked { // the disk is lost; a new database is begun; the backup is tried elsewhere, and put back
				begin()
				look()
			} else { // the backup is used elsewhere; by mistake an empty database is begun at the first address
				look()
				begin()
			}
			startAt(here, data)
			first.takenBackBefore(r.nextRenter(2), calls())
		})
	}
}

// TestAddressSpelledOtherwise: a lost database is begun anew in the same folder, which is named by another path.
func TestAddressSpelledOtherwise(t *testing.T) {
	fresh, calls, _ := handing(t)
	dir := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, quiet, generousCredit, func(c *Config) { c.Allocator, c.Database = fresh(), filepath.Join(dir, "provider.db") })
	first := r.open(1, 300_000, "")
	first.record()
	r.shut()
	lose(t, r.config.Database)
	r.config.Database, r.config.Allocator = filepath.Join(link, "provider.db"), fresh()
	r.start()
	first.takenBackBefore(r.nextRenter(2), calls())
}
