//go:build linux && cgo

package metercost

import (
	"fmt"

	"github.com/gpupay/gpupay/bench"
)

const about = "From the Sampler down: a Sampler reads 8 devices a tick through `metering/nvml`, go-nvml and cgo from a C library that has NVML's ABI " +
	"(compiled here against NVIDIA's header), and the Meter counts what they say and keeps it for the next record. **That library answers at once**, out of " +
	"its own memory. A real driver's calls take longer, microseconds to milliseconds each, most of it waiting: what is measured here is what the meter itself " +
	"adds to them, and a machine with NVIDIA GPUs shows more. A process runs on each GPU; more than one makes go-nvml ask again."

const aboutCost = "What is counted is the time of the process's processors, garbage collection and goroutine switches included, and not what a tick takes by the clock. " +
	"Time is simulated, so that ticks follow one another, but every look at the clock also reads the host's, as the real one does. After each lease what was billed is " +
	"held against the time that passed. **A tick** has a clock that runs on by itself, so that nothing but the Sampler is woken; the row after it also wakes the benchmark, " +
	"each time, which makes and signs the records. The last two rows wait by the host's clock: there a tick wakes processors that sleep, and what it needs is no longer in their caches."

const aboutDay = "24 hours, 86,400 ticks of one lease of 8 devices, with a signed record every 5 seconds, a Provider's default; processor time is the median of the " +
	"hour's minutes, with the cheapest and the dearest. What a Provider does with a record, to store and to send it, is not in it."

func micros(s bench.Series) bench.Spread { return bench.SpreadOf(scaled(s.Times, 1e6)) }

// over is how many times b's time a's is, round by round.
func over(a, b bench.Series) bench.Spread {
	var ratios []float64
	for i, t := range a.Times {
		ratios = append(ratios, t/b.Times[i])
	}
	return bench.SpreadOf(ratios)
}

func (m measured) page() bench.Report {
	t := bench.Table{Title: "A tick of 8 devices:", Head: []string{"", "us of a processor", "heap objects", "heap bytes", "over C alone"}}
	for i, s := range m.ticks {
		ratio := ""
		if i > inC {
			ratio = over(s, m.ticks[inC]).Times()
		}
		t.Rows = append(t.Rows, []string{s.Name, micros(s).String(), bench.Number(s.Allocs), bench.Number(s.Bytes), ratio})
	}
	r := bench.Report{Title: title, About: []string{about, aboutCost}, Tables: []bench.Table{t, m.calls}}
	cost, whole := micros(m.ticks[sampled]), micros(m.ticks[recorded])
	r.Aims = append(r.Aims, bench.Judge(aimTick, cost.Median <= 20, fmt.Sprintf("%s us; %s with its share of a record", cost, whole)))
	if m.hours == nil {
		r.Aims = append(r.Aims, bench.Aim{Text: aimDay, Result: bench.NotMeasured}, bench.Aim{Text: aimSpace, Result: bench.NotMeasured})
	} else {
		r.Tables = append(r.Tables, m.dayTable())
		r.Aims = append(r.Aims, m.dayAims()...)
	}
	r.Plots = []bench.Plot{m.plot()}
	return r
}

func (m measured) dayTable() bench.Table {
	t := bench.Table{Title: aboutDay, Head: []string{"", "us of a processor a tick, records included", "heap, KiB", "process in memory, MiB", "evidence of a record, bytes"}}
	for i, h := range m.hours {
		if i != 0 && (i+1)%4 != 0 {
			continue
		}
		t.Rows = append(t.Rows, []string{fmt.Sprintf("hour %d", i+1), h.ticks.String(), bench.Count(int(h.heap >> 10)),
			fmt.Sprintf("%.1f", float64(h.resident)/(1<<20)), bench.Count(h.evidence)})
	}
	return t
}

// medianOf is what a tick costs in the middle one of some hours.
func medianOf(some []hourly) float64 {
	var medians []float64
	for _, h := range some {
		medians = append(medians, h.ticks.Median)
	}
	return bench.SpreadOf(medians).Median
}

func (m measured) dayAims() []bench.Aim {
	first, last := m.hours[0], m.hours[len(m.hours)-1]
	third := len(m.hours) / 3
	early, late := medianOf(m.hours[:third]), medianOf(m.hours[len(m.hours)-third:]) // of many hours: other programs work in some
	ratio := late / early
	heap, evidence := int64(last.heap)-int64(first.heap), last.evidence-first.evidence
	return []bench.Aim{
		bench.Judge(aimDay, ratio <= 1.1, fmt.Sprintf("%sx: %s us in the middle one of the first hours, %s in that of the last", bench.Number(ratio), bench.Number(early), bench.Number(late))),
		bench.Judge(aimSpace, heap <= 1<<20 && evidence <= 64, fmt.Sprintf("heap %+d KiB, evidence %+d bytes; the process %+.1f MiB in memory",
			heap>>10, evidence, (float64(last.resident)-float64(first.resident))/(1<<20))),
	}
}

// plot is the day; if it was not measured, the rounds of a tick.
func (m measured) plot() bench.Plot {
	p := bench.Plot{Name: "day", Title: "A tick of 8 devices, its share of a record included", X: "hour of the day", Y: "us of a processor", Linear: true}
	line, low, floor := bench.Line{Name: "median of the hour's minutes"}, bench.Line{Name: "the cheapest"}, bench.Line{Name: "zero"}
	for i, h := range m.hours {
		line.Points = append(line.Points, bench.Point{X: float64(i + 1), Y: h.ticks})
		low.Points = append(low.Points, bench.Point{X: float64(i + 1), Y: bench.SpreadOf([]float64{h.ticks.Low})})
		floor.Points = append(floor.Points, bench.Point{X: float64(i + 1)})
	}
	if m.hours == nil {
		p.X, line.Name = "round", "a round"
		for i, t := range m.ticks[recorded].Times {
			line.Points = append(line.Points, bench.Point{X: float64(i + 1), Y: bench.SpreadOf([]float64{t * 1e6})})
			floor.Points = append(floor.Points, bench.Point{X: float64(i + 1)})
		}
	}
	p.Lines = []bench.Line{line, floor}
	if m.hours != nil {
		p.Lines = []bench.Line{line, low, floor}
	}
	return p
}
