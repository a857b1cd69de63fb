package tower

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
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

// Feed tells watchtowers a payee's newest vouchers: every so often, and at once
// when it is told to hurry, because a payer wants out. It reads them from the
// store, where they are since they were accepted, so that it holds up nothing and
// a restart needs no memory: what a tower has already, it says. A tower that lost its
// database has all of it again within an hour, and what is closing the next time.
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
	told := make(map[common.Hash]heard)
	pace := chain.Backoff{Least: time.Second, Most: time.Minute}
	for ctx.Err() == nil {
		if err := f.tell(ctx, url, told); err != nil && ctx.Err() == nil {
			wait := pace.Next()
			f.log.Warn("a watchtower does not have the newest vouchers", "watchtower", redact.URL(url), "err", err, "retry", wait)
			_ = chain.Pause(ctx, wait) // the loop sees that ctx ended
			continue
		}
		pace.Reset()
		timer := time.NewTimer(f.every)
		select {
		case <-ctx.Done():
		case <-wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// tell sends one tower what it has not, channels that are closing first.
func (f *Feed) tell(ctx context.Context, url string, told map[common.Hash]heard) error {
	states, err := f.payee.Unsettled(ctx)
	if err != nil {
		return err
	}
	forget(told, states)
	news := slices.DeleteFunc(states, func(s channel.State) bool {
		last := told[s.ID]
		return s.Status != channel.Closing && last.amount == s.Accepted && f.now().Sub(last.at) < tellAnew
	})
	slices.SortStableFunc(news, func(a, b channel.State) int { return cmp.Compare(b.Status, a.Status) })
	var failed error
	for batch := range slices.Chunk(news, maxVouchers) {
		if err := f.push(ctx, url, batch, told); err != nil {
			failed = err
			var down *errLater
			if errors.As(err, &down) {
				return err // the rest would fail likewise
			}
		}
	}
	return failed
}

// forget drops what is settled, so that told does not grow for ever.
func forget(told map[common.Hash]heard, unsettled []channel.State) {
	waiting := make(map[common.Hash]bool, len(unsettled))
	for _, s := range unsettled {
		waiting[s.ID] = true
	}
	for id := range told {
		if !waiting[id] {
			delete(told, id)
		}
	}
}

func (f *Feed) push(ctx context.Context, url string, batch []channel.State, told map[common.Hash]heard) error {
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
	var failed error
	for i, receipt := range answer.Receipts {
		s := batch[i]
		switch p := receipt.Problem; {
		case p == nil:
			told[s.ID] = heard{s.Accepted, f.now()}
		case p.Status >= 500 || p.Status == http.StatusTooManyRequests || p.Status == http.StatusNotFound || p.Status == http.StatusUnprocessableEntity:
			failed = fmt.Errorf("channel %s: %w", s.ID, p) // its chain may be behind ours
		default:
			if told[s.ID].amount == s.Accepted {
				told[s.ID] = heard{s.Accepted, f.now()}
				continue // it was said
			}
			told[s.ID] = heard{s.Accepted, f.now()} // it will not take this one, however often it is asked
			f.log.Warn("a watchtower does not watch a channel", "watchtower", redact.URL(url), "channel", s.ID, "err", p)
		}
	}
	return failed
}
