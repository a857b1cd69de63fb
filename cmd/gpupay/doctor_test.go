package main

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/crypto"
	urfave "github.com/urfave/cli/v3"

	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/cli"
)

func checks(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	app := new(cli.App)
	c := newCheckup(app)
	c.out = &out
	err := app.Run(t.Context(), append([]string{"gpupay"}, args...), "gpupay", "", "", c.command(), newServe(app).command())
	return out.String(), err
}

// TestDoctorTakesWhatServeTakes: who puts the word doctor for serve is told of each part, and what of it is not looked at; a domain is looked
// at as the provider's address.
func TestDoctorTakesWhatServeTakes(t *testing.T) {
	app := new(cli.App)
	for _, flag := range newServe(app).command().Flags {
		if !slices.ContainsFunc(newCheckup(app).command().Flags, func(f urfave.Flag) bool { return f.Names()[0] == flag.Names()[0] }) {
			t.Errorf("doctor does not take --%s", flag.Names()[0])
		}
	}
	t.Chdir(t.TempDir())
	t.Setenv("GPUPAY_SETTLE_EVERY", "5m")
	out, err := checks(t, strings.Fields("doctor --rpc http://127.0.0.1:1 --gpu sim --upstream http://127.0.0.1:1 --slots 32 --drain --domain gpu.invalid")...)
	if cli.Status(err) != cli.StatusFailed || !strings.HasPrefix(out, "not looked at: ") || !strings.Contains(out, "https://gpu.invalid") {
		t.Errorf("%v\n%s", err, out)
	}
	if first, _, _ := strings.Cut(out, "\n"); first != "not looked at: --slots, --settle-every, --drain" {
		t.Error(first)
	}
}

// TestDoctor: it takes the provider's configuration, also from the [serve] table of the file, and its status says whether something is to
// be mended.
func TestDoctor(t *testing.T) {
	c := chaintest.Anvil(t)
	dir := t.TempDir()
	t.Setenv(cli.KeyVariable, hex.EncodeToString(crypto.FromECDSA(c.Keys[0])))
	file := filepath.Join(dir, "gpupay.toml")
	err := os.WriteFile(file, fmt.Appendf(nil, "rpc = %q\nescrow = %q\ntoken = %q\n[serve]\ndb = \"provider.db\"\ngpu = \"sim:2\"\nprice = \"2.50\"\n", c.URL, c.Escrow.Hex(), c.Token.Hex()), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	out, err := checks(t, "--config", file, "doctor")
	if err != nil || strings.Contains(out, "MEND") || strings.Count(out, "ok ") != 7 || !strings.Contains(out, filepath.Join(dir, "provider.db")) || !strings.Contains(out, "2 Simulated GPU") {
		t.Errorf("%v\n%s", err, out)
	}
	out, err = checks(t, "--config", file, "doctor", "--upstream", "http://127.0.0.1:1")
	if cli.Status(err) != cli.StatusFailed || !strings.Contains(err.Error(), "1 of 8 parts") || strings.Count(out, "MEND") != 1 {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err = checks(t, "doctor", "--price", "h100="); cli.Status(err) != cli.StatusUsage {
		t.Errorf("%v", err)
	}
}
