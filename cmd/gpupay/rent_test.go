package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestRentMistakesNameFlags: what is wrong is called what the user typed, or can type.
func TestRentMistakesNameFlags(t *testing.T) {
	t.Setenv("GPUPAY_KEY", strings.Repeat("1", 64))
	t.Setenv("GPUPAY_TOKEN", "")
	t.Setenv("GPUPAY_DB", filepath.Join(t.TempDir(), "renter.db"))
	for _, row := range []struct{ args, says string }{
		{"--gpus 0", "--gpus 0"}, {"--gpus -1", "--gpus -1"}, {"--minutes -1", "--minutes"}, {"--pay-every 60", "60s"},
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
