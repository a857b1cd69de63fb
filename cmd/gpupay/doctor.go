package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	urfave "github.com/urfave/cli/v3"

	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/doctor"
)

// checkup looks at what a provider needs.
type checkup struct {
	flags             *cli.Flags
	config            doctor.Config
	price, gpu, nodes string
	serve             *serve // whose other flags are taken
	out               io.Writer
}

const checkupMore = `One line a part: ok, or what is wrong and how to mend it. It takes every flag of 'serve', also from the [serve] table of
the configuration file, says which of them it does not look at, and may run beside it. Nothing is changed and no money moves. What is not
given is not looked at: with the key (or --payee) also the coin, with --public-url or --domain also the certificate and the offer there,
with --upstream also the inference server.

Exit status: 0 all is well, 1 something is to be mended, 64 wrong usage.`

func newCheckup(app *cli.App) *checkup {
	c := &checkup{flags: app.Flags("doctor", "doctor"), out: os.Stdout, serve: newServe(app)}
	f, d := c.flags, &c.config
	f.Table("serve")
	f.Group("Chain and money")
	f.RPC(&d.RPC, "; each is looked at")
	f.Uint64(&d.ChainID, "chain-id", 0, "refuse any other chain")
	f.Address(&d.Escrow, "escrow", "the ChannelEscrow contract")
	f.Address(&d.Token, "token", "the token to be paid in")
	f.Address(&d.Payee, "payee", "the address of the provider's key, where that is not given")
	f.Bool(&d.X402, "x402", "stock x402 clients are to pay, too")
	f.Text(&c.price, "price", "", "price of one GPU for an hour, or of each class, as 'serve' takes it")
	f.Duration(&d.MinGrace, "min-grace", 0, "least grace period of the escrow; 0 for the default, 2h, or 10m on a local chain")
	f.Int(&d.Settlements, "reserved-settlements", 20, "how many settlements the key's coin must pay for")
	f.Address(&d.Payout, "payout", "the cold address")
	f.Group("This host")
	f.Path(&d.Database, "db", "gpupay-provider.db", "`path` of the database, or postgres://user@host/name")
	f.Text(&c.gpu, "gpu", "nvml", "where GPUs come from: nvml, sim, sim:N, or auto")
	f.Text(&c.nodes, "nodes", "", "`NAME=URL,..` of nodes that meter in place of this host, whose GPUs are not looked at then")
	f.Text(&d.Upstream, "upstream", "", "`URL` of the inference server")
	f.Text(&d.PublicURL, "public-url", "", "`URL` at which clients reach the provider")
	f.Key()
	f.Others(c.serve.flags, "domain")
	return c
}

func (c *checkup) command() *urfave.Command {
	return c.flags.Command("say of each thing that a provider needs whether it is well", checkupMore, func(ctx context.Context, _ []string) error {
		if err := c.read(); err != nil {
			return err
		}
		return c.run(ctx)
	})
}

func (c *checkup) read() error {
	d := &c.config
	classes, price, err := classesOf(c.price)
	if err != nil {
		return cli.Usage(err)
	}
	c.serve.domain.Addresses(&c.serve.listen, &d.PublicURL, listenOn)
	d.Prices = make(map[string]string)
	for _, class := range classes {
		d.Prices[class.ID] = class.PricePerGPUHour
	}
	if price != "" {
		d.Prices[""] = price
	}
	if c.nodes == "" {
		d.Open = func() (metering.Source, error) { return cli.Source(c.gpu) }
	}
	if !c.flags.KeyGiven() {
		return nil
	}
	key, err := c.flags.LoadKey()
	if err == nil {
		d.Payee = key.Address()
	}
	return err
}

func (c *checkup) run(ctx context.Context) error {
	findings := doctor.Check(ctx, c.config)
	if ignored := c.flags.Ignored(); len(ignored) > 0 {
		fmt.Fprintf(c.out, "not looked at: %s\n", strings.Join(ignored, ", "))
	}
	bad := 0
	for _, f := range findings {
		fmt.Fprintln(c.out, f)
		if !f.OK() {
			bad++
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case bad > 0:
		return fmt.Errorf("%d of %d parts are to be mended", bad, len(findings))
	case len(findings) == 0:
		return errors.New("nothing was looked at")
	}
	return nil
}
