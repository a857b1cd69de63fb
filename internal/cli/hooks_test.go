package cli

import (
	"path/filepath"
	"testing"

	"github.com/gpupay/gpupay/sdk"
)

// TestLinks: what is no list of nodes, is refused.
func TestLinks(t *testing.T) {
	dir := t.TempDir()
	ca, err := sdk.OpenNodeCA(dir)
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
