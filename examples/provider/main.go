// Command provider rents out this host's GPUs and is paid for the metered
// time. It is the whole of what a provider needs around sdk.Provider; run it
// with --help for its flags.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/sdk"
)

func main() { cli.Main(run) }

// pastKey is the variable that holds the payee's key from before, as long as it has
// channels that are not closed.
const pastKey = "GPUPAY_PAST_KEY"

// fields are the flags behind what is configured.
var fields = cli.Fields{
	"RPC": "rpc", "Escrow": "escrow", "Token": "token", "Database": "db", "HighWater": "high-water", "PublicURL": "public-url",
	"Retention": "retention", "Archive": "archive", "Takeover": "takeover", "PricePerGPUHour": "price", "MinDeposit": "min-deposit",
	"Credit": "credit", "DebtKept": "debt-kept", "RecordEvery": "record-every", "SuspendTimeout": "suspend-timeout",
	"X402": "x402", "X402.Window": "x402-window", "ChainID": "chain-id", "Confirmations": "confirmations", "Poll": "poll",
	"MinGrace": "min-grace", "MaxFee": "max-fee", "Settlement.Interval": "settle-every", "Settlement.MaxAge": "settle-age",
	"Watchtowers": "watchtowers", "WatchtowerEvery": "watchtower-every", "Nodes": "nodes", "NodeIdentity": "node-identity",
	"MinTransfer": "min-transfer", "ReservedSettlements": "reserved-settlements", "TrustedProxies": "trusted-proxies",
}

type options struct {
	flags              *cli.Flags
	listen, admin, gpu string
	drain              bool
	forgive            cli.Address
	hooks              cli.Hooks
	config             sdk.ProviderConfig
}

func run(ctx context.Context) error {
	o, err := parse(os.Args[1:])
	if err != nil {
		return err
	}
	if len(o.config.Nodes) == 0 {
		source, err := cli.SourceOrAway(o.gpu)
		if err != nil {
			return err
		}
		defer source.Close()
		if o.config.Allocator, err = o.hooks.Allocator(ctx, source); err != nil {
			return err
		}
		o.config.Source = source
	}
	provider, err := sdk.NewProvider(ctx, o.config)
	if err != nil {
		return o.flags.Named(err, fields)
	}
	if err := forgive(ctx, provider, o.forgive.Address); err != nil {
		return errors.Join(err, provider.Close())
	}
	return serve(ctx, provider, o)
}

// forgive has a payer that asked for it begin leases again.
func forgive(ctx context.Context, provider *sdk.Provider, payer common.Address) error {
	if payer == (common.Address{}) {
		return nil
	}
	sum, err := provider.Forgive(ctx, payer)
	if err != nil {
		return fmt.Errorf("--forgive: %w", err)
	}
	fmt.Printf("forgiven to %s: %s base units that it owed on closed channels\n", payer, sum.Dec())
	return nil
}

// given is what flags say that has to be read after all of them are.
type given struct {
	escrow, token           *cli.Address
	free, x402              *bool
	window                  *time.Duration
	towers, nodes, identity *string
	gas                     gasFlags
}

func parse(args []string) (*options, error) {
	o, g := &options{}, &given{}
	flags := cli.NewFlags("provider", "rents out this host's GPUs and is paid for metered time.\n\n", "info")
	o.flags = flags
	registerServing(flags, o)
	registerRecords(flags, &o.config)
	registerOffer(flags, o, g)
	registerChain(flags, &o.config, g)
	registerNodes(flags, g)
	var err error
	if o.config.Log, err = flags.Load(args); err != nil {
		return nil, err
	}
	if err := g.read(flags, &o.config); err != nil {
		return nil, err
	}
	return o, nil
}

// registerServing is where renters come and what serves them.
func registerServing(flags *cli.Flags, o *options) {
	c := &o.config
	flags.Text(&o.listen, "listen", "GPUPAY_LISTEN", "127.0.0.1:8402", "`address` to serve renters on; put TLS in front of it")
	flags.Text(&o.admin, "admin", "GPUPAY_ADMIN", "127.0.0.1:9402", "`address` of /metrics and /healthz; empty for none. Do not open it to the world")
	flags.Text(&o.gpu, "gpu", "GPUPAY_GPU", "nvml", "where GPUs come from: nvml, sim, sim:N, or auto")
	flags.TrustedProxies()
	flags.Text(&c.PublicURL, "public-url", "GPUPAY_PUBLIC_URL", "", "`URL` at which clients reach this provider, such as https://gpus.example.org; what the proxy says if empty")
	flags.BoolVar(&o.drain, "drain", false, "when stopped, end all leases and settle; without it leases go on after a restart")
	o.hooks.Register(flags)
}

// registerRecords is what is kept, where and for how long.
func registerRecords(flags *cli.Flags, c *sdk.ProviderConfig) {
	flags.Text(&c.Database, "db", "GPUPAY_DB", "gpupay-provider.db", "`path` of the database, or postgres://user@host/name for several gateways over one: it holds vouchers, which are money")
	flags.Text(&c.HighWater, "high-water", "GPUPAY_HIGH_WATER", "", "`path` of the file that remembers which records were signed, beside the database and never restored with it; the database's with .signed if empty, in the state directory for PostgreSQL")
	flags.DurationVar(&c.Retention, "retention", 0, "how long usage records are kept in the database after their channel is closed; 0 for ever")
	flags.Text(&c.Archive, "archive", "GPUPAY_ARCHIVE", "", "`directory` that a channel's bundle is written into before its records are deleted")
	flags.DurationVar(&c.Takeover, "takeover", 10*time.Second, "with PostgreSQL: how long this gateway may be silent before others take its leases")
}

// registerOffer is what GPUs are rented out for, on which terms.
func registerOffer(flags *cli.Flags, o *options, g *given) {
	c := &o.config
	flags.Text(&c.PricePerGPUHour, "price", "GPUPAY_PRICE", "2.50", "price of one GPU for an hour, in units of the token")
	g.free = flags.Bool("free", false, "with --price 0: give GPU time away")
	flags.Text(&c.MinDeposit, "min-deposit", "GPUPAY_MIN_DEPOSIT", "", "least deposit, in units of the token; ten minutes' price if empty")
	flags.DurationVar(&c.Credit, "credit", time.Minute, "GPU time served ahead of vouchers, at most")
	flags.DurationVar(&c.DebtKept, "debt-kept", 0, "how long what a payer owes on a closed channel is off its credit; 0 for the default, 24h; negative until --forgive")
	flags.Var(&o.forgive, "forgive", "write off, at the start, what the payer of this `address` owes on closed channels")
	flags.DurationVar(&c.RecordEvery, "record-every", 5*time.Second, "time between usage records")
	flags.DurationVar(&c.SuspendTimeout, "suspend-timeout", 5*time.Minute, "an unpaid lease ends after it")
	g.x402 = flags.Bool("x402", false, "take payments of stock x402 clients too")
	g.window = flags.Duration("x402-window", 0, "GPU time that one of their requests pays for; 0 for the default")
}

// registerChain is where the money is, and how it is fetched.
func registerChain(flags *cli.Flags, c *sdk.ProviderConfig, g *given) {
	flags.RPC(&c.RPC, ": http, https, ws or wss")
	flags.MaxFee(&c.MaxFee)
	g.escrow = flags.Address("escrow", "GPUPAY_ESCROW", "the ChannelEscrow contract")
	g.token = flags.Address("token", "GPUPAY_TOKEN", "the token to be paid in")
	flags.Uint64Var(&c.ChainID, "chain-id", 0, "refuse any other chain")
	flags.Uint64Var(&c.Confirmations, "confirmations", 1, "blocks before a deposit counts; 1 is the block it is in")
	flags.DurationVar(&c.Poll, "poll", 2*time.Second, "time between looks at the chain")
	flags.DurationVar(&c.MinGrace, "min-grace", 0, "refuse an escrow with a shorter grace period: it is the time you have to settle after a close request; 0 for the default, 2h, or 10m on a local chain")
	flags.DurationVar(&c.Settlement.Interval, "settle-every", 0, "how often settlement is considered; 0 for the default")
	flags.DurationVar(&c.Settlement.MaxAge, "settle-age", 0, "settle what has waited that long; 0 for the default")
	g.towers = flags.String("watchtowers", cli.Env("GPUPAY_WATCHTOWERS", ""), "`URLs` of watchtowers that are told the newest vouchers, separated by commas ($GPUPAY_WATCHTOWERS)")
	flags.DurationVar(&c.WatchtowerEvery, "watchtower-every", 0, "how often at most; 0 for the default")
	g.gas = registerGas(flags, c)
}

// registerNodes is who meters in place of this host.
func registerNodes(flags *cli.Flags, g *given) {
	g.nodes = flags.String("nodes", cli.Env("GPUPAY_NODES", ""), "`NAME=URL,..` of nodes that meter in place of this host ($GPUPAY_NODES)")
	g.identity = flags.String("node-identity", cli.Env("GPUPAY_NODE_IDENTITY", ""), "with --nodes: `folder` of this gateway's certificate, that `node --issue` made ($GPUPAY_NODE_IDENTITY)")
}

// read puts what was given into the configuration, and reads the keys.
func (g *given) read(flags *cli.Flags, c *sdk.ProviderConfig) (err error) {
	if err := checkPrice(c.PricePerGPUHour, *g.free); err != nil {
		return err
	}
	if *g.x402 {
		c.X402 = &sdk.X402Config{Window: *g.window}
	}
	c.Escrow, c.Token = g.escrow.Address, g.token.Address
	if c.Nodes, c.NodeIdentity, err = cli.Links(*g.nodes, *g.identity); err != nil {
		return err
	}
	if err := g.gas.budgets(&c.Limits); err != nil {
		return err
	}
	c.TrustedProxies = flags.Proxies()
	c.Watchtowers = strings.FieldsFunc(*g.towers, func(r rune) bool { return r == ',' || r == ' ' })
	if c.Key, err = flags.Key(); err != nil || os.Getenv(pastKey) == "" {
		return err
	}
	past, err := channel.KeyFromEnv(pastKey)
	c.PastKeys = append(c.PastKeys, past)
	return err
}

func serve(ctx context.Context, provider *sdk.Provider, o *options) error {
	listener, err := cli.Listen("listen", o.listen)
	if err != nil {
		return errors.Join(err, provider.Close())
	}
	offer, gpus := provider.Offer(), 0
	for _, kind := range offer.Devices {
		gpus += kind.Count
	}
	fmt.Printf("renting out %d GPU(s) for %s tokens per GPU-hour at http://%s  (escrow %s, payee %s)\n",
		gpus, o.config.PricePerGPUHour, listener.Addr(), offer.Escrow, offer.Payee)
	if offer.Simulated {
		fmt.Println("THE GPUS ARE SIMULATED: nobody should pay real money for them")
	}
	failed := make(chan error, 3)
	go func() { failed <- provider.Run(context.WithoutCancel(ctx)) }() // past the interrupt: draining settles
	public := server(provider)
	go func() { failed <- public.Serve(listener) }()
	admin, err := cli.Admin(o.admin, provider.Metrics(), provider.Health(), failed)
	if err != nil {
		return errors.Join(err, shutdown(provider, o, public))
	}
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	return errors.Join(err, shutdown(provider, o, public, admin))
}

// server is how strangers are served: none of them holds a connection by being
// slow to ask. It has no WriteTimeout, since leases are streams; the provider
// bounds each of its writes. How many connections there may be is for what
// stands in front of it, with TLS.
func server(handler http.Handler) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second, // of a request, not of the stream that answers it
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
	}
}

// shutdown stops metering first, so that streams carry their last record, and
// then the servers.
func shutdown(provider *sdk.Provider, o *options, servers ...*http.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var err error
	if !o.drain {
		fmt.Println("stopping: leases and vouchers are kept, and go on when it is started again with this --db (--drain ends and settles them instead)")
	}
	if o.drain {
		o.config.Log.Info("ending all leases and settling")
		err = provider.Drain(ctx)
	}
	err = errors.Join(err, provider.Close())
	for _, server := range servers {
		err = errors.Join(err, server.Shutdown(ctx))
	}
	return err
}
