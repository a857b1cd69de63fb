// Command provider rents out this host's GPUs and is paid for the metered
// time. It is the whole of what a provider needs around sdk.Provider; run it
// with --help for its flags.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk"
)

func main() { cli.Main(run) }

type options struct {
	listen, admin, gpu string
	clientHeader       string
	drain              bool
	hooks              hooks
	config             sdk.ProviderConfig
	log                *slog.Logger
}

// hooks are the provider's own commands, split at white space.
type hooks struct{ allocate, suspend, resume, release string }

func run(ctx context.Context) error {
	o, err := parse(os.Args[1:])
	if err != nil {
		return err
	}
	source, err := cli.Source(o.gpu)
	if err != nil {
		return err
	}
	defer source.Close()
	if o.config.Allocator, err = allocator(ctx, source, o.hooks); err != nil {
		return err
	}
	o.config.Source = source
	provider, err := sdk.NewProvider(ctx, o.config)
	if err != nil {
		return err
	}
	return serve(ctx, provider, o)
}

func parse(args []string) (*options, error) {
	o := &options{}
	c := &o.config
	flags := flag.NewFlagSet("provider", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "provider rents out this host's GPUs and is paid for metered time.\n\nWhere a flag names an environment variable, the variable sets its default.")
		flags.PrintDefaults()
	}
	str := func(into *string, name, env, otherwise, usage string) {
		flags.StringVar(into, name, cli.Env(env, otherwise), usage+" ($"+env+")")
	}
	str(&o.listen, "listen", "GPUPAY_LISTEN", "127.0.0.1:8402", "`address` to serve renters on; put TLS in front of it")
	str(&o.admin, "admin", "GPUPAY_ADMIN", "127.0.0.1:9402", "`address` of /metrics and /healthz; empty for none. Do not open it to the world")
	str(&o.gpu, "gpu", "GPUPAY_GPU", "nvml", "where GPUs come from: nvml, sim, sim:N, or auto")
	str(&c.RPC, "rpc", "GPUPAY_RPC", "http://127.0.0.1:8545", "`URL` of the chain's JSON-RPC: http, https, ws or wss")
	escrow := cli.AddressFlag(flags, "escrow", "GPUPAY_ESCROW", "the ChannelEscrow contract")
	token := cli.AddressFlag(flags, "token", "GPUPAY_TOKEN", "the token to be paid in")
	flags.Uint64Var(&c.ChainID, "chain-id", 0, "refuse any other chain")
	str(&c.Database, "db", "GPUPAY_DB", "gpupay-provider.db", "`path` of the database, or postgres://user@host/name for several gateways over one: it holds vouchers, which are money")
	str(&c.PricePerGPUHour, "price", "GPUPAY_PRICE", "2.50", "price of one GPU for an hour, in units of the token")
	str(&c.MinDeposit, "min-deposit", "GPUPAY_MIN_DEPOSIT", "", "least deposit, in units of the token; ten minutes' price if empty")
	flags.DurationVar(&c.Credit, "credit", time.Minute, "GPU time served ahead of vouchers, at most")
	flags.DurationVar(&c.RecordEvery, "record-every", 5*time.Second, "time between usage records")
	flags.DurationVar(&c.SuspendTimeout, "suspend-timeout", 5*time.Minute, "an unpaid lease ends after it")
	flags.DurationVar(&c.Takeover, "takeover", 10*time.Second, "with PostgreSQL: how long this gateway may be silent before others take its leases")
	flags.Uint64Var(&c.Confirmations, "confirmations", 1, "blocks before a deposit counts; 1 is the block it is in")
	flags.DurationVar(&c.Poll, "poll", 2*time.Second, "time between looks at the chain")
	flags.DurationVar(&c.MinGrace, "min-grace", 10*time.Minute, "refuse an escrow with a shorter grace period: it is the time you have to settle after a close request")
	flags.DurationVar(&c.Settlement.Interval, "settle-every", 0, "how often settlement is considered; 0 for the default")
	flags.DurationVar(&c.Settlement.MaxAge, "settle-age", 0, "settle what has waited that long; 0 for the default")
	towers := flags.String("watchtowers", cli.Env("GPUPAY_WATCHTOWERS", ""), "`URLs` of watchtowers that are told the newest vouchers, separated by commas ($GPUPAY_WATCHTOWERS)")
	flags.DurationVar(&c.WatchtowerEvery, "watchtower-every", 0, "how often at most; 0 for the default")
	str(&o.hooks.allocate, "allocate", "GPUPAY_ALLOCATE", "", "`command` that hands a lease its GPUs and prints how to reach them; it gets NVIDIA_VISIBLE_DEVICES and GPUPAY_LEASE")
	str(&o.hooks.suspend, "suspend", "GPUPAY_SUSPEND", "", "`command` that suspends an unpaid lease")
	str(&o.hooks.resume, "resume", "GPUPAY_RESUME", "", "`command` that resumes it")
	str(&o.hooks.release, "release", "GPUPAY_RELEASE", "", "`command` that takes the GPUs back")
	str(&o.clientHeader, "client-header", "GPUPAY_CLIENT_HEADER", "", "`header` in which your proxy says who a request is from, such as X-Real-IP; only one that it overwrites. Without it clients behind a proxy of this host share their limits")
	flags.BoolVar(&o.drain, "drain", false, "when stopped, end all leases and settle; without it leases go on after a restart")
	level := flags.String("log-level", cli.Env("GPUPAY_LOG", "info"), "debug, info, warn or error ($GPUPAY_LOG)")
	format := flags.String("log-format", "text", "text or json")
	var key cli.KeyFlags
	key.Register(flags, "GPUPAY_KEY")
	if err := cli.Parse(flags, args); err != nil {
		return nil, err
	}
	c.Escrow, c.Token = escrow.Address, token.Address
	if o.clientHeader != "" {
		c.Limits.ClientIP = func(r *http.Request) string { return r.Header.Get(o.clientHeader) }
	}
	c.Watchtowers = strings.FieldsFunc(*towers, func(r rune) bool { return r == ',' || r == ' ' })
	var err error
	if o.log, err = cli.Logger(*level, *format); err != nil {
		return nil, err
	}
	c.Log = o.log
	c.Key, err = key.Load()
	return o, err
}

func allocator(ctx context.Context, source metering.Source, h hooks) (*sdk.HostAllocator, error) {
	a, err := sdk.NewHostAllocator(ctx, source)
	if err != nil {
		return nil, err
	}
	a.AllocateCommand = strings.Fields(h.allocate)
	a.SuspendCommand = strings.Fields(h.suspend)
	a.ResumeCommand = strings.Fields(h.resume)
	a.ReleaseCommand = strings.Fields(h.release)
	return a, nil
}

func serve(ctx context.Context, provider *sdk.Provider, o *options) error {
	listener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return errors.Join(fmt.Errorf("--listen: %w", err), provider.Close())
	}
	offer := provider.Offer()
	fmt.Printf("renting out %d GPU(s) for %s tokens per GPU-hour at http://%s  (escrow %s, payee %s)\n",
		len(o.config.Allocator.(*sdk.HostAllocator).Devices), o.config.PricePerGPUHour, listener.Addr(), offer.Escrow, offer.Payee)
	if offer.Simulated {
		fmt.Println("THE GPUS ARE SIMULATED: nobody should pay real money for them")
	}
	failed := make(chan error, 3)
	go func() { failed <- provider.Run(context.WithoutCancel(ctx)) }() // past the interrupt: draining settles
	public := server(provider)
	go func() { failed <- public.Serve(listener) }()
	admin, err := serveAdmin(o.admin, provider, failed)
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

// serveAdmin serves what only the operator should see.
func serveAdmin(address string, provider *sdk.Provider, failed chan<- error) (*http.Server, error) {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", provider.Metrics())
	mux.Handle("GET /healthz", provider.Health())
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	if address == "" {
		return server, nil
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--admin: %w", err)
	}
	fmt.Printf("admin at http://%s (/metrics, /healthz)\n", listener.Addr())
	go func() { failed <- server.Serve(listener) }()
	return server, nil
}

// shutdown stops metering first, so that streams carry their last record, and
// then the servers.
func shutdown(provider *sdk.Provider, o *options, servers ...*http.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var err error
	if o.drain {
		o.log.Info("ending all leases and settling")
		err = provider.Drain(ctx)
	}
	err = errors.Join(err, provider.Close())
	for _, server := range servers {
		err = errors.Join(err, server.Shutdown(ctx))
	}
	return err
}
