package provider

import (
	"log/slog"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/internal/testclock"
)

// TestSchemasOfOneDatabaseKeepTheirGPUs: two providers have a schema each in one database, by the server's options, and one key and file. The
// second one's start takes no GPU of the first one's leases, and the first one, whose file is from a program that knew the database alone,
// still has them after a restart.
func TestSchemasOfOneDatabaseKeepTheirGPUs(t *testing.T) {
	base := pgtest.Database(t)
	schema := func(name string) string {
		c, err := pgx.Connect(t.Context(), base)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close(t.Context())
		if _, err := c.Exec(t.Context(), `CREATE SCHEMA `+name); err != nil {
			t.Fatal(err)
		}
		return base + "&options=" + url.QueryEscape("-csearch_path="+name)
	}
	one, two := schema("one"), schema("two")
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
