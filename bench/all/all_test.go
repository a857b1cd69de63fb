package all

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/bench"
	"github.com/gpupay/gpupay/bench/received"
)

func TestMain(m *testing.M) {
	received.Gateway()
	os.Exit(m.Run())
}

// TestEverySectionRunsAndIsOnThePage: with the least work, and without a look at
// the clock.
func TestEverySectionRunsAndIsOnThePage(t *testing.T) {
	sections := Sections()
	if os.Getenv("GPUPAY_NO_POSTGRES") == "1" {
		t.Skip("GPUPAY_NO_POSTGRES=1: the page needs a PostgreSQL server")
	}
	dir := t.TempDir()
	page := filepath.Join(dir, "performance.md")
	set := bench.Settings{Rounds: 2, Span: time.Nanosecond, Most: 16, Scratch: t.TempDir(), Log: t.Logf}
	printed := ""
	if err := bench.Run(t.Context(), set, sections, page, func(s string) { printed += s }); err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	text := string(written)
	for _, s := range sections {
		plots, err := filepath.Glob(filepath.Join(dir, "performance", s.Name()+"-*.svg"))
		if err != nil || len(plots) == 0 {
			t.Errorf("section %s drew nothing: %v", s.Name(), err)
		}
		for _, plot := range plots {
			if !strings.Contains(text, "(performance/"+filepath.Base(plot)+")") {
				t.Errorf("the page does not show %s", plot)
			}
		}
	}
	for _, image := range regexp.MustCompile(`\]\((performance/[^)]*)\)`).FindAllStringSubmatch(text, -1) {
		if info, err := os.Stat(filepath.Join(dir, image[1])); err != nil || info.Size() == 0 {
			t.Errorf("the page shows %s: %v", image[1], err)
		}
	}
	for _, name := range regexp.MustCompile("`(performance/[^`]*)`").FindAllStringSubmatch(text, -1) {
		if info, err := os.Stat(filepath.Join(dir, name[1])); err != nil || info.Size() == 0 {
			t.Errorf("the page names %s: %v", name[1], err)
		}
	}
	_, aims, _ := strings.Cut(text, "## Aims\n\n")
	aims, _, _ = strings.Cut(aims, "\n\n")
	if !strings.Contains(printed, aims) {
		t.Error("the aims on the page are not those that were printed")
	}
	rows := strings.Split(aims, "\n")[2:]
	if len(rows) < 16 {
		t.Errorf("%d aims, want those of payments received over two stores at two loads", len(rows))
	}
	for _, row := range rows {
		cells := strings.Split(row, " | ")
		if len(cells) != 4 {
			t.Fatalf("aim %q", row)
		}
		switch measured := strings.TrimSpace(strings.TrimSuffix(cells[3], "|")); cells[2] {
		case "**met**", "**missed**":
			if measured == "" {
				t.Errorf("an aim without its figure: %s", row)
			}
		case "**not measured**":
		default:
			t.Errorf("an aim that is neither met nor missed: %s", row)
		}
	}
}
