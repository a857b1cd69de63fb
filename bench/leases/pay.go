package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/bench/gateway"
	"github.com/gpupay/gpupay/sdk/wire"
)

// payers pay for all leases: each a voucher a period, spread evenly over it.
type payers struct {
	*gateway.World
	o         gateway.Options
	gateway   *gateway.Process
	client    *http.Client
	challenge wire.Challenge
	lost      chan error // streams that ended by themselves
	cables    []*cable   // of the leases whose vouchers go through their streams
	paid      int        // vouchers sent so far, over all leases, one lease after the other and from the start again
}

// senders bounds how many payers wait for an answer at once.
const senders = 1024

func newPayers(ctx context.Context, w *gateway.World, p *gateway.Process, o gateway.Options) (a *payers, err error) {
	a = &payers{World: w, o: o, gateway: p, client: &http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: senders}}}
	a.challenge, err = p.Challenge(ctx)
	return a, err
}

// payment is a voucher that is signed and not sent yet.
type payment struct {
	due     time.Duration // after the begin
	lease   int
	header  string // of a request of its own
	message []byte // through the lease's stream
	amount  uint64
}

// sign makes the vouchers of the next span ready: each pays for a period more.
func (a *payers) sign(ctx context.Context, span time.Duration) ([]payment, error) {
	n := int(int64(span) * int64(a.o.Leases) / int64(a.o.Period))
	out := make([]payment, max(n, 1))
	first := a.paid
	a.paid += len(out)
	failed := make(chan error, 2)
	for half := range 2 {
		go func() {
			var err error
			for k := half; k < len(out) && err == nil; k += 2 {
				i, times := (first+k)%a.o.Leases, (first+k)/a.o.Leases+1
				amount := uint64(times) * max(uint64(1000*a.o.Period/time.Second), 1)
				out[k] = payment{due: a.o.Period * time.Duration(k) / time.Duration(a.o.Leases), lease: i, amount: amount}
				err = a.prepare(ctx, &out[k])
			}
			failed <- err
		}()
	}
	return out, errors.Join(<-failed, <-failed)
}

// prepare signs one voucher, for the way that it is going to take.
func (a *payers) prepare(ctx context.Context, p *payment) (err error) {
	if p.lease >= len(a.cables) {
		p.header, err = a.Credential(ctx, a.challenge, p.lease, p.amount, false)
		return err
	}
	v, err := a.Domain.Sign(ctx, a.Payer, a.IDs[p.lease], *uint256.NewInt(p.amount))
	if err == nil {
		p.message, err = wire.AppendVoucher(nil, v)
	}
	return err
}

// send sends each voucher when it is due and returns how long after that its acknowledgement was there, in order.
func (a *payers) send(ctx context.Context, all []payment) ([]time.Duration, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	waits := make([]time.Duration, len(all))
	begun := time.Now()
	next := make(chan int, len(all))
	for k := range all {
		next <- k
	}
	close(next)
	var wait sync.WaitGroup
	for range senders {
		wait.Go(func() {
			for k := range next {
				due := begun.Add(all[k].due)
				time.Sleep(time.Until(due))
				if ctx.Err() != nil {
					return
				}
				if err := a.pay(ctx, all[k]); err != nil {
					cancel(err)
					return
				}
				waits[k] = time.Since(due)
			}
		})
	}
	wait.Wait()
	slices.Sort(waits)
	return waits, context.Cause(ctx)
}

// pay sends one voucher and looks at the receipt: who drops payments wins nothing.
func (a *payers) pay(ctx context.Context, p payment) error {
	if p.message != nil {
		return a.cables[p.lease].pay(ctx, p)
	}
	accepted, err := a.gateway.Post(ctx, a.client, p.header)
	if err == nil && accepted.Uint64() < p.amount { // it may be more, where the next one overtook it
		err = fmt.Errorf("a voucher for %d was acknowledged as one for %s", p.amount, accepted.Dec())
	}
	return err
}
