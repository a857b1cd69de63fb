package cli

import (
	"strings"
	"testing"
)

// TestLinks: what is no list of nodes, or has no secret, is refused.
func TestLinks(t *testing.T) {
	t.Setenv(NodeSecret, strings.Repeat("s", 40))
	links, err := Links(" north=http://10.0.0.5:8404, south=https://gpu.example/?a=b ,")
	if err != nil || len(links) != 2 || links[0].Name != "north" || links[0].URL != "http://10.0.0.5:8404" || links[1].URL != "https://gpu.example/?a=b" || links[1].Secret == "" {
		t.Errorf("%+v, %v", links, err)
	}
	if links, err := Links(""); err != nil || links != nil {
		t.Errorf("none: %+v, %v", links, err)
	}
	for _, list := range []string{"north", "=http://x", "north=", "north=http://x,south"} {
		if links, err := Links(list); err == nil {
			t.Errorf("%q: %+v", list, links)
		}
	}
	t.Setenv(NodeSecret, "")
	if _, err := Links("north=http://x"); err == nil || !strings.Contains(err.Error(), NodeSecret) {
		t.Errorf("without a secret: %v", err)
	}
}
