package tower

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

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/chain"
)

// defaultEvery is how old the newest voucher may be that a tower has not.
const defaultEvery = 10 * time.Second

// tellAnew is how long a tower is believed to have what it was told: it may have lost
// its database since.
const tellAnew = time.Hour

// heard is what a tower was told of a channel, and when.
type heard struct {
	amount uint256.Int
	at     time.Time
}

// refusal is a channel of which a tower took nothing for now, and when it is told again.
type refusal struct {
	pace    chain.Backoff
	until   time.Time
	closing bool // it was when it was told
}

// listener is what a feed knows of one tower. What it takes nothing of for now waits by
// itself: one channel that its endpoint does not know yet holds up no other.
type listener struct {
	told    map[common.Hash]heard
	refused map[common.Hash]*refusal
}

func newListener() *listener {
	return &listener{told: make(map[common.Hash]heard), refused: make(map[common.Hash]*refusal)}
}

// Feed tells watchtowers a payee's newest vouchers: every so often, and at once
// when it is told to hurry, because a payer wants out. It reads them from the
// store, where they are since they were accepted, so that it holds up nothing and
// a restart needs no memory: what a tower has already, it says. A tower that lost its
// database has all of it again within an hour, and what is closing the next time. Of a
// channel that it does not take now it is told again after a while, and when that begins
// to close; a tower that does not answer, after a while and in a hurry.
type Feed struct {
	urls  []string
	every time.Duration
	payee *channel.Payee
	http  *http.Client
	log   *slog.Logger
	now   func() time.Time
	wakes []chan struct{} // one a tower
}

// NewFeed makes a feed for the watchtowers at these URLs of what the payee holds.
// Every is how old the newest voucher may be that a tower has not, 10 s if zero;
// log is slog.Default() if nil.
func NewFeed(payee *channel.Payee, urls []string, every time.Duration, log *slog.Logger) *Feed {
	f := &Feed{urls: urls, every: cmp.Or(every, defaultEvery), payee: payee, log: cmp.Or(log, slog.Default()), http: &http.Client{Timeout: clientTimeout}, now: time.Now}
	for range urls {
		f.wakes = append(f.wakes, make(chan struct{}, 1))
	}
	return f
}

// Hurry has every tower told now.
func (f *Feed) Hurry() {
	for _, wake := range f.wakes {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

// Run tells until ctx ends, each tower for itself.
func (f *Feed) Run(ctx context.Context) error {
	var towers sync.WaitGroup
	for i, url := range f.urls {
		towers.Go(func() { f.follow(ctx, url, f.wakes[i]) })
	}
	towers.Wait()
	<-ctx.Done()
	return ctx.Err()
}

func (f *Feed) follow(ctx context.Context, url string, wake <-chan struct{}) {
	to := newListener()
	pace := chain.Backoff{Least: time.Second, Most: time.Minute}
	for ctx.Err() == nil {
		err := f.tell(ctx, url, to)
		if ctx.Err() != nil {
			return
		}
		wait := to.next(f.now(), f.every)
		if err == nil {
			pace.Reset()
		} else {
			wait = pace.Next()
			f.log.Warn("a watchtower does not have the newest vouchers", "watchtower", redact.URL(url), "err", err, "retry", wait)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-wake: // also where it did not answer: it may by now, and a grace period runs
		case <-timer.C:
		}
		timer.Stop()
	}
}

// tell sends one tower what it has not, channels that are closing first. An error is the
// tower's, or our store's, and not one channel's.
func (f *Feed) tell(ctx context.Context, url string, to *listener) error {
	states, err := f.payee.Unsettled(ctx)
	if err != nil {
		return err
	}
	to.forget(states)
	now := f.now()
	news := slices.DeleteFunc(states, func(s channel.State) bool { return to.knows(s, now) || to.rests(s, now) })
	slices.SortStableFunc(news, func(a, b channel.State) int { return cmp.Compare(b.Status, a.Status) })
	var failed error
	for batch := range slices.Chunk(news, maxVouchers) {
		if err := f.push(ctx, url, batch, to); err != nil {
			failed = err
			var down *errLater
			if errors.As(err, &down) {
				return err // the rest would fail likewise
			}
		}
	}
	return failed
}

// knows reports whether the tower is believed to have a channel's newest voucher.
func (l *listener) knows(s channel.State, now time.Time) bool {
	last := l.told[s.ID]
	return s.Status != channel.Closing && last.amount == s.Accepted && now.Sub(last.at) < tellAnew
}

// rests reports whether a channel that the tower did not take waits. One that began to close since then does not.
func (l *listener) rests(s channel.State, now time.Time) bool {
	r := l.refused[s.ID]
	return r != nil && now.Before(r.until) && (r.closing || s.Status != channel.Closing)
}

// next is how long to wait until the tower is told of what it refused, and every at most.
func (l *listener) next(now time.Time, every time.Duration) time.Duration {
	wait := every
	for _, r := range l.refused {
		wait = min(wait, max(r.until.Sub(now), minPause))
	}
	return wait
}

// minPause is between two times that a tower is told unhurried: what it refused and is due at about the same time goes together.
const minPause = 500 * time.Millisecond

// take notes that the tower has a channel's voucher, or will never have it.
func (l *listener) take(s channel.State, now time.Time) {
	delete(l.refused, s.ID)
	l.told[s.ID] = heard{s.Accepted, now}
}

// refuse has a channel wait that the tower does not take now; one that is closing no longer than every.
func (l *listener) refuse(s channel.State, now time.Time, every time.Duration) time.Duration {
	r := l.refused[s.ID]
	closing := s.Status == channel.Closing
	if r == nil || r.closing != closing {
		r = &refusal{pace: chain.Backoff{Least: time.Second, Most: time.Minute}, closing: closing}
		l.refused[s.ID] = r
	}
	wait := r.pace.Next()
	if closing {
		wait = min(wait, max(every, time.Second))
	}
	r.until = now.Add(wait)
	return wait
}

// forget drops what is settled, so that nothing here grows for ever.
func (l *listener) forget(unsettled []channel.State) {
	waiting := make(map[common.Hash]bool, len(unsettled))
	for _, s := range unsettled {
		waiting[s.ID] = true
	}
	maps.DeleteFunc(l.told, func(id common.Hash, _ heard) bool { return !waiting[id] })
	maps.DeleteFunc(l.refused, func(id common.Hash, _ *refusal) bool { return !waiting[id] })
}

func (f *Feed) push(ctx context.Context, url string, batch []channel.State, to *listener) error {
	var body Vouchers
	for _, s := range batch {
		body.Vouchers = append(body.Vouchers, NewVoucher(s))
	}
	var answer Receipts
	if err := post(ctx, f.http, url, "/vouchers", body, &answer); err != nil {
		return err
	}
	if len(answer.Receipts) != len(batch) {
		return &errLater{url, fmt.Errorf("%d receipts for %d vouchers", len(answer.Receipts), len(batch))}
	}
	refused, now := 0, f.now()
	for i, receipt := range answer.Receipts {
		s := batch[i]
		switch p := receipt.Problem; {
		case p == nil:
			to.take(s, now)
		case p.Status >= 500 || p.Status == http.StatusTooManyRequests || p.Status == http.StatusNotFound || p.Status == http.StatusUnprocessableEntity:
			wait := to.refuse(s, now, f.every) // its chain may be behind ours
			if refused++; refused == 1 {       // a tower whose endpoint is away refuses many
				f.log.Warn("a watchtower does not have a channel's newest voucher", "watchtower", redact.URL(url), "channel", s.ID, "err", p, "retry", wait)
			}
		default:
			said := to.told[s.ID].amount == s.Accepted
			to.take(s, now) // it will not take this one, however often it is asked
			if !said {
				f.log.Warn("a watchtower does not watch a channel", "watchtower", redact.URL(url), "channel", s.ID, "err", p)
			}
		}
	}
	if refused > 1 {
		f.log.Warn("a watchtower does not have the newest vouchers of several channels: they are told again", "watchtower", redact.URL(url), "channels", refused)
	}
	return nil
}
