package pool_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/sdk/budget"
	"github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/pool"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/route"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// child is this test binary again, as a process of its own that is killed.
type child struct {
	cmd *exec.Cmd
	in  io.Closer
}

// spawn starts a child that does something with a pool of the town, and waits until it says that it is ready.
func (w *town) spawn(does string, shops ...*shop) *child {
	w.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestChild$", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), "POOL_CHILD="+does, "POOL_DIR="+w.dir, "POOL_RPC="+w.chain.URL, "POOL_TOKEN="+w.chain.Token.Hex(),
		"POOL_KEY="+hex.EncodeToString(crypto.FromECDSA(w.key)))
	for i, s := range shops {
		cmd.Env = append(cmd.Env, "POOL_SHOP"+strconv.Itoa(i)+"="+s.URL)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		w.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		cmd.Stderr = os.Stderr
		err = cmd.Start()
	}
	if err != nil {
		w.Fatal(err)
	}
	c := &child{cmd, in}
	w.Cleanup(c.kill)
	said := make([]byte, 0, 4096)
	for one := make([]byte, 1); !strings.HasSuffix(string(said), "READY\n"); said = append(said, one...) {
		if _, err := out.Read(one); err != nil {
			w.Fatalf("the child said %q: %v", said, err)
		}
	}
	return c
}

func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

// TestChild is what a child does; in the parent it is nothing.
func TestChild(t *testing.T) {
	does := os.Getenv("POOL_CHILD")
	if does == "" {
		t.Skip("of other tests")
	}
	key, err := crypto.HexToECDSA(os.Getenv("POOL_KEY"))
	if err != nil {
		t.Fatal(err)
	}
	w := &town{T: t, key: key, dir: os.Getenv("POOL_DIR"), caps: caps,
		chain: &devchain.Chain{URL: os.Getenv("POOL_RPC"), Token: common.HexToAddress(os.Getenv("POOL_TOKEN"))}}
	p := w.pool(w.client(), nil)
	var candidates []pool.Candidate
	for _, e := range os.Environ() {
		if name, url, _ := strings.Cut(e, "="); strings.HasPrefix(name, "POOL_SHOP") && url != "" {
			candidates = append(candidates, pool.Candidate{URL: url, Model: "test"})
		}
	}
	if err := p.Set(candidates); err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, "the offers", func() bool { return len(p.Endpoints()) == len(candidates) })
	url := candidates[0].URL
	switch does {
	case "reserve": // and dies before it sends
		if _, err := p.Reserve(t.Context(), "", anyPrice(url), route.Base(200_000)); err != nil {
			t.Fatal(err)
		}
	case "answer": // and dies before it is done
		h, err := p.Reserve(t.Context(), "", anyPrice(url), route.Base(200_000))
		if err != nil {
			t.Fatal(err)
		}
		if status, err := send(t.Context(), h, ask{Millis: 300}); err != nil || status != 200 {
			t.Fatal(status, err)
		}
	case "run", "limited": // and dies while it runs
		h, err := p.Reserve(t.Context(), "", anyPrice(url), route.Base(map[string]uint64{"run": 200_000, "limited": 50_000}[does]))
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = send(context.Background(), h, ask{Millis: 60_000}) }()
		time.Sleep(500 * time.Millisecond)
	case "many":
		fmt.Println("READY")
		many(t, p, candidates, 500)
	}
	fmt.Println("READY")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// many sends so many requests at once, each where it fits.
func many(t *testing.T, p *pool.Pool, at []pool.Candidate, n int) (fit int64) {
	var all sync.WaitGroup
	var fits atomic.Int64
	for i := range n {
		all.Go(func() {
			h, err := p.Reserve(t.Context(), "", anyPrice(at[i%len(at)].URL), route.Base(8000))
			var over *budget.ExceededError
			if errors.As(err, &over) || errors.Is(err, pool.ErrEndpoint) {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			fits.Add(1)
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(500+i*7)*time.Millisecond)
			defer cancel()
			_, _ = send(ctx, h, ask{Millis: 200 + i*10, Fail: i%5 == 0})
			if err := h.Done(t.Context(), route.Nano{}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	return fits.Load()
}

// settled is what the chain has paid to all providers, once all is closed, and holds it to what the key has left.
func (w *town) settled(client *renter.Client) (all uint64) {
	w.Helper()
	rentals, err := client.History(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	for _, r := range rentals {
		if r.Closed == nil {
			w.Fatalf("channel %s is %s", r.Channel, r.Phase)
		}
		all += r.Closed.Settled.Uint64()
	}
	if has, err := client.Token().Balance(w.Context(), client.Address()); err != nil || has.Uint64() != funds-all {
		w.Errorf("%s are left, and %d are settled: %v", has.Dec(), all, err)
	}
	return all
}

// TestFiveHundredAtOnce: 500 requests at once at two providers never pass half a token, some of which fail, are given up or are refused, and with a
// process that is killed in the middle.
func TestFiveHundredAtOnce(t *testing.T) {
	w := newTown(t)
	a, b := w.shop("36", 16), w.shop("54", 16)
	first := w.spawn("many", a, b)
	rig.Eventually(t, "requests", func() bool { return a.asked.Load() > 4 && b.asked.Load() > 4 })
	first.kill()
	client := w.client()
	p := w.pool(client, nil)
	over := make(chan struct{})
	var looked sync.WaitGroup
	looked.Go(func() {
		for {
			if left, err := p.Left(""); err != nil {
				t.Error(err)
			} else if got := route.Base(500_000).Sub(left); got.Cmp(route.Base(500_000)) > 0 {
				t.Errorf("%s count", got)
			}
			select {
			case <-over:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	offer(t, p, a, b)
	fit := many(t, p, []pool.Candidate{{URL: a.URL}, {URL: b.URL}}, 500)
	close(over)
	looked.Wait()
	if fit == 0 || fit == 500 {
		t.Errorf("%d of 500 fit", fit)
	}
	if got := counted(t, p); got.Cmp(route.Base(500_000)) > 0 {
		t.Errorf("%s count", got)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	all := w.settled(client)
	if all == 0 || all > 500_000 {
		t.Errorf("%d are settled", all)
	}
	if got := counted(t, w.pool(client, nil)); got.Cmp(route.Base(all)) < 0 || got.Cmp(route.Base(500_000)) > 0 {
		t.Errorf("%s count, %d are settled", got, all)
	}
}

// TestKilledAt: a process that is killed loses no money and no reservation: one that sent nothing has cost nothing, one whose answer it had counts
// at its most until its record is read, and so does one that ran.
func TestKilledAt(t *testing.T) {
	for _, does := range []string{"reserve", "answer", "run"} {
		t.Run(does, func(t *testing.T) {
			w := newTown(t)
			s := w.shop("36", 4)
			w.spawn(does, s).kill()
			books, err := budget.Open(t.Context(), w.dir+"/pool.db")
			if err != nil {
				t.Fatal(err)
			}
			before, err := books.Counted(t.Context(), time.Now(), "")
			if err := errors.Join(err, books.Close()); err != nil {
				t.Fatal(err)
			}
			most := route.Base(205_000) // with what is kept aside
			if does == "reserve" {
				most = route.Base(5000)
			}
			if does != "answer" && before != most { // its record may have been read already
				t.Errorf("%s count after the kill, want %s", before, most)
			}
			client := w.client()
			p := w.pool(client, nil)
			offer(t, p, s)
			rig.Eventually(t, "the record", func() bool { return counted(t, p).Cmp(route.Base(20_000)) < 0 })
			must(t, p, "", s, route.Base(5000), ask{Millis: 100})
			if err := p.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			rentals, err := client.History(t.Context())
			if err != nil || len(rentals) != 1 {
				t.Errorf("%d rentals: the one that was open goes on: %v", len(rentals), err)
			}
			all := w.settled(client)
			if got := counted(t, w.pool(client, nil)); got.Cmp(route.Base(all)) < 0 || got.Cmp(route.Base(all+3)) > 0 {
				t.Errorf("%s count, %d are settled", got, all)
			}
		})
	}
}

// TestEndsAtItsMost: a request that would cost more than was reserved is ended, and costs no more.
func TestEndsAtItsMost(t *testing.T) {
	w := newTown(t)
	s := w.shop("36", 4)
	client := w.client()
	p := w.pool(client, nil)
	offer(t, p, s)
	must(t, p, "", s, route.Base(5000), ask{Millis: 1})
	before, err := p.Left("")
	if err != nil {
		t.Fatal(err)
	}
	h, err := p.Reserve(t.Context(), "", anyPrice(s.URL), route.Base(2500))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := send(t.Context(), h, ask{Millis: 30_000}); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 15*time.Second {
		t.Errorf("%v after %s", err, time.Since(began))
	}
	if _, err := send(t.Context(), h, ask{}); err == nil {
		t.Error("one reservation, two requests")
	}
	if err := errors.Join(h.Done(t.Context(), route.Nano{}), h.Done(t.Context(), route.Nano{})); err != nil {
		t.Error(err)
	}
	if left, err := p.Left(""); err != nil || before.Sub(left).Cmp(route.Base(2000)) < 0 { // it is billed until then, or a little less
		t.Errorf("%s count of what was given up: %v", before.Sub(left), err)
	}
	if _, err := p.Reserve(t.Context(), "", anyPrice(s.URL), route.Nanos(5)); err == nil {
		t.Error("dust pays for no time")
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all := w.settled(client); all > 2500+2500*2+2500 {
		t.Errorf("%d are settled", all)
	}
}

// TestPriceChanges: a rental keeps the price that it began under, and the next one has the new one.
func TestPriceChanges(t *testing.T) {
	w := newTown(t)
	s := w.shop("36", 4)
	client := w.client()
	p := w.pool(client, func(c *pool.Config) { c.Idle = 3 * time.Second })
	offer(t, p, s)
	must(t, p, "", s, route.Base(50_000), ask{Millis: 100})
	s.reprice(t, "72")
	if got := p.Endpoints(); len(got) != 1 || got[0].Price.PerSlotSecond != route.Base(2500) {
		t.Errorf("%+v", got)
	}
	offer(t, p) // forgotten, and asked again: its rental goes on
	offer(t, p, s)
	must(t, p, "", s, route.Base(50_000), ask{Millis: 100})
	rig.Each(t, 100*time.Millisecond, "the rental to be closed, as nobody uses it", func() bool {
		rentals, err := client.Rentals(t.Context())
		return err == nil && len(rentals) == 1 && rentals[0].Phase == renter.PhaseClosed
	})
	if got := p.Endpoints(); len(got) != 1 || got[0].Price.PerSlotSecond != route.Base(5000) {
		t.Errorf("%+v", got)
	}
	must(t, p, "", s, route.Base(50_000), ask{Millis: 100})
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	all := w.settled(client)
	if got := counted(t, w.pool(client, nil)); got.Cmp(route.Base(all)) < 0 || got.Cmp(route.Base(all+4)) > 0 {
		t.Errorf("%s count, %d are settled", got, all)
	}
}

// TestDearerThanItsOffer: a provider that raises its price after its offer was fetched gets no request that was reserved for at the old one,
// and is chosen by the new one from then on.
func TestDearerThanItsOffer(t *testing.T) {
	w := newTown(t)
	s := w.shop("36", 4)
	p := w.pool(w.client(), nil)
	offer(t, p, s)
	seen := p.Endpoints()[0]
	s.reprice(t, "360")
	for range 2 { // the second knows the new price
		if h, err := p.Reserve(t.Context(), "", seen, route.Base(50_000)); h != nil || !errors.Is(err, pool.ErrEndpoint) {
			t.Errorf("what was reserved for 20 s is a hold of 2 s: %v", err)
		}
	}
	if got := counted(t, p); !got.IsZero() {
		t.Errorf("%s count of what was not sent", got)
	}
	if got := p.Endpoints(); len(got) != 1 || got[0].Price.PerSlotSecond != route.Base(25_000) {
		t.Errorf("%+v", got)
	}
	if m, err := p.Money(t.Context()); err != nil || len(m.Channels) != 0 {
		t.Errorf("a deposit was made at a price that nobody chose: %+v, %v", m.Channels, err)
	}
	must(t, p, "", s, route.Base(50_000), ask{Millis: 10})
	if h, err := p.Reserve(t.Context(), "", seen, route.Base(50_000)); h != nil || !errors.Is(err, pool.ErrEndpoint) {
		t.Errorf("the rental runs at ten times the price by which was reserved: %v", err)
	}
	if n := s.asked.Load(); n != 1 {
		t.Errorf("%d requests were sent", n)
	}
}

// TestDearerThanItsQuote: a provider that raises its price between what was looked at and the deposit gets none at the new one.
func TestDearerThanItsQuote(t *testing.T) {
	w := newTown(t)
	s := w.shop("36", 4)
	client := w.client()
	p := w.pool(client, nil)
	offer(t, p, s)
	seen := p.Endpoints()[0]
	raised := func() { s.charge(t, "360") }
	s.priced.Store(false)
	s.quoted.Store(&raised)
	if h, err := p.Reserve(t.Context(), "", seen, route.Base(50_000)); h != nil && h.Done(t.Context(), route.Nano{}) != nil {
		t.Errorf("%v", err)
	}
	if s.quoted.Load() != nil {
		t.Fatal("its price was not raised meanwhile")
	}
	all, err := client.History(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		if got := units.PricePerGPUHour(r.Price, 6); got != "36.00" {
			t.Errorf("channel %s is %s, at %s", r.Channel, r.Phase, got)
		}
	}
}

// TestDearerWhileItIsReserved: a rental that others open at a higher price, between a look at the price and the reservation, is not taken
// at the old one.
func TestDearerWhileItIsReserved(t *testing.T) {
	w := newTown(t)
	s := w.shop("36", 4)
	var p *pool.Pool
	var meanwhile atomic.Pointer[func()]
	p = w.pool(w.client(), func(c *pool.Config) {
		c.Now = func() time.Time {
			if do := meanwhile.Swap(nil); do != nil {
				(*do)()
			}
			return time.Now()
		}
	})
	offer(t, p, s)
	seen := p.Endpoints()[0]
	raised := func() {
		s.reprice(t, "360")
		if _, err := p.Reserve(t.Context(), "", seen, route.Base(50_000)); !errors.Is(err, pool.ErrEndpoint) {
			t.Errorf("reserved at a price that is raised: %v", err)
		}
		must(t, p, "", s, route.Base(50_000), ask{Millis: 10})
	}
	meanwhile.Store(&raised)
	if h, err := p.Reserve(t.Context(), "", seen, route.Base(50_000)); h != nil || !errors.Is(err, pool.ErrEndpoint) {
		t.Errorf("what was reserved for 20 s is a hold of 2 s: %v", err)
	}
	must(t, p, "", s, route.Base(50_000), ask{Millis: 10})
}

// TestSickProvider: one that never answers holds up nobody, and one that takes the money and no more is left when the pool goes on after
// it was cut off while closing.
func TestSickProvider(t *testing.T) {
	w := newTown(t)
	hung, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hung.Close() // accepts by its backlog, and says nothing
	s := w.shop("36", 4)
	client := w.client()
	p := w.pool(client, nil)
	if err := p.Set([]pool.Candidate{{URL: "http://" + hung.Addr().String(), Model: "test"}, {URL: s.URL, Model: "test"}}); err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, "the offer of one that answers", func() bool { return len(p.Endpoints()) == 1 })
	must(t, p, "", s, route.Base(5000), ask{Millis: 10})
	if _, err := p.Reserve(t.Context(), "", anyPrice("http://"+hung.Addr().String()), route.Base(5000)); !errors.Is(err, pool.ErrEndpoint) {
		t.Error(err)
	}
	s.vanish()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := p.Close(ctx); err == nil || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), s.URL) {
		t.Errorf("%v", err)
	}
	if _, err := p.Reserve(t.Context(), "", anyPrice(s.URL), route.Base(5000)); !errors.Is(err, pool.ErrClosed) {
		t.Error(err)
	}
	again := w.pool(client, nil)
	rig.Each(t, 200*time.Millisecond, "its channel to be left", func() bool {
		rentals, err := client.Rentals(t.Context())
		return err == nil && len(rentals) == 1 && rentals[0].Phase == renter.PhaseLeaving
	})
	rig.Each(t, 300*time.Millisecond, "its refund", func() bool {
		if err := w.chain.AdvanceTime(5 * time.Minute); err != nil {
			t.Fatal(err)
		}
		m, err := again.Money(t.Context())
		rentals, failed := client.History(t.Context())
		return err == nil && len(m.Channels) == 0 && failed == nil && rentals[0].Closed != nil
	})
	w.settled(client)
}

// TestOpeningThatIsLost: a deposit whose provider does not answer is not made a second time, and comes back where it never does.
func TestOpeningThatIsLost(t *testing.T) {
	for name, answers := range map[string]bool{"answers later": true, "never answers": false} {
		t.Run(name, func(t *testing.T) {
			w := newTown(t)
			s := w.shop("36", 4)
			client := w.client()
			p := w.pool(client, func(c *pool.Config) { c.Idle = 2 * time.Second })
			offer(t, p, s)
			s.drops.Store(1 << 40)
			if _, err := p.Reserve(t.Context(), "", anyPrice(s.URL), route.Base(5000)); err == nil {
				t.Fatal("it was opened")
			}
			if got := counted(t, p); !got.IsZero() {
				t.Errorf("%s count for what was never sent", got)
			}
			if answers {
				s.drops.Store(0)
				rig.Each(t, 500*time.Millisecond, "its rental", func() bool {
					h, err := p.Reserve(t.Context(), "", anyPrice(s.URL), route.Base(5000))
					return err == nil && h.Done(t.Context(), route.Nano{}) == nil
				})
				if err := p.Close(t.Context()); err != nil {
					t.Fatal(err)
				}
			} else {
				rig.Each(t, 300*time.Millisecond, "its refund", func() bool {
					if err := w.chain.AdvanceTime(5 * time.Minute); err != nil {
						t.Fatal(err)
					}
					rentals, err := client.History(t.Context())
					return err == nil && len(rentals) == 1 && rentals[0].Closed != nil
				})
			}
			rentals, err := client.History(t.Context())
			if err != nil || len(rentals) != 1 {
				t.Errorf("%d deposits were made: %v", len(rentals), err)
			}
			w.settled(client)
		})
	}
}

// TestCapsBelowTheBudget: the caps stand before the key whatever the budget has left, what they refuse is not counted, and nothing is lost.
func TestCapsBelowTheBudget(t *testing.T) {
	w := newTown(t)
	w.caps = wallet.Caps{PricePerGPUHour: "400", PerLease: "0.10", PerDay: "0.12", PerPayee: wallet.Unlimited}
	s, other := w.shop("36", 4), w.shop("36", 4)
	client := w.client()
	p := w.pool(client, func(c *pool.Config) { c.Deposit, c.TopUp = "0.07", "0.05" })
	offer(t, p, s, other)
	must(t, p, "", s, route.Base(5000), ask{Millis: 10})
	before := counted(t, p)
	_, err := p.Reserve(t.Context(), "", anyPrice(other.URL), route.Base(5000))
	if !errors.Is(err, wallet.ErrDeposit) {
		t.Errorf("%v", err)
	}
	if got := counted(t, p); got.Cmp(before) > 0 {
		t.Errorf("%s count, %s before it was refused", got, before)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.settled(client)
}

// TestTopUp: a deposit that runs low is topped up while requests go on.
func TestTopUp(t *testing.T) {
	w := newTown(t)
	s := w.shop("360", 1) // 100,000 base units a second
	client := w.client()
	p := w.pool(client, func(c *pool.Config) { c.Budget, c.TopUp = "5", "0.50" })
	offer(t, p, s)
	for range 3 {
		must(t, p, "", s, route.Base(1_000_000), ask{Millis: 3000})
	}
	m, err := p.Money(t.Context())
	if err != nil || len(m.Channels) != 1 || m.Channels[0].Parked.LtUint64(1_100_000) {
		t.Errorf("%+v, %v", m, err)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all := w.settled(client); all < 900_000 {
		t.Errorf("%d are settled", all)
	}
}

// TestOverMidnight: a request that is reserved before midnight UTC counts in that day, and the next day has its whole budget; a clock that is
// set back finds what was counted.
func TestOverMidnight(t *testing.T) {
	w := newTown(t)
	s := w.shop("36", 4)
	var now atomic.Int64
	set := func(at string) {
		t, _ := time.Parse(time.RFC3339, at)
		now.Store(t.Unix())
	}
	set("2031-03-31T23:59:59Z")
	p := w.pool(w.client(), func(c *pool.Config) { c.Now = func() time.Time { return time.Unix(now.Load(), 0) } })
	offer(t, p, s)
	h, err := p.Reserve(t.Context(), "", anyPrice(s.URL), route.Base(490_000))
	if err != nil {
		t.Fatal(err)
	}
	set("2031-04-01T00:00:00Z")
	if left, err := p.Left(""); err != nil || left != route.Base(500_000) {
		t.Error(left, err)
	}
	if status, err := send(t.Context(), h, ask{Millis: 10}); err != nil || status != 200 {
		t.Error(status, err)
	}
	set("2031-03-31T12:00:00Z")
	var over *budget.ExceededError
	if _, err := p.Reserve(t.Context(), "", anyPrice(s.URL), route.Base(10_000)); !errors.As(err, &over) || over.Ends.Format(time.DateOnly) != "2031-04-01" {
		t.Error(err)
	}
	if err := h.Done(t.Context(), route.Nano{}); err != nil {
		t.Error(err)
	}
	if left, err := p.Left(""); err != nil || left.Cmp(route.Base(450_000)) < 0 {
		t.Error(left, err)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestCapLoweredMeanwhile: a rental from before, at a price above the cap of now, is not asked on after a restart, and comes back.
func TestCapLoweredMeanwhile(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	dear, cheap := w.shop("36", 4), w.shop("18", 4)
	client := w.client()
	p := w.pool(client, nil)
	offer(t, p, dear, cheap)
	must(t, p, "", dear, route.Base(5000), ask{Millis: 10})
	must(t, p, "", cheap, route.Base(5000), ask{Millis: 10})
	if err := errors.Join(p.Stop(), client.Close()); err != nil {
		t.Fatal(err)
	}
	w.caps.PricePerGPUHour = "20"
	client = w.client()
	p = w.pool(client, nil)
	if err := p.Set([]pool.Candidate{{URL: dear.URL, Model: "test"}, {URL: cheap.URL, Model: "test"}}); err != nil {
		t.Fatal(err)
	}
	if got := p.Endpoints(); len(got) != 1 || got[0].ID != cheap.URL { // its rental runs
		t.Errorf("%+v", got)
	}
	if _, err := p.Reserve(t.Context(), "", anyPrice(dear.URL), route.Base(5000)); !errors.Is(err, pool.ErrEndpoint) {
		t.Errorf("reserved above the cap: %v", err)
	}
	rig.Each(t, 100*time.Millisecond, "the dear rental to be given back", func() bool {
		m, err := p.Money(t.Context())
		return err == nil && len(m.Channels) == 1 && m.Channels[0].URL == cheap.URL
	})
	must(t, p, "", cheap, route.Base(5000), ask{Millis: 10})
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.settled(client)
}
