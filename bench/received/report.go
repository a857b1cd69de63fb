package received

import (
	"fmt"
	"strings"

	"github.com/gpupay/gpupay/bench"
)

const aboutLoad = "A payment is received when its voucher's signature is verified and what it pays is on disk, synced (SQLite with " +
	"`synchronous=FULL`, PostgreSQL with `fsync` and `synchronous_commit`), before the caller hears of it. One payer a channel, " +
	"vouchers signed beforehand, payers and payee in one process. **One in flight**: each payer waits for the receipt of one voucher before " +
	"it sends the next; this is `channel.Payee.Accept`, as a Provider calls it for each request. **Eight in flight**: eight of a channel " +
	"wait together, as in a stream, and `channel.Payee.AcceptNewest` verifies and stores the newest of them, which pays for all, as a Provider calls it for what arrives through a stream. " +
	"The baselines have eight concurrent callers a channel and verify every voucher; " +
	"*every voucher verified* is eight concurrent calls of `Accept` instead. After the rounds every contender's store is asked for the " +
	"newest voucher of each channel."

const aboutBaselines = "The baselines are built here, after the shape of what others do: recover the signer, then read, compare and write JSON in a " +
	"key-value store (LevelDB) under one lock for the store, not synced and synced; one lock around the check, a question to a node " +
	"(1 ms) and the write; a sharded map that is gone with the process. They use this project's EIP-712 digest, which costs less than " +
	"the usual ones. *Merged writes* is better than that shape: a lock a channel, so that LevelDB merges the writes that wait into one sync."

func traffic(flight int) string {
	if flight == 1 {
		return "one in flight"
	}
	return fmt.Sprintf("%d in flight", flight)
}

// ratioTable has our rate, and how many times each other one's it is.
func ratioTable(points []point, flight int) bench.Table {
	t := bench.Table{Title: "**gpupay over each of the others**, " + traffic(flight) + ", and its own payments a second:",
		Head: []string{"against"}}
	for _, p := range points {
		t.Head = append(t.Head, counted(p.channels))
	}
	for i, s := range points[0].series {
		row := []string{s.Name}
		for _, p := range points {
			if i == 0 {
				row = append(row, p.series[0].Rate().String()+"/s")
			} else {
				row = append(row, bench.Ratio(p.series[0], p.series[i]).Times())
			}
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

func counted(n int) string {
	if n == 1 {
		return "1 channel"
	}
	return bench.Count(n) + " channels"
}

// costTable says what a payment costs where the load is highest.
func costTable(points []point, flight int) bench.Table {
	last := points[len(points)-1]
	t := bench.Table{Title: fmt.Sprintf("What a payment costs at %s, %s. Of the process, the payers' loop included:", counted(last.channels), traffic(flight)),
		Head: []string{"", "payments a second", "heap objects", "heap bytes", "cores busy"}}
	for _, s := range last.series {
		t.Rows = append(t.Rows, []string{s.Name, s.Rate().String(), bench.Number(s.Allocs), bench.Number(s.Bytes), bench.Number(s.Busy)})
	}
	return t
}

func ratesPlot(points []point, flight int) bench.Plot {
	plot := bench.Plot{Name: fmt.Sprintf("%d-in-flight", flight), Title: "Payments received, " + traffic(flight),
		X: "channels", Y: "payments a second"}
	for i, s := range points[0].series {
		line := bench.Line{Name: s.Name}
		for _, p := range points {
			line.Points = append(line.Points, bench.Point{X: float64(p.channels), Y: p.series[i].Rate()})
		}
		plot.Lines = append(plot.Lines, line)
	}
	return plot
}

// aim is a ratio that was set beforehand, from a number of channels on.
type aim struct {
	against string
	least   float64
	from    int
}

var aims = []aim{
	{unsynced, 1.5, 64},
	{synced, 15, 64},
	{locked, 50, 64},
	{inMemory, 0.7, 1024},
}

// judge holds the aims against the medians: each point counts.
func judge(points []point, flight int) []bench.Aim {
	var judged []bench.Aim
	for _, a := range aims {
		where := traffic(flight)
		text := fmt.Sprintf("at least %gx *%s* from %s on, %s", a.least, a.against, counted(a.from), where)
		if a.from == 1024 {
			text = fmt.Sprintf("at least %gx *%s* at %s, %s", a.least, a.against, counted(a.from), where)
		}
		met, measured := true, []string(nil)
		for _, p := range points {
			if p.channels < a.from {
				continue
			}
			other, _ := p.find(a.against)
			ratio := bench.Ratio(p.series[0], other)
			met = met && ratio.Median >= a.least
			measured = append(measured, ratio.Times())
		}
		if measured == nil {
			judged = append(judged, bench.Aim{Text: text, Result: bench.NotMeasured})
			continue
		}
		judged = append(judged, bench.Judge(text, met, strings.Join(measured, ", ")))
	}
	return judged
}
