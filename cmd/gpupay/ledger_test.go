package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/sdk/ledger"
)

func exports(t *testing.T, args ...string) (out, totals string, err error) {
	t.Helper()
	var to, sums bytes.Buffer
	app := new(cli.App)
	a := newAccounts(app)
	a.out, a.totals = &to, &sums
	err = app.Run(t.Context(), append([]string{"gpupay", "export"}, args...), "gpupay", "", "", a.command())
	return to.String(), sums.String(), err
}

// TestExport: the books of both sides come out as CSV and as JSON, of the days that are asked for, and never in units of a token whose
// decimals nobody said.
func TestExport(t *testing.T) {
	c := chaintest.Anvil(t)
	books, client, channelID, lease := rented(t, c)
	t.Setenv("GPUPAY_RPC", "")
	if out, _, err := exports(t, "--db", books); err == nil || out != "" || !strings.Contains(err.Error(), "--decimals") || !strings.Contains(err.Error(), c.Token.Hex()) {
		t.Errorf("without decimals: %q, %v", out, err)
	}
	day := func(d time.Duration) string { return time.Now().UTC().Add(d).Format(time.DateOnly) }
	for _, args := range [][]string{{"--db", books, "--decimals", "6"}, {"--db", books, "--rpc", c.URL}, {"--db", client}, {"--db", client, "--from", day(-24 * time.Hour), "--to", day(24 * time.Hour)}} {
		out, totals, err := exports(t, args...)
		if err != nil || !strings.HasPrefix(out, strings.Join(ledger.Columns, ",")+"\n") || !strings.Contains(out, "\nsettlement,") || !strings.Contains(out, "\nlease,") ||
			!strings.Contains(out, channelID) || !strings.Contains(out, lease) || !strings.HasPrefix(totals, "1 settlements of ") || !strings.Contains(totals, ", 1 leases of ") {
			t.Errorf("%v: %v\n%s%s", args, err, out, totals)
		}
	}
	if out, totals, err := exports(t, "--db", client, "--to", day(-48*time.Hour)); err != nil || strings.Count(out, "\n") != 1 || !strings.HasPrefix(totals, "0 settlements of 0 ") {
		t.Errorf("before: %v\n%s%s", err, out, totals)
	}
	path := filepath.Join(t.TempDir(), "books.jsonl")
	if _, _, err := exports(t, "--db", client, "--json", "--out", path); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		var object map[string]string
		if err := json.Unmarshal([]byte(line), &object); err != nil || object["kind"] == "" {
			t.Errorf("%q: %v", line, err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}
