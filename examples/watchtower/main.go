// Command watchtower looks after channels for others: it keeps the newest
// vouchers that providers send it and settles them when a renter asks to close
// and the provider does not, and it takes renters that have no native coin out
// of their channels. It needs a funded key of its own and nobody else's. Run it
// with --help for its flags, and somewhere else than what it watches over.
package main

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/sdk/tower"
	"github.com/gpupay/gpupay/sdk/units"
)

func main() { cli.Main(run) }

// fields are the flags behind what is configured.
var fields = cli.Fields{
	"RPC": "rpc", "Escrow": "escrow", "ChainID": "chain-id", "Database": "db", "Tokens": "tokens", "Payees": "payees", "Patience": "patience",
	"MinGrace": "min-grace", "Confirmations": "confirmations", "Poll": "poll", "MaxFee": "max-fee", "RelayGas": "relay-gas",
	"SettleGas": "settle-gas", "TrustedProxies": "trusted-proxies",
}

type options struct {
	flags         *cli.Flags
	listen, admin string
	config        tower.Config
}

func run(ctx context.Context) error {
	o, err := parse(os.Args[1:])
	if err != nil {
		return err
	}
	t, err := tower.New(ctx, o.config)
	if err != nil {
		return o.flags.Named(err, fields)
	}
	return errors.Join(serve(ctx, t, o), t.Close())
}

func parse(args []string) (*options, error) {
	o := &options{}
	c := &o.config
	flags := cli.NewFlags("watchtower", "settles vouchers for providers that are gone, and takes renters without native coin out of their channels.\n\nIts key pays the gas and is nobody else's. ", "info")
	o.flags = flags
	flags.Text(&o.listen, "listen", "GPUPAY_LISTEN", "127.0.0.1:8403", "`address` to take vouchers and close requests on; put TLS in front of it")
	flags.Text(&o.admin, "admin", "GPUPAY_ADMIN", "127.0.0.1:9403", "`address` of /metrics and /healthz; empty for none. Do not open it to the world")
	flags.TrustedProxies()
	flags.RPC(&c.RPC, ": http, https, ws or wss; another than the provider's, if it can be")
	flags.MaxFee(&c.MaxFee)
	escrow := flags.Address("escrow", "GPUPAY_ESCROW", "the ChannelEscrow contract")
	flags.Uint64Var(&c.ChainID, "chain-id", 0, "refuse any other chain")
	flags.Text(&c.Database, "db", "GPUPAY_DB", "gpupay-watchtower.db", "`path` of the database: it holds vouchers, which are money")
	var tokens, payees string
	flags.Text(&tokens, "tokens", "GPUPAY_TOKENS", "", "`ADDRESS=LEAST,..`: the tokens whose channels are worth gas, and the least at stake, in units of the token, such as 0x..=0.50")
	flags.Text(&payees, "payees", "GPUPAY_PAYEES", "", "`ADDRESS,..`: whose channels are watched, whatever settling costs; if empty, everybody's within --settle-gas")
	flags.DurationVar(&c.Patience, "patience", 0, "how long after a close request the provider may settle by itself; an eighth of the grace period if 0")
	relay := flags.String("relay-gas", cli.Env("GPUPAY_RELAY_GAS", "0.005,0.05"), "native coin that close requests and withdrawals may cost an hour: `for one payer,for all` ($GPUPAY_RELAY_GAS)")
	settle := flags.String("settle-gas", cli.Env("GPUPAY_SETTLE_GAS", "0.02,0.2"), "native coin that settlements may cost an hour without --payees: `for one payee,for all` ($GPUPAY_SETTLE_GAS)")
	flags.DurationVar(&c.MinGrace, "min-grace", 0, "refuse an escrow with a shorter grace period; 0 for the default, 2h, or 10m on a local chain")
	flags.Uint64Var(&c.Confirmations, "confirmations", 1, "blocks before a deposit counts; 1 is the block it is in")
	flags.DurationVar(&c.Poll, "poll", 2*time.Second, "time between looks at the chain")
	var err error
	if c.Log, err = flags.Load(args); err != nil {
		return nil, err
	}
	c.Escrow = escrow.Address
	c.TrustedProxies = flags.Proxies()
	if err := o.lists(tokens, payees); err != nil {
		return nil, err
	}
	if c.RelayGas, err = budget("relay-gas", *relay); err != nil {
		return nil, err
	}
	if c.SettleGas, err = budget("settle-gas", *settle); err != nil {
		return nil, err
	}
	c.Key, err = flags.Key()
	return o, err
}

// lists reads the flags that are lists.
func (o *options) lists(tokens, payees string) error {
	o.config.Tokens = make(map[common.Address]string)
	for item := range each(tokens) {
		address, least, _ := strings.Cut(item, "=")
		var token cli.Address
		if err := token.Set(address); err != nil || least == "" {
			return fmt.Errorf("--tokens: %q is not an address, = and an amount", item)
		}
		o.config.Tokens[token.Address] = least
	}
	for item := range each(payees) {
		var payee cli.Address
		if err := payee.Set(item); err != nil {
			return fmt.Errorf("--payees: %w", err)
		}
		o.config.Payees = append(o.config.Payees, payee.Address)
	}
	return nil
}

// each yields the items of a list that commas separate.
func each(list string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for item := range strings.SplitSeq(list, ",") {
			if item = strings.TrimSpace(item); item != "" && !yield(item) {
				return
			}
		}
	}
}

// budget reads two amounts of native coin.
func budget(name, text string) (tower.GasBudget, error) {
	one, all, ok := strings.Cut(text, ",")
	var wei [2]*big.Int
	for i, coin := range []string{one, all} {
		amount, err := units.Parse(strings.TrimSpace(coin), 18)
		if err != nil || !ok {
			return tower.GasBudget{}, fmt.Errorf("--%s: %q is not two amounts of native coin such as 0.005,0.05", name, text)
		}
		wei[i] = amount.ToBig()
	}
	return tower.GasBudget{PerParty: wei[0], Total: wei[1]}, nil
}

func serve(ctx context.Context, t *tower.Tower, o *options) error {
	listener, err := cli.Listen("listen", o.listen)
	if err != nil {
		return err
	}
	fmt.Printf("watching escrow %s (grace period %s) at http://%s  (gas is paid by %s)\n", t.Escrow().Address(), t.Escrow().Grace(), listener.Addr(), t.Address())
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- t.Run(ctx) }()
	failed := make(chan error, 2)
	public := &http.Server{Handler: t, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10, IdleTimeout: 2 * time.Minute}
	go func() { failed <- public.Serve(listener) }()
	admin, err := cli.Admin(o.admin, t.Metrics(), t.Health(), failed)
	if err == nil {
		select {
		case err = <-failed:
		case err = <-done:
			done <- nil
		case <-ctx.Done():
		}
	}
	ending, stop := context.WithTimeout(context.Background(), 30*time.Second)
	defer stop()
	err = errors.Join(err, public.Shutdown(ending), admin.Shutdown(ending)) // what is being answered may still send
	cancel()
	return errors.Join(err, <-done)
}
