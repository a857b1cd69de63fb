package sim

import (
	"fmt"
	"io"
	"slices"
	"time"
)

// Line is a policy in a table: its figures over those of another one in the same world, over all worlds.
type Line struct {
	Name        string
	Mean, Worst float64 // J, as a ratio
	Paid        float64 // mean of the ratios
	P95         float64 // mean of the ratios
	Failed      float64 // mean share of requests that nobody answered
}

// Compare runs policies in the same worlds, each with its own arrivals, and sets each policy's figures against those of the oracle.
func Compare(worlds []*World, arrivals [][]Arrival, policies []Policy) []Line {
	lines := make([]Line, len(policies))
	for i, p := range policies {
		lines[i].Name = p.Name
	}
	for i, w := range worlds {
		best := Run(w, arrivals[i], Oracle)
		for k, p := range policies {
			s := Run(w, arrivals[i], p)
			l, n := &lines[k], float64(len(worlds))
			l.Mean += s.J / best.J / n
			l.Worst = max(l.Worst, s.J/best.J)
			l.Paid += s.Paid / best.Paid / n
			l.P95 += float64(s.P95) / float64(best.P95) / n
			l.Failed += s.Failed / n
		}
	}
	return lines
}

// DrawAll are worlds of consecutive seeds, each with the arrivals of so much time.
func DrawAll(first uint64, n int, span time.Duration) (worlds []*World, arrivals [][]Arrival) {
	for seed := range uint64(n) {
		w, process := Draw(first + seed)
		worlds, arrivals = append(worlds, w), append(arrivals, process.Arrivals(span))
	}
	return worlds, arrivals
}

// Write prints a table in Markdown, in the order of mean J.
func Write(out io.Writer, lines []Line) error {
	lines = slices.SortedStableFunc(slices.Values(lines), func(a, b Line) int {
		switch {
		case a.Mean > b.Mean:
			return -1
		case a.Mean < b.Mean:
			return 1
		}
		return 0
	})
	if _, err := fmt.Fprintf(out, "| policy | J, mean | J, worst world | paid | p95 of time | failed %% |\n|---|--:|--:|--:|--:|--:|\n"); err != nil {
		return err
	}
	for _, l := range lines {
		if _, err := fmt.Fprintf(out, "| %s | %.2f | %.2f | %.2f | %.2f | %.2f |\n", l.Name, l.Mean, l.Worst, l.Paid, l.P95, 100*l.Failed); err != nil {
			return err
		}
	}
	return nil
}
