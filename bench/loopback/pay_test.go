package loopback

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/bench/gateway"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/wire"
)

func TestMain(m *testing.M) {
	gateway.Main()
	os.Exit(m.Run())
}

// ways are how renters pay: by a request a voucher (0), or through the duplex stream with so many in flight.
var ways = []struct {
	name   string
	flight int
}{{"request", 0}, {"stream-1-in-flight", 1}, {"stream-8-in-flight", 8}}

// BenchmarkPay is a payment: vouchers are signed before the clock runs, and one counts when its receipt is back. A request
// waits for the answer to the one before; in the stream those that can go at once go in one message. Each renter has a
// connection of its own, and each way a gateway.
func BenchmarkPay(b *testing.B) {
	for _, renters := range []int{16, 64, 1024} {
		b.Run(fmt.Sprintf("renters=%d", renters), func(b *testing.B) {
			w := newWorld(b, renters)
			for _, way := range ways {
				c := newCrowd(b, w, renters, way.flight)
				b.Run("way="+way.name, func(b *testing.B) { benchmark(b, c) })
				c.leave()
			}
		})
	}
}

func benchmark(b *testing.B, c *crowd) {
	c.sign(b, b.N)
	before, err := c.gateway.Processor()
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	if err := c.pay(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	after, err := c.gateway.Processor()
	if err != nil {
		b.Fatal(err)
	}
	var waits []time.Duration
	for _, r := range c.renters {
		waits = append(waits, r.waits...)
	}
	slices.Sort(waits)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "payments/s")
	b.ReportMetric(float64((after-before).Microseconds())/float64(b.N), "gateway-us-cpu/payment")
	b.ReportMetric(1e3*waits[len(waits)/2].Seconds(), "ms-wait-p50")
	b.ReportMetric(1e3*waits[(len(waits)-1)*99/100].Seconds(), "ms-wait-p99")
}

func newWorld(t testing.TB, renters int) *gateway.World {
	w, err := gateway.NewWorld(t.Context(), renters)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

// crowd is the renters that pay in one way, and their gateway.
type crowd struct {
	world   *gateway.World
	gateway *gateway.Process
	flight  int
	renters []*renter
	client  *http.Client
	newest  wire.Challenge // good for longer than a benchmark takes
}

// renter is one lease's.
type renter struct {
	number   int
	signed   uint64 // the newest voucher's amount
	vouchers []channel.Voucher
	waits    []time.Duration // of each for its receipt

	headers []string        // where it pays by requests
	conn    *websocket.Conn // where by a stream
}

func newCrowd(t testing.TB, w *gateway.World, renters, flight int) *crowd {
	g, err := w.Start(t.Context(), gateway.Options{RPC: w.Chain.URL, Token: w.Chain.Token,
		Database: filepath.Join(t.TempDir(), "provider.db"), Leases: renters, Tick: time.Second, Period: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Kill() })
	c := &crowd{world: w, gateway: g, flight: flight, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: renters}}}
	if c.newest, err = g.Challenge(t.Context()); err != nil {
		t.Fatal(err)
	}
	for n := range renters {
		c.renters = append(c.renters, &renter{number: n})
	}
	if flight > 0 {
		if err := c.each(func(r *renter) error { return c.attach(t.Context(), r) }); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func (c *crowd) attach(ctx context.Context, r *renter) error {
	header, err := c.world.Credential(ctx, c.newest, r.number, 0, true)
	if err != nil {
		return err
	}
	conn, resp, err := websocket.Dial(ctx, c.gateway.URL+"/lease", &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {header}}})
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

// leave ends what the renters have open, and the gateway.
func (c *crowd) leave() {
	for _, r := range c.renters {
		if r.conn != nil {
			r.conn.CloseNow()
		}
	}
	c.client.CloseIdleConnections()
	c.gateway.Kill()
}

// each does something for all renters at once.
func (c *crowd) each(do func(*renter) error) error {
	failed := make([]error, len(c.renters))
	var wait sync.WaitGroup
	for i, r := range c.renters {
		wait.Go(func() { failed[i] = do(r) })
	}
	wait.Wait()
	return errors.Join(failed...)
}

// sign makes the next n vouchers ready, spread evenly over the renters.
func (c *crowd) sign(t testing.TB, n int) {
	err := c.each(func(r *renter) error {
		r.vouchers, r.waits, r.headers = r.vouchers[:0], r.waits[:0], r.headers[:0]
		for i := r.number; i < n; i += len(c.renters) {
			r.signed++
			v, err := c.world.Domain.Sign(t.Context(), c.world.Payer, c.world.IDs[r.number], *uint256.NewInt(r.signed))
			if err != nil {
				return err
			}
			r.vouchers = append(r.vouchers, v)
			if c.flight > 0 {
				continue
			}
			header, err := c.world.Credential(t.Context(), c.newest, r.number, r.signed, false)
			if err != nil {
				return err
			}
			r.headers = append(r.headers, header)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (c *crowd) pay(ctx context.Context) error {
	if c.flight > 0 {
		return c.each(func(r *renter) error { return r.stream(ctx, c.flight) })
	}
	return c.each(func(r *renter) error { return c.request(ctx, r) })
}

// request pays by a request a voucher, each after the answer to the one before.
func (c *crowd) request(ctx context.Context, r *renter) error {
	for i, header := range r.headers {
		begun := time.Now()
		accepted, err := c.gateway.Post(ctx, c.client, header)
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

// stream keeps as many vouchers on their way as may be; those that may go now go in one message.
func (r *renter) stream(ctx context.Context, flight int) error {
	var sent []time.Time
	var message []byte
	for paid := 0; paid < len(r.vouchers); {
		var err error
		message = message[:0]
		for len(sent) < min(paid+flight, len(r.vouchers)) {
			if message, err = wire.AppendVoucher(message, r.vouchers[len(sent)]); err != nil {
				return err
			}
			sent = append(sent, time.Now())
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
		for now := time.Now(); paid < len(sent) && !r.vouchers[paid].Cumulative.Gt(&accepted); paid++ {
			r.waits = append(r.waits, now.Sub(sent[paid]))
		}
	}
	return nil
}

// TestFewRentersPay pays real gateways in every way: each renter holds its receipts against what it sent, and who drops
// payments, or is refused one, is noticed.
func TestFewRentersPay(t *testing.T) {
	w := newWorld(t, 3)
	for _, way := range ways {
		c := newCrowd(t, w, 3, way.flight)
		for range 2 {
			c.sign(t, 20)
			if err := c.pay(t.Context()); err != nil {
				t.Errorf("%s: %v", way.name, err)
			}
		}
		c.sign(t, 6)
		want := "" // whatever the end of the stream says
		if way.flight == 0 {
			c.renters[0].headers[1], want = c.renters[0].headers[0], "a receipt for 15 of 16" // it is answered with one for less
		} else {
			c.renters[1].vouchers[1].Signature = make(wire.Bytes, 65)
		}
		if err := c.pay(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: a wrong receipt, or a refusal, is not noticed: %v", way.name, err)
		}
		c.leave()
	}
}
