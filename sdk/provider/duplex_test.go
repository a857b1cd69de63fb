package provider

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wire"
)

// wired is a duplex stream as the hand-made renter has it.
type wired struct {
	*tab
	conn *websocket.Conn
}

// dial attaches to the lease through a WebSocket, with a voucher.
func (t *tab) dial(voucher uint64) *wired {
	t.Helper()
	cred := t.credential(wire.ActionVoucher, voucher)
	cred.Payload.LeaseSecret = t.lease.Secret
	authorization, err := cred.Header()
	if err != nil {
		t.Fatal(err)
	}
	conn, resp, err := websocket.Dial(t.Context(), t.server.URL+"/lease", &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {authorization}}})
	if err != nil {
		t.Fatalf("%v: %v", err, resp)
	}
	t.Cleanup(func() { conn.CloseNow() })
	conn.SetReadLimit(wire.MaxEvent)
	l := &wired{t, conn}
	if e := l.event(wire.EventLease); !bytes.Contains(e.Data, []byte(t.lease.LeaseID.Hex())) {
		t.Fatalf("another lease: %s", e.Data)
	}
	return l
}

// message is the next message, which must come.
func (l *wired) message() (websocket.MessageType, []byte) {
	l.Helper()
	kind, message, err := l.conn.Read(l.Context())
	if err != nil {
		l.Fatal(err)
	}
	return kind, message
}

// event waits for an event of a name.
func (l *wired) event(name string) wire.Event {
	l.Helper()
	for {
		kind, message := l.message()
		if kind != websocket.MessageText {
			continue
		}
		e, err := wire.NewEvents(bytes.NewReader(message)).Next()
		if err != nil {
			l.Fatalf("%v: %q", err, message)
		}
		if e.Name == name {
			return e
		}
	}
}

// receipt waits for a receipt.
func (l *wired) receipt() uint64 {
	l.Helper()
	for {
		kind, message := l.message()
		if kind != websocket.MessageBinary {
			continue
		}
		accepted, err := wire.ParseReceiptMessage(message)
		if err != nil {
			l.Fatal(err)
		}
		return accepted.Uint64()
	}
}

func (l *wired) vouchers(amounts ...uint64) []byte {
	l.Helper()
	var message []byte
	for _, amount := range amounts {
		message = l.voucher(message, amount, l.sign(l.key, l.terms, amount))
	}
	return message
}

func (l *wired) voucher(message []byte, amount uint64, signature []byte) []byte {
	l.Helper()
	message, err := wire.AppendVoucher(message, channel.Voucher{ChannelID: l.terms.ID(), Cumulative: *uint256.NewInt(amount), Signature: signature})
	if err != nil {
		l.Fatal(err)
	}
	return message
}

func (l *wired) write(message []byte) {
	l.Helper()
	if err := l.conn.Write(l.Context(), websocket.MessageBinary, message); err != nil {
		l.Fatal(err)
	}
}

// over waits for the end of the stream.
func (l *wired) over() {
	l.Helper()
	for {
		if _, _, err := l.conn.Read(l.Context()); err != nil {
			if l.Context().Err() != nil {
				l.Fatal("the stream goes on")
			}
			return
		}
	}
}

// metric is the provider's only metric of a name.
func (l *wired) metric(name string) float64 {
	l.Helper()
	families, err := l.provider.metrics.registry.Gather()
	if err != nil {
		l.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name && len(f.GetMetric()) == 1 {
			m := f.GetMetric()[0]
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	l.Fatalf("there is not one %s", name)
	return 0
}

func (l *wired) kept() uint64 {
	l.Helper()
	s, err := l.provider.payee.State(l.Context(), l.terms.ID())
	if err != nil {
		l.Fatal(err)
	}
	return s.Accepted.Uint64()
}

// TestPaidThroughTheStream: many vouchers are on their way at once, few are verified, each receipt is for more than the
// one before, and the last is for all. Usage records come in between.
func TestPaidThroughTheStream(t *testing.T) {
	t.Parallel()
	const vouchers = 400
	for _, together := range []int{1, 8} {
		t.Run(map[int]string{1: "one a message", 8: "eight a message"}[together], func(t *testing.T) {
			l := newRig(t).open(1, 1_000_000, "").dial(1)
			for n := uint64(2); n <= vouchers; {
				var amounts []uint64
				for ; len(amounts) < together && n <= vouchers; n++ {
					amounts = append(amounts, n)
				}
				l.write(l.vouchers(amounts...))
			}
			receipts := 0
			for last := uint64(0); last < vouchers; receipts++ {
				next := l.receipt()
				if next <= last {
					t.Fatalf("a receipt for %d after one for %d", next, last)
				}
				if kept := l.kept(); kept < next {
					t.Fatalf("a receipt for %d, kept %d", next, kept)
				}
				last = next
			}
			if taken := l.metric("gpupay_vouchers_total"); int(taken) != receipts+1 {
				t.Errorf("%v vouchers were taken with %d receipts and one request", taken, receipts)
			}
			l.event(wire.EventUsage)
			if kept := l.kept(); kept != vouchers {
				t.Errorf("kept a voucher for %d", kept)
			}
		})
	}
}

// TestStreamRefusesVouchers: what is no voucher, or nobody's, ends the stream and takes nothing; what cannot be taken now
// leaves it.
func TestStreamRefusesVouchers(t *testing.T) {
	t.Parallel()
	const deposit = 100_000
	text := func(s string) func(*wired) []byte { return func(*wired) []byte { return []byte(s) } }
	for _, test := range []struct {
		name    string
		send    func(*wired) []byte
		text    bool
		problem *wire.Problem // nil: not even that
		kept    uint64
		lives   bool
	}{
		{name: "text", send: text("hello"), text: true, problem: &wire.MalformedCredential, kept: 10},
		{name: "a few bytes", send: text("hello"), problem: &wire.MalformedCredential, kept: 10},
		{name: "a voucher that is cut off", send: func(l *wired) []byte { return l.vouchers(20)[:50] }, problem: &wire.MalformedCredential, kept: 10},
		{name: "a good one, and one that is cut off", send: func(l *wired) []byte { return append(l.vouchers(20), 1, 2, 3) }, problem: &wire.MalformedCredential, kept: 20},
		{name: "a message that is too long", send: func(l *wired) []byte { return bytes.Repeat(l.vouchers(20), wire.MaxMessage/79+1) }, kept: 10},
		{name: "no signature", send: func(l *wired) []byte { return l.voucher(nil, 20, nil) }, problem: &wire.InvalidSignature, kept: 10},
		{name: "somebody else's", send: func(l *wired) []byte { return l.voucher(nil, 20, l.sign(l.fund(l.T, 1), l.terms, 20)) }, problem: &wire.SignerMismatch, kept: 10},
		{name: "of another channel", send: func(l *wired) []byte {
			return l.voucher(nil, 20, l.sign(l.key, l.rig.terms(l.key.Address(), 99), 20))
		}, problem: &wire.SignerMismatch, kept: 10},
		{name: "for another amount", send: func(l *wired) []byte { return l.voucher(nil, 20, l.sign(l.key, l.terms, 19)) }, problem: &wire.SignerMismatch, kept: 10},
		{name: "high s", send: func(l *wired) []byte { return l.voucher(nil, 20, highS(l.sign(l.key, l.terms, 20))) }, problem: &wire.InvalidSignature, kept: 10},
		{name: "v flipped", send: func(l *wired) []byte {
			signature := l.sign(l.key, l.terms, 20)
			signature[64] = 55 - signature[64]
			return l.voucher(nil, 20, signature)
		}, problem: &wire.SignerMismatch, kept: 10},
		{name: "a forged one over a good one", send: func(l *wired) []byte {
			return l.voucher(l.vouchers(20), 30, l.sign(l.key, l.terms, 29))
		}, problem: &wire.SignerMismatch, kept: 20},
		{name: "over the deposit", send: func(l *wired) []byte { return l.vouchers(deposit + 1) }, problem: &wire.AmountExceedsDeposit, kept: 10, lives: true},
		{name: "over the deposit, and a good one", send: func(l *wired) []byte { return l.vouchers(20, deposit+1) }, problem: &wire.AmountExceedsDeposit, kept: 20, lives: true},
		{name: "of nothing", send: func(l *wired) []byte { return l.vouchers(0) }, problem: &wire.MalformedCredential, kept: 10, lives: true},
		{name: "the same again", send: func(l *wired) []byte { return l.vouchers(10) }, kept: 10, lives: true},
		{name: "a lower one", send: func(l *wired) []byte { return l.vouchers(9) }, kept: 10, lives: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newRig(t).open(1, deposit, "").dial(10)
			kind := websocket.MessageBinary
			if test.text {
				kind = websocket.MessageText
			}
			if err := l.conn.Write(t.Context(), kind, test.send(l)); err != nil {
				t.Fatal(err)
			}
			if test.problem != nil {
				var problem wire.Problem
				if err := json.Unmarshal(l.event(wire.EventProblem).Data, &problem); err != nil || !errors.Is(&problem, test.problem) {
					t.Errorf("problem: %v, %v", &problem, err)
				}
			}
			if !test.lives {
				l.over()
			}
			if kept := l.kept(); kept != test.kept {
				t.Errorf("kept a voucher for %d", kept)
			}
			if !test.lives { // who goes on shows again who he is
				l = l.tab.dial(test.kept)
			}
			l.write(l.vouchers(40))
			for l.receipt() < 40 {
			}
		})
	}
}

// TestStreamIsForItsRenter: a voucher alone, which may be public, opens no duplex stream either.
func TestStreamIsForItsRenter(t *testing.T) {
	tab := newRig(t).open(1, 100_000, "")
	authorization, err := tab.credential(wire.ActionVoucher, 10).Header()
	if err != nil {
		t.Fatal(err)
	}
	_, resp, err := websocket.Dial(t.Context(), tab.server.URL+"/lease", &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {authorization}}})
	if err == nil {
		t.Fatal("attached without the lease's secret")
	}
	if problem := wire.ParseProblem(resp); !errors.Is(problem, &wire.VerificationFailed) {
		t.Errorf("refused with %v", problem)
	}
}

// TestStreamsEnd: a renter that hangs up, a newer stream, a release and the end of the provider each end a duplex stream.
func TestStreamsEnd(t *testing.T) {
	t.Parallel()
	open := func(l *wired) float64 { return l.metric("gpupay_streams") }
	t.Run("hung up", func(t *testing.T) {
		l := newRig(t).open(1, 100_000, "").dial(1)
		l.body.Close()
		waitFor(t, func() bool { return open(l) == 1 })
		l.conn.CloseNow()
		waitFor(t, func() bool { return open(l) == 0 })
	})
	t.Run("replaced", func(t *testing.T) {
		first := newRig(t).open(1, 100_000, "").dial(1)
		second := first.tab.dial(2)
		first.over()
		second.write(second.vouchers(30))
		for second.receipt() < 30 {
		}
	})
	t.Run("released", func(t *testing.T) {
		l := newRig(t).open(1, 100_000, "").dial(1)
		l.release()
		l.event(wire.EventReceipt)
		_, _, err := l.conn.Read(t.Context())
		if websocket.CloseStatus(err) != websocket.StatusNormalClosure {
			t.Errorf("ended with %v", err)
		}
	})
	t.Run("provider stops", func(t *testing.T) {
		l := newRig(t).open(1, 100_000, "").dial(1)
		if err := l.provider.Close(); err != nil {
			t.Fatal(err)
		}
		l.over()
	})
}

// posts counts the vouchers that came in requests of their own.
type posts struct {
	http.Handler
	lines chan string
}

func (p posts) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if cred, err := wire.ParseCredential(r.Header); err == nil {
		p.lines <- r.Method + " " + cred.Payload.Action + " " + r.Header.Get("Upgrade")
	}
	p.Handler.ServeHTTP(w, r)
}

// hidden is what a middleware does that wraps the ResponseWriter and forgets what it can.
type hidden struct{ w http.ResponseWriter }

func (h hidden) Header() http.Header         { return h.w.Header() }
func (h hidden) Write(b []byte) (int, error) { return h.w.Write(b) }
func (h hidden) WriteHeader(code int)        { h.w.WriteHeader(code) }
func (h hidden) Flush()                      { h.w.(http.Flusher).Flush() }

// TestRenterPaysThroughWhatThereIs: through the stream where provider, renter and all between them can, and otherwise by
// requests beside server-sent events.
func TestRenterPaysThroughWhatThereIs(t *testing.T) {
	m := testrig.NewMarket(t)
	refusing := func(status int) func(http.Handler) http.Handler {
		return func(p http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Upgrade") != "" {
					w.WriteHeader(status)
					_, _ = io.WriteString(w, "<html>what is that?")
					return
				}
				p.ServeHTTP(w, r)
			})
		}
	}
	for _, test := range []struct {
		name    string
		between func(http.Handler) http.Handler
		stream  bool // vouchers go through it
	}{
		{"nothing between", func(p http.Handler) http.Handler { return p }, true},
		{"a proxy that drops the upgrade", func(p http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				r.Header.Del("Upgrade")
				p.ServeHTTP(w, r)
			})
		}, false},
		{"a proxy that refuses the upgrade", refusing(http.StatusBadRequest), false},
		{"a proxy that fails at it", refusing(http.StatusBadGateway), false},
		{"a proxy that promises and does not keep", func(p http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Upgrade") != "" {
					w.Header().Set("Upgrade", "websocket")
					w.Header().Set("Connection", "Upgrade")
					w.WriteHeader(http.StatusSwitchingProtocols)
					return
				}
				p.ServeHTTP(w, r)
			})
		}, false},
		{"a middleware that hides the connection", func(p http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.ServeHTTP(hidden{w}, r) })
		}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := serveProvider(t, m, nil)
			heard := posts{test.between(server.Config.Handler), make(chan string, 1000)}
			server.Config.Handler = heard
			r := renterrig.Open(t, renterrig.Config(t, m, m.Newcomer(t)))
			l, err := r.Rent(t.Context(), server.URL, renter.Options{GPUs: 1, Deposit: "1", PayEvery: 50 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			done := renterrig.Background(t.Context(), l)
			testrig.Eventually(t, "vouchers for 0.5 s", func() bool { s := l.Snapshot(); return s.Paid.Uint64() > 500 })
			if _, err := l.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			close(heard.lines)
			var vouchers int
			for line := range heard.lines {
				if strings.HasPrefix(line, "POST "+wire.ActionVoucher) {
					vouchers++
				}
			}
			if test.stream != (vouchers <= 1) { // what the final record says is paid by a request
				t.Errorf("%d vouchers came in requests of their own", vouchers)
			}
		})
	}
}
