package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"
	urfave "github.com/urfave/cli/v3"

	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/sdk/service"
	"github.com/gpupay/gpupay/sdk/tower"
)

// towerFields are the flags behind what is configured.
var towerFields = cli.Fields{
	"RPC": "rpc", "Escrow": "escrow", "ChainID": "chain-id", "Database": "db", "Tokens": "tokens", "Payees": "payees", "Patience": "patience",
	"MinGrace": "min-grace", "Confirmations": "confirmations", "Poll": "poll", "MaxFee": "max-fee", "RelayGas": "relay-gas",
	"SettleGas": "settle-gas", "TrustedProxies": "trusted-proxies",
}

// watch is a watchtower.
type watch struct {
	flags          *cli.Flags
	listen, admin  string
	tokens, payees []string
	config         tower.Config
}

const towerMore = `It keeps the newest vouchers that providers send it and settles them when a renter asks to close and the provider does
not, and it takes renters that have no native coin out of their channels. Run it somewhere else than what it watches
over, on a key of its own, which pays the gas: docs/watchtower.md.`

func newTower(app *cli.App) *watch {
	w := &watch{flags: app.Flags("tower", "watchtower")}
	c, f := &w.config, w.flags

	f.Group("For whom, and at which cost")
	f.List(&w.tokens, "tokens", "`ADDRESS=LEAST,..`: the tokens whose channels are worth gas, and the least at stake, in units of the token, such as 0x..=0.50")
	f.List(&w.payees, "payees", "`ADDRESS,..`: whose channels are watched, whatever settling costs; if empty, everybody's within --settle-gas")
	f.Duration(&c.Patience, "patience", 0, "how long after a close request the provider may settle by itself; an eighth of the grace period if 0")
	f.Coins(&c.RelayGas.PerParty, &c.RelayGas.Total, "relay-gas", "0.005,0.05", "native coin that close requests and withdrawals may cost an hour: `for one payer,for all`")
	f.Coins(&c.SettleGas.PerParty, &c.SettleGas.Total, "settle-gas", "0.02,0.2", "native coin that settlements may cost an hour without --payees: `for one payee,for all`")

	f.Group("Vouchers and requests come here")
	f.Text(&w.listen, "listen", "127.0.0.1:8403", "`address` to take vouchers and close requests on; put TLS in front of it")
	f.TrustedProxies(&c.TrustedProxies)
	f.Text(&w.admin, "admin", "127.0.0.1:9403", "`address` of /metrics and /healthz; empty for none. Do not open it to the world")

	f.Group("Chain and database")
	f.RPC(&c.RPC, ": http, https, ws or wss; another than the provider's, if it can be")
	f.MaxFee(&c.Chain.MaxFee)
	f.Address(&c.Escrow, "escrow", "the ChannelEscrow contract")
	f.Uint64(&c.Chain.ID, "chain-id", 0, "refuse any other chain")
	f.Duration(&c.Chain.MinGrace, "min-grace", 0, "refuse an escrow with a shorter grace period; 0 for the default, 2h, or 10m on a local chain")
	f.Uint64(&c.Chain.Confirmations, "confirmations", 1, "blocks before a deposit counts; 1 is the block it is in")
	f.Duration(&c.Chain.Poll, "poll", 2*time.Second, "time between looks at the chain")
	f.Path(&c.Database, "db", "gpupay-watchtower.db", "`path` of the database: it holds vouchers, which are money")

	f.Key()
	f.Log("info")
	return w
}

func (w *watch) command() *urfave.Command {
	return w.flags.Command("settle for providers that are gone, and relay for renters without coin", towerMore, func(ctx context.Context, _ []string) error {
		if err := w.read(); err != nil {
			return err
		}
		t, err := tower.New(ctx, w.config)
		if err != nil {
			return w.flags.Named(err, towerFields)
		}
		return errors.Join(w.serve(ctx, t), t.Close())
	})
}

func (w *watch) read() (err error) {
	if w.config.Log, err = w.flags.Logger(); err != nil {
		return err
	}
	w.config.Tokens = make(map[common.Address]string)
	for _, item := range w.tokens {
		address, least, _ := strings.Cut(item, "=")
		token, err := cli.Address(address)
		if err != nil || least == "" {
			return cli.Usage(fmt.Errorf("--tokens: %q is not an address, = and an amount", item))
		}
		w.config.Tokens[token] = least
	}
	for _, item := range w.payees {
		payee, err := cli.Address(item)
		if err != nil {
			return cli.Usage(fmt.Errorf("--payees: %q is not %w", item, err))
		}
		w.config.Payees = append(w.config.Payees, payee)
	}
	w.config.Key, err = w.flags.LoadKey()
	return err
}

func (w *watch) serve(ctx context.Context, t *tower.Tower) error {
	public, admin, err := cli.Listeners(w.listen, w.admin)
	if err != nil {
		return err
	}
	fmt.Printf("watching escrow %s (grace period %s) at http://%s  (gas is paid by %s)\n", t.Escrow().Address(), t.Escrow().Grace(), public.Addr(), t.Address())
	cli.SayAdmin(admin)
	return service.Serve(ctx, service.Service{Handler: t, Metrics: t.Metrics(), Health: t.Health(), Run: t.Run}, public, admin)
}
