package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/node/nodekeys"
)

// TestCommandsAreThere: a command that cannot be run is refused at the start, and not when a renter has made a deposit for it.
func TestCommandsAreThere(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"allocate", "suspend", "resume", "release", "alive"} {
		for command, runs := range map[string]bool{"true": true, "sh -c true": true, filepath.Join(dir, "nosuch"): false, plain + " now": false, "gpupay-no-such-program": false} {
			hooks := new(Hooks)
			if err := try(t, hooks.Register, "--"+name, command); err != nil {
				t.Fatal(err)
			}
			_, err := hooks.Allocator(t.Context(), sim.New(1, sim.Options{}))
			if (err == nil) != runs || err != nil && (!strings.Contains(err.Error(), name+" command") || !strings.Contains(err.Error(), strings.Fields(command)[0])) {
				t.Errorf("--%s %q: %v", name, command, err)
			}
		}
	}
}

// TestLinks: what is no list of nodes, is refused.
func TestLinks(t *testing.T) {
	dir := t.TempDir()
	ca, err := nodekeys.OpenCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	gateway, err := ca.Gateway()
	if err == nil {
		err = gateway.Write(filepath.Join(dir, "gateway"))
	}
	if err != nil {
		t.Fatal(err)
	}
	links, who, err := Links(" north=https://10.0.0.5:8404, south=https://gpu.example/?a=b ,", filepath.Join(dir, "gateway"))
	if err != nil || len(links) != 2 || links[0].Name != "north" || links[0].URL != "https://10.0.0.5:8404" || links[1].URL != "https://gpu.example/?a=b" || who.CA == nil {
		t.Errorf("%+v, %v", links, err)
	}
	if links, _, err := Links("", ""); err != nil || links != nil {
		t.Errorf("none: %+v, %v", links, err)
	}
	for _, list := range []string{"north", "=http://x", "north=", "north=http://x,south"} {
		if links, _, err := Links(list, dir); err == nil {
			t.Errorf("%q: %+v", list, links)
		}
	}
	for _, folder := range []string{"", t.TempDir(), filepath.Join(dir, "nobody")} {
		if _, _, err := Links("north=https://x", folder); err == nil {
			t.Errorf("with the identity in %q", folder)
		}
	}
}
