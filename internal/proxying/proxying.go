// Package proxying is what the local proxy's program does: it finds or makes a wallet, opens the pool that pays, follows the list of
// providers, and serves OpenAI's API on this machine. What it prints is for people who know dollars and nothing of chains.
package proxying

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/pool"
	"github.com/gpupay/gpupay/sdk/proxy"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/service"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// Proxying is what is served, with whose money.
type Proxying struct {
	Dir       string        // of the wallet, the databases, the local keys and the logs
	Key       *channel.Key  // of the payer; one in Dir, which is made at the first start, if nil
	Budget    string        // of a UTC day, in dollars; "20/day" is "20"
	Providers string        // a file or URL with the list of them
	Client    renter.Config // how the chain is reached; Key, Database and the caps but the price are set here
	Idle      time.Duration // after which a provider that nobody asks holds no money; the pool's default if zero
	Server    proxy.Config  // Pool, Keys, Decimals and the logs are set here
	Verbose   bool          // say on standard error what happens behind the dollars
	Log       *slog.Logger  // of Verbose
	Out       io.Writer     // what people read; standard output if nil
}

// listEvery is how long a list of providers is taken to be the same.
const listEvery = time.Minute

// opened is what of it is open.
type opened struct {
	client *renter.Client
	pool   *pool.Pool
	server *proxy.Server
	keys   *proxy.Keys
	source pool.Source
	files  []*os.File
}

// Run serves on two listeners until the context ends: callers on the first, who runs it on the second, which may be nil. What is held at
// providers stays there for the next start.
func (p *Proxying) Run(ctx context.Context, public, admin net.Listener) error {
	if tcp, ok := public.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() && !keysIn(p.Dir) {
		return errors.Join(errors.New("--listen: others than this machine's programs would spend the budget: make a key first, with: gpupay proxy key add NAME"), public.Close(), closed(admin))
	}
	o, err := p.open(ctx)
	if err != nil {
		return errors.Join(p.plain(err), public.Close(), closed(admin))
	}
	purse, err := p.purse(ctx, o)
	if err != nil {
		return errors.Join(p.plain(err), o.close(), public.Close(), closed(admin))
	}
	p.greet(ctx, o, purse, public, admin)
	err = service.Serve(ctx, service.Service{
		Handler: o.server, Metrics: o.server.Metrics(), Health: o.server.StatusHandler(),
		Pages: map[string]http.Handler{"GET " + walletPage: o.server.Guard(http.StripPrefix(strings.TrimSuffix(walletPage, "/"), purse.Handler()))},
		Run:   func(ctx context.Context) error { return p.follow(ctx, o) }, Stop: func(context.Context) error { return p.sayStopping(o) },
	}, public, admin)
	return p.plain(errors.Join(err, o.close()))
}

// sayStopping says what is waited for, so that nobody takes it for a program that hangs.
func (p *Proxying) sayStopping(o *opened) error {
	if s, err := o.server.Status(); err == nil && s.Running > 0 {
		fmt.Fprintf(p.Out, "stopping: %d answer(s) are still being sent, for %s at most; interrupt again to cut them off\n", s.Running, service.StopTimeout)
	}
	return nil
}

func closed(l net.Listener) error {
	if l == nil {
		return nil
	}
	return l.Close()
}

// Return closes what is held at providers and waits until it is back in the wallet, or until the context ends: the next start goes on then.
func (p *Proxying) Return(ctx context.Context) error {
	o, err := p.open(ctx)
	if err != nil {
		return p.plain(err)
	}
	p.sayHeld(ctx, o)
	if err := o.pool.Close(ctx); err != nil {
		if ctx.Err() != nil {
			return errors.Join(errStopped, o.close())
		}
		return p.plain(errors.Join(err, o.close()))
	}
	fmt.Fprintln(p.Out, "What providers held is back in the wallet.")
	return p.plain(o.close())
}

var errStopped = errors.New("stopped before all was back in the wallet: nothing is lost, and it goes on when gpupay proxy is started again, with or without --return")

// sayHeld says how much is on its way back, from whom, and for how long that may take.
func (p *Proxying) sayHeld(ctx context.Context, o *opened) {
	m, err := o.pool.Money(ctx)
	if err != nil {
		fmt.Fprintln(p.Out, "How much providers hold is not known now.")
		return
	}
	for _, c := range m.Channels {
		if !c.Refundable.IsZero() {
			fmt.Fprintf(p.Out, "$%s comes back from %s: in moments with its help, and without it %s.\n",
				units.Format(c.Refundable, o.client.Token().Decimals), redact.URL(c.URL), without(c.From))
		}
	}
	if !m.Refundable.IsZero() {
		fmt.Fprintln(p.Out, "Keep this running until then. If you interrupt it, it goes on when gpupay proxy is started again.")
	}
}

// open opens all that pays and serves.
func (p *Proxying) open(ctx context.Context) (_ *opened, failed error) {
	o := new(opened)
	if p.Out == nil {
		p.Out = os.Stdout
	}
	defer func() {
		if failed != nil {
			failed = errors.Join(failed, o.close())
		}
	}()
	list, err := p.begin(ctx, o)
	if err != nil {
		return nil, err
	}
	if p.Client.Token == (common.Address{}) {
		return nil, errors.New("--token is empty: it names the dollars to pay in (on a chain that devchain runs: `. ./devchain.env` says it)")
	}
	money, requests, err := p.logs(o)
	if err != nil {
		return nil, err
	}
	if p.Key == nil {
		if p.Key, err = Wallet(p.Dir, p.Out); err != nil {
			return nil, err
		}
	}
	if err := p.connect(ctx, o, list, money); err != nil {
		return nil, err
	}
	if o.keys, err = proxy.OpenKeys(KeysFile(p.Dir), func(keys []proxy.Key) error { return budgets(o.pool, keys) }); err != nil {
		return nil, err
	}
	s := p.Server
	s.Pool, s.Keys, s.Requests, s.Log, s.Decimals = proxy.FromPool(o.pool), o.keys, requests, p.own(money), o.client.Token().Decimals
	o.server, err = proxy.New(s)
	return o, err
}

// begin checks what was said, before a wallet is made for it, and reads the list of providers.
func (p *Proxying) begin(ctx context.Context, o *opened) ([]pool.Candidate, error) {
	if _, err := units.Parse(p.daily(), 18); err != nil {
		return nil, fmt.Errorf("--budget %.40q is not an amount of dollars a day, such as 20/day", p.Budget)
	}
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("--dir: %w", err)
	}
	if p.Providers == "" { // to get money back none is needed
		return nil, nil
	}
	o.source = source(p.Providers)
	list, err := o.source.Candidates(ctx)
	if err != nil {
		return nil, fmt.Errorf("--providers: %w", err)
	}
	return list, nil
}

// source is where a list of providers is, by the name of a file or a URL.
func source(name string) pool.Source {
	if strings.HasPrefix(name, "https://") || strings.HasPrefix(name, "http://") {
		return pool.URL{Address: name}
	}
	return pool.File(name)
}

// daily is the budget in dollars.
func (p *Proxying) daily() string { return strings.TrimSuffix(p.Budget, "/day") }

// connect opens the payer's client and its pool.
func (p *Proxying) connect(ctx context.Context, o *opened, list []pool.Candidate, money *slog.Logger) error {
	c := p.Client
	c.Key, c.Database, c.Log = p.Key, filepath.Join(p.Dir, "payments.db"), money
	// The caps stand behind the budget, before the key. What lies at providers and comes back counts there too, so that they are no tighter
	// than the pool's reservations need: the budget is what is spent.
	c.Caps.PerLease, c.Caps.PerDay, c.Caps.PerPayee = wallet.Unlimited, wallet.Unlimited, wallet.Unlimited
	if most, err := ceiling(p.daily()); err == nil {
		c.Caps.PerLease, c.Caps.PerDay = most, most
	}
	var err error
	if o.client, err = renter.New(ctx, c); err != nil {
		return err
	}
	if o.pool, err = pool.Open(ctx, pool.Config{Client: o.client, File: filepath.Join(p.Dir, "budget.db"), Budget: p.daily(), Idle: p.Idle, Log: money}); err != nil {
		return err
	}
	return o.pool.Set(list)
}

// deposits is how many times the budget may lie at providers besides, on its way back.
const deposits = 2

// ceiling is the most that the wallet's key signs for in a day, spent or lying at providers.
func ceiling(daily string) (string, error) {
	amount, err := units.Parse(daily, 18)
	if err != nil {
		return "", err
	}
	amount.Mul(&amount, uint256.NewInt(1+deposits))
	text := units.Format(amount, 18)
	if _, err := units.Parse(text, 6); err != nil {
		return "", err
	}
	return text, nil
}

// budgets has the pool hold local keys to their budgets, before any of them is let in.
func budgets(p *pool.Pool, keys []proxy.Key) error {
	all := make(map[string]string)
	for _, key := range keys {
		all[key.Name] = key.Budget
	}
	return p.SetKeys(all)
}

// follow keeps the list of providers current.
func (p *Proxying) follow(ctx context.Context, o *opened) error {
	ticker := time.NewTicker(listEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		list, err := o.source.Candidates(ctx)
		if err == nil {
			err = o.pool.Set(list)
		}
		if err != nil && ctx.Err() == nil {
			p.own(nil).Warn("the list of providers was not read: the one before it stays", "from", redact.Database(p.Providers), "err", err)
		}
	}
}

func (o *opened) close() error {
	var err error
	if o.pool != nil {
		err = o.pool.Stop()
	}
	if o.client != nil {
		err = errors.Join(err, o.client.Close())
	}
	for _, f := range o.files {
		err = errors.Join(err, f.Close())
	}
	return err
}
