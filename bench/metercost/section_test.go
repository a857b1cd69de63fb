//go:build linux && cgo

package metercost

import (
	"testing"
	"time"

	"github.com/gpupay/gpupay/bench"
	"github.com/gpupay/gpupay/metering"
)

// The least work gives a whole page. A process loads one library only, so that what else is to be seen of it is seen here.
func TestSection(t *testing.T) {
	lib, err := build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer lib.close()
	b := &bed{lib: lib, clock: newClock()}
	if err := b.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Run("all make the same calls", func(t *testing.T) { sameCalls(t, b) })
	t.Run("a day", func(t *testing.T) { someTicks(t, b) })
	t.Run("page", func(t *testing.T) {
		m, err := b.measure(t.Context(), bench.Settings{Rounds: 2, Span: time.Nanosecond, Log: t.Logf})
		if err != nil {
			t.Fatal(err)
		}
		look(t, m.page())
	})
	if err := b.close(); err != nil {
		t.Error(err)
	}
}

// sameCalls: what is beside the Source's readings is what a reading takes.
func sameCalls(t *testing.T, b *bed) {
	l, err := newLease(b.clock, b.source, b.devices)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.look(t.Context(), false); err != nil { // finds the handles
		t.Fatal(err)
	}
	want := len(calls) * len(b.devices)
	for name, work := range map[string]func() error{
		"the Source":      func() error { return l.look(t.Context(), false) },
		"through go-nvml": func() error { return b.handles.every(1) },
		"from C":          func() error { b.lib.every(1); return nil },
	} {
		if n, err := b.lib.counted(work); err != nil || n != want {
			t.Errorf("%s makes %d calls a tick, want %d: %v", name, n, want, err)
		}
	}
}

// someTicks of a day: all are billed, and their records hold.
func someTicks(t *testing.T, b *bed) {
	l, err := newLease(b.clock, b.source, b.devices)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.sample(t.Context(), b.sleepers); err != nil {
		t.Fatal(err)
	}
	checker, err := metering.NewChecker(metering.CheckerConfig{Lease: l.terms, Key: l.key, Tolerance: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 * recordEvery {
		if err := l.pass(); err != nil {
			t.Fatal(err)
		}
		if err := l.recordAt(t.Context(), i); err != nil {
			t.Fatal(err)
		}
		if i%recordEvery != recordEvery-1 {
			continue
		}
		if err := checker.Check(l.last); err != nil {
			t.Errorf("after tick %d: %v", i, err)
		}
	}
	if err := l.end(); err != nil {
		t.Error(err)
	}
	l.ticks++
	if l.check() == nil {
		t.Error("a tick that was not billed is let pass")
	}
}

func look(t *testing.T, r bench.Report) {
	for _, table := range r.Tables {
		for _, row := range table.Rows {
			if len(row) != len(table.Head) {
				t.Errorf("%d cells: %v", len(row), row)
			}
		}
	}
	if len(r.Tables) != 2 || len(r.Tables[0].Rows) != len(contenderNames) || len(r.Tables[1].Rows) != len(calls)+1 {
		t.Errorf("tables %v", r.Tables)
	}
	if len(r.Aims) != 3 || r.Aims[0].Result == bench.NotMeasured || r.Aims[1].Result != bench.NotMeasured {
		t.Errorf("aims %v", r.Aims)
	}
	if len(r.Plots) != 1 || len(r.Plots[0].Lines[0].Points) != 2 {
		t.Errorf("plots %v", r.Plots)
	}
}

// What is said of a day is what was seen of it.
func TestDay(t *testing.T) {
	m := measured{ticks: make([]bench.Series, len(contenderNames)), hours: make([]hourly, hours)}
	for i := range m.ticks {
		m.ticks[i] = bench.Series{Name: contenderNames[i], Times: []float64{20e-6}}
	}
	for i := range m.hours {
		m.hours[i] = hourly{ticks: bench.SpreadOf([]float64{30}), heap: 4 << 20, evidence: 5000}
	}
	judged := func(what string, want ...bench.Result) {
		t.Helper()
		for i, a := range m.page().Aims {
			if a.Result != want[i] {
				t.Errorf("%s: %s is %s: %s", what, a.Text, a.Result, a.Figure)
			}
		}
	}
	last := &m.hours[hours-1]
	judged("as it began", bench.Met, bench.Met, bench.Met)
	last.ticks = bench.SpreadOf([]float64{33.1})
	judged("one dear hour", bench.Met, bench.Met, bench.Met)
	for i := hours / 2; i < hours; i++ {
		m.hours[i].ticks = last.ticks
	}
	m.ticks[sampled].Times = []float64{20.1e-6}
	judged("dearer", bench.Missed, bench.Missed, bench.Met)
	last.heap += 1<<20 + 1
	judged("larger", bench.Missed, bench.Missed, bench.Missed)
	last.heap, last.evidence = 4<<20, 5065
	judged("longer", bench.Missed, bench.Missed, bench.Missed)
	if p := m.page().Plots[0]; len(p.Lines[0].Points) != hours || p.Lines[0].Points[hours-1].Y.Median != 33.1 {
		t.Errorf("plot %v", p)
	}
}
