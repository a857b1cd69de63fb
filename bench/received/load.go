package received

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/gpupay/gpupay/bench"
	"github.com/gpupay/gpupay/channel"
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

// runner is a contender with its work: load in this process, or fleet in others.
type runner interface {
	contender(name string, slow bool) bench.Contender
	// check holds what was kept against what was sent, and ends the contender.
	check(ctx context.Context) error
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

func (l *load) check(ctx context.Context) error {
	return errors.Join(l.book.check(ctx, l.to, l.done), l.to.close())
}

// check holds what a gateway keeps against the n vouchers of each channel that
// were sent: a contender that drops payments wins nothing.
func (b *book) check(ctx context.Context, to gateway, n int) error {
	for _, t := range b.terms {
		kept, err := to.kept(ctx, t)
		if err == nil && kept != uint64(n) {
			err = fmt.Errorf("channel %s: kept a voucher for %d, sent one for %d", t.ID(), kept, n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
