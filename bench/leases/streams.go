package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/gpupay/gpupay/sdk/wire"
)

// kind is how the renters of a point keep in touch with their leases.
type kind string

const (
	apart  kind = "none"      // they only pay
	events kind = "events"    // server-sent ones; they pay by requests of their own
	duplex kind = "websocket" // and pay through it
)

// watch attaches a stream to every lease. It returns when all are there; stop ends them, and says whether one had ended
// by itself.
func (a *payers) watch(ctx context.Context, k kind) (stop func() error, err error) {
	n := a.o.Leases
	ctx, cancel := context.WithCancel(ctx)
	var wait sync.WaitGroup
	a.lost = make(chan error, n)
	lost, tickets, attached := a.lost, make(chan int, n), make(chan error, n)
	if k == duplex {
		a.cables = make([]*cable, n)
	}
	for i := range n {
		tickets <- i
	}
	close(tickets)
	for range 32 {
		go func() {
			for i := range tickets {
				read, err := a.attach(ctx, k, i)
				if err == nil {
					wait.Go(func() {
						err := read()
						if ctx.Err() == nil {
							lost <- fmt.Errorf("the stream of lease %d ended: %w", i, errors.Join(io.EOF, err))
						}
					})
				}
				attached <- err
			}
		}()
	}
	for range n {
		err = errors.Join(err, <-attached)
	}
	stop = func() error {
		cancel()
		wait.Wait()
		close(lost)
		return <-lost
	}
	if err != nil {
		return nil, errors.Join(err, stop())
	}
	return stop, nil
}

// attach opens one stream, and returns what reads it until it ends.
func (a *payers) attach(ctx context.Context, k kind, i int) (func() error, error) {
	header, err := a.Credential(ctx, a.challenge, i, 0, true)
	if err != nil {
		return nil, err
	}
	if k == duplex {
		return a.plug(ctx, header, i)
	}
	req, err := http.NewRequestWithContext(ctx, "GET", a.gateway.URL+"/lease", nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", header)
	resp, err := oneShot.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		return nil, fmt.Errorf("lease %d: no stream: %s: %s", i, resp.Status, text)
	}
	return func() error {
		defer resp.Body.Close()
		_, err := io.Copy(io.Discard, resp.Body)
		return err
	}, nil
}

// oneShot keeps no connection that nobody uses.
var oneShot = &http.Client{Transport: &http.Transport{ReadBufferSize: 1024, WriteBufferSize: 1024, DisableKeepAlives: true}}

// cable is a stream that takes vouchers.
type cable struct {
	conn     *websocket.Conn
	receipts chan uint64
}

func (a *payers) plug(ctx context.Context, header string, i int) (func() error, error) {
	conn, _, err := websocket.Dial(ctx, a.gateway.URL+"/lease", &websocket.DialOptions{HTTPClient: oneShot, HTTPHeader: http.Header{"Authorization": {header}}})
	if err != nil {
		return nil, fmt.Errorf("lease %d: no duplex stream: %w", i, err)
	}
	conn.SetReadLimit(wire.MaxEvent)
	c := &cable{conn, make(chan uint64, 16)}
	a.cables[i] = c
	return func() error {
		defer conn.CloseNow()
		for {
			kind, message, err := conn.Read(ctx)
			if err != nil {
				return err
			}
			if kind != websocket.MessageBinary {
				continue
			}
			accepted, err := wire.ParseReceiptMessage(message)
			if err != nil {
				return err
			}
			c.receipts <- accepted.Uint64()
		}
	}, nil
}

// pay sends a voucher through the stream and waits for its receipt.
func (c *cable) pay(ctx context.Context, p payment) error {
	if err := c.conn.Write(ctx, websocket.MessageBinary, p.message); err != nil {
		return err
	}
	patience := time.NewTimer(30 * time.Second)
	defer patience.Stop()
	for {
		select {
		case accepted := <-c.receipts:
			if accepted >= p.amount {
				return nil
			}
		case <-patience.C:
			return fmt.Errorf("a voucher for %d through the stream of lease %d had no receipt in 30 s", p.amount, p.lease)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
