package transport

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/bench"
	"github.com/gpupay/gpupay/channel"
)

// Section compares what the duplex stream could be made of.
type Section struct{}

// Name is the section's name.
func (Section) Name() string { return "transport" }

const (
	renters  = 64
	inFlight = 8
)

const about = "What a voucher costs on its way, without anybody looking at it: 64 renters, a connection each, send eight vouchers " +
	"in a message and wait for the receipt of the newest; renters and provider are one process. It is why the duplex stream is a WebSocket " +
	"with vouchers in binary (see [protocol.md](protocol.md)). HTTP/2 is without TLS here, and reaches a provider behind fewer proxies."

// Measure runs the transports and forms side by side.
func (s Section) Measure(ctx context.Context, set bench.Settings) (bench.Report, error) {
	r := bench.Report{Title: "The stream's transport", About: []string{about}}
	set.Log("transport: %d renters", renters)
	url, stop, err := serve()
	if err != nil {
		return r, err
	}
	defer stop()
	crowds := []*crowd{
		{name: "WebSocket, binary", form: packed{}, dial: func() (pipe, error) { return dialSocket(ctx, url, "packed") }},
		{name: "WebSocket, JSON", form: text{}, dial: func() (pipe, error) { return dialSocket(ctx, url, "text") }},
		{name: "HTTP/2, binary", form: packed{}, dial: func() (pipe, error) { return dialBody(ctx, url, "packed") }},
		{name: "HTTP/2, JSON", form: text{}, dial: func() (pipe, error) { return dialBody(ctx, url, "text") }},
	}
	var contenders []bench.Contender
	for _, c := range crowds {
		if err := c.connect(); err != nil {
			return r, fmt.Errorf("%s: %w", c.name, err)
		}
		contenders = append(contenders, bench.Contender{Name: c.name, Step: renters * inFlight, Prepare: func(int) error { return nil }, Run: c.run})
	}
	series, err := bench.Interleave(ctx, set, contenders)
	for _, c := range crowds {
		err = errors.Join(err, c.close())
	}
	if err != nil {
		return r, err
	}
	t := bench.Table{Head: []string{"", "vouchers a second", "of the first", "heap objects", "cores busy"}}
	for _, c := range series {
		t.Rows = append(t.Rows, []string{c.Name, c.Rate().String() + "/s", bench.Ratio(c, series[0]).Times(),
			bench.Number(c.Allocs), bench.Number(c.Busy)})
	}
	r.Tables = append(r.Tables, t)
	return r, nil
}

// crowd is the renters of one contender.
type crowd struct {
	name  string
	form  form
	dial  func() (pipe, error)
	pipes []pipe
}

func (c *crowd) connect() error {
	for range renters {
		p, err := c.dial()
		if err != nil {
			return err
		}
		c.pipes = append(c.pipes, p)
	}
	return nil
}

func (c *crowd) run(ctx context.Context, n int) error {
	failed := make(chan error, renters)
	var wait sync.WaitGroup
	for _, p := range c.pipes {
		wait.Go(func() { failed <- c.pay(ctx, p, n/renters) })
	}
	wait.Wait()
	var err error
	for range renters {
		err = errors.Join(err, <-failed)
	}
	return err
}

// pay sends n vouchers, eight at a time.
func (c *crowd) pay(ctx context.Context, p pipe, n int) error {
	vouchers := make([]channel.Voucher, inFlight)
	for i := range vouchers {
		vouchers[i].Signature = make([]byte, 65)
	}
	var message []byte
	for sent := 0; sent < n; sent += inFlight {
		for i := range vouchers {
			vouchers[i].Cumulative = *uint256.NewInt(uint64(sent + i + 1))
		}
		var err error
		if message, err = c.form.vouchers(message[:0], vouchers); err != nil {
			return err
		}
		if err := p.send(ctx, message); err != nil {
			return err
		}
		answer, err := p.receive(ctx)
		if err != nil {
			return err
		}
		if accepted, err := c.form.accepted(answer); err != nil || accepted != vouchers[inFlight-1].Cumulative {
			return fmt.Errorf("%s: %d vouchers sent, receipt for %s (%w)", c.name, sent+inFlight, accepted.Dec(), err)
		}
	}
	return nil
}

func (c *crowd) close() error {
	var err error
	for _, p := range c.pipes {
		err = errors.Join(err, p.close())
	}
	return err
}
