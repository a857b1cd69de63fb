package renting

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wire"
)

// table shows a running rental: a row that rewrites itself where a person
// watches, a row every ten seconds where nobody does.
type table struct {
	rental *renter.Rental
	units  func(uint256.Int) string
	out    io.Writer
	live   bool
	every  time.Duration // between rows
	access string        // as it was printed last
}

// look is the time between looks at whether the provider has said how the GPUs are reached: they cost from then on.
const look = 250 * time.Millisecond

func newTable(renter *renter.Client, rental *renter.Rental) *table {
	info, err := os.Stdout.Stat()
	decimals := renter.Token().Decimals
	t := &table{rental: rental, units: func(a uint256.Int) string { return units.Format(a, decimals) }, out: os.Stdout, every: 10 * time.Second}
	if err == nil && info.Mode()&os.ModeCharDevice != 0 {
		t.live, t.every = true, look
	}
	return t
}

func (t *table) run(ctx context.Context) {
	fmt.Fprintln(t.out, row("service", "GPU-seconds", "record", "owed", "paid", "deposit", "last record"))
	looks, rows := time.NewTicker(look), time.NewTicker(t.every)
	defer looks.Stop()
	defer rows.Stop()
	for {
		select {
		case <-looks.C:
			t.showAccess()
		case <-rows.C:
			t.show()
		case <-ctx.Done():
			t.show()
			if t.live {
				fmt.Fprintln(t.out)
			}
			return
		}
	}
}

// showAccess prints how the GPUs are reached, when the provider says it, which is when the lease begins, and when that changes.
func (t *table) showAccess() {
	access := string(t.rental.Access())
	if access == t.access {
		return
	}
	t.access = access
	if t.live {
		fmt.Fprint(t.out, "\r\x1b[K")
	}
	fmt.Fprintf(t.out, "access  %s\n", shown(access))
}

// shown is an access as it is printed: without the token by which requests are sent, which is no terminal's and no log's.
func shown(access string) string {
	var shared wire.SharedAccess
	if json.Unmarshal([]byte(access), &shared) == nil && shared.Kind == wire.KindOpenAI {
		return "by requests, whose token is not shown"
	}
	return access
}

func (t *table) show() {
	t.showAccess()
	s := t.rental.Snapshot()
	line := row(or(s.Service, "offline"), fmt.Sprintf("%.1f", time.Duration(s.Nanos).Seconds()), fmt.Sprint(s.Sequence),
		t.units(s.Owed), t.units(s.Paid), t.units(s.Deposit), time.Since(s.Heard).Round(time.Second).String()+" ago")
	if t.live {
		fmt.Fprintf(t.out, "\r\x1b[K%s", line)
		return
	}
	fmt.Fprintln(t.out, line)
}

func row(service string, cells ...string) string {
	line := fmt.Sprintf("%-10s", service)
	for _, cell := range cells {
		line += fmt.Sprintf("%14s", cell)
	}
	return line
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

func report(renter *renter.Client, c renter.Closing) {
	show := func(a uint256.Int) string { return units.Format(a, renter.Token().Decimals) }
	fmt.Printf("closed: deposited %s, owed %s, vouchered %s, settled %s, refunded %s\n",
		show(c.Deposit), show(c.Owed), show(c.Signed), show(c.Settled), show(c.Refunded))
	if c.Note != "" {
		fmt.Println("note:", c.Note)
	}
}

// list shows what is unfinished, also while another process runs on the database.
func list(ctx context.Context, config renter.Config) error {
	open, err := renter.RentalsFile(ctx, config.Database)
	if err != nil {
		return err
	}
	if open = unfinished(open, common.Hash{}); len(open) == 0 {
		fmt.Printf("no unfinished rental in %s\n", redact.Database(config.Database))
		return nil
	}
	backend, err := chain.Dial(ctx, config.RPC)
	if err != nil {
		return err
	}
	token, err := chain.NewToken(ctx, backend, config.Token)
	if err != nil {
		return err
	}
	for _, s := range open {
		fmt.Printf("%s  %-9s  deposit %s  paid %s  %s\n", s.Channel, s.Phase,
			units.Format(s.Deposit, token.Decimals), units.Format(s.Paid, token.Decimals), s.URL)
	}
	return nil
}
