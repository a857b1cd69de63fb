package coldbuild

import (
	"testing"
	"time"

	"github.com/gpupay/gpupay/bench"
)

// The least work builds one package, and gives a whole page.
func TestSection(t *testing.T) {
	r, err := Section{}.Measure(t.Context(), bench.Settings{Scratch: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	whole(t, r)
	if len(r.Aims) != 1 || r.Aims[0].Result != bench.NotMeasured {
		t.Errorf("aims %v", r.Aims)
	}
	if built := len(r.Plots[0].Lines[0].Points) - 1; built != 1 {
		t.Errorf("%d packages built, want one: was the cache empty?", built)
	}
}

func whole(t *testing.T, r bench.Report) {
	t.Helper()
	for _, table := range r.Tables {
		for _, row := range table.Rows {
			if len(row) != len(table.Head) {
				t.Errorf("%d cells: %v", len(row), row)
			}
		}
	}
}

// Every package is somebody's, and every second counts once.
func TestModules(t *testing.T) {
	m := measured{
		packages: map[string]pkg{"a/x": {"a/x", "a", false}, "a/y": {"a/y", "a", true}, "fmt": {"fmt", standard, false}},
		build:    used{wall: 90 * time.Second, processor: 3 * time.Minute},
		run:      used{wall: 59 * time.Second, processor: time.Second},
		actions: []action{
			{Mode: "build", Package: "a/x", CmdUser: 2 * time.Second},
			{Mode: "cgo compile c.c", Package: "a/y", CmdUser: 3 * time.Second, CmdSys: time.Second},
			{Mode: "build", Package: "fmt", CmdUser: time.Second},
			{Mode: "link", CmdUser: time.Second},
		},
	}
	r := m.page()
	whole(t, r)
	want := [][]string{{"a", "2", "6.00", "75%"}, {"other", "0", "1.00", "12%"}, {standard, "1", "1.00", "12%"}, {"all others", "0", "0", "0%"}}
	for i, row := range want {
		for j := range row {
			if got := r.Tables[1].Rows[i][j]; got != row[j] {
				t.Errorf("row %d: %q, want %q", i, got, row[j])
			}
		}
	}
	if r.Aims[0].Result != bench.Met {
		t.Errorf("%v", r.Aims)
	}
	m.run.wall = time.Minute
	if got := m.page().Aims[0]; got.Result != bench.Missed {
		t.Errorf("%v", got)
	}
}
