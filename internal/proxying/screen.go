package proxying

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/gpupay/gpupay/sdk/proxy"
)

// status asks a running proxy what it is at; query may be empty.
func status(ctx context.Context, admin, query string) (s proxy.Status, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+admin+"/healthz"+query, nil)
	if err != nil {
		return s, fmt.Errorf("--admin %.80q is no address such as 127.0.0.1:9420", admin)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return s, fmt.Errorf("no proxy answers at %s: start it with gpupay proxy, or say with --admin where it is", admin)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return s, fmt.Errorf("the proxy at %s does not say what it is at: its log says why", admin)
	}
	return s, json.NewDecoder(io.LimitReader(res.Body, 16<<20)).Decode(&s)
}

// Budget prints what is left of the day's budgets, and where the money is.
func Budget(ctx context.Context, out io.Writer, admin string) error {
	s, err := status(ctx, admin, "?money")
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "budget\ta day\tleft today\t\n")
	fmt.Fprintf(t, "all together\t\t$%s\t\n", s.Left)
	for _, key := range s.Keys {
		daily := "-"
		if key.Budget != "" {
			daily = "$" + key.Budget
		}
		fmt.Fprintf(t, "%s\t%s\t$%s\t\n", key.Name, daily, key.Left)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	return parked(out, s.Money)
}

// Top prints what each provider costs, by its price and by what was measured, anew every two seconds until the context ends, or once.
func Top(ctx context.Context, out io.Writer, admin string, once bool) error {
	for {
		s, err := status(ctx, admin, "")
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		var screen strings.Builder
		if !once {
			screen.WriteString("\x1b[H\x1b[2J")
		}
		table(&screen, s)
		if _, err := io.WriteString(out, screen.String()); err != nil || once {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(2 * time.Second):
		}
	}
}

func table(out io.Writer, s proxy.Status) {
	fmt.Fprintf(out, "left today $%s, %d running\n\n", s.Left, s.Running)
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "provider\tmodel\tregion\t$/hour\t$/hour a request\t$/M tokens\tfirst token\ttokens/s\tsuccess\trequests\tfailed\tfull\tspent\tstate\t\n")
	for _, p := range s.Providers {
		measured, first, rate, success, state := "-", "-", "-", "-", p.State
		if p.PerMillion > 0 {
			measured = fmt.Sprintf("%.3f", p.PerMillion)
		}
		if p.FirstToken > 0 {
			first = fmt.Sprintf("%.2f s", p.FirstToken)
		}
		if p.TokensSecond > 0 {
			rate = fmt.Sprintf("%.0f", p.TokensSecond)
		}
		if p.Requests > p.Full {
			success = fmt.Sprintf("%.0f %%", 100*p.Success)
		} else if p.Requests == 0 && state == "asked" {
			state = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%.2f\t%.4f\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t$%s\t%s\t\n", p.Provider, p.Model, cmp.Or(p.Region, "-"), p.PerHour, p.PerSlotHour, measured, first, rate,
			success, p.Requests, p.Failures, p.Full, p.Spent, state)
	}
	_ = t.Flush()
	if len(s.Providers) == 0 {
		fmt.Fprintln(out, "no provider answers yet")
	}
}
