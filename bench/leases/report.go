package leases

import (
	"fmt"
	"math"
	"time"

	"github.com/gpupay/gpupay/bench"
)

const about = "One gateway, an `sdk.Provider` behind an HTTP server in a process of its own, with leases of one simulated device each: every " +
	"device is read each second, every lease has a usage record a minute, signed and on disk (SQLite, `synchronous=FULL`), and " +
	"a voucher a minute, both spread evenly over the minute. The payers and the chain are in another process and do not count; " +
	"it shares the cores, and vouchers are signed before they are due. A voucher's wait is from the moment it was due to its receipt. " +
	"The leases have no live stream, but for the rows that say so: their renters only pay, by a POST over loopback each."

const aboutSetup = "The channels were not opened one by one: the chain begins with an escrow contract (the real code) in whose storage they " +
	"are open, and the database is filled through the payee's own code and with the rows of leases as a gateway leaves them that was ended " +
	"before their first record; the gateway that is measured takes them up as after any restart. What an allocator's commands, real " +
	"devices and settlements cost is not in it: nothing falls due for settlement here, though the settler looks for it each minute. Memory is the process's resident set, SQLite and the garbage collector's reserve included."

const (
	aimLeases = 100_000
	aimMemory = 2 << 30
)

func (s Section) report(points []point) bench.Report {
	return bench.Report{
		Title:  "Many leases",
		About:  []string{about, aboutSetup},
		Tables: append([]bench.Table{table(points), growth(points)}, streamTable(points)...),
		Aims:   judge(points),
		Plots:  plots(points),
	}
}

func table(points []point) bench.Table {
	t := bench.Table{Head: []string{"leases", "measured for", "memory, median (least-most)", "a lease", "cores busy",
		"vouchers a second", "records a second", "voucher p50", "voucher p99", "tick late, p50", "p99", "longest between readings", "ticks later than MaxGap", "time so unbilled", "taken up in"}}
	for _, p := range points {
		name := bench.Count(p.leases)
		if p.streams != apart {
			name += ", a stream each: " + string(p.streams)
		}
		t.Rows = append(t.Rows, []string{name, p.span.Round(time.Second).String(),
			fmt.Sprintf("%s (%s-%s) MiB", bench.Number(mib(p.memory.Median)), bench.Number(mib(p.memory.Low)), bench.Number(mib(p.memory.High))),
			fmt.Sprintf("%s KiB", bench.Number(p.memory.Median/1024/float64(p.leases))), bench.Number(p.cores),
			bench.Number(p.vouchers()), bench.Number(p.recorded()),
			short(p.wait(0.50)), short(p.wait(0.99)), short(p.lag.P50), short(p.lag.P99), short(p.lag.Longest),
			fmt.Sprintf("%d of %s", p.lag.Over, bench.Count(int(p.lag.Readings))), p.lag.Unbilled.Round(time.Second / 10).String(), short(p.took)})
	}
	return t
}

func (p point) vouchers() float64 { return float64(len(p.waits)) / p.span.Seconds() }
func (p point) recorded() float64 { return float64(p.records) / p.span.Seconds() }

// keepsUp reports whether the gateway did what there was to do, or nearly.
func (p point) keepsUp() bool {
	least := 0.95 * float64(p.leases) / p.period.Seconds()
	return p.vouchers() >= least && p.recorded() >= least
}

// wait is what a part of the vouchers waited at most. They are in order.
func (p point) wait(part float64) time.Duration {
	return p.waits[int(math.Ceil(part*float64(len(p.waits))))-1]
}

func mib(bytes float64) float64 { return bytes / (1 << 20) }

func short(d time.Duration) string {
	switch {
	case d >= 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d >= 10*time.Millisecond:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Microsecond).String()
}

// alone are the points without streams.
func alone(points []point) (out []point) {
	for _, p := range points {
		if p.streams == apart {
			out = append(out, p)
		}
	}
	return out
}

// growth fits cost = c * leases^e.
func growth(points []point) bench.Table {
	t := bench.Table{Title: "How the cost grows, fitted by least squares to the logarithms (1: as the leases do):", Head: []string{"", "exponent", "at the least", "at the most"}}
	points = alone(points)
	for _, c := range costs {
		first, last := points[0], points[len(points)-1]
		t.Rows = append(t.Rows, []string{c.name, fmt.Sprintf("%.2f", exponent(points, c.of)), bench.Number(c.of(first)), bench.Number(c.of(last))})
	}
	return t
}

type cost struct {
	name string
	of   func(point) float64
}

var costs = []cost{
	{"memory, MiB", func(p point) float64 { return mib(p.memory.Median) }},
	{"cores busy", func(p point) float64 { return p.cores }},
}

// exponent is the slope of a cost over the number of leases, both as logarithms; 0 for a single point.
func exponent(points []point, of func(point) float64) float64 {
	var n, x, y, xx, xy float64
	for _, p := range points {
		lx, ly := math.Log(float64(p.leases)), math.Log(of(p))
		n, x, y, xx, xy = n+1, x+lx, y+ly, xx+lx*lx, xy+lx*ly
	}
	if n < 2 {
		return 0
	}
	return (n*xy - x*y) / (n*xx - x*x)
}

// streamTable says what a live stream costs in memory.
func streamTable(points []point) []bench.Table {
	t := bench.Table{Title: "What a live stream costs the gateway. Through a WebSocket go the vouchers, too; the others are requests of their own:",
		Head: []string{"", "leases", "memory", "a stream", "cores busy"}}
	var without point
	for _, p := range points {
		name, each := string(p.streams), bench.Number((p.memory.Median-without.memory.Median)/1024/float64(p.leases))+" KiB"
		if p.streams == apart {
			without, name, each = p, "no stream", "-"
		}
		t.Rows = append(t.Rows, []string{name, bench.Count(p.leases), bench.Number(mib(p.memory.Median)) + " MiB", each, bench.Number(p.cores)})
		if p.streams == duplex {
			t.Rows = t.Rows[len(t.Rows)-3:] // with the one without before them
			return []bench.Table{t}
		}
	}
	return nil
}

func plots(points []point) []bench.Plot {
	points = alone(points)
	line := func(name string, of func(point) bench.Spread) []bench.Line {
		l := bench.Line{Name: name}
		for _, p := range points {
			l.Points = append(l.Points, bench.Point{X: float64(p.leases), Y: of(p)})
		}
		return []bench.Line{l}
	}
	return []bench.Plot{
		{Name: "memory", Title: "Memory of a gateway", X: "leases", Y: "resident, MiB", Lines: line("resident", func(p point) bench.Spread {
			return bench.Spread{Median: mib(p.memory.Median), Low: mib(p.memory.Low), High: mib(p.memory.High)}
		})},
		{Name: "cores", Title: "Processors of a gateway", X: "leases", Y: "cores busy", Lines: line("cores busy", func(p point) bench.Spread {
			return bench.Spread{Median: p.cores, Low: p.cores, High: p.cores}
		})},
	}
}

// judge holds the aims against the point with the most leases.
func judge(points []point) []bench.Aim {
	texts := []string{
		"100,000 leases: less than 2 GiB resident, at any time",
		"100,000 leases: less than one core busy",
		"100,000 leases: no tick later than MaxGap (3 s)",
	}
	for _, p := range alone(points) {
		if p.leases < aimLeases {
			continue
		}
		kept := "" // who falls behind is cheap
		if !p.keepsUp() {
			kept = fmt.Sprintf(", but only %s vouchers and %s records a second", bench.Number(p.vouchers()), bench.Number(p.recorded()))
		}
		return []bench.Aim{
			bench.Judge(texts[0], p.memory.High < aimMemory && kept == "", fmt.Sprintf("%.2f GiB at most", p.memory.High/(1<<30))+kept),
			bench.Judge(texts[1], p.cores < 1 && kept == "", bench.Number(p.cores)+kept),
			bench.Judge(texts[2], p.lag.Over == 0 && p.lag.Readings > 0, fmt.Sprintf("%d of %s, the latest after %s", p.lag.Over, bench.Count(int(p.lag.Readings)), short(p.lag.Longest))),
		}
	}
	var aims []bench.Aim
	for _, t := range texts {
		aims = append(aims, bench.Aim{Text: t, Result: bench.NotMeasured})
	}
	return aims
}
