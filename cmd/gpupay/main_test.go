package main

import (
	"bytes"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	urfave "github.com/urfave/cli/v3"

	"github.com/gpupay/gpupay/internal/cli"
)

// help is what the program prints for a command line.
func help(t *testing.T, args ...string) string {
	t.Helper()
	out := new(bytes.Buffer)
	app := &cli.App{Out: out}
	if err := app.Run(t.Context(), append([]string{"gpupay"}, args...), "gpupay", "", "", commands(app)...); err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return out.String()
}

// TestHelp: each subcommand says what it is for, each flag where else its value may stand, and nothing of the environment is shown.
func TestHelp(t *testing.T) {
	secret := hex.EncodeToString(bytes.Repeat([]byte{0x42}, 32))
	for _, variable := range []string{"KEY", "RPC", "DB", "NODES", "WATCHTOWERS", "TOKENS", "PAST_KEY"} {
		t.Setenv("GPUPAY_"+variable, "https://u:"+secret+"@host")
	}
	for _, c := range commands(new(cli.App)) {
		said := help(t, c.Name, "--help")
		if !strings.Contains(said, "gpupay "+c.Name+" - "+c.Usage) || strings.Contains(said, secret) {
			t.Errorf("%s --help:\n%s", c.Name, said)
		}
		for _, flag := range c.Flags {
			if shown, ok := flag.(urfave.DocGenerationFlag); ok && shown.GetUsage() == "" {
				t.Errorf("%s --%s: no usage", c.Name, flag.Names()[0])
			}
		}
	}
	for want, args := range map[string][]string{"verify export --db": {"verify", "--help"}, "from the database": {"verify", "export", "--help"}, "GPUPAY_PRICE": {"serve", "--help"}} {
		if said := help(t, args...); !strings.Contains(said, want) {
			t.Errorf("%v does not say %q:\n%s", args, want, said)
		}
	}
}

// TestStatus: wrong usage has a status of its own, and verify one for what has no verdict.
func TestStatus(t *testing.T) {
	garbage := t.TempDir() + "/garbage.json"
	if err := os.WriteFile(garbage, []byte(`{"kind":"gpupay sonnet"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GPUPAY_KEY", "")
	for _, row := range []struct {
		args   string
		status int
	}{
		{"version", 0}, {"--version", 0}, {"help", 0}, {"", 0}, {"gold", 64}, {"--gold", 64}, {"serve --gold", 64}, {"serve gold", 64}, {"serve --credit 60", 64}, {"rent --minutes -1", 64},
		{"serve --log-level loud", 64}, {"--config none.toml version", 64}, {"serve", 1}, {"deploy --mint 0x12", 64}, {"trace", 64}, {"trace --out x --note y --gpu cuda", 1},
		{"verify", 64}, {"verify none.json", 2}, {"verify " + garbage, 2}, {"verify --rpc http://127.0.0.1:1 " + garbage, 2}, {"verify export", 64},
		{"export", 64}, {"export --db none.db --from yesterday", 64}, {"export --db none.db --decimals 78", 64}, {"export --db none.db", 1},
	} {
		stdout := os.Stdout
		os.Stdout, _ = os.Open(os.DevNull)
		err := run(t.Context(), strings.Fields(row.args))
		os.Stdout = stdout
		if got := cli.Status(err); got != row.status {
			t.Errorf("gpupay %s: status %d (%v), want %d", row.args, got, err, row.status)
		}
	}
}
