package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/internal/cli"
)

func keyed(t *testing.T, in string, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	app := new(cli.App)
	k := newKeys(app)
	k.in, k.out = strings.NewReader(in), &out
	err := app.Run(t.Context(), append([]string{"gpupay", "key"}, args...), "gpupay", "", "", k.command())
	return strings.TrimSpace(out.String()), err
}

// TestKeyNewImportAddress: a key that was made or imported is the one that a provider and a renter open, with the passphrase of a file or
// of systemd's credential; a wrong passphrase is said in a line, and no error has a passphrase or a key.
func TestKeyNewImportAddress(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(cli.KeyVariable, "")
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pass, wrong := write("passphrase", "canary phrase\n"), write("wrong", "canary wrong\n")
	const hex, address = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80", "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
	store, other := filepath.Join(dir, "key.json"), filepath.Join(dir, "imported.json")
	made, err := keyed(t, "", "new", "--keystore", store, "--passphrase-file", pass)
	if err != nil || len(made) != 42 {
		t.Fatalf("%q, %v", made, err)
	}
	if got, err := keyed(t, hex+"\n", "import", "--from", "-", "--keystore", other, "--passphrase-file", pass); err != nil || got != address {
		t.Errorf("imported: %q, %v", got, err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	for path, want := range map[string]string{store: made, other: address} {
		if got, err := keyed(t, "", "address", "--keystore", path); err != nil || got != want {
			t.Errorf("by the credential: %q, %v", got, err)
		}
		s, err := parseServe(t, []string{"--keystore", path, "--gpu", "sim"})
		if err != nil || s.config.Key.Address().Hex() != want {
			t.Errorf("serve: %v", err)
		}
		r, err := parseRent(t, []string{"--keystore", path, "--passphrase-file", pass})
		if err != nil || r.Config.Key.Address().Hex() != want {
			t.Errorf("rent: %v", err)
		}
	}
	hexFile := write("hex", hex)
	for _, row := range []struct {
		says string
		args []string
	}{
		{"already exists", []string{"new", "--keystore", store, "--passphrase-file", pass}},
		{"already exists", []string{"import", "--from", hexFile, "--keystore", store, "--passphrase-file", pass}},
		{"wrong passphrase", []string{"address", "--keystore", store, "--passphrase-file", wrong}},
		{"--from", []string{"import", "--keystore", filepath.Join(dir, "x"), "--passphrase-file", pass}},
		{"64 hex digits", []string{"import", "--from", wrong, "--keystore", filepath.Join(dir, "x"), "--passphrase-file", pass}},
		{"--keystore", []string{"new", "--passphrase-file", pass}},
		{"no such file", []string{"new", "--keystore", filepath.Join(dir, "x"), "--passphrase-file", filepath.Join(dir, "none")}},
		{"say new", nil},
	} {
		out, err := keyed(t, "", row.args...)
		if err == nil || out != "" || !strings.Contains(err.Error(), row.says) || strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), hex[2:]) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %q, %v", row.args, out, err)
		}
	}
	t.Setenv("CREDENTIALS_DIRECTORY", t.TempDir())
	if _, err := keyed(t, "", "address", "--keystore", store); err == nil || !strings.Contains(err.Error(), "--passphrase-file") {
		t.Errorf("no passphrase: %v", err)
	}
}
