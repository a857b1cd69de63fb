package received

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/bench"
)

// gateway is a contender: it takes the vouchers of one channel that wait
// together, and returns when they count.
type gateway interface {
	accept(ctx context.Context, waiting []channel.Voucher) error
	// kept is what the channel's newest voucher is for.
	kept(ctx context.Context, c channel.Terms) (uint64, error)
	close() error
}

// load gives a gateway vouchers: one payer a channel, with so many in flight.
type load struct {
	book   *book
	flight int
	// stream: those in flight reach the gateway together. Otherwise each is a call
	// of its own.
	stream bool
	to     gateway
	done   int // vouchers of each channel that count
}

func (l *load) contender(name string, slow bool) bench.Contender {
	channels := len(l.book.terms)
	c := bench.Contender{Name: name, Step: channels * l.flight, Prepare: l.prepare, Run: l.run}
	if slow { // one after the other, however many wait: one voucher a channel is work enough
		c.Step = channels
	}
	return c
}

func (l *load) prepare(n int) error { return l.book.fill(l.done + n/len(l.book.terms)) }

// run sends n vouchers, as many to each channel, and sees to it that the newest
// of each was kept.
func (l *load) run(ctx context.Context, n int) error {
	each := n / len(l.book.terms)
	callers := l.flight
	if l.stream {
		callers = 1
	}
	failed := make(chan error, len(l.book.terms)*callers)
	var wait sync.WaitGroup
	for c := range l.book.terms {
		send := l.book.vouchers[c][l.done : l.done+each]
		var next atomic.Int64
		for range callers {
			wait.Go(func() { failed <- l.pay(ctx, send, &next) })
		}
	}
	wait.Wait()
	l.done += each
	close(failed)
	for err := range failed {
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *load) pay(ctx context.Context, send []channel.Voucher, next *atomic.Int64) error {
	size := 1
	if l.stream {
		size = l.flight
	}
	for {
		end := int(next.Add(int64(size)))
		if end > len(send) {
			return nil
		}
		if err := l.to.accept(ctx, send[end-size:end]); err != nil {
			return err
		}
	}
}

// check holds what was kept against what was sent, and ends the gateway: a
// contender that drops payments wins nothing.
func (l *load) check(ctx context.Context) error {
	var wrong error
	for _, t := range l.book.terms {
		kept, err := l.to.kept(ctx, t)
		if err == nil && kept != uint64(l.done) {
			err = fmt.Errorf("channel %s: kept a voucher for %d, sent one for %d", t.ID(), kept, l.done)
		}
		if err != nil {
			wrong = err
			break
		}
	}
	return errors.Join(wrong, l.to.close())
}
