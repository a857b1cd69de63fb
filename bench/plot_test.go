package bench

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPlotsWithoutAFigure: what was too small to be measured has no place on a logarithmic axis, and takes nothing else away.
func TestPlotsWithoutAFigure(t *testing.T) {
	nothing := Line{Name: "nothing", Points: []Point{{X: 1, Y: Spread{0, 0, 0}}}}
	some := Line{Name: "some", Points: []Point{{X: 1, Y: Spread{0, 0, 0}}, {X: 10, Y: Spread{2, 1, 3}}, {X: 100, Y: Spread{4, 3, 5}}}}
	single := Line{Name: "some", Points: []Point{{X: 1, Y: Spread{0.9, 0.9, 0.9}}}}
	for name, lines := range map[string][]Line{"one": {nothing, some}, "none": {nothing}, "one point": {single}} {
		path := filepath.Join(t.TempDir(), name+".svg")
		if err := (Plot{Title: name, Lines: lines}).Draw(path); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		drawn, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(drawn), ">some<"); got != (name != "none") {
			t.Errorf("%s: drawn: %v", name, got)
		}
	}
}
