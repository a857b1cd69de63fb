package settle_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/sdk/chain"
)

// A deposit counts when it has its confirmations and not a block before; a close request counts at once.
func TestDepositsWaitAndCloseRequestsDoNot(t *testing.T) {
	k := newTill(t)
	terms := k.Open(1, 1000)
	k.Mine(t, 3)
	k.Check()
	k.TopUp(terms, 500, 1)
	for confirmations := range 3 {
		k.Check()
		want := uint64(1000)
		if confirmations == 2 {
			want = 1500
		}
		if s := k.State(terms); !is(s.Deposit, want) {
			t.Errorf("%d confirmations: deposit %s, want %d", confirmations+1, s.Deposit.Dec(), want)
		}
		if confirmations < 2 {
			k.Mine(t, 1)
		}
	}
	k.RequestClose(terms)
	k.Check()
	if s := k.State(terms); s.Status != channel.Closing {
		t.Errorf("one block after the close request: %s", s.Status)
	}
	if n := len(k.Changes); n != 2 || k.Changes[0].Status != channel.Open || k.Changes[1].Status != channel.Closing {
		t.Errorf("told of %+v", k.Changes)
	}
	k.Check()
	if n := len(k.Changes); n != 2 {
		t.Errorf("told again of what did not change")
	}
}

// Each kind of change is seen, undone by a re-org, and the local view follows.
func TestReorgRollsBackTheView(t *testing.T) {
	for _, depth := range []int{4, 7} { // the four transactions below, and more
		k := newTill(t)
		stays, opened := k.Open(1, 1000), k.Terms(2)
		k.Accept(stays, 300)
		k.Mine(t, 8)
		k.Check()
		k.Watcher.Confirmations = 1
		before := k.State(stays)

		k.TopUp(stays, 100, 1)
		v := k.State(stays)
		k.Send(k.Others, k.Contract.SettleCall(stays, v.Accepted, v.Signature))
		k.RequestClose(stays)
		k.Send(k.Others, k.Contract.OpenAuthorizedCall(opened, k.Authorize(700, channel.OpenNonce(opened.Payer, opened))))
		k.Register(opened)
		k.Mine(t, depth-4)
		k.Check()
		if s := k.State(stays); !is(s.Deposit, 1100) || !is(s.Settled, 300) || s.Status != channel.Closing {
			t.Fatalf("before the re-org: %+v", s)
		}
		k.Reorg(t, depth)
		k.Check()
		if s := k.State(stays); s.Deposit != before.Deposit || s.Settled != before.Settled || s.Status != channel.Open || !is(s.Accepted, 300) {
			t.Errorf("depth %d: after the re-org: deposit %s, settled %s, %s", depth, s.Deposit.Dec(), s.Settled.Dec(), s.Status)
		}
		if s := k.State(opened); !s.Deposit.IsZero() {
			t.Errorf("depth %d: a channel that was never opened has a deposit of %s", depth, s.Deposit.Dec())
		}
	}
}

// A close that a re-org undoes comes again: until then the channel is closing.
func TestReorgUndoesAClose(t *testing.T) {
	k := newTill(t)
	terms := k.Open(1, 1000)
	k.Mine(t, 5)
	k.Check()
	k.Send(k.Sender, k.Contract.CloseCall(terms, uint256.Int{}, nil))
	k.Check()
	if s := k.State(terms); s.Status != channel.Finalized {
		t.Fatalf("after the close: %s", s.Status)
	}
	k.Reorg(t, 1)
	k.Check()
	if s := k.State(terms); s.Status != channel.Closing {
		t.Errorf("after the re-org: %s", s.Status)
	}
}

// A re-org while the program was stopped is seen by the blocks on disk.
func TestReorgWhileStopped(t *testing.T) {
	k := newTill(t)
	terms := k.Open(1, 1000)
	k.Mine(t, 5)
	k.Check()
	k.Send(k.Sender, k.Contract.CloseCall(terms, uint256.Int{}, nil))
	k.Check()
	k.Restart(k.Backend)
	k.Reorg(t, 1)
	k.Check()
	if s := k.State(terms); s.Status != channel.Closing {
		t.Errorf("after the re-org: %s", s.Status)
	}
}

// An endpoint that is behind what it said before is not a re-org, unless it stays there.
func TestLaggingEndpoint(t *testing.T) {
	k := newTill(t)
	terms := k.Open(1, 1000)
	k.Mine(t, 3)
	var snapshot string
	k.RPC(t, &snapshot, "evm_snapshot")
	k.TopUp(terms, 500, 1)
	k.Mine(t, 5)
	k.Check()
	if s := k.State(terms); !is(s.Deposit, 1500) {
		t.Fatalf("deposit %s", s.Deposit.Dec())
	}
	k.RPC(t, nil, "evm_revert", snapshot)
	refused := 0
	for range 20 {
		if err := k.Watcher.Check(t.Context()); err == nil {
			break
		}
		refused++
		if s := k.State(terms); !is(s.Deposit, 1500) {
			t.Fatalf("look %d: believed an endpoint that may only lag", refused)
		}
	}
	if s := k.State(terms); refused == 0 || refused > 10 || !is(s.Deposit, 1000) {
		t.Errorf("refused %d times, deposit %s", refused, s.Deposit.Dec())
	}
}

// An endpoint that says the newest block, and for what it reads a number from long ago, takes no deposit out of the books:
// no event would bring it back.
func TestAgedBlockNumber(t *testing.T) {
	k := newTill(t)
	bad := badrpc.New(t, k.URL)
	client, err := chain.Dial(t.Context(), bad.URL)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.BlockNumber(t.Context()); err != nil {
		t.Fatal(err)
	}
	terms := k.Open(1, 1000)
	k.Mine(t, 3)
	k.Restart(client)
	k.Check()
	k.Accept(terms, 300)
	bad.On("eth_blockNumber", badrpc.Aged)
	k.TopUp(terms, 500, 1)
	k.Mine(t, 3)
	for what, look := range map[string]func(context.Context) error{
		"the watcher": k.Watcher.Check, "the settler": func(ctx context.Context) error { return k.Settler.Settle(ctx, terms.ID()) },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second) // a settlement is not seen to be mined meanwhile
		err := look(ctx)
		cancel()
		if s := k.State(terms); s.Deposit.Lt(uint256.NewInt(1000)) {
			t.Fatalf("%s took the deposit for %s (%v)", what, s.Deposit.Dec(), err)
		}
	}
	bad.Heal()
	k.Check()
	if err := k.Settler.Settle(t.Context(), terms.ID()); err != nil {
		t.Fatal(err)
	}
	if s := k.State(terms); !is(s.Deposit, 1500) || !is(s.Settled, 300) {
		t.Errorf("afterwards: deposit %s, settled %s", s.Deposit.Dec(), s.Settled.Dec())
	}
}

// Other people's channels in the same escrow are none of ours.
func TestStrangersChannelsAreIgnored(t *testing.T) {
	k := newTill(t)
	k.Check()
	theirs := k.Terms(7)
	k.Send(k.Others, k.Contract.OpenAuthorizedCall(theirs, k.Authorize(10, channel.OpenNonce(theirs.Payer, theirs))))
	k.Check()
	if states, err := k.Payee.Channels(t.Context()); err != nil || len(states) != 0 {
		t.Errorf("channels %v, %v", states, err)
	}
}

// The endpoint fails for a while: it is not hammered, and afterwards what happened meanwhile is seen.
func TestWatchThroughFailures(t *testing.T) {
	k := newTill(t)
	terms := k.Open(1, 1000)
	target, err := url.Parse(k.URL)
	if err != nil {
		t.Fatal(err)
	}
	var down atomic.Bool
	var requests atomic.Int64
	// With connections of its own: it hangs up on them when a client does, and the test's own calls go beside it.
	forward := &httputil.ReverseProxy{Transport: &http.Transport{}, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }}
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		if down.Load() {
			http.Error(w, "told to fail", http.StatusBadGateway)
			return
		}
		forward.ServeHTTP(w, r)
	}))
	defer proxy.Close()
	client, err := chain.Dial(t.Context(), proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	k.Restart(client)
	k.Accept(terms, 10)
	k.Run(k.Watcher.Run)
	k.Run(k.Sender.Run)
	k.Run(k.Settler.Run)
	time.Sleep(10 * poll)
	down.Store(true)
	n := requests.Load()
	direct, err := chain.NewEscrow(t.Context(), k.Backend, k.Escrow)
	if err != nil {
		t.Fatal(err)
	}
	k.Contract = direct // the renter's own endpoint works
	k.RequestClose(terms)
	time.Sleep(3 * time.Second)
	if n = requests.Load() - n; n == 0 || n > 20 {
		t.Errorf("%d requests in 3 s of failure", n)
	}
	down.Store(false)
	k.Eventually("the close request is seen and answered", func() bool {
		s := k.State(terms)
		return s.Status == channel.Closing && is(s.Settled, 10)
	})
	k.Balance(10)
}

// Over WebSocket new blocks announce themselves: a close request is seen long before the next poll.
func TestWatchOverWebSocket(t *testing.T) {
	k := newTill(t)
	first, second := k.Open(1, 1000), k.Open(2, 1000)
	k.watchOver(k.WS)
	k.Watcher.Poll = time.Hour
	k.Run(k.Watcher.Run)
	k.Eventually("the first look", k.looked)
	time.Sleep(100 * time.Millisecond) // until it waits for heads
	for _, terms := range []channel.Terms{first, second} {
		k.direct(terms)
		k.Eventually("the close request is seen", func() bool { return k.State(terms).Status == channel.Closing })
	}
}

// The WebSocket breaks under a subscription: polling takes over at once, and the connection comes back.
func TestWebSocketBreaks(t *testing.T) {
	k := newTill(t)
	first, second := k.Open(1, 1000), k.Open(2, 1000)
	line := newLine(t, strings.TrimPrefix(k.WS, "ws://"))
	k.watchOver("ws://" + line.address)
	k.Watcher.Poll = 100 * time.Millisecond
	k.Run(k.Watcher.Run)
	k.Eventually("the first look", k.looked)
	time.Sleep(100 * time.Millisecond)
	line.hangUp()
	k.direct(first)
	k.Eventually("the close request is seen", func() bool { return k.State(first).Status == channel.Closing })
	k.Eventually("the connection is back", func() bool { return line.calls.Load() > 1 })
	k.direct(second)
	k.Eventually("the second one is seen", func() bool { return k.State(second).Status == channel.Closing })
}

// watchOver begins anew over another endpoint.
func (k *till) watchOver(url string) {
	k.T.Helper()
	client, err := chain.Dial(k.T.Context(), url)
	if err != nil {
		k.T.Fatal(err)
	}
	k.T.Cleanup(client.Close)
	k.Restart(client)
}

// looked reports whether the watcher has acted on a block.
func (k *till) looked() bool {
	trail, err := k.Txs.Trail(k.T.Context(), 31337, k.Escrow)
	return err == nil && len(trail) > 0
}

// direct requests a close over the chain's own endpoint, whatever the watcher's is.
func (k *till) direct(terms channel.Terms) {
	k.T.Helper()
	mine := k.Contract
	defer func() { k.Contract = mine }()
	var err error
	if k.Contract, err = chain.NewEscrow(k.T.Context(), k.Backend, k.Escrow); err != nil {
		k.T.Fatal(err)
	}
	k.RequestClose(terms)
}

// line is a TCP line that can be hung up.
type line struct {
	address string
	calls   atomic.Int64

	mu   sync.Mutex
	open []net.Conn
}

func newLine(t *testing.T, target string) *line {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &line{address: listener.Addr().String()}
	t.Cleanup(func() { _ = listener.Close(); l.hangUp() })
	go func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				_ = in.Close()
				continue
			}
			l.calls.Add(1)
			l.mu.Lock()
			l.open = append(l.open, in, out)
			l.mu.Unlock()
			go func() { _, _ = io.Copy(in, out); _ = in.Close() }()
			go func() { _, _ = io.Copy(out, in); _ = out.Close() }()
		}
	}()
	return l
}

func (l *line) hangUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.open {
		_ = c.Close()
	}
	l.open = nil
}
