package provider

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/sessionscheme"
	"github.com/gpupay/gpupay/sdk/wire"
)

// slowAllocator is an operator's allocator that takes its time: began hears of each lease that has its devices, and
// none is handed out before ready is closed.
type slowAllocator struct {
	*gpu.HostAllocator
	began chan<- struct{}
	ready <-chan struct{}
}

func (s slowAllocator) Allocate(ctx context.Context, req gpu.Request) (gpu.Allocation, error) {
	a, err := s.HostAllocator.Allocate(ctx, req)
	if err != nil {
		return a, err
	}
	s.began <- struct{}{}
	<-s.ready
	return a, nil
}

// bookless hides in which book an allocator's devices are.
type bookless struct {
	gpu.Allocator
	gpu.Capacity
}

// slowly has two GPUs handed out by an allocator that waits for ready.
func slowly(began chan<- struct{}, ready <-chan struct{}) func(*Config) {
	return func(c *Config) {
		generousCredit(c)
		c.Commands.Timeout = 5 * time.Minute
		c.Allocator = slowAllocator{&gpu.HostAllocator{Devices: []string{"SIM-GPU-0", "SIM-GPU-1"}}, began, ready}
	}
}

// TestAsManyDepositsAsLeases: of payers who come at once, at one gateway or at two, as many deposits move as leases
// begin, and as many leases as there are GPUs: what is kept for one counts no more when its lease has the GPU. Here each
// lease has its GPU for as long as others ask.
func TestAsManyDepositsAsLeases(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ payers, gateways int }{{2, 1}, {5, 1}, {2, 2}, {5, 2}} {
		t.Run(fmt.Sprintf("%d payers at %d gateways", c.payers, c.gateways), func(t *testing.T) {
			began, ready := make(chan struct{}, c.payers), make(chan struct{})
			var at []*rig
			if c.gateways == 1 {
				at = []*rig{newRig(t, slowly(began, ready))}
			} else {
				a, b := fleet(t, slowly(began, ready))
				at = []*rig{a, b}
			}
			answers := make(chan *http.Response, c.payers)
			var all []channel.Terms
			for i := range c.payers {
				r := at[i%len(at)]
				payer := r.fund(t, 1_000_000)
				terms := r.terms(payer.Address(), byte(i))
				all = append(all, terms)
				cred := r.openCredential(payer, terms, 500_000, 0)
				ask := func() { answers <- r.do("GET", "", cred) }
				if i > 0 && i == c.payers-1 {
					go func() { began <- <-began; ask() }() // when another lease has its GPU
					continue
				}
				go ask()
			}
			refused := 0
			for len(began) < 2 && refused < c.payers-1 {
				select {
				case resp := <-answers:
					refused++
					t.Logf("refused: %v", wire.ParseProblem(resp))
				case <-time.After(20 * time.Millisecond):
				}
			}
			close(ready)
			leases := 0
			for range c.payers - refused {
				resp := <-answers
				if resp.StatusCode == http.StatusOK {
					leases++
					continue
				}
				t.Logf("refused: %v", wire.ParseProblem(resp))
			}
			deposits := 0
			for _, terms := range all {
				if at[0].deposited(terms) {
					deposits++
				}
			}
			if leases != 2 || deposits != leases {
				t.Errorf("%d deposits moved, %d leases began on 2 GPUs", deposits, leases)
			}
			for _, r := range at {
				if kept, err := r.provider.reserved[""].Others(t.Context(), [32]byte{}); err != nil || len(kept) != 0 {
					t.Errorf("kept: %v, %v", kept, err)
				}
			}
		})
	}
}

// TestLeaseWithAReservationIsNotRefused: whoever's deposit was sent has its GPU, also of an allocator that does not say
// which devices are in which lease, while another lease has taken its own and is not handed out yet.
func TestLeaseWithAReservationIsNotRefused(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"host", "bookless"} {
		t.Run(name, func(t *testing.T) {
			began, ready := make(chan struct{}, 2), make(chan struct{})
			r := newRig(t, slowly(began, ready), func(c *Config) {
				if name == "bookless" {
					c.Allocator = bookless{c.Allocator, c.Allocator.(gpu.Capacity)}
				}
			})
			p := r.provider
			var all []*sessionscheme.Request
			for i := range 2 {
				s := r.funded(byte(i))
				q := r.wants(s, 1)
				if err := sessionOf(p).Deposits.ReserveFor(q, s.ID); err != nil {
					t.Fatal(err)
				}
				all = append(all, q)
			}
			errs := make(chan error, 2)
			for _, q := range all {
				go func() {
					_, _, err := sessionOf(p).Leasing.Start(q, r.state(q))
					q.Seat.Release()
					errs <- err
				}()
				select {
				case <-began:
				case err := <-errs:
					t.Errorf("refused beside a lease that has its GPU: %v", err)
					errs <- nil
				}
			}
			close(ready)
			for range all {
				if err := <-errs; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestLeaseWithoutADepositIsReserved: a lease on a channel that holds money keeps its GPU before it takes it, so that
// nobody's deposit is sent for that one meanwhile.
func TestLeaseWithoutADepositIsReserved(t *testing.T) {
	began, ready := make(chan struct{}, 2), make(chan struct{})
	r := newRig(t, func(c *Config) {
		generousCredit(c)
		c.Commands.Timeout = 5 * time.Minute
		c.Allocator = lateAllocator{&gpu.HostAllocator{Devices: []string{"SIM-GPU-0"}}, began, ready}
	})
	s := r.funded(1)
	q := r.wants(s, 1)
	var wait sync.WaitGroup
	wait.Go(func() {
		if _, _, err := sessionOf(r.provider).Leasing.Start(q, s); err != nil {
			t.Error(err)
		}
		q.Seat.Release()
	})
	<-began
	payer := r.fund(t, 1_000_000)
	terms := r.terms(payer.Address(), 2)
	cred := r.openCredential(payer, terms, 500_000, 0)
	answer := make(chan *http.Response, 1)
	go func() { answer <- r.do("GET", "", cred) }()
	select {
	case resp := <-answer:
		if resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("%s %v", resp.Status, wire.ParseProblem(resp))
		}
	case <-began:
		t.Error("a deposit was sent for a GPU that another lease was about to take")
	}
	close(ready)
	wait.Wait()
	if r.deposited(terms) {
		t.Error("and it moved")
	}
}

// deposited reports whether a channel holds money by the chain.
func (r *rig) deposited(terms channel.Terms) bool {
	r.Helper()
	views, _, err := r.provider.escrow.Confirmed(r.Context(), []common.Hash{terms.ID()}, 1)
	if err != nil {
		r.Fatal(err)
	}
	return !views[0].View.Deposit.IsZero()
}

// lateAllocator waits before it takes devices.
type lateAllocator slowAllocator

func (s lateAllocator) Allocate(ctx context.Context, req gpu.Request) (gpu.Allocation, error) {
	s.began <- struct{}{}
	<-s.ready
	return s.HostAllocator.Allocate(ctx, req)
}

// funded is a channel that holds money and has no lease.
func (r *rig) funded(salt byte) channel.State {
	r.Helper()
	terms := r.terms(r.payer.Address(), salt)
	resp := r.do("POST", "", r.openCredential(r.payer, terms, 400_000, 0))
	if resp.StatusCode != http.StatusOK {
		r.Fatal(wire.ParseProblem(resp))
	}
	s, err := r.provider.payee.State(r.Context(), terms.ID())
	if err != nil {
		r.Fatal(err)
	}
	return s
}

// wants is a channel's request for a lease.
func (r *rig) wants(s channel.State, gpus int) *sessionscheme.Request {
	r.Helper()
	req, err := http.NewRequestWithContext(r.Context(), "GET", "http://x/lease", nil)
	if err != nil {
		r.Fatal(err)
	}
	q := &sessionscheme.Request{Request: req, GPUs: gpus, Offer: r.provider.Offer()}
	q.Cred.Payload.ChannelID = s.ID
	return q
}

func (r *rig) state(q *sessionscheme.Request) channel.State {
	s, err := r.provider.payee.State(r.Context(), q.Cred.Payload.ChannelID)
	if err != nil {
		r.Error(err)
	}
	return s
}
