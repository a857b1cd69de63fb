package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/gpupay/gpupay/sdk/budget"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/route"
	"github.com/gpupay/gpupay/sdk/units"
)

// Config says with whose money a Pool rents, and how much of it. Client, File and Budget are needed.
type Config struct {
	// Client signs and pays, within its Caps. Its shared rentals are the pool's; it stays open when the pool is closed.
	Client *renter.Client
	// File is the path of the SQLite file with the reservations, beside the Client's database. It is made if there is none, and one
	// pool has it open.
	File string
	// Budget is a UTC day's, in units of the token.
	Budget string
	// Deposit is what a rental begins with, in units of the token; at least what its provider takes. If empty, the least with which no
	// top-up is due at once.
	Deposit string
	// TopUp is added whenever a deposit runs low; if empty, five minutes of the provider's GPUs.
	TopUp string
	// Idle is after how long without a request a rental is closed; 30 min if zero.
	Idle time.Duration
	// Now says what day it is; time.Now if nil.
	Now func() time.Time
	// Log is slog.Default() if nil.
	Log *slog.Logger
}

// ErrClosed says that a pool is closed, or is closing.
var ErrClosed = errors.New("pool is closed")

// Pool keeps rentals at several providers under one daily budget. It is safe for concurrent use.
type Pool struct {
	client  *renter.Client
	books   *budget.Books
	budget  route.Nano
	deposit string
	topUp   string
	idle    time.Duration
	now     func() time.Time
	log     *slog.Logger
	http    http.RoundTripper

	ctx    context.Context // of all that runs
	cancel context.CancelFunc

	mu         sync.Mutex // may be taken while a site's is held, and not the other way round
	candidates []Candidate
	keys       map[string]route.Nano // nil until they are set
	sites      map[string]*site      // by URL
	closing    bool                  // nothing more is rented
	stopped    bool                  // nothing more is begun
	running    sync.WaitGroup
	looked     time.Time            // at the balance, for requests that found no endpoint
	undone     map[int64]route.Nano // reservations that are over and count at their most still, and what they cost
}

// Open opens the file and takes up the shared rentals of the client: those that run go on being paid, and those that were being closed
// or left go on being that.
func Open(ctx context.Context, c Config) (*Pool, error) {
	p := &Pool{
		client: c.Client, deposit: c.Deposit, topUp: c.TopUp, idle: cmp.Or(c.Idle, 30*time.Minute), now: c.Now, log: c.Log,
		sites: make(map[string]*site), undone: make(map[int64]route.Nano),
	}
	if p.now == nil {
		p.now = time.Now
	}
	if p.log == nil {
		p.log = slog.Default()
	}
	p.log = boundlog.New(p.log, time.Now)
	if c.Client == nil || c.File == "" || c.Idle < 0 {
		return nil, errors.New("pool: a Client and a File are needed, and Idle must not be negative")
	}
	var err error
	if p.budget, err = p.amount("Budget", c.Budget); err != nil {
		return nil, err
	}
	for name, text := range map[string]string{"Deposit": c.Deposit, "TopUp": c.TopUp} {
		if _, err := p.amount(name, cmp.Or(text, "0")); err != nil {
			return nil, err
		}
	}
	p.http = transport(c.Client.Wallet().HTTP)
	if p.books, err = budget.Open(ctx, c.File); err != nil {
		return nil, fmt.Errorf("pool: %w", err)
	}
	p.ctx, p.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := p.resume(ctx); err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	p.begin(p.tend)
	return p, nil
}

// amount reads one of a Config, in units of the token.
func (p *Pool) amount(name, text string) (route.Nano, error) {
	base, err := units.Parse(text, p.client.Token().Decimals)
	if err != nil {
		return route.Nano{}, fmt.Errorf("pool: %s: %w", name, err)
	}
	return route.Amount(base)
}

// transport is that of a client, with room for as many connections to one provider as it may have slots.
func transport(client *http.Client) http.RoundTripper {
	if client != nil && client.Transport != nil {
		return client.Transport
	}
	own, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		return http.DefaultTransport
	}
	own = own.Clone()
	own.MaxIdleConnsPerHost, own.MaxIdleConns = 64, 1024
	return own
}

// begin runs something until the pool stops; false: it has.
func (p *Pool) begin(run func(context.Context)) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return false
	}
	p.running.Go(func() { run(p.ctx) })
	return true
}

// SetKeys replaces the daily budgets of local keys, by their names, in units of the token; empty: the whole budget. From the first call on
// a key that is not among them has nothing: one that was removed spends no more, whatever request of it is on its way.
func (p *Pool) SetKeys(budgets map[string]string) error {
	keys := make(map[string]route.Nano, len(budgets))
	for key, text := range budgets {
		if text == "" {
			keys[key] = p.budget
			continue
		}
		amount, err := p.amount(fmt.Sprintf("budget of key %.64q", key), text)
		if err != nil {
			return err
		}
		keys[key] = amount
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = keys
	return nil
}

// limits are the budgets that a key's reservations must fit.
func (p *Pool) limits(key string) budget.Limits {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := budget.Limits{All: p.budget}
	if own := p.keys[key]; p.keys != nil && key != "" {
		l.Key = &own
	}
	return l
}

// Set replaces what may be asked, and returns before their offers are fetched: each is fetched by itself, and again before it expires.
// A rental at a provider that is no candidate any more ends when it is idle.
func (p *Pool) Set(candidates []Candidate) error {
	if err := check(candidates); err != nil {
		return fmt.Errorf("pool: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing || p.stopped {
		return ErrClosed
	}
	p.candidates = append([]Candidate(nil), candidates...)
	wanted := make(map[string]bool)
	for _, c := range candidates {
		wanted[base(c.URL)] = true
		s := p.site(c.URL)
		if s.forget == nil {
			ctx, cancel := context.WithCancel(p.ctx)
			s.forget = cancel
			p.running.Go(func() { s.watch(ctx) })
		}
	}
	for url, s := range p.sites {
		if !wanted[url] && s.forget != nil {
			s.forget()
			s.forget = nil
		}
	}
	return nil
}

// site is that of a URL, made if there is none. The caller holds mu.
func (p *Pool) site(url string) *site {
	url = base(url)
	s := p.sites[url]
	if s == nil {
		s = &site{p: p, url: url, wake: make(chan struct{}, 1)}
		p.sites[url] = s
	}
	return s
}

// all are the sites of now.
func (p *Pool) all() []*site {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Values(p.sites))
}

// Endpoints are the candidates whose signed offer stands, in their order. The price is that of a rental where one runs: its offer
// binds the provider until it ends.
func (p *Pool) Endpoints() []route.Endpoint {
	p.mu.Lock()
	candidates := p.candidates // replaced, and never changed
	sites := make([]*site, len(candidates))
	for i, c := range candidates {
		sites[i] = p.site(c.URL)
	}
	p.mu.Unlock()
	var all []route.Endpoint
	for i, c := range candidates {
		if t, ok := sites[i].terms(); ok {
			all = append(all, c.endpoint(t))
		}
	}
	return all
}

// Left is what today's budget has left, for a local key as much of its own as the whole has; for the empty one of the whole.
func (p *Pool) Left(key string) (route.Nano, error) {
	ctx, cancel := context.WithTimeout(p.ctx, 10*time.Second)
	defer cancel()
	limits, now := p.limits(key), p.now()
	counted, err := p.books.Counted(ctx, now, "")
	left := limits.All.Sub(counted)
	if err != nil || limits.Key == nil {
		return left, err
	}
	counted, err = p.books.Counted(ctx, now, key)
	if own := limits.Key.Sub(counted); own.Cmp(left) < 0 {
		left = own
	}
	return left, err
}

// Close closes all rentals and waits until what is left of them is refunded, or until ctx ends: its error names then what still has
// money, and the next Open goes on with it. Requests that run are ended.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closing = true
	for _, s := range p.sites {
		if s.forget != nil {
			s.forget()
			s.forget = nil
		}
	}
	p.mu.Unlock()
	for _, s := range p.all() {
		s.end()
	}
	for pause := 20 * time.Millisecond; ctx.Err() == nil && p.ctx.Err() == nil && p.busy(); pause = min(2*pause, time.Second) {
		select {
		case <-ctx.Done():
		case <-p.ctx.Done():
		case <-time.After(pause):
		}
	}
	return errors.Join(p.out(ctx), p.Stop())
}

// busy reports whether a rental is not over.
func (p *Pool) busy() bool {
	for _, s := range p.all() {
		if s.busy() {
			return true
		}
	}
	return false
}

func (p *Pool) isClosing() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closing
}

// out names the rentals that still have money.
func (p *Pool) out(ctx context.Context) error {
	within := ctx.Err()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	rentals, err := p.client.Rentals(ctx)
	var left error
	for _, r := range rentals {
		if r.Share.Shared() && r.Phase != renter.PhaseClosed {
			left = errors.Join(left, fmt.Errorf("pool: channel %s at %s is %s: open the pool again, which goes on with it", r.Channel, r.URL, r.Phase))
		}
	}
	if left == nil {
		return err
	}
	return errors.Join(left, err, within)
}

// Stop ends all that runs and closes the file. Rentals stay as they are, for the next Open to take up.
func (p *Pool) Stop() error {
	p.mu.Lock()
	p.closing, p.stopped = true, true
	p.mu.Unlock()
	p.cancel()
	p.running.Wait()
	return p.books.Close()
}

// tend reads records, closes what is idle, and forgets what is long over.
func (p *Pool) tend(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	pruned := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, s := range p.all() {
			s.tend(ctx)
		}
		p.redo(ctx)
		p.funded(ctx, p.all(), fundedEvery) // others may be asked all the while, and no request finds these missing
		if now := p.now(); budget.Day(now) != pruned {
			if err := p.books.Prune(ctx, now.AddDate(0, 0, -7)); err != nil {
				p.log.Warn("reservations of past days are not forgotten", "err", err)
			}
			pruned = budget.Day(now)
		}
	}
}
