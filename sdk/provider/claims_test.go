package provider

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/reserve"
	"github.com/gpupay/gpupay/sdk/internal/scheme"
	"github.com/gpupay/gpupay/sdk/internal/x402scheme"
	"github.com/gpupay/gpupay/sdk/internal/x402server"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// A stop is where one request at a gateway stops, as all of the gateway would at SIGSTOP, and goes on when it is woken: with what
// it believed when it stopped.
type stop struct {
	armed         atomic.Bool
	reached, open chan struct{}
	wake          func()
	broken        atomic.Bool // its endpoint answers no more when it wakes
}

func newStop() *stop {
	s := &stop{reached: make(chan struct{}), open: make(chan struct{})}
	s.wake = sync.OnceFunc(func() { close(s.open) })
	return s
}

// point stops who comes first after the stop was armed.
func (s *stop) point() {
	if s.armed.CompareAndSwap(true, false) {
		close(s.reached)
		<-s.open
	}
}

// await waits until the request that is to stop has stopped.
func (s *stop) await(t *testing.T, first <-chan *http.Response) {
	t.Helper()
	select {
	case <-s.reached:
	case resp := <-first:
		t.Fatalf("it did not stop: %s %v", resp.Status, wire.ParseProblem(resp))
	}
}

// end has who never woke up in time do so, and go on to its answer.
func (s *stop) end(first <-chan *http.Response, woken bool) {
	if s.wake(); !woken {
		<-first
	}
}

// in has a gateway stop when its endpoint has agreed to a call and nothing is in the outbox yet.
func (s *stop) in(call chain.Call) badrpc.Fault {
	begins := hex.EncodeToString(call.Data[:4])
	return func(x *badrpc.Exchange) {
		var asked []struct{ Data, Input string }
		_ = json.Unmarshal(x.Params, &asked)
		if len(asked) > 0 && (strings.HasPrefix(asked[0].Data, "0x"+begins) || strings.HasPrefix(asked[0].Input, "0x"+begins)) {
			if s.point(); s.broken.Load() {
				x.Status = http.StatusBadGateway
			}
		}
	}
}

// runOut has every claim and reservation run out, as after a time in which nobody renewed it.
func runOut(t *testing.T, p *Server) {
	t.Helper()
	err := p.db.Update(t.Context(), func(tx *sqlx.Tx) error {
		_, err := tx.Exec(`UPDATE claims SET expires = 0`)
		if err == nil {
			_, err = tx.Exec(`UPDATE reservations SET expires = 0`)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// answered is what comes of something that goes on in the background.
func answered(do func() *http.Response) <-chan *http.Response {
	answer := make(chan *http.Response, 1)
	go func() { answer <- do() }()
	return answer
}

// superseded is an answer of who lost its claim.
func superseded(t *testing.T, resp *http.Response) {
	t.Helper()
	if problem := wire.ParseProblem(resp); resp.StatusCode != http.StatusServiceUnavailable || problem == nil || !strings.Contains(problem.Detail, "another gateway") {
		t.Errorf("who woke up answers %s %v", resp.Status, problem)
	}
}

// twoGateways are two over one database, each with an endpoint of its own to a chain whose blocks come while still is false. The first
// stops where the test arms it, when its endpoint has agreed to a call of a kind.
type twoGateways struct {
	a, b       *rig
	still      atomic.Bool
	ends       [2]*badrpc.Endpoint
	first, two *stop
}

func newGateways(t *testing.T, call func(*rig) chain.Call) *twoGateways {
	t.Helper()
	t.Parallel()
	net, err := devchain.Start(t.Context(), devchain.Options{Manual: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { net.Close() })
	g := &twoGateways{first: newStop(), two: newStop()}
	mined := make(chan struct{})
	t.Cleanup(func() { <-mined })
	go func() {
		defer close(mined)
		for ; t.Context().Err() == nil; time.Sleep(20 * time.Millisecond) {
			if !g.still.Load() {
				net.Mine()
			}
		}
	}()
	address := pgtest.URL(t)
	shared := func(i int) func(c *Config) {
		return func(c *Config) {
			g.ends[i] = badrpc.New(t, c.RPC)
			c.RPC, c.Database, c.Takeover, c.Log = g.ends[i].URL, address, 20*time.Second, slog.New(slog.DiscardHandler)
		}
	}
	g.a = rigOn(t, net, func(r *rig) *channel.Key { return r.fund(t, 1_000_000) }, shared(0))
	g.b = rigOn(t, net, func(*rig) *channel.Key { return g.a.payer }, shared(1))
	for i, s := range []*stop{g.first, g.two} {
		g.ends[i].On("eth_estimateGas", s.in(call(g.a)))
		t.Cleanup(s.wake) // before the gateways are shut
	}
	return g
}

// closers have a lease that was released, and stop when they have decided on the channel's close.
func closers(t *testing.T) (g *twoGateways, lease, there *tab, closing, again, late *wire.Credential) {
	t.Helper()
	g = newGateways(t, func(r *rig) chain.Call {
		return sessionOf(r.provider).Escrow.CloseCall(r.terms(r.payer.Address(), 1), uint256.Int{}, nil)
	})
	lease = g.a.open(1, 100_000, "")
	closing, _ = lease.leaving()
	there = lease.at(g.b)
	again = there.credential(wire.ActionClose, closing.Payload.CumulativeAmount.Uint64())
	again.Payload.LeaseSecret = lease.lease.Secret
	return g, lease, there, closing, again, there.credential(wire.ActionVoucher, 50_000)
}

// closes are the closes of a channel that the outbox has.
func (t *tab) closes() int {
	t.Helper()
	all, err := t.provider.sender.Find(t.Context(), t.terms.ID(), chain.Close)
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// TestCloseBesideAClose: a gateway that was stopped between its decision to close a channel and the outbox, for longer than its claim
// lasts, sends no second close, and does not have the channel open beside the one that another gateway sent meanwhile. Nor does one
// whose endpoint fails when it wakes up, or one that never does.
func TestCloseBesideAClose(t *testing.T) {
	t.Parallel()
	for name, wakes := range map[string]bool{"dies": false, "wakes": true, "wakes without its endpoint": true} {
		t.Run(name, func(t *testing.T) {
			g, lease, there, closing, again, late := closers(t)
			g.first.broken.Store(strings.Contains(name, "without"))
			g.first.armed.Store(true)
			first := answered(func() *http.Response { return g.a.do("POST", "", closing) })
			g.first.await(t, first)
			defer g.first.end(first, wakes)
			g.still.Store(true)
			runOut(t, g.b.provider)
			second := answered(func() *http.Response { return g.b.do("POST", "", again) })
			there.closeSent()
			if wakes {
				g.first.wake()
				superseded(t, <-first)
			}
			if n := lease.closes(); n != 1 {
				t.Errorf("%d closes in the outbox", n)
			}
			there.closing()
			if resp := g.b.do("POST", "", late); resp.StatusCode == http.StatusOK {
				t.Error("a voucher is acknowledged that the close does not fetch")
			}
			g.still.Store(false)
			if resp := <-second; resp.StatusCode != http.StatusOK {
				t.Errorf("close: %s %v", resp.Status, wire.ParseProblem(resp))
			}
			if s, err := g.b.provider.payee.State(t.Context(), lease.terms.ID()); err != nil || s.Status != channel.Finalized || s.Accepted.Gt(&s.Settled) {
				t.Errorf("%s is accepted, %s settled, %s, %v", s.Accepted.Dec(), s.Settled.Dec(), s.Status, err)
			}
		})
	}
}

// closing fails where more would be accepted on the channel.
func (t *tab) closing() {
	t.Helper()
	if s, err := t.provider.payee.State(t.Context(), t.terms.ID()); err != nil || s.Status != channel.Closing {
		t.Errorf("the channel is %s beside its close, %v", s.Status, err)
	}
}

// TestCloseBesideAVoucher: nor does it send its close, over what was accepted when it stopped, when another gateway's close came to
// nothing meanwhile and a newer voucher was acknowledged.
func TestCloseBesideAVoucher(t *testing.T) {
	t.Parallel()
	for name, wakes := range map[string]bool{"dies": false, "wakes": true} {
		t.Run(name, func(t *testing.T) {
			g, lease, there, closing, again, late := closers(t)
			g.first.armed.Store(true)
			first := answered(func() *http.Response { return g.a.do("POST", "", closing) })
			g.first.await(t, first)
			defer g.first.end(first, wakes)
			runOut(t, g.b.provider)
			g.ends[1].On("eth_estimateGas", badrpc.Times(1, badrpc.Fail(-32000, "header not found")))
			if resp := g.b.do("POST", "", again); resp.StatusCode == http.StatusOK {
				t.Fatalf("a close that its endpoint refused: %s", resp.Status)
			}
			if resp := g.b.do("POST", "", late); resp.StatusCode != http.StatusOK {
				t.Fatalf("a voucher after a close that came to nothing: %s %v", resp.Status, wire.ParseProblem(resp))
			}
			if wakes {
				g.first.wake()
				superseded(t, <-first)
			}
			if n := lease.closes(); n != 0 {
				t.Errorf("%d closes in the outbox, over less than was accepted", n)
			}
			if there.close(50_000); g.a.balance(g.a.config.Key.Address()) != 50_000 {
				t.Errorf("the provider has %d of 50000", g.a.balance(g.a.config.Key.Address()))
			}
		})
	}
}

// TestCloseThatFailsBesideAnother: one whose close comes to nothing when it wakes up leaves the channel closing for the gateway that
// has decided on another one, and not sent it yet.
func TestCloseThatFailsBesideAnother(t *testing.T) {
	g, lease, there, closing, again, late := closers(t)
	g.first.broken.Store(true)
	g.first.armed.Store(true)
	first := answered(func() *http.Response { return g.a.do("POST", "", closing) })
	g.first.await(t, first)
	defer g.first.end(first, true)
	runOut(t, g.b.provider)
	g.two.armed.Store(true)
	second := answered(func() *http.Response { return g.b.do("POST", "", again) })
	g.two.await(t, second)
	g.first.wake()
	superseded(t, <-first)
	there.closing()
	if resp := g.a.do("POST", "", late); resp.StatusCode == http.StatusOK {
		t.Error("a voucher is acknowledged that the close does not fetch")
	}
	g.two.wake()
	if resp := <-second; resp.StatusCode != http.StatusOK || lease.closes() != 1 {
		t.Errorf("close: %s %v, %d were sent", resp.Status, wire.ParseProblem(resp), lease.closes())
	}
}

// TestCloseOfAnotherIsBooked: who finds a close in the outbox has nothing accepted beside it, whatever the books say.
func TestCloseOfAnotherIsBooked(t *testing.T) {
	g, lease, there, closing, again, _ := closers(t)
	g.still.Store(true)
	first := answered(func() *http.Response { return g.a.do("POST", "", closing) })
	lease.closeSent()
	if s, err := g.b.provider.payee.Keep(t.Context(), lease.terms.ID()); err != nil || s.Status != channel.Open { // the books of an older program
		t.Fatal(s.Status, err)
	}
	second := answered(func() *http.Response { return g.b.do("POST", "", again) })
	eventually(t, "the channel is closing in the books, too", func() bool {
		s, err := there.provider.payee.State(t.Context(), lease.terms.ID())
		return err == nil && s.Status == channel.Closing
	})
	g.still.Store(false)
	for _, answer := range []<-chan *http.Response{first, second} {
		if resp := <-answer; resp.StatusCode != http.StatusOK {
			t.Errorf("close: %s %v", resp.Status, wire.ParseProblem(resp))
		}
	}
}

// TestOpenBesideAnOpen: a renter's deposit is sent once.
func TestOpenBesideAnOpen(t *testing.T) {
	t.Parallel()
	for name, wakes := range map[string]bool{"dies": false, "wakes": true} {
		t.Run(name, func(t *testing.T) {
			g := newGateways(t, func(r *rig) chain.Call {
				return sessionOf(r.provider).Escrow.OpenAuthorizedCall(r.terms(r.payer.Address(), 1), chain.Authorization{})
			})
			terms := g.a.terms(g.a.payer.Address(), 1)
			opening := g.a.openCredential(g.a.payer, terms, 100_000, 0)
			g.first.armed.Store(true)
			first := answered(func() *http.Response { return g.a.do("GET", "", opening) })
			g.first.await(t, first)
			defer g.first.end(first, wakes)
			runOut(t, g.b.provider)
			g.still.Store(true)
			second := answered(func() *http.Response { return g.b.do("GET", "", opening) })
			opens := func() int {
				all, err := g.b.provider.sender.Find(t.Context(), terms.ID(), chain.Open)
				if err != nil {
					t.Fatal(err)
				}
				return len(all)
			}
			eventually(t, "the deposit is sent", func() bool { return opens() > 0 })
			if wakes {
				g.first.wake()
				superseded(t, <-first)
			}
			g.still.Store(false)
			if resp := <-second; resp.StatusCode != http.StatusOK || opens() != 1 {
				t.Errorf("open: %s %v, %d were sent", resp.Status, wire.ParseProblem(resp), opens())
			}
		})
	}
}

// TestCloseKeepsNothingOpenBesideAnother: what comes to nothing leaves the channel closing where a close is on its way.
func TestCloseKeepsNothingOpenBesideAnother(t *testing.T) {
	r, still, lease := closingRig(t)
	closing, _ := lease.leaving()
	still.Store(true)
	closed := answered(func() *http.Response { return r.do("POST", "", closing) })
	lease.closeSent()
	failed := errors.New("failed")
	if err := sessionOf(r.provider).Closing.KeepOpen(t.Context(), lease.terms.ID(), nil, failed); !errors.Is(err, failed) {
		t.Errorf("the reason is lost: %v", err)
	}
	if s, err := r.provider.payee.State(t.Context(), lease.terms.ID()); err != nil || s.Status != channel.Closing {
		t.Errorf("the channel is %s beside its close, %v", s.Status, err)
	}
	still.Store(false)
	if resp := <-closed; resp.StatusCode != http.StatusOK {
		t.Errorf("close: %s %v", resp.Status, wire.ParseProblem(resp))
	}
}

// stoppedLeases stops before a lease begins, and stoppedGPUs when its GPUs are chosen, before anything of it is on disk.
type stoppedLeases struct {
	scheme.Leases
	*stop
}

func (s stoppedLeases) BeginLease(ctx context.Context, row leasestore.Row, c channel.State, offer wire.SignedOffer, held *leasestore.Lock) (*lease.Lease, error) {
	s.point()
	return s.Leases.BeginLease(ctx, row, c, offer, held)
}

type stoppedGPUs struct {
	scheme.GPUs
	*stop
}

func (s stoppedGPUs) Seated(ctx context.Context, r *reserve.Reservation, class string, channelID common.Hash, gpus int) (*reserve.Reservation, error) {
	s.point()
	return s.GPUs.Seated(ctx, r, class, channelID, gpus)
}

// sellers are two gateways that take x402 over one database, and a buyer at each with one channel between them, which is known and
// has no lease. The first gateway stops where the test arms it.
type sellers struct {
	one, two *payRig
	a, b     *buyer // the same one
	bad      *badrpc.Endpoint
	seat     *stop // a payment is taken, and nothing of what it is for is on disk
	lease    *stop // what it may use is on disk, and its lease is not
	call     *stop // its transaction was agreed to, and is not in the outbox
}

func newSellers(t *testing.T, path string) *sellers {
	t.Helper()
	database := pgtest.URL(t)
	change := func(c *Config) {
		c.Database, c.Takeover, c.X402.Slack, c.Log = database, 20*time.Second, 10*time.Second, slog.New(slog.DiscardHandler)
	}
	s := &sellers{seat: newStop(), lease: newStop(), call: newStop()}
	s.one = newPayRig(t, change, func(c *Config) {
		s.bad = badrpc.New(t, c.RPC)
		c.RPC = s.bad.URL
	})
	s.two = payRigOn(t, s.one.chain, change)
	s.one.shut()
	s.one.tune = func(p *Server) {
		x402Of(p).GPUs, x402Of(p).Leases = stoppedGPUs{x402Of(p).GPUs, s.seat}, stoppedLeases{x402Of(p).Leases, s.lease}
	}
	s.one.start()
	for _, stopped := range []*stop{s.seat, s.lease, s.call} {
		t.Cleanup(stopped.wake) // before the gateways are shut
	}
	s.a = s.one.buyer(path)
	return s
}

// opened has the channel funded and idle.
func (s *sellers) opened() *sellers {
	s.a.Helper()
	s.a.open(20_000)
	s.a.idle()
	there := *s.a
	there.payRig = s.two
	s.b = &there
	return s
}

// stopsIn has the first gateway stop where it sends a call of this kind.
func (s *sellers) stopsIn(call chain.Call) {
	s.bad.On("eth_estimateGas", s.call.in(call))
}

// reserved is what the channel's requests may use, and how many of them are remembered.
func (s *sellers) reserved() (x402server.Balance, int) {
	s.a.Helper()
	note, err := x402Of(s.two.provider).Journal.Balance(s.a.Context(), s.a.terms.ID())
	if err != nil {
		s.a.Fatal(err)
	}
	var n int
	db := s.two.provider.db.View()
	if err := db.Get(&n, `SELECT count(*) FROM x402_requests WHERE channel = $1`, s.a.terms.ID().Hex()); err != nil {
		s.a.Fatal(err)
	}
	return note, n
}

// sent are the channel's transactions of a kind.
func (s *sellers) sent(kind chain.Kind) int {
	n := 0
	for _, k := range s.two.transactions(s.a) {
		if k == string(kind) {
			n++
		}
	}
	return n
}

// TestPaymentBesideAPayment: a gateway that was stopped with a payment, for longer than its claim lasts, neither serves it nor lowers
// what a later one reserved at another gateway; and one that dies holds up nobody.
func TestPaymentBesideAPayment(t *testing.T) {
	t.Parallel()
	for name, wakes := range map[string]bool{"dies": false, "wakes": true} {
		t.Run(name, func(t *testing.T) {
			s := newSellers(t, "/tick").opened()
			s.seat.armed.Store(true)
			payment := s.a.payment(s.a.next())
			first := answered(func() *http.Response { return s.a.pay(payment) })
			s.seat.await(t, first)
			defer s.seat.end(first, wakes)
			runOut(t, s.two.provider)
			s.b.take(s.b.pay(payment))
			s.b.again()
			reserved, requests := s.reserved()
			if wakes {
				s.seat.wake()
				superseded(t, <-first)
			}
			if now, n := s.reserved(); now != reserved || n != requests {
				t.Errorf("%d requests have reserved %+v, before %d %+v", n, now, requests, reserved)
			}
			s.b.again()
			if s.one.provider.leases.Running(s.a.terms.ID()) != nil {
				t.Error("who woke up runs a lease")
			}
		})
	}
}

// TestHandlerRunsOncePerPayment: nor does a metered route's handler run for a payment at both.
func TestHandlerRunsOncePerPayment(t *testing.T) {
	t.Parallel()
	for name, wakes := range map[string]bool{"dies": false, "wakes": true} {
		t.Run(name, func(t *testing.T) {
			s := newSellers(t, "/tick")
			var ran atomic.Int32
			for _, r := range []*payRig{s.one, s.two} {
				handler, err := r.provider.Metered(Route{Devices: []string{sim.UUID(0)}, MaxTime: time.Second}, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { ran.Add(1) }))
				if err != nil {
					t.Fatal(err)
				}
				r.server.Config.Handler = handler
			}
			s.a = s.one.buyer("/infer")
			s.a.take(s.a.pay(s.a.depositing(s.a.next(), 20_000)))
			there := *s.a
			there.payRig = s.two
			s.b = &there
			ran.Store(0)
			s.lease.armed.Store(true)
			payment := s.a.payment(s.a.next())
			first := answered(func() *http.Response { return s.a.keyed(payment, "one") })
			s.lease.await(t, first)
			defer s.lease.end(first, wakes)
			runOut(t, s.two.provider)
			s.b.take(s.b.keyed(payment, "one"))
			if wakes {
				s.lease.wake()
				superseded(t, <-first)
			}
			if n := ran.Load(); n != 1 {
				t.Errorf("the handler ran %d times", n)
			}
		})
	}
}

// TestHandlerEndsWithItsLease: a metered route's handler does not run on, for nothing, when another gateway has its lease.
func TestHandlerEndsWithItsLease(t *testing.T) {
	s := newSellers(t, "/tick")
	runs, ends := make(chan struct{}), make(chan struct{})
	handler, err := s.one.provider.Metered(Route{Devices: []string{sim.UUID(0)}, MaxTime: time.Minute}, http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		close(runs)
		<-req.Context().Done()
		close(ends)
	}))
	if err != nil {
		t.Fatal(err)
	}
	s.one.server.Config.Handler = handler
	b := s.one.buyer("/infer")
	first := answered(func() *http.Response { return b.pay(b.depositing(b.next(), 200_000)) })
	<-runs
	s.one.provider.leases.Running(b.terms.ID()).Relinquish()
	select {
	case <-ends:
	case <-time.After(20 * time.Second):
		t.Error("it runs on")
	}
	<-first
}

// TestPaymentBesideARefund: a gateway that was stopped with a payment serves nothing from the deposit that another gateway gave back
// meanwhile, wherever it stopped.
func TestPaymentBesideARefund(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"before anything is reserved", "before its lease"} {
		for _, wakes := range []bool{false, true} {
			t.Run(where+map[bool]string{false: ", dies", true: ", wakes"}[wakes], func(t *testing.T) {
				s := newSellers(t, "/tick").opened()
				stopped := s.seat
				if strings.Contains(where, "lease") {
					stopped = s.lease
				}
				stopped.armed.Store(true)
				payment := s.a.payment(s.a.next())
				first := answered(func() *http.Response { return s.a.pay(payment) })
				stopped.await(t, first)
				defer stopped.end(first, wakes)
				runOut(t, s.two.provider)
				s.b.refund(0)
				used := s.b.kept().Spent
				if wakes {
					stopped.wake()
					superseded(t, <-first)
				}
				if row, ok, err := s.two.provider.store.Leases.Newest(t.Context(), s.a.terms.ID()); err != nil || !ok || row.State != wire.StateEnded {
					t.Errorf("the channel's lease is %q, %v", row.State, err)
				}
				if kept := s.b.kept(); kept.Spent != used || kept.Deposit != kept.Settled {
					t.Errorf("%s was used, %s before the refund; the channel holds %s, of which %s are paid", kept.Spent.Dec(), used.Dec(), kept.Deposit.Dec(), kept.Settled.Dec())
				}
			})
		}
	}
}

// refundCall is a refund as the first gateway would send it, to be told from other calls.
func (s *sellers) refundCall() chain.Call {
	s.a.Helper()
	kept := s.a.kept()
	all, err := x402server.Refundable(kept, nil)
	if err != nil {
		s.a.Fatal(err)
	}
	call, err := x402Of(s.one.provider).Contract.RefundCall(s.a.Context(), kept, all)
	if err != nil {
		s.a.Fatal(err)
	}
	return call
}

// refunding has a refund stop at the first gateway. As a stock client does, its buyer asks once more where it is corrected.
func (s *sellers) refunding(part uint64) (first <-chan *http.Response, refund *x402.PaymentPayload) {
	s.a.Helper()
	for {
		refund = s.a.refunding(part)
		first = answered(func() *http.Response { return s.a.pay(refund) })
		select {
		case <-s.call.reached:
			return first, refund
		case resp := <-first:
			s.a.corrected(resp)
		}
	}
}

// TestRefundBesideAPayment: a gateway that was stopped with a refund does not send it, over what was used when it stopped, beside the
// newer voucher that another gateway served for.
func TestRefundBesideAPayment(t *testing.T) {
	t.Parallel()
	for name, wakes := range map[string]bool{"dies": false, "wakes": true} {
		t.Run(name, func(t *testing.T) {
			s := newSellers(t, "/tick").opened()
			s.stopsIn(s.refundCall())
			s.call.armed.Store(true)
			first, _ := s.refunding(0)
			defer s.call.end(first, wakes)
			runOut(t, s.two.provider)
			s.b.again()
			if wakes {
				s.call.wake()
				superseded(t, <-first)
			}
			if n := s.sent(chain.Refund); n != 0 {
				t.Errorf("%d refunds beside a newer voucher", n)
			}
			s.b.again()
			s.b.refund(0)
			used := s.b.used()
			if on := s.b.on().View; on.Settled != used {
				t.Errorf("%s were paid of %s used", on.Settled.Dec(), used.Dec())
			}
		})
	}
}

// TestRefundBesideARefund: nor does it send one that another gateway has sent meanwhile: a part is given back once.
func TestRefundBesideARefund(t *testing.T) {
	t.Parallel()
	for name, wakes := range map[string]bool{"dies": false, "wakes": true} {
		t.Run(name, func(t *testing.T) {
			s := newSellers(t, "/tick").opened()
			s.stopsIn(s.refundCall())
			s.call.armed.Store(true)
			first, refund := s.refunding(5_000)
			defer s.call.end(first, wakes)
			runOut(t, s.two.provider)
			s.one.chain.Automine(t, false)
			second := answered(func() *http.Response { return s.b.pay(refund) })
			eventually(t, "the refund is sent", func() bool { return s.sent(chain.Refund) > 0 })
			if wakes {
				s.call.wake()
				superseded(t, <-first)
			}
			s.one.chain.Automine(t, true)
			s.one.chain.Mine(t, 1)
			s.b.take(<-second)
			if n := s.sent(chain.Refund); n != 1 {
				t.Errorf("%d refunds were sent", n)
			}
		})
	}
}

// TestDepositBesideADeposit: nor a deposit, by x402 or by a session's open.
func TestDepositBesideADeposit(t *testing.T) {
	t.Parallel()
	for name, wakes := range map[string]bool{"dies": false, "wakes": true} {
		t.Run(name, func(t *testing.T) {
			s := newSellers(t, "/tick")
			payment := s.a.depositing(s.a.next(), 20_000)
			s.stopsIn(s.one.contract.DepositCall(s.a.terms, [32]byte(payment.Payload.Deposit.Authorization.Salt), chain.Authorization{
				Authorization: payment.Payload.Authorization(), Signature: payment.Payload.Deposit.Authorization.Signature[:]}))
			there := *s.a
			there.payRig = s.two
			s.b = &there
			s.call.armed.Store(true)
			first := answered(func() *http.Response { return s.a.pay(payment) })
			s.call.await(t, first)
			defer s.call.end(first, wakes)
			runOut(t, s.two.provider)
			s.one.chain.Automine(t, false)
			second := answered(func() *http.Response { return s.b.pay(payment) })
			eventually(t, "the deposit is sent", func() bool { return s.sent(chain.Deposit) > 0 })
			if wakes {
				s.call.wake()
				superseded(t, <-first)
			}
			s.one.chain.Automine(t, true)
			s.one.chain.Mine(t, 1)
			s.b.take(<-second)
			if n := s.sent(chain.Deposit); n != 1 || s.b.holds() != 20_000 {
				t.Errorf("%d deposits were sent, the channel holds %d", n, s.b.holds())
			}
		})
	}
}

// TestDepositOfARefundedChannel: nor one of a request that another gateway has followed with the channel's refund.
func TestDepositOfARefundedChannel(t *testing.T) {
	s := newSellers(t, "/tick").opened()
	payment := s.a.depositing(s.a.next(), 20_000)
	s.stopsIn(s.one.contract.DepositCall(s.a.terms, [32]byte(payment.Payload.Deposit.Authorization.Salt), chain.Authorization{
		Authorization: payment.Payload.Authorization(), Signature: payment.Payload.Deposit.Authorization.Signature[:]}))
	s.call.armed.Store(true)
	first := answered(func() *http.Response { return s.a.pay(payment) })
	s.call.await(t, first)
	defer s.call.end(first, true)
	if err := s.one.provider.db.Update(t.Context(), func(tx *sqlx.Tx) error { // its claim of the deposit is still its own
		_, err := tx.Exec(`UPDATE claims SET expires = 0 WHERE name LIKE 'x402 %'`)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	s.b.refund(0)
	s.call.wake()
	superseded(t, <-first)
	if n := s.sent(chain.Deposit); n != 1 {
		t.Errorf("%d deposits were sent, one before the refund", n)
	}
	if holds := s.b.holds(); holds >= 20_000 {
		t.Errorf("the channel holds %d after its refund", holds)
	}
}

// TestRefundOfAStoppedProcess: a gateway's process that SIGSTOP holds up with a refund, for longer than its claim lasts, does not send
// it when it goes on.
func TestRefundOfAStoppedProcess(t *testing.T) {
	database := pgtest.URL(t)
	change := func(c *Config) {
		c.Database, c.X402.Window, c.Log = database, time.Second, slog.New(slog.DiscardHandler)
	}
	one := newPayRig(t, change)
	s := &sellers{one: one, two: payRigOn(t, one.chain, change), a: one.buyer("/tick"), call: newStop()}
	s.opened()
	s.bad = badrpc.New(t, one.chain.URL)
	s.stopsIn(s.refundCall())
	one.shut()
	process, kill := one.spawnOn(s.bad.URL)
	defer func() { kill(); one.server = nil }() // there is nothing to shut
	defer s.call.wake()
	s.call.armed.Store(true)
	first, _ := s.refunding(0)
	if err := process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	s.call.wake() // the answer waits for it
	runOut(t, s.two.provider)
	s.b.again()
	if err := process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	superseded(t, <-first)
	if n := s.sent(chain.Refund); n != 0 {
		t.Errorf("%d refunds beside a newer voucher", n)
	}
}

// lostClaim is a claim that another gateway has had since.
func (s *sellers) lostClaim(name string) *leasestore.Lock {
	s.a.Helper()
	take := func(r *payRig) *leasestore.Lock {
		c, err := r.provider.store.Locks.Take(s.a.Context(), r.provider.leases.Lifetime(), name, time.Millisecond, slog.New(slog.DiscardHandler))
		if err != nil {
			s.a.Fatal(err)
		}
		return c
	}
	lost := take(s.one)
	runOut(s.a.T, s.two.provider)
	take(s.two).Release(s.a.Context())
	return lost
}

// TestLostClaimWritesNothing: whatever a request would write that lost its claim.
func TestLostClaimWritesNothing(t *testing.T) {
	s := newSellers(t, "/tick")
	s.a.open(20_000)
	d, ctx := x402Of(s.one.provider), t.Context()
	tab, err := d.Account(ctx, s.a.kept())
	if err != nil {
		t.Fatal(err)
	}
	r := &x402scheme.Request{PaidRequest: x402server.PaidRequest{ID: tab.ID, Terms: tab.Terms, Claim: s.lostClaim("x402 " + tab.ID.Hex())}}
	r.Paid.Payload.Type, r.Voucher.Cumulative = x402.TypeRefund, tab.Deposit
	note := x402server.Entry{Channel: tab.ID.Hex(), MaxClaimable: tab.Deposit.Dec(), Hash: "x", Kind: x402server.KindTick, Base: "0", Moved: "0"}
	before, requests := d.Journal, 0
	was, err := before.Balance(ctx, tab.ID)
	if err != nil {
		t.Fatal(err)
	}
	db := s.one.provider.db.View()
	count := func() (n int) {
		if err := db.Get(&n, `SELECT count(*) FROM x402_requests`); err != nil {
			t.Fatal(err)
		}
		return n
	}
	requests = count()
	stale := tab
	stale.Balance.Asserted = tab.Deposit
	for name, write := range map[string]func() error{
		"admit":   func() error { return d.Admit(ctx, r, note, nil) },
		"outdate": func() error { _, err := d.Supersede(ctx, &r.PaidRequest, tab); return err },
		"behind":  func() error { _, err := d.Behind(ctx, &r.PaidRequest, tab); return err },
		"recall":  func() error { _, err := d.Recalled(ctx, r, stale); return err },
		"nonce":   func() error { return d.RefreshNonce(ctx, &r.PaidRequest, tab.State) },
		"answer":  func() error { return d.JournalOf(&r.PaidRequest).Answered(ctx, note, true) },
		"end":     func() error { return d.EndNewest(ctx, r, "a test ends it") },
		"accept":  func() error { _, book, _ := d.BooksOf(&r.PaidRequest); _, err := book.Close(ctx, tab.ID); return err },
		"lease": func() error {
			_, err := d.Let(ctx, r, tab, 1, randomHash().Hex())
			return err
		},
	} {
		if err := write(); !errors.Is(err, leasestore.ErrLockLost) {
			t.Errorf("%s: %v", name, err)
		}
	}
	now, err := before.Balance(ctx, tab.ID)
	if err != nil || now != was || count() != requests || s.a.kept().Status != channel.Open || s.a.provider.leases.Running(tab.ID) == nil {
		t.Errorf("the channel's notes are %+v, before %+v, %v; %d requests, before %d", now, was, err, count(), requests)
	}
}

// TestHeldClaimThatRanOut: a request that comes when its gateway's claim, which waits for it, is lost has a claim of its own.
func TestHeldClaimThatRanOut(t *testing.T) {
	s := newSellers(t, "/tick").opened()
	d := x402Of(s.one.provider)
	d.Queue.Hold = time.Minute
	lost := s.lostClaim("x402 " + s.a.terms.ID().Hex())
	d.Claims.Hold(s.a.terms.ID(), lost, time.Minute)
	s.a.take(s.a.pay(s.a.payment(s.a.next())))
}
