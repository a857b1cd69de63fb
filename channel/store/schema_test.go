package store

import (
	"context"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/gpupay/gpupay/internal/pgtest"
)

// TestPathNamesTheSchema: a server's database has another path for each schema of it, whatever it is that names the schema, and the one that
// it always had where nothing does. It is known by what an older program wrote, unless that wrote several so.
func TestPathNamesTheSchema(t *testing.T) {
	base := pgtest.Database(t)
	run := func(statement string) {
		t.Helper()
		c, err := pgx.Connect(t.Context(), base)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close(context.WithoutCancel(t.Context()))
		if _, err := c.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	with := func(name, value string) string { return base + "&" + name + "=" + url.QueryEscape(value) }
	is := func(address, path, formerly string) {
		t.Helper()
		db, err := OpenBare(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		_, schema, _ := strings.Cut(db.Path(), "?search_path=")
		_, was, _ := strings.Cut(db.Formerly(), "?search_path=")
		if schema != path || was != formerly {
			t.Errorf("%s: %s, formerly %q; want %q and %q", address, db.Path(), db.Formerly(), path, formerly)
		}
	}
	run(`CREATE SCHEMA one; CREATE SCHEMA two`)
	is(base, "", "")
	is(with("search_path", "public"), "", "public")
	is(with("search_path", "one"), "one", "")
	is(with("search_path", "nowhere,two,public"), "two", "nowhere,two,public")
	is(with("options", "-csearch_path=one"), "one", "")
	is(with("options", "-csearch_path=two"), "two", "")
	run(`CREATE SCHEMA gpupay`) // of the user whom the address names
	is(base, "gpupay", "")
	is(with("search_path", `"$user",public`), "gpupay", "")
	is(with("search_path", "public"), "", "public")
}
