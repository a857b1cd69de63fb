// Package onchain measures what the contracts cost: receipts from anvil under Osaka rules, the 21,000 of a transaction and
// its calldata included, in the steady state. That is distinct payers, every channel claimed once before, no balance that
// begins or ends at zero, an allowance that is limited unless it says otherwise, and one ERC-20 of Solady's. The calls are
// those that sdk/chain packs for a Settler.
package onchain

import (
	"context"
	"fmt"

	"github.com/gpupay/gpupay/bench"
)

// Section is the contracts' part of the page.
type Section struct{}

// Name is the section's name.
func (Section) Name() string { return "gas" }

// whole is the batch that the aims are about.
const whole = 100

// Measure starts a chain and ends it.
func (Section) Measure(ctx context.Context, s bench.Settings) (bench.Report, error) {
	m := measured{most: max(2, min(whole, s.Most))}
	err := perform(ctx, func(t *stage) {
		r := newRig(t)
		m.ours, m.x402 = r.ours(m.most), r.standIn(m.most)
		m.opens, m.batches = r.trials(ctx, m.most)
	})
	return m.page(), err
}

// measured is all that was.
type measured struct {
	most           int
	ours, x402     Figures
	opens, batches []Trial
}

// peers were measured once, elsewhere, by the same method: anvil's receipts in the steady state. Whether their allowances
// were unlimited was not recorded.
var peers = [][]string{
	{"one-slot sketch, no events, no ERC-1271", "66,100", "47,898", "50,110", "10,657", "10,259", "58,400", "29,760", "45,603"},
	{"one-slot sketch, one event a channel, no ERC-1271", "66,100", "47,898", "50,110", "12,069", "11,670", "58,400", "29,760", "45,603"},
	{"x402 batch-settlement, as it is live", "80,685", "59,717", "48,405 + 45,771", "21,855", "21,343", "115,683", "52,701", "50,089"},
	{"Tempo TIP-1034 reference", "90,384", "52,141", "60,376", "26,008", "25,615", "64,081", "33,648", "44,932"},
	{"MPP v1 stream channel", "157,209", "54,788", "61,071", "29,164", "28,797", "64,483", "31,999", "54,764"},
	{"Sablier Flow 3.0.1", "161,751", "61,176", "88,287", "39,604", "39,082", "-", "-", "99,397"},
	{"Livepeer TicketBroker", "86,306", "44,246", "92,614", "63,594", "63,222", "-", "59,061", "44,460"},
	{"GraphTally + escrow", "124,940", "53,440", "139,298", "87,879", "87,360", "-", "77,544", "49,017"},
}

func gas(n uint64) string { return bench.Count(int(n)) }

func (m measured) page() bench.Report {
	o, x, small := m.ours, m.x402, sizes(m.most)[0]
	rows := append([][]string{
		{"**gpupay**", gas(o.Open), gas(o.TopUp), gas(o.Settle), gas(m.each(o)), gas(o.marginal(small, m.largest())), gas(o.Close), gas(o.RequestClose), gas(o.Withdraw)},
		{"gpupay, allowance unlimited", gas(o.OpenUnlimited), "", "", "", "", "", "", ""},
		{"gpupay, all of the allowance taken", gas(o.OpenAll), "", "", "", "", "", "", ""},
		{"x402 batch-settlement, our stand-in", gas(x.Open), gas(x.TopUp), gas(x.Settle) + " + " + gas(x.Payout), gas(m.each(x)), gas(x.marginal(small, m.largest())), "", "", ""},
	}, peers...)
	return bench.Report{
		Title: "Gas",
		About: []string{"Receipts from anvil (Osaka), calldata and the 21,000 included; distinct payers, every channel claimed once before, one ERC-20 of " +
			"Solady's, allowances limited. The calls are those that a Settler sends. Below the stand-in, figures of others that were measured once, " +
			"elsewhere, by the same method and are not measured again here; whether their allowances were limited was not recorded. The stand-in's deposits carry ERC-3009 authorizations, gpupay's none."},
		Tables: []bench.Table{
			{Title: fmt.Sprintf("Gas. The batch is of %d channels, with its payout:", m.largest()),
				Head: []string{"system", "open + deposit", "top up", "settle 1", "batch, each", "each more", "close", "request close", "withdraw"}, Rows: rows},
			tried("What was tried, for an open with a limited allowance; gas more than it takes:", m.opens),
			tried("What was tried, for a channel in a batch; gas more than it takes:", m.batches),
		},
		Aims:  m.aims(),
		Plots: []bench.Plot{{Name: "batch", Title: "Settling in batches", X: "channels in the batch", Y: "gas a channel", Lines: []bench.Line{m.line("gpupay", o), m.line("x402 stand-in, claim and payout", x)}}},
		Notes: []string{"What was tried is compiled from today's contract, patched, with the project's settings, and sent the same transactions " +
			"by the same people; what is kept is shown by what it would cost to go without. The contract's open looks at the token's balance before and " +
			"after; the sketch's figure is about that of an open that does not, and has no event."},
	}
}

func tried(title string, trials []Trial) bench.Table {
	table := bench.Table{Title: title, Head: []string{"option", "gas", "verdict"}}
	for _, t := range trials {
		table.Rows = append(table.Rows, []string{t.Name, fmt.Sprintf("%+d", t.More), t.Verdict})
	}
	return table
}

func (m measured) largest() int {
	all := sizes(m.most)
	return all[len(all)-1]
}

func (m measured) each(f Figures) uint64 { return f.Batch[m.largest()] / uint64(m.largest()) }

func (m measured) line(name string, f Figures) bench.Line {
	l := bench.Line{Name: name}
	for _, n := range sizes(m.most) {
		l.Points = append(l.Points, bench.Point{X: float64(n), Y: bench.SpreadOf([]float64{float64(f.Batch[n]) / float64(n)})})
	}
	return l
}

func (m measured) aims() []bench.Aim {
	const marginal, better, open = "each channel more in a batch of 100, its event included: at most 12,000 gas", "the same: at most 11,500", "open + deposit: at most 70,000 gas"
	opened := fmt.Sprintf("%s; %s where the allowance is unlimited, %s where all of it is taken, as a Renter gives it",
		gas(m.ours.Open), gas(m.ours.OpenUnlimited), gas(m.ours.OpenAll))
	aims := []bench.Aim{bench.Judge(open, m.ours.Open <= 70_000, opened)}
	if m.most < whole {
		return append(aims, bench.Aim{Text: marginal, Result: bench.NotMeasured}, bench.Aim{Text: better, Result: bench.NotMeasured})
	}
	each := m.ours.marginal(10, whole)
	return append(aims, bench.Judge(marginal, each <= 12_000, gas(each)), bench.Judge(better, each <= 11_500, gas(each)))
}
