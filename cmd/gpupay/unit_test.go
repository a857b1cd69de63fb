package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/cli"
)

// TestSystemdUnit: systemd takes the unit, where it is there, and serve its command line, with keystore and passphrase from credentials
// alone.
func TestSystemdUnit(t *testing.T) {
	raw, err := os.ReadFile("../../examples/systemd/gpupay.service")
	if err != nil {
		t.Fatal(err)
	}
	const program = "/usr/local/bin/gpupay"
	unit := filepath.Join(t.TempDir(), "gpupay.service")
	if err := os.WriteFile(unit, []byte(strings.ReplaceAll(string(raw), program, os.Args[0])), 0o600); err != nil {
		t.Fatal(err)
	}
	if analyze, err := exec.LookPath("systemd-analyze"); err == nil {
		if out, err := exec.Command(analyze, "verify", unit).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("systemd-analyze: %v\n%s", err, out)
		}
	} else {
		t.Log("systemd-analyze is not here: the unit is only read")
	}
	credentials := t.TempDir()
	t.Setenv(cli.KeyVariable, "")
	t.Setenv("CREDENTIALS_DIRECTORY", credentials)
	t.Setenv("GPUPAY_CONFIG", "")
	key, err := channel.NewKeystore(filepath.Join(credentials, "keystore"), "of the unit")
	if err == nil {
		err = os.WriteFile(filepath.Join(credentials, "passphrase"), []byte("of the unit\n"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	_, command, found := strings.Cut(string(raw), "\nExecStart="+program+" serve ")
	if command, _, _ = strings.Cut(command, "\n"); !found {
		t.Fatal("it starts something else")
	}
	s, err := parseServe(t, strings.Fields(strings.NewReplacer("%d", credentials, "%S", "/var/lib").Replace(command)))
	if err != nil || s.config.Key.Address() != key.Address() || s.config.Database != "/var/lib/gpupay/provider.db" {
		t.Errorf("%v, %v", s.config.Database, err)
	}
	for line := range strings.Lines(string(raw)) {
		if lower := strings.ToLower(line); strings.HasPrefix(line, "Environment=") && strings.Contains(lower, "key") || strings.HasPrefix(line, "ExecStart=") && strings.Contains(lower, "passphrase") {
			t.Errorf("a secret where others see it: %s", line)
		}
	}
}
