package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	urfave "github.com/urfave/cli/v3"

	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/internal/proxying"
	"github.com/gpupay/gpupay/sdk/proxy"
)

// proxyAdmin is where a proxy says what it is at.
const proxyAdmin = "127.0.0.1:9420"

// proxyFields are the flags behind what is configured.
var proxyFields = cli.Fields{"RPC": "rpc", "Token": "token", "Escrow": "escrow", "ChainID": "chain-id", "Poll": "poll", "Caps.PricePerGPUHour": "max-price", "Budget": "budget"}

// local is the OpenAI endpoint of this machine, which pays for itself.
type local struct {
	flags, add, remove, list, top *cli.Flags
	listen, admin, dir, budget    string // the budget is a key's
	once, back                    bool
	models                        []string // of a key
	proxying.Proxying
}

const proxyMore = `Every program that speaks OpenAI's API keeps working: each request goes to the provider where its answer costs least,
and to the next one where that fails before the answer has begun. What fails costs nothing. At the first start a wallet is
made in --dir. docs/proxy.md has the headers, the options of a request, and what errors say.`

func newProxy(app *cli.App) *local {
	l := &local{flags: app.Flags("proxy", "proxy"), add: app.Flags("add", "proxy key add"), remove: app.Flags("remove", "proxy key remove"),
		list: app.Flags("list", "proxy key list"), top: app.Flags("top", "proxy top")}
	f, c := l.flags, &l.Client
	f.Group("What is spent, and with whom")
	f.Text(&l.Budget, "budget", "20/day", "most that is spent in a UTC day, in dollars")
	f.Path(&l.Providers, "providers", "", "`file or URL` with the list of providers: a JSON array of {\"url\", \"model\", ..}. Who writes it says who reads your prompts")
	f.Text(&c.Caps.PricePerGPUHour, "max-price", "5.00", "leave out providers whose GPU-hour costs more, in dollars")
	f.Duration(&l.Idle, "idle", 0, "after how long without requests a provider holds no money of yours; 30m if 0")
	f.Group("Who may ask")
	f.Text(&l.listen, "listen", "127.0.0.1:8420", "`address` for programs; with another than the loopback's a key is needed")
	f.List(&l.Server.Hosts, "host", "`NAME,..`: other names than localhost by which programs call it")
	f.List(&l.Server.Origins, "origin", "`https://..,..`: web pages whose scripts may ask")
	f.Text(&l.admin, "admin", proxyAdmin, "`address` of /metrics and /healthz, for you; empty for none")
	l.dirOf(f)
	f.Group("Chain")
	f.RPC(&c.RPC, "")
	f.Address(&c.Token, "token", "the token to pay in: a stablecoin, whose unit is called a dollar here")
	f.Address(&c.Escrow, "escrow", "the one escrow contract to trust; if empty, any whose code is this project's to the byte")
	f.Uint64(&c.Chain.ID, "chain-id", 0, "refuse an endpoint that serves another chain than this `id`")
	f.Duration(&c.Chain.Poll, "poll", 0, "time between looks at the chain; 2s if 0")
	f.Key()
	f.Log("warn")
	f.Bool(&l.Verbose, "verbose", "say what happens on the chain, too")
	f.Actions("Instead of serving")
	f.Bool(&l.back, "return", "get back into the wallet what providers hold")
	l.add.Text(&l.budget, "budget", "", "most that this key spends in a UTC day, in dollars, such as 5/day; what all have together if empty")
	l.add.List(&l.models, "models", "`MODEL,..`: that it may ask for; all if empty")
	l.add.Args("NAME")
	l.remove.Args("NAME")
	for _, f := range []*cli.Flags{l.add, l.remove, l.list} {
		l.dirOf(f)
	}
	l.add.Path(&l.Providers, "providers", "", "with --models: `file or URL` with the proxy's list of providers, to be told which models nobody in it serves")
	l.top.Text(&l.admin, "admin", proxyAdmin, "`address` that the proxy was given by --admin")
	l.top.Bool(&l.once, "once", "show it once")
	return l
}

func (l *local) dirOf(f *cli.Flags) {
	f.Group("Files")
	f.Table("proxy") // keys are made where the proxy looks for them
	f.Path(&l.dir, "dir", "", "`folder` of the wallet, the keys, the databases and the logs; gpupay/proxy in your configuration's folder if empty")
}

func (l *local) command(app *cli.App) *urfave.Command {
	return l.flags.Command("serve OpenAI's API on this machine, paid for by the request", proxyMore, func(ctx context.Context, _ []string) error {
		if err := l.read(); err != nil {
			return err
		}
		if l.back {
			return l.flags.Named(l.Return(ctx), proxyFields)
		}
		public, admin, err := cli.Listeners(l.listen, l.admin)
		if err != nil {
			return err
		}
		return l.flags.Named(l.Run(ctx, public, admin), proxyFields)
	}, app.Flags("key", "proxy key").Command("who on this machine, or in your team, may ask", "", func(context.Context, []string) error {
		return cli.Usage(errors.New("proxy key: say add, remove or list (--help says more)"))
	},
		l.add.Command("make a key, and print it this once", "", l.onKeys(func(ctx context.Context, k *proxy.Keys, name string) error {
			proxying.SayUnserved(ctx, os.Stderr, l.Providers, l.models)
			return proxying.AddKey(os.Stdout, os.Stderr, k, name, l.budget, l.models)
		})),
		l.remove.Command("take a key away, from its next request on", "", l.onKeys(func(_ context.Context, k *proxy.Keys, name string) error { return k.Remove(name) })),
		l.list.Command("list the keys", "", l.onKeys(func(_ context.Context, k *proxy.Keys, _ string) error { return proxying.List(os.Stdout, k) }))),
		l.top.Command("show what each provider costs and how it does", "", func(ctx context.Context, _ []string) error {
			return proxying.Top(ctx, os.Stdout, l.admin, l.once)
		}))
}

// budgetCommand shows what is left of the day, and where the money is.
func budgetCommand(app *cli.App) *urfave.Command {
	f, admin := app.Flags("budget", "budget"), ""
	f.Text(&admin, "admin", proxyAdmin, "`address` that the proxy was given by --admin")
	return f.Command("show what is left of the proxy's budgets, and where its money is", "", func(ctx context.Context, _ []string) error { return proxying.Budget(ctx, os.Stdout, admin) })
}

func (l *local) read() (err error) {
	if l.Log, err = l.flags.Logger(); err != nil {
		return err
	}
	if l.Providers == "" && !l.back {
		return cli.Usage(errors.New("--providers names no file and no URL with the list of providers"))
	}
	if l.flags.KeyGiven() {
		l.Key, err = l.flags.LoadKey()
	}
	return errors.Join(err, l.folder())
}

func (l *local) folder() error {
	if l.Dir = l.dir; l.Dir != "" {
		return nil
	}
	config, err := os.UserConfigDir()
	l.Dir = filepath.Join(config, "gpupay", "proxy")
	return err
}

// onKeys does something with the file of keys, for a key that the command names, if it names one.
func (l *local) onKeys(do func(ctx context.Context, k *proxy.Keys, name string) error) func(context.Context, []string) error {
	return func(ctx context.Context, args []string) error {
		if err := l.folder(); err != nil {
			return err
		}
		keys, err := proxying.Keys(l.Dir)
		if err != nil {
			return err
		}
		return do(ctx, keys, strings.Join(args, " "))
	}
}
