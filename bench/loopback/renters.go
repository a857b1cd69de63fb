package loopback

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/bench/gateway"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/wire"
)

// way is how renters pay.
type way interface {
	// attach readies a renter before anything is measured.
	attach(ctx context.Context, r *renter) error
	// ready makes ready what a renter sends in the next round; it is not timed.
	ready(r *renter, all []channel.Voucher) error
	// pay has all of it paid for, and notes how long each voucher waited for its receipt.
	pay(ctx context.Context, r *renter) error
	detach(r *renter) error
}

// renter is one lease's, and the state that its way of paying keeps.
type renter struct {
	number int
	world  *gateway.World
	signed uint64 // the newest voucher's amount
	waits  []time.Duration

	conn     *websocket.Conn
	vouchers []channel.Voucher
	headers  []string
	sent     []time.Time
}

// crowd is the renters of one contender and the gateway that they pay.
type crowd struct {
	name    string
	way     way
	gateway *gateway.Process
	renters []*renter
	work    tally
}

// tally is what the gateway's processor did in the rounds of a crowd.
type tally struct {
	processor, wall time.Duration
	payments        int
}

// each does something for all renters at once.
func (c *crowd) each(do func(*renter) error) error {
	failed := make(chan error, len(c.renters))
	var wait sync.WaitGroup
	for _, r := range c.renters {
		wait.Go(func() { failed <- do(r) })
	}
	wait.Wait()
	close(failed)
	for err := range failed {
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// prepare signs the next n vouchers, as many of each renter.
func (c *crowd) prepare(ctx context.Context, n int) error {
	return c.each(func(r *renter) error {
		all := make([]channel.Voucher, n/len(c.renters))
		for i := range all {
			r.signed++
			var err error
			if all[i], err = r.world.Domain.Sign(ctx, r.world.Payer, r.world.IDs[r.number], *uint256.NewInt(r.signed)); err != nil {
				return err
			}
		}
		return c.way.ready(r, all)
	})
}

func (c *crowd) run(ctx context.Context, n int) error {
	before, err := c.gateway.Processor()
	if err != nil {
		return err
	}
	begun := time.Now()
	if err := c.each(func(r *renter) error { return c.way.pay(ctx, r) }); err != nil {
		return err
	}
	after, err := c.gateway.Processor()
	c.work.wall += time.Since(begun)
	c.work.processor += after - before
	c.work.payments += n
	return err
}

// forget drops what was noted so far: it was to warm up.
func (c *crowd) forget() {
	c.work = tally{}
	for _, r := range c.renters {
		r.waits = r.waits[:0]
	}
}

func (c *crowd) waits() []time.Duration {
	var all []time.Duration
	for _, r := range c.renters {
		all = append(all, r.waits...)
	}
	return all
}

// lockstep is a request a voucher, HTTP/1 with JSON, each after the answer to the one before.
type lockstep struct {
	gateway   *gateway.Process
	client    *http.Client
	challenge wire.Challenge // good for longer than the rounds take
}

func newLockstep(ctx context.Context, g *gateway.Process, renters int) (*lockstep, error) {
	challenge, err := g.Challenge(ctx)
	transport := &http.Transport{MaxIdleConnsPerHost: renters, MaxIdleConns: renters}
	return &lockstep{gateway: g, client: &http.Client{Transport: transport}, challenge: challenge}, err
}

func (l *lockstep) attach(context.Context, *renter) error { return nil }

func (l *lockstep) ready(r *renter, all []channel.Voucher) error {
	r.headers = r.headers[:0]
	for _, v := range all {
		amount := wire.NewAmount(v.Cumulative)
		header, err := wire.Credential{Challenge: l.challenge, Payload: wire.Payload{Action: wire.ActionVoucher, ChannelID: v.ChannelID,
			CumulativeAmount: &amount, Signature: v.Signature}}.Header()
		if err != nil {
			return err
		}
		r.headers = append(r.headers, header)
	}
	r.vouchers = all
	return nil
}

func (l *lockstep) pay(ctx context.Context, r *renter) error {
	for i, header := range r.headers {
		begun := time.Now()
		accepted, err := l.gateway.Post(ctx, l.client, header)
		if err == nil && accepted != r.vouchers[i].Cumulative {
			err = fmt.Errorf("channel %s: a receipt for %s of %s", r.vouchers[i].ChannelID, accepted.Dec(), r.vouchers[i].Cumulative.Dec())
		}
		if err != nil {
			return err
		}
		r.waits = append(r.waits, time.Since(begun))
	}
	return nil
}

func (l *lockstep) detach(*renter) error {
	l.client.CloseIdleConnections()
	return nil
}

// streamed is the duplex stream, with so many vouchers in flight.
type streamed struct {
	gateway *gateway.Process
	flight  int
}

func (s *streamed) attach(ctx context.Context, r *renter) error {
	challenge, err := s.gateway.Challenge(ctx)
	if err != nil {
		return err
	}
	header, err := r.world.Credential(ctx, challenge, r.number, 0, true)
	if err != nil {
		return err
	}
	conn, resp, err := websocket.Dial(ctx, s.gateway.URL+"/lease", &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {header}}})
	if err != nil && resp != nil {
		return errors.Join(err, wire.ParseProblem(resp))
	}
	if err != nil {
		return err
	}
	conn.SetReadLimit(wire.MaxEvent)
	r.conn = conn
	return nil
}

func (s *streamed) ready(r *renter, all []channel.Voucher) error {
	r.vouchers = all
	return nil
}

// pay keeps as many vouchers on their way as may be; those that may go now go in one message.
func (s *streamed) pay(ctx context.Context, r *renter) error {
	r.sent = r.sent[:0]
	var message []byte
	for paid := 0; paid < len(r.vouchers); {
		var err error
		message = message[:0]
		for len(r.sent) < min(paid+s.flight, len(r.vouchers)) {
			if message, err = wire.AppendVoucher(message, r.vouchers[len(r.sent)]); err != nil {
				return err
			}
			r.sent = append(r.sent, time.Now())
		}
		if len(message) > 0 {
			if err := r.conn.Write(ctx, websocket.MessageBinary, message); err != nil {
				return err
			}
		}
		kind, answer, err := r.conn.Read(ctx)
		if err != nil {
			return err
		}
		if kind != websocket.MessageBinary {
			continue // a usage record, say
		}
		accepted, err := wire.ParseReceiptMessage(answer)
		if err != nil {
			return err
		}
		for now := time.Now(); paid < len(r.sent) && !r.vouchers[paid].Cumulative.Gt(&accepted); paid++ {
			r.waits = append(r.waits, now.Sub(r.sent[paid]))
		}
	}
	return nil
}

func (s *streamed) detach(r *renter) error {
	if r.conn == nil {
		return nil
	}
	return r.conn.CloseNow()
}
