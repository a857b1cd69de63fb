package coldbuild

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/gpupay/gpupay/bench"
)

// measured is all that was.
type measured struct {
	packages map[string]pkg
	build    used
	actions  []action
	run      used // nothing if it was not run
}

const about = "What somebody waits for who has just cloned the repository: the quickstart is built with an empty build cache (the modules' sources are there " +
	"already), and then `./quickstart.sh` is run to its end, in which it links the program again. Both once, not in rounds: a build takes minutes. " +
	"Other programs that run at the same time show in what it takes by the clock, less in the processors' time."

const aboutCuts = "The chain inside the quickstart is a whole go-ethereum node, the same that tests run against: with its own database (pebble, and with it zstd " +
	"in C), network and tracing it is four in ten of the packages and more than a third of the processors' time. A chain made of go-ethereum's " +
	"`core` alone would not need them, but its JSON-RPC would have to be written anew, and tests would no longer meet a real node's answers. The C " +
	"compiler takes a third: SQLite, zstd, secp256k1 and NVML's bindings. C code is built without debugging information (`cgo.env`), which saves it a sixth."

const aim = "the quickstart runs to its end in under a minute"

func seconds(d time.Duration) string { return bench.Number(d.Seconds()) }

func (m measured) page() bench.Report {
	r := bench.Report{Title: "Quickstart, from nothing", About: []string{about}, Notes: []string{aboutCuts},
		Tables: []bench.Table{m.overview(), m.modules()}, Plots: []bench.Plot{m.plot()}}
	if m.run.wall == 0 {
		r.Aims = []bench.Aim{{Text: aim, Result: bench.NotMeasured}}
		return r
	}
	r.Aims = []bench.Aim{bench.Judge(aim, m.run.wall < time.Minute, fmt.Sprintf("%s s; the first build takes %s s before", seconds(m.run.wall), seconds(m.build.wall)))}
	return r
}

func (m measured) overview() bench.Table {
	c := 0
	for _, p := range m.packages {
		if p.cgo {
			c++
		}
	}
	t := bench.Table{Head: []string{"", "seconds", "seconds of the processors", "packages", "of them with C"}, Rows: [][]string{
		{"first build", seconds(m.build.wall), seconds(m.build.processor), bench.Count(len(m.packages)), bench.Count(c)},
	}}
	if m.run.wall > 0 {
		t.Rows = append(t.Rows, []string{"`./quickstart.sh`, built before", seconds(m.run.wall), seconds(m.run.processor), "", ""})
	}
	return t
}

// most is how many modules are named.
const most = 12

// part is what a module takes of the build.
type part struct {
	module    string
	packages  int
	processor time.Duration
}

// modules are those that take most, and what they take.
func (m measured) modules() bench.Table {
	parts := make(map[string]*part)
	of := func(module string) *part {
		if parts[module] == nil {
			parts[module] = &part{module: module}
		}
		return parts[module]
	}
	for _, p := range m.packages {
		of(p.module).packages++
	}
	var total time.Duration
	for _, a := range m.actions {
		if took := a.CmdUser + a.CmdSys; took > 0 {
			total += took
			of(cmp.Or(m.packages[a.Package].module, "other")).processor += took
		}
	}
	sorted := slices.SortedFunc(maps.Values(parts), func(a, b *part) int {
		return cmp.Or(cmp.Compare(b.processor, a.processor), cmp.Compare(a.module, b.module))
	})
	rest := part{module: "all others"}
	t := bench.Table{Title: "Whose packages the first build compiles; linking counts as this module's:", Head: []string{"module", "packages", "seconds of the processors", "share"}}
	add := func(p part) {
		t.Rows = append(t.Rows, []string{p.module, bench.Count(p.packages), seconds(p.processor), fmt.Sprintf("%.0f%%", 100*p.processor.Seconds()/max(total.Seconds(), 1e-9))})
	}
	for i, p := range sorted {
		if i < most {
			add(*p)
			continue
		}
		rest.packages += p.packages
		rest.processor += p.processor
	}
	add(rest)
	return t
}

// plot is how the build gets on.
func (m measured) plot() bench.Plot {
	var done []time.Time
	var begun time.Time
	for _, a := range m.actions {
		if a.TimeStart.IsZero() || a.TimeDone.IsZero() {
			continue
		}
		if begun.IsZero() || a.TimeStart.Before(begun) {
			begun = a.TimeStart
		}
		if a.Mode == "build" {
			done = append(done, a.TimeDone)
		}
	}
	slices.SortFunc(done, time.Time.Compare)
	line := bench.Line{Name: "packages", Points: []bench.Point{{}}}
	for i, at := range done {
		line.Points = append(line.Points, bench.Point{X: at.Sub(begun).Seconds(), Y: bench.SpreadOf([]float64{float64(i + 1)})})
	}
	return bench.Plot{Name: "build", Title: "The first build", X: "seconds", Y: "packages that are built", Linear: true, Lines: []bench.Line{line}}
}
