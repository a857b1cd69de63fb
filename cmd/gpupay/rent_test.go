package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/internal/chaintest"
)

// TestRentMistakesNameFlags: what is wrong is called what the user typed, or can type.
func TestRentMistakesNameFlags(t *testing.T) {
	t.Setenv("GPUPAY_KEY", strings.Repeat("1", 64))
	t.Setenv("GPUPAY_TOKEN", "")
	t.Setenv("GPUPAY_DB", filepath.Join(t.TempDir(), "renter.db"))
	for _, row := range []struct{ args, says string }{
		{"--gpus 0", "--gpus 0"}, {"--gpus -1", "--gpus -1"}, {"--minutes -1", "--minutes"}, {"--channel 0x12 --resume", "64 hex digits"}, {"--channel 0x" + strings.Repeat("1", 64), "--resume"}, {"--pay-every 60", "60s"},
		{"--share --x402", "--x402"},
		{"", "--token ($GPUPAY_TOKEN) is empty"}, {"", "devchain.env"}, {"--db=", "--token"},
		{"--db= --token 0x" + strings.Repeat("1", 40), "--db ($GPUPAY_DB) is empty"},
		{"--rpc= --token 0x" + strings.Repeat("1", 40), "--rpc ($GPUPAY_RPC) is empty"},
	} {
		o, err := parseRent(t, strings.Fields(row.args))
		if err == nil {
			err = o.flags.Named(o.Run(t.Context()), rentFields)
		}
		if err == nil || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%q: %v", row.args, err)
		}
	}
	o, err := parseRent(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	for field, name := range rentFields {
		if !o.flags.Has(name) {
			t.Errorf("%s: no flag is --%s", field, name)
		}
	}
}

// printed is what a command line prints to stdout.
func printed(t *testing.T, args string) (string, error) {
	t.Helper()
	stdout := os.Stdout
	defer func() { os.Stdout = stdout }()
	file, err := os.Create(filepath.Join(t.TempDir(), "stdout"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	os.Stdout = file
	failed := run(t.Context(), strings.Fields(args))
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	said, err := io.ReadAll(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(said), failed
}

// TestFinishedIsNotListed: what is over is neither listed as unfinished, nor resumed, nor left.
func TestFinishedIsNotListed(t *testing.T) {
	c := chaintest.Anvil(t)
	_, renter, _, _ := rented(t, c)
	t.Setenv("GPUPAY_KEY", hexutil.Encode(crypto.FromECDSA(c.Keys[1])))
	common := " --rpc " + c.URL + " --token " + c.Token.Hex() + " --db " + renter
	for _, action := range []string{"--list", "--leave", "--resume"} {
		said, err := printed(t, "rent "+action+common)
		if err != nil {
			said += err.Error()
		}
		if (err != nil) != (action == "--resume") || !strings.HasPrefix(said, "no unfinished rental") {
			t.Errorf("%s: %v\n%s", action, err, said)
		}
	}
}
