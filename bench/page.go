package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Run measures the sections, prints each report when it is there, and writes the page and its plots: page's own name
// without its ending is the plots' directory.
func Run(ctx context.Context, s Settings, sections []Section, page string, print func(string)) error {
	begun, on := time.Now(), machine(s.Scratch)
	plots := strings.TrimSuffix(page, filepath.Ext(page))
	if err := os.MkdirAll(plots, 0o755); err != nil {
		return err
	}
	var bodies strings.Builder
	var reports []Report
	for _, section := range sections {
		s.Log("%s ...", section.Name())
		r, err := section.Measure(ctx, s)
		if err != nil {
			return fmt.Errorf("section %s: %w", section.Name(), err)
		}
		body := r.markdown(filepath.Base(plots), section.Name())
		print(body)
		bodies.WriteString(body)
		reports = append(reports, r)
		if err := r.draw(plots, section.Name()); err != nil {
			return fmt.Errorf("section %s: %w", section.Name(), err)
		}
	}
	head := header(s, on, time.Since(begun)) + aims(reports)
	print(aims(reports))
	return os.WriteFile(page, []byte(head+bodies.String()), 0o644)
}

func header(s Settings, on string, took time.Duration) string {
	return "# Performance\n\n" +
		"`./bench.sh` measured all of this and wrote this page; no figure in its tables is typed by hand. What counts is the\n" +
		"ratios of contenders that ran side by side: absolute figures say more about the machine than about the code. A figure is the\n" +
		fmt.Sprintf("median of %d interleaved rounds, of %s for each contender, with the least and the most of them in brackets.\n\n", s.Rounds, s.Span) +
		fmt.Sprintf("Measured on %s, in %s.\n\n", on, took.Round(time.Second))
}

// aims is the table of all sections' aims.
func aims(reports []Report) string {
	var rows [][]string
	for _, r := range reports {
		for _, a := range r.Aims {
			rows = append(rows, []string{r.Title, a.Text, "**" + string(a.Result) + "**", a.Figure})
		}
	}
	return "## Aims\n\n" + Table{Head: []string{"section", "aim", "", "measured"}, Rows: rows}.markdown()
}

func (r Report) markdown(plots, name string) string {
	var b strings.Builder
	paragraphs := func(texts []string) {
		for _, t := range texts {
			b.WriteString(t + "\n\n")
		}
	}
	b.WriteString("## " + r.Title + "\n\n")
	paragraphs(r.About)
	for _, t := range r.Tables {
		b.WriteString(t.markdown())
	}
	for _, p := range r.Plots {
		fmt.Fprintf(&b, "![%s](%s/%s-%s.svg)\n\n", p.Title, plots, name, p.Name)
	}
	paragraphs(r.Notes)
	return b.String()
}

func (r Report) draw(dir, name string) error {
	var failed error
	for _, p := range r.Plots {
		failed = errors.Join(failed, p.Draw(filepath.Join(dir, name+"-"+p.Name+".svg")))
	}
	for _, f := range r.Files {
		failed = errors.Join(failed, os.WriteFile(filepath.Join(dir, name+"-"+f.Name), f.Data, 0o644))
	}
	return failed
}

func (t Table) markdown() string {
	var b strings.Builder
	if t.Title != "" {
		b.WriteString(t.Title + "\n\n")
	}
	rule := make([]string, len(t.Head))
	for i := range rule {
		rule[i] = "---"
		if i > 0 {
			rule[i] = "--:"
		}
	}
	for _, row := range append([][]string{t.Head, rule}, t.Rows...) {
		b.WriteString("| " + strings.Join(row, " | ") + " |\n")
	}
	return b.String() + "\n"
}
