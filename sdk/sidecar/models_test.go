package sidecar_test

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"testing"

	"github.com/gpupay/gpupay/sdk/internal/rig"
)

// listed are the models that everybody is told of.
func (s *shop) listed() (names []string) {
	s.Helper()
	res, err := http.Get(s.site.URL + "/models")
	if err != nil {
		s.Fatal(err)
	}
	defer res.Body.Close()
	var list struct {
		Object string
		Data   []struct{ ID string }
	}
	text, err := io.ReadAll(res.Body)
	if err != nil || json.Unmarshal(text, &list) != nil || res.StatusCode != http.StatusOK || list.Object != "list" || list.Data == nil {
		s.Fatalf("%d %s: %v", res.StatusCode, text, err)
	}
	for _, model := range list.Data {
		names = append(names, model.ID)
	}
	return names
}

// TestModelsAreListed: who has no lease yet is told which models there are, and the offer stays as it was signed. See TestEngineThatIsDown
// for an inference server that is not there.
func TestModelsAreListed(t *testing.T) {
	s := newShop(t)
	before := s.server.Offer().Hash
	rig.Eventually(t, "a model", func() bool { return slices.Equal(s.listed(), []string{"test"}) })
	if after := s.server.Offer().Hash; after != before {
		t.Error("there is another offer")
	}
}
