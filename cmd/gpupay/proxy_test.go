package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/internal/proxying"
)

// TestProxyKeys: a key is made with its budget and models, whatever stands first on the command line, and is taken away.
func TestProxyKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "proxy")
	for _, args := range []string{"add ci --budget 5/day --models a,b --dir " + dir, "add --dir " + dir + " night"} {
		if err := run(t.Context(), strings.Fields("proxy key "+args)); err != nil {
			t.Fatal(err)
		}
	}
	keys, err := proxying.Keys(dir)
	if err != nil {
		t.Fatal(err)
	}
	all, err := keys.List()
	if err != nil || len(all) != 2 || all[0].Name != "ci" || all[0].Budget != "5" || strings.Join(all[0].Models, " ") != "a b" || all[1].Name != "night" || all[1].Budget != "" {
		t.Errorf("%+v, %v", all, err)
	}
	for _, args := range []string{"list --dir " + dir, "remove ci --dir " + dir} {
		if err := run(t.Context(), strings.Fields("proxy key "+args)); err != nil {
			t.Error(err)
		}
	}
	if all, err := keys.List(); err != nil || len(all) != 1 {
		t.Errorf("%+v, %v", all, err)
	}
	for args, says := range map[string]string{"proxy key add": "name", "proxy key add ci --budget much": "--budget", "proxy key": "add, remove or list", "proxy": "--providers",
		"proxy --providers " + filepath.Join(dir, "none") + " --listen 127.0.0.1:0 --admin=": "--providers", "budget --admin 127.0.0.1:1": "no proxy answers"} {
		if strings.HasPrefix(args, "proxy key add") || strings.Contains(args, "--listen") {
			args += " --dir " + dir
		}
		if err := run(t.Context(), strings.Fields(args)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", args, err)
		}
	}
}

// TestProxyKeysOfTheFile: the proxy's table of the configuration file says where its keys are to those who make them, too.
func TestProxyKeysOfTheFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "proxy")
	file := filepath.Join(t.TempDir(), "gpupay.toml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "[proxy]\ndir = %q\nproviders = %q\n", dir, filepath.Join(dir, "none")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), strings.Fields("--config "+file+" proxy key add ci --models a")); err != nil {
		t.Fatal(err)
	}
	keys, err := proxying.Keys(dir)
	if err != nil || !keys.Needed() {
		t.Errorf("the key is not in %s: %v", dir, err)
	}
}
