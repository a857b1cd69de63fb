package cli

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
)

// config writes a configuration file for its owner alone.
func config(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "gpupay.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// settings are one flag of each kind.
type settings struct {
	price, db string
	credit    time.Duration
	gpus      int
	free      bool
	leave     bool
	proxies   []string
	token     common.Address
}

func (s *settings) register(f *Flags) {
	f.Text(&s.price, "price", "1.00", "")
	f.Path(&s.db, "db", "default.db", "")
	f.Duration(&s.credit, "credit", time.Minute, "")
	f.Int(&s.gpus, "gpus", 1, "")
	f.Bool(&s.free, "free", "")
	f.List(&s.proxies, "trusted-proxies", "")
	f.Address(&s.token, "token", "")
	f.Actions("Once")
	f.Bool(&s.leave, "leave", "")
}

// TestPrecedence: a flag stands over the environment, that over a command's table, that over the top of the file, and that
// over the default.
func TestPrecedence(t *testing.T) {
	path := config(t, "price = \"2.00\"\n[test]\nprice = \"3.00\"\n")
	top := config(t, "price = \"2.00\"\n")
	for _, row := range []struct{ file, env, flag, want string }{
		{"", "", "", "1.00"}, {top, "", "", "2.00"}, {path, "", "", "3.00"}, {path, "4.00", "", "4.00"}, {path, "4.00", "5.00", "5.00"},
		{"", "4.00", "5.00", "5.00"}, {"", "", "5.00", "5.00"}, {path, "", "5.00", "5.00"},
	} {
		t.Run(row.want, func(t *testing.T) {
			var s settings
			var args []string
			if row.env != "" {
				t.Setenv("GPUPAY_PRICE", row.env)
			}
			if row.file != "" {
				args = append(args, "--config", row.file)
			}
			if row.flag != "" {
				args = append(args, "--price", row.flag)
			}
			if err := try(t, s.register, args...); err != nil || s.price != row.want {
				t.Errorf("%+v: %q, %v", row, s.price, err)
			}
		})
	}
}

// TestConfigurationFile: each kind of flag is read as a command line would have it, and paths are relative to the file.
func TestConfigurationFile(t *testing.T) {
	token := "0x" + strings.Repeat("1", 40)
	path := config(t, `
credit = "90s"
gpus = 2
free = true
trusted-proxies = ["127.0.0.1", "10.0.0.0/8"]
token = "`+token+`"
db = "data/provider.db"
`)
	var s settings
	t.Setenv("GPUPAY_CONFIG", path)
	if err := try(t, s.register); err != nil {
		t.Fatal(err)
	}
	if s.credit != 90*time.Second || s.gpus != 2 || !s.free || !slices.Equal(s.proxies, []string{"127.0.0.1", "10.0.0.0/8"}) ||
		s.token != common.HexToAddress(token) || s.db != filepath.Join(filepath.Dir(path), "data/provider.db") {
		t.Errorf("%+v", s)
	}
	for _, address := range []string{"/var/lib/gpupay.db", "postgres://host/gpupay"} {
		t.Setenv("GPUPAY_CONFIG", config(t, "db = \""+address+"\"\n"))
		if err := try(t, s.register); err != nil || s.db != address {
			t.Errorf("%s is %s, %v", address, s.db, err)
		}
	}
}

// TestMistakenConfiguration: what the file has that no flag is called, what is of another shape, and secrets, are errors that
// name the file and the key, and show no value.
func TestMistakenConfiguration(t *testing.T) {
	secret := strings.Repeat("4", 64)
	for text, says := range map[string]string{
		"prize = \"2\"":              "prize: no flag has this name",
		"[test]\nprize = \"2\"":      "test.prize: no flag has this name",
		"[tost]\nprice = \"2\"":      "[tost]: there is no such command",
		"leave = true":               "leave: no flag has this name", // a file does nothing once and again
		"key = \"" + secret + "\"":   "a key or a passphrase does not stand in a configuration file",
		"[test]\nGPUPAY_KEY = \"1\"": "a key or a passphrase does not stand in a configuration file",
		"price = 2.50":               "price: write it in quotes, as in price = \"2.5\"",
		"credit = 60":                "credit: write it in quotes",
		"credit = \"60\"":            "a time with its unit",
		"gpus = \"two\"":             "a whole number",
		"token = \"0x12\"":           "40 hex digits",
		"gpus = [1]":                 "it takes no such list",
		"price =":                    "gpupay.toml",
	} {
		var s settings
		err := try(t, s.register, "--config", config(t, text))
		if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "gpupay.toml") || Status(err) != StatusUsage {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("the secret is shown: %v", err)
		}
	}
	if err := try(t, new(settings).register, "--config", "none.toml"); err == nil || !strings.Contains(err.Error(), "none.toml") {
		t.Errorf("a file that is not there: %v", err)
	}
}

// TestActionsAreTyped: what is done once is said on the command line alone; a variable that was left from before does nothing.
func TestActionsAreTyped(t *testing.T) {
	t.Setenv("GPUPAY_LEAVE", "true")
	var s settings
	if err := try(t, s.register); err != nil || s.leave {
		t.Errorf("leave is %t, %v", s.leave, err)
	}
	if err := try(t, s.register, "--leave"); err != nil || !s.leave {
		t.Errorf("leave is %t, %v", s.leave, err)
	}
}

// TestExposedPassword: a password that others can read is found, wherever in the file it stands.
func TestExposedPassword(t *testing.T) {
	for _, row := range []struct {
		mode os.FileMode
		db   string
		want bool
	}{
		{0o600, "postgres://u:secret@host/db", false}, {0o644, "postgres://u:secret@host/db", true}, {0o640, "postgres://u:secret@host/db", true},
		{0o644, "postgres://host/db", false}, {0o644, "provider.db", false},
	} {
		path := config(t, "")
		if err := os.Chmod(path, row.mode); err != nil {
			t.Fatal(err)
		}
		if got := exposed(path, map[string]any{"serve": map[string]any{"db": row.db}}); got != row.want {
			t.Errorf("%+v: %t", row, got)
		}
	}
}
