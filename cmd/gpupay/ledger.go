package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/holiman/uint256"
	urfave "github.com/urfave/cli/v3"

	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/sdk/ledger"
	"github.com/gpupay/gpupay/sdk/units"
)

// accounts writes a database's settlements and leases as CSV.
type accounts struct {
	flags         *cli.Flags
	db, rpc, path string
	from, to      string
	decimals      int
	json          bool
	out, totals   io.Writer
	begins, ends  time.Time
}

const accountsMore = `One line a settlement, a lease, and a transaction that settled nothing and cost gas: UTC time, counterparty, channel,
transaction, lease, GPU-seconds, amount in base units and in units of the token, gas in wei. The settlements of a channel
add up to what the chain says was settled of it; what a watchtower settled, or a provider in a renter's books, has no
transaction. A lease says what its usage records charge: it is not to be added to what was settled. The program that owns
the database may run meanwhile. There is no key, no lease secret and no access in it: it can be handed on.`

func newAccounts(app *cli.App) *accounts {
	a := &accounts{flags: app.Flags("export", "export"), out: os.Stdout, totals: os.Stderr}
	f := a.flags
	f.Group("")
	f.Path(&a.db, "db", "", "a provider's or a renter's database: `path`, or postgres://user@host/name")
	f.Text(&a.rpc, "rpc", "", "`URL` of the chain's JSON-RPC, which says how many decimals a provider's token has; --decimals does without")
	f.Actions("")
	f.Text(&a.from, "from", "", "first `day` (UTC, 2026-01-31), or moment (2026-01-31T12:00:00Z); all if empty")
	f.Text(&a.to, "to", "", "last `day`, or the moment before which; all if empty")
	f.Int(&a.decimals, "decimals", -1, "decimals of the token; a renter's database knows them")
	f.Bool(&a.json, "json", "one JSON object a line instead of CSV")
	f.Text(&a.path, "out", "", "where to write it (`path`); stdout if empty")
	return a
}

func (a *accounts) command() *urfave.Command {
	return a.flags.Command("write settlements and leases as CSV, whose totals are the chain's", accountsMore, func(ctx context.Context, _ []string) error {
		if err := a.read(); err != nil {
			return cli.Usage(err)
		}
		return a.run(ctx)
	})
}

func (a *accounts) read() (err error) {
	if a.db == "" {
		return errors.New("export: --db is empty: give the path of a provider's or a renter's database")
	}
	if a.decimals > 77 || a.decimals < -1 {
		return fmt.Errorf("export: --decimals %d is not 0 to 77", a.decimals)
	}
	if a.begins, _, err = moment("from", a.from); err != nil {
		return err
	}
	day := false
	if a.ends, day, err = moment("to", a.to); day {
		a.ends = a.ends.AddDate(0, 0, 1)
	}
	return err
}

// moment reads a day, or a time; nothing is no bound.
func moment(flag, text string) (at time.Time, day bool, err error) {
	if text == "" {
		return at, false, nil
	}
	if at, err = time.Parse(time.DateOnly, text); err == nil {
		return at, true, nil
	}
	if at, err = time.Parse(time.RFC3339, text); err != nil {
		return at, false, fmt.Errorf("export: --%s %q is no day such as 2026-01-31 and no time such as 2026-01-31T12:00:00Z", flag, text)
	}
	return at, false, nil
}

func (a *accounts) run(ctx context.Context) error {
	all, err := ledger.ReadFile(ctx, a.db)
	if err != nil {
		return err
	}
	books := all.Between(a.begins, a.ends)
	if a.decimals >= 0 {
		books.SetDecimals(uint8(a.decimals))
	}
	if err = books.FindDecimals(ctx, a.rpc); errors.Is(err, ledger.ErrDecimals) {
		return fmt.Errorf("%w: give --rpc ($GPUPAY_RPC), or --decimals", err)
	}
	if err != nil {
		return err
	}
	write := books.WriteCSV
	if a.json {
		write = books.WriteJSON
	}
	if a.path == "" {
		err = write(a.out)
	} else {
		err = toFile(a.path, write)
	}
	if err != nil {
		return err
	}
	sum := books.Totals()
	fmt.Fprintf(a.totals, "%d settlements of %s base units, %d leases of %s GPU-nanoseconds charged %s base units, gas %s ether\n", sum.Settlements, sum.Settled.Dec(),
		sum.Leases, sum.Nanos.String(), sum.Charged.Dec(), units.Format(*uint256.MustFromBig(&sum.Gas), 18))
	return nil
}

func toFile(path string, write func(io.Writer) error) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(write(file), file.Close())
}
