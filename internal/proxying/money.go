package proxying

import (
	"cmp"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/gpupay/gpupay/sdk/proxy"
	"github.com/gpupay/gpupay/sdk/renter"
)

// atProviders says what becomes of the money at a provider, for people.
var atProviders = map[string]string{
	string(renter.PhaseOpening):  "on its way there",
	string(renter.PhaseRunning):  "in use",
	string(renter.PhaseDisputed): "it was caught cheating: it is paid no more",
	string(renter.PhaseClosing):  "on its way back",
	string(renter.PhaseLeaving):  "on its way back, without its help",
}

const (
	needsCoin = "The wallet has none of the chain's own coin: from a provider that is gone nothing comes back before it has some."
	layout    = "2006-01-02 15:04 UTC"
)

// parked prints where the money is.
func parked(out io.Writer, m *proxy.MoneyStatus) error {
	if m == nil || !m.Known {
		return unknown(out, m)
	}
	fmt.Fprintf(out, "\nIn the wallet: $%s", m.Wallet)
	if !isNone(m.Promised) {
		fmt.Fprintf(out, ", of which $%s is on its way to providers", m.Promised)
	}
	fmt.Fprintf(out, "\nPaid to providers until now: $%s\nAt providers: $%s", m.Paid, m.Parked)
	if len(m.Providers) == 0 {
		_, err := fmt.Fprintln(out)
		return err
	}
	fmt.Fprintf(out, ", of which $%s is owed to them and $%s comes back: when nobody has asked them for a while, or with gpupay proxy --return\n", m.Owed, m.Refundable)
	if !m.Alone {
		fmt.Fprintln(out, needsCoin)
	}
	fmt.Fprintln(out)
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "provider\twas paid\tholds\tof it owed\tcomes back\tif asked for now, by\t\t\n")
	for _, p := range m.Providers {
		by := "-"
		if !p.Back.IsZero() {
			by = p.Back.UTC().Format(layout)
		} else if !isNone(p.Refundable) {
			by = "with its help"
		}
		fmt.Fprintf(t, "%s\t$%s\t$%s\t$%s\t$%s\t%s\t%s\t\n", p.Provider, p.Paid, p.Parked, p.Owed, p.Refundable, by, cmp.Or(atProviders[p.State], p.State))
	}
	return t.Flush()
}

// unknown says that it is not known where the money is, and who has some.
func unknown(out io.Writer, m *proxy.MoneyStatus) error {
	fmt.Fprintln(out, "\nWhat is in the wallet and at providers is not known now: the chain does not say. Nothing is lost by that; ask again later.")
	if m == nil {
		return nil
	}
	for _, p := range m.Providers {
		fmt.Fprintf(out, "%s holds some: %s\n", p.Provider, cmp.Or(atProviders[p.State], p.State))
	}
	return nil
}

// isNone reports an amount of nothing.
func isNone(dollars string) bool { return dollars == "" || dollars == "0.00" || dollars == "0" }

// without says when money is back that its provider does not help to bring back, for people.
func without(back time.Time) string {
	if back.IsZero() {
		return "once the wallet has some of the chain's own coin"
	}
	return "until about " + back.UTC().Format(layout)
}
