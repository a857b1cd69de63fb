package tower_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/tilltest"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/limit"
	"github.com/gpupay/gpupay/sdk/tower"
	"github.com/gpupay/gpupay/sdk/wire"
)

// A lookout is a watchtower on a till's chain, served over real HTTP, with a key that is neither payer's nor payee's.
type lookout struct {
	*tilltest.Till
	tower  *tower.Tower
	server *httptest.Server
	config tower.Config
	stop   func()
}

// towerLeast is what must be at stake: 0.000050 tokens.
const towerLeast = 50

func newLookout(t *testing.T, change func(*tower.Config)) *lookout {
	t.Helper()
	k := tilltest.New(t)
	l := &lookout{Till: k, config: tower.Config{
		Chain: tower.Chain{Backend: k.Backend, Poll: tilltest.Poll}, Escrow: k.Escrow, Key: channel.NewKey(k.Keys[3]), Database: filepath.Join(t.TempDir(), "tower.db"),
		Tokens: map[common.Address]string{k.Token: "0.00005"}, Patience: time.Second, Log: slog.New(slog.DiscardHandler),
		Limits: tower.Limits{Channel: limit.Rate{PerSecond: -1}, Leaves: limit.Rate{PerSecond: -1}},
	}}
	if change != nil {
		change(&l.config)
	}
	l.up()
	return l
}

// up starts the tower; without run it serves, and does nothing by itself.
func (l *lookout) up() {
	l.T.Helper()
	t, err := tower.New(l.T.Context(), l.config)
	if err != nil {
		l.T.Fatal(err)
	}
	l.tower, l.server = t, httptest.NewServer(t)
	ctx, cancel := context.WithCancel(context.Background())
	var once sync.Once
	var running sync.WaitGroup
	l.stop = func() {
		once.Do(func() {
			l.server.Close()
			cancel()
			running.Wait()
			if err := t.Close(); err != nil {
				l.T.Error(err)
			}
		})
	}
	l.T.Cleanup(l.stop)
	running.Go(func() {
		if err := t.Run(ctx); err != nil {
			l.T.Errorf("tower: %v", err)
		}
	})
}

// post sends a document and returns the status and the answer.
func (l *lookout) post(path string, document any) (int, []byte) {
	l.T.Helper()
	raw, ok := document.([]byte)
	if !ok {
		var err error
		if raw, err = json.Marshal(document); err != nil {
			l.T.Fatal(err)
		}
	}
	resp, err := http.Post(l.server.URL+path, "application/json", bytes.NewReader(raw))
	if err != nil {
		l.T.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		l.T.Fatal(err)
	}
	return resp.StatusCode, answer
}

// voucher posts one voucher and returns its outcome, or its problem's status.
func (l *lookout) voucher(v tower.Voucher) string {
	l.T.Helper()
	status, answer := l.post("/vouchers", tower.Vouchers{Vouchers: []tower.Voucher{v}})
	var got tower.Receipts
	if err := json.Unmarshal(answer, &got); err != nil || status != http.StatusOK || len(got.Receipts) != 1 {
		l.T.Fatalf("%d %s", status, answer)
	}
	if p := got.Receipts[0].Problem; p != nil {
		return fmt.Sprint(p.Status)
	}
	return got.Receipts[0].Outcome
}

func marshal(t *testing.T, document any) []byte {
	t.Helper()
	raw, err := json.Marshal(document)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func (l *lookout) sign(key channel.Signer, terms channel.Terms, amount uint64) tower.Voucher {
	l.T.Helper()
	v, err := channel.EscrowDomain(terms.ChainID, terms.Escrow).Sign(l.T.Context(), key, terms.ID(), *uint256.NewInt(amount))
	if err != nil {
		l.T.Fatal(err)
	}
	return tower.Voucher{Terms: wire.NewTerms(terms), Cumulative: wire.NewAmount(v.Cumulative), Signature: v.Signature}
}

// request is a payer's signed close request.
func (l *lookout) request(key channel.Signer, terms channel.Terms, nonce, deadline uint64) wire.LeaveRequest {
	l.T.Helper()
	sig, err := key.Sign(l.T.Context(), channel.EscrowDomain(terms.ChainID, terms.Escrow).RequestCloseDigest(terms.ID(), nonce, deadline))
	if err != nil {
		l.T.Fatal(err)
	}
	return wire.LeaveRequest{Terms: wire.NewTerms(terms), CloseRequests: nonce, Deadline: deadline, Signature: sig}
}

func (l *lookout) view(terms channel.Terms) channel.ChainView {
	l.T.Helper()
	view, err := l.Contract.View(l.T.Context(), terms.ID(), nil)
	if err != nil {
		l.T.Fatal(err)
	}
	return view
}

// sent is how many transactions the tower's key has sent.
func (l *lookout) sent() uint64 {
	l.T.Helper()
	n, err := l.Backend.NonceAt(l.T.Context(), l.tower.Address(), nil)
	if err != nil {
		l.T.Fatal(err)
	}
	return n
}

// paidOut checks every balance to the base unit: the tower never has anything.
func (l *lookout) paidOut(payee, escrow uint64) {
	l.T.Helper()
	for who, want := range map[common.Address]uint64{l.Key.Address(): payee, l.Escrow: escrow, l.tower.Address(): 0, l.Payer.Address(): 1_000_000 - payee - escrow} {
		if got := l.Tokens(l.T, who); got != want {
			l.T.Errorf("%s has %d, want %d", who, got, want)
		}
	}
}

// The provider is gone, and the tower was down for most of the grace period: the newest voucher is settled all the same,
// before the payer can withdraw. A voucher that reaches the tower after the close request still counts.
func TestTowerSettlesInTime(t *testing.T) {
	l := newLookout(t, nil)
	first, second := l.Open(1, 1000), l.Open(2, 1000)
	if got := l.voucher(l.sign(l.Payer, first, 300)); got != "accepted" {
		t.Fatal(got)
	}
	if got := l.voucher(l.sign(l.Payer, first, 700)); got != "accepted" {
		t.Fatal(got)
	}
	if got := l.voucher(l.sign(l.Payer, second, 100)); got != "accepted" {
		t.Fatal(got)
	}
	time.Sleep(20 * tilltest.Poll)
	if l.sent() != 0 {
		t.Fatal("the tower settled channels that nobody closes")
	}
	l.stop()
	l.RequestClose(first)
	l.AdvanceTime(t, chaintest.Grace-30*time.Second)
	l.Mine(t, 300) // more blocks than the trail keeps
	began := time.Now()
	l.up()
	l.Eventually("it is settled", func() bool { v := l.view(first); return tilltest.Is(v.Settled, 700) })
	t.Logf("settled %s after the tower came back", time.Since(began).Round(time.Millisecond))
	if got := l.voucher(l.sign(l.Payer, first, 850)); got != "accepted" {
		t.Fatalf("a voucher that comes late: %s", got)
	}
	l.Eventually("the late one is settled", func() bool { v := l.view(first); return tilltest.Is(v.Settled, 850) })
	// A payer who pays himself gets no third settlement for the gas of one open.
	if got := l.voucher(l.sign(l.Payer, first, 950)); got != "accepted" {
		t.Fatal(got)
	}
	time.Sleep(time.Second + 20*tilltest.Poll)
	l.AdvanceTime(t, time.Minute)
	l.Send(l.Others, l.Contract.WithdrawCall(first))
	l.paidOut(850, 1000)
	late := l.sign(l.Payer, first, 960)
	l.Eventually("a voucher after the withdrawal is refused", func() bool { return l.voucher(late) == "410" })
	if l.sent() != 2 {
		t.Errorf("the tower sent %d transactions, want 2", l.sent())
	}
}

// A payee that settles by itself in time costs the tower nothing.
func TestTowerLeavesItToThePayee(t *testing.T) {
	l := newLookout(t, func(c *tower.Config) { c.Patience = 5 * time.Minute })
	terms := l.Open(1, 1000)
	l.Accept(terms, 700)
	l.voucher(l.sign(l.Payer, terms, 700))
	l.RequestClose(terms)
	l.Eventually("the tower sees it", func() bool { return l.towerState(terms).Status == channel.Closing })
	time.Sleep(time.Second + 20*tilltest.Poll)
	if l.sent() != 0 {
		t.Fatal("the tower did not wait for the payee")
	}
	if err := l.Settler.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.AdvanceTime(t, 6*time.Minute)
	time.Sleep(time.Second + 20*tilltest.Poll)
	l.paidOut(700, 300)
	if l.sent() != 0 {
		t.Error("the tower settled what was settled")
	}
}

func (l *lookout) towerState(terms channel.Terms) channel.State {
	l.T.Helper()
	states, err := l.tower.Channels(l.T.Context())
	if err != nil {
		l.T.Fatal(err)
	}
	for _, s := range states {
		if s.ID == terms.ID() {
			return s
		}
	}
	return channel.State{}
}

// A withdrawal that the token refuses is owed to the payer by the contract; once the token pays again the tower has it paid
// out, for who has no native coin, once.
func TestTowerRelaysACredit(t *testing.T) {
	l := newLookout(t, nil)
	terms := l.Open(1, 1000)
	before := l.Tokens(t, l.Payer.Address())
	relay := &tower.Client{URL: l.server.URL, Log: slog.New(slog.DiscardHandler)}
	if err := relay.RequestClose(t.Context(), l.request(l.Payer, terms, 0, 1<<40)); err != nil {
		t.Fatal(err)
	}
	resume := l.PauseToken(t)
	l.AdvanceTime(t, chaintest.Grace)
	l.Eventually("it is withdrawn", func() bool { return l.view(terms).Finalized })
	if err := relay.Withdraw(t.Context(), terms); err == nil {
		t.Error("the token refuses to pay, and it is said to be done")
	}
	resume()
	for range 2 {
		if err := relay.Withdraw(t.Context(), terms); err != nil {
			t.Error(err)
		}
	}
	if got := l.Tokens(t, l.Payer.Address()) - before; got != 1000 {
		t.Errorf("the payer got %d back", got)
	}
	if n := l.sent(); n != 3 {
		t.Errorf("%d transactions: close, withdrawal and payout are three", n)
	}
}

// A payer without native coin leaves through the tower: the close request, the settlement of what the payee is due, and
// the withdrawal are the tower's, and each is sent once.
func TestTowerRelaysALeave(t *testing.T) {
	l := newLookout(t, nil)
	terms := l.Open(1, 1000)
	l.voucher(l.sign(l.Payer, terms, 400))
	relay := &tower.Client{URL: l.server.URL, Log: slog.New(slog.DiscardHandler)}
	q := l.request(l.Payer, terms, 0, 1<<40)
	if err := relay.Withdraw(t.Context(), terms); !errors.Is(err, chain.ErrUnreachable) {
		t.Errorf("withdrawal of a channel that nobody closes: %v", err)
	}
	if err := relay.RequestClose(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	if view := l.view(terms); view.CloseRequestedAt == 0 {
		t.Fatal("the close was not requested")
	}
	if err := relay.RequestClose(t.Context(), q); err != nil {
		t.Errorf("the same request again: %v", err)
	}
	if err := relay.Withdraw(t.Context(), terms); !errors.Is(err, chain.ErrUnreachable) {
		t.Errorf("withdrawal within the grace period: %v", err)
	}
	l.AdvanceTime(t, chaintest.Grace)
	l.Eventually("it is withdrawn", func() bool { return l.view(terms).Finalized })
	l.paidOut(400, 0)
	if err := relay.Withdraw(t.Context(), terms); err != nil {
		t.Errorf("withdrawal of what is withdrawn: %v", err)
	}
	if l.sent() != 3 { // request, settlement, withdrawal
		t.Errorf("the tower sent %d transactions, want 3", l.sent())
	}
}

// Stopped between the outbox and the block, the tower sends its transactions once.
func TestTowerIsRestartedMidway(t *testing.T) {
	l := newLookout(t, nil)
	terms := l.Open(1, 1000)
	l.voucher(l.sign(l.Payer, terms, 400))
	pending := func(n uint64) func() bool {
		return func() bool {
			got, err := l.Backend.PendingNonceAt(t.Context(), l.config.Key.Address())
			return err == nil && got == n
		}
	}
	l.Automine(t, false)
	ctx, cancel := context.WithCancel(t.Context())
	asked := make(chan error, 1)
	go func() {
		asked <- (&tower.Client{URL: l.server.URL, Log: slog.New(slog.DiscardHandler)}).RequestClose(ctx, l.request(l.Payer, terms, 0, 1<<40))
	}()
	l.Eventually("the close request is sent", pending(1))
	cancel()
	<-asked
	l.stop()
	l.up()
	time.Sleep(20 * tilltest.Poll)
	l.Mine(t, 1)
	l.Eventually("the close is requested", func() bool { return l.view(terms).CloseRequestedAt != 0 })
	l.AdvanceTime(t, chaintest.Grace)
	l.Eventually("the settlement is sent", pending(2))
	l.stop()
	l.up()
	time.Sleep(20 * tilltest.Poll)
	l.Mine(t, 1)
	l.Eventually("the withdrawal is sent", pending(3))
	l.stop()
	l.up()
	time.Sleep(20 * tilltest.Poll)
	l.Mine(t, 1)
	l.Automine(t, true)
	l.Eventually("it is withdrawn", func() bool { return l.view(terms).Finalized })
	time.Sleep(20 * tilltest.Poll)
	l.paidOut(400, 0)
	if l.sent() != 3 {
		t.Errorf("the tower sent %d transactions, want 3", l.sent())
	}
}

// A re-org that takes the close request out of the chain is made good.
func TestTowerRedoesWhatAReorgUndid(t *testing.T) {
	l := newLookout(t, nil)
	terms := l.Open(1, 1000)
	l.Mine(t, 3)
	if status, answer := l.post("/close-requests", l.request(l.Payer, terms, 0, 1<<40)); status != http.StatusOK {
		t.Fatalf("%d %s", status, answer)
	}
	l.Reorg(t, 2)
	l.Eventually("the close is requested again", func() bool { return l.view(terms).CloseRequestedAt != 0 })
	l.AdvanceTime(t, chaintest.Grace)
	l.Eventually("it is withdrawn", func() bool { return l.view(terms).Finalized })
	l.paidOut(0, 0)
	if l.sent() != 2 {
		t.Errorf("the tower sent %d transactions, want 2", l.sent())
	}
}

// What strangers send costs the tower no gas and leaves nothing behind.
func TestTowerHostileRequests(t *testing.T) {
	l := newLookout(t, nil)
	ctx := t.Context()
	stranger := channel.NewKey(l.Keys[5])
	open, tiny, done := l.Open(1, 1000), l.Open(2, towerLeast-1), l.Open(3, 1000)
	l.RequestClose(done)
	l.AdvanceTime(t, chaintest.Grace)
	l.Send(l.Others, l.Contract.WithdrawCall(done))
	otherChain, otherEscrow, unknown, otherPayee, otherToken := open, open, l.Terms(9), open, open
	otherChain.ChainID++
	otherEscrow.Escrow[0]++
	otherPayee.Payee = stranger.Address()
	otherToken.Token[0]++
	// A request that was used, and taken back by a top-up: before there is anything to settle.
	used := l.request(l.Payer, open, 0, 1<<40)
	l.RequestClose(open)
	own := l.sender0()
	token, err := chain.NewToken(ctx, l.Backend, l.Token)
	if err != nil {
		t.Fatal(err)
	}
	l.Send(own, token.ApproveCall(l.Escrow, *uint256.NewInt(10)))
	l.Send(own, l.Contract.TopUpCall(open, *uint256.NewInt(10)))
	good := l.sign(l.Payer, open, 500)
	change := func(f func(*tower.Voucher)) tower.Voucher {
		v := good
		v.Signature = bytes.Clone(good.Signature)
		f(&v)
		return v
	}
	for _, row := range []struct {
		name    string
		voucher tower.Voucher
		want    string
	}{
		{"forged", l.sign(stranger, open, 900), "403"},
		{"no signature", change(func(v *tower.Voucher) { v.Signature = nil }), "403"},
		{"another amount", change(func(v *tower.Voucher) { v.Cumulative = wire.NewAmount(*uint256.NewInt(501)) }), "403"},
		{"flipped v", change(func(v *tower.Voucher) { v.Signature[64] ^= 7 }), "403"},
		{"high s", change(func(v *tower.Voucher) { highS(v.Signature) }), "403"},
		{"a channel of another chain", l.sign(l.Payer, otherChain, 500), "403"},
		{"a channel of another escrow", l.sign(l.Payer, otherEscrow, 500), "403"},
		{"another payee's name on it", change(func(v *tower.Voucher) { v.Terms = wire.NewTerms(otherPayee) }), "403"},
		{"a token that is not named", l.sign(l.Payer, otherToken, 500), "403"},
		{"a channel that nobody opened", l.sign(l.Payer, unknown, 500), "404"},
		{"a channel that is too small", l.sign(l.Payer, tiny, 10), "403"},
		{"a channel that is final", l.sign(l.Payer, done, 10), "410"},
		{"more than the deposit", l.sign(l.Payer, open, 1011), "422"},
		{"nothing", l.sign(l.Payer, open, 0), "422"},
		{"no terms", tower.Voucher{}, "400"},
		{"right", good, "accepted"},
		{"replayed", good, "replayed"},
		{"stale", l.sign(l.Payer, open, 499), "stale"},
	} {
		t.Run("voucher/"+row.name, func(t *testing.T) {
			if got := l.voucher(row.voucher); got != row.want {
				t.Errorf("got %s, want %s", got, row.want)
			}
		})
	}
	states, err := l.tower.Channels(ctx)
	if err != nil || len(states) != 1 || !tilltest.Is(states[0].Accepted, 500) {
		t.Fatalf("the tower keeps %+v, %v", states, err)
	}

	now, err := l.Contract.Now(ctx)
	if err != nil {
		t.Fatal(err)
	}
	past := uint64(now.Add(-time.Hour).Unix())
	vouchers := func(n int) tower.Vouchers {
		return tower.Vouchers{Vouchers: make([]tower.Voucher, n)}
	}
	altered := l.request(l.Payer, open, 1, 1<<40)
	altered.Deadline++
	for _, row := range []struct {
		name, path string
		document   any
		want       int
	}{
		{"close request/forged", "/close-requests", l.request(stranger, open, 1, 1<<40), 403},
		{"close request/by the payee", "/close-requests", l.request(l.Key, open, 1, 1<<40), 403},
		{"close request/altered", "/close-requests", altered, 403},
		{"close request/used", "/close-requests", used, 409},
		{"close request/of the future", "/close-requests", l.request(l.Payer, open, 2, 1<<40), 409},
		{"close request/too late", "/close-requests", l.request(l.Payer, open, 1, past), 409},
		{"close request/of a channel that is too small", "/close-requests", l.request(l.Payer, tiny, 0, 1<<40), 403},
		{"close request/of a channel that is final", "/close-requests", l.request(l.Payer, done, 1, 1<<40), 410},
		{"close request/of a channel that nobody opened", "/close-requests", l.request(l.Payer, unknown, 0, 1<<40), 404},
		{"close request/on another chain", "/close-requests", l.request(l.Payer, otherChain, 1, 1<<40), 403},
		{"close request/in another escrow", "/close-requests", l.request(l.Payer, otherEscrow, 1, 1<<40), 403},
		{"close request/of a token that is not named", "/close-requests", l.request(l.Payer, otherToken, 0, 1<<40), 403},
		{"close request/empty", "/close-requests", []byte("{}"), 400},
		{"withdrawal/of a channel that is open", "/withdrawals", wire.NewTerms(open), 409},
		{"withdrawal/of a channel that is too small", "/withdrawals", wire.NewTerms(tiny), 403},
		{"withdrawal/of a channel that nobody opened", "/withdrawals", wire.NewTerms(unknown), 404},
		{"withdrawal/of a channel that is final", "/withdrawals", wire.NewTerms(done), 200},
		{"body/huge", "/vouchers", []byte(`{"vouchers":[` + strings.Repeat(" ", 1<<20) + `]}`), 413},
		{"body/huge close request", "/close-requests", []byte(`{"salt":"` + strings.Repeat("0", 1<<20)), 413},
		{"body/deep", "/vouchers", []byte(strings.Repeat("[", 100_000)), 400},
		{"body/none", "/vouchers", []byte{}, 400},
		{"body/two documents", "/vouchers", []byte(`{"vouchers":[]} {}`), 400},
		{"body/a key twice", "/vouchers", []byte(`{"vouchers":[],"vouchers":[{}]}`), 400},
		{"body/a key in another case", "/withdrawals", bytes.Replace(marshal(t, wire.NewTerms(done)), []byte(`"salt"`), []byte(`"SALT"`), 1), 400},
		{"body/no vouchers", "/vouchers", vouchers(0), 400},
		{"body/too many vouchers", "/vouchers", vouchers(101), 400},
		{"body/an amount that is a number", "/vouchers", []byte(`{"vouchers":[{"cumulativeAmount":5}]}`), 400},
		{"nowhere", "/secrets", []byte("{}"), 404},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got, answer := l.post(row.path, row.document); got != row.want {
				t.Errorf("%d, want %d: %s", got, row.want, answer)
			}
		})
	}
	time.Sleep(20 * tilltest.Poll)
	if n := l.sent(); n != 0 {
		t.Errorf("strangers made the tower send %d transactions", n)
	}
	l.paidOut(0, 1010+towerLeast-1)
}

// highS turns a signature into its twin with s in the upper half.
func highS(sig []byte) {
	s := new(big.Int).SetBytes(sig[32:64])
	s.Sub(crypto.S256().Params().N, s).FillBytes(sig[32:64])
	sig[64] ^= 7 // 27 and 28
}

// sender0 sends the payer's own transactions.
func (l *lookout) sender0() *chain.Sender {
	return &chain.Sender{Backend: l.Backend, Key: l.Payer, Store: l.Others.Store, Poll: tilltest.Poll}
}

// What a payer's leaves may cost in an hour is bounded, by payer and over all, also over a restart.
func TestTowerGasBudget(t *testing.T) {
	for _, row := range []struct {
		name   string
		budget tower.GasBudget
		other  int // what another payer hears
	}{
		{"of one payer", tower.GasBudget{PerParty: big.NewInt(1)}, 200},
		{"of all", tower.GasBudget{Total: big.NewInt(1)}, 429},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := newLookout(t, func(c *tower.Config) { c.RelayGas = row.budget })
			first, second := l.Open(1, 1000), l.Open(2, 1000)
			if got, answer := l.post("/close-requests", l.request(l.Payer, first, 0, 1<<40)); got != 200 {
				t.Fatalf("%d %s", got, answer)
			}
			l.stop()
			l.up()
			if got, answer := l.post("/close-requests", l.request(l.Payer, second, 0, 1<<40)); got != 429 {
				t.Errorf("the second of an hour: %d %s", got, answer)
			}
			other := channel.NewKey(l.Keys[6])
			l.Mint(t, other.Address(), 1000)
			terms := l.Terms(3)
			terms.Payer = other.Address()
			self := &chain.Sender{Backend: l.Backend, Key: other, Store: l.Others.Store, Poll: tilltest.Poll}
			token, err := chain.NewToken(t.Context(), l.Backend, l.Token)
			if err != nil {
				t.Fatal(err)
			}
			l.Send(self, token.ApproveCall(l.Escrow, *uint256.NewInt(1000)))
			l.Send(self, l.Contract.OpenCall(terms, *uint256.NewInt(1000)))
			if got, answer := l.post("/close-requests", l.request(other, terms, 0, 1<<40)); got != row.other {
				t.Errorf("another payer: %d, want %d: %s", got, row.other, answer)
			}
		})
	}
}

// Payees whom the tower does not know have a bound, those it was set up for have none, and others are not served then.
func TestTowerSettlementBudget(t *testing.T) {
	for _, row := range []struct {
		name   string
		change func(*tilltest.Till) []common.Address
		want   uint64 // transactions
	}{
		{"for anybody", func(*tilltest.Till) []common.Address { return nil }, 1},
		{"for its own payees", func(k *tilltest.Till) []common.Address { return []common.Address{k.Key.Address()} }, 2},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := newLookout(t, func(c *tower.Config) { c.SettleGas = tower.GasBudget{PerParty: big.NewInt(1)} })
			l.stop()
			l.config.Payees = row.change(l.Till)
			l.up()
			for salt := range byte(2) {
				terms := l.Open(salt+1, 1000)
				if got := l.voucher(l.sign(l.Payer, terms, 400)); got != "accepted" {
					t.Fatal(got)
				}
				l.RequestClose(terms)
				l.AdvanceTime(t, 2*time.Second)
				if uint64(salt) < row.want {
					l.Eventually("it is settled", func() bool { v := l.view(terms); return tilltest.Is(v.Settled, 400) })
				}
			}
			time.Sleep(time.Second + 20*tilltest.Poll)
			if got := l.sent(); got != row.want {
				t.Errorf("%d settlements, want %d", got, row.want)
			}
			if row.want == 2 {
				terms := l.Terms(7)
				terms.Payee = common.Address{7}
				if got := l.voucher(l.sign(l.Payer, terms, 1)); got != "403" {
					t.Errorf("a voucher for another payee: %s", got)
				}
			}
		})
	}
}

// Too much of anything is refused by its own measure: nobody uses up another's.
func TestTowerRates(t *testing.T) {
	l := newLookout(t, func(c *tower.Config) {
		c.Limits = tower.Limits{
			ClientIP: func(r *http.Request) string { return r.Header.Get("Client") }, Requests: limit.Rate{PerSecond: 0.001, Burst: 5},
			Channel: limit.Rate{PerSecond: 0.001, Burst: 3}, Leaves: limit.Rate{PerSecond: 0.001, Burst: 1}, Reads: limit.Rate{PerSecond: 0.001, Burst: 4}, Names: 100,
		}
	})
	first, second := l.Open(1, 1000), l.Open(2, 1000)
	for n := range uint64(4) {
		want := "accepted"
		if n == 3 {
			want = "429"
		}
		if got := l.voucher(l.sign(l.Payer, first, 100+n)); got != want {
			t.Errorf("voucher %d of a channel: %s, want %s", n, got, want)
		}
	}
	if got := l.voucher(l.sign(l.Payer, second, 100)); got != "accepted" {
		t.Errorf("a voucher of another channel: %s", got)
	}
	for range 200 { // forged ones count for nobody, and are not looked up
		if got := l.voucher(l.sign(l.Key, second, 900)); got != "403" {
			t.Fatal(got)
		}
	}
	if got := l.voucher(l.sign(l.Payer, second, 200)); got != "accepted" {
		t.Errorf("after forged ones: %s", got)
	}
	for n, want := range []string{"404", "404", "429"} { // two reads were used above
		if got := l.voucher(l.sign(l.Payer, l.Terms(byte(100+n)), 1)); got != want {
			t.Errorf("unknown channel %d: %s, want %s", n, got, want)
		}
	}
	for n := range 7 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, l.server.URL+"/vouchers", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Client", "192.0.2.1")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if want := map[bool]int{true: 400, false: 429}[n < 5]; resp.StatusCode != want {
			t.Errorf("request %d of one address: %d, want %d", n, resp.StatusCode, want)
		}
	}
}

// A tower's configuration errors are one line that says what to do.
func TestTowerConfig(t *testing.T) {
	k := tilltest.New(t)
	right := tower.Config{Chain: tower.Chain{Backend: k.Backend}, Escrow: k.Escrow, Key: channel.NewKey(k.Keys[3]), Database: filepath.Join(t.TempDir(), "t.db"), Tokens: map[common.Address]string{k.Token: "1"}}
	for says, change := range map[string]func(*tower.Config){
		"RPC is empty":         func(c *tower.Config) { c.Chain.Backend = nil },
		"Escrow is empty":      func(c *tower.Config) { c.Escrow = common.Address{} },
		"Key is nil":           func(c *tower.Config) { c.Key = nil },
		"Database is empty":    func(c *tower.Config) { c.Database = "" },
		"Tokens is empty":      func(c *tower.Config) { c.Tokens = nil },
		"no contract":          func(c *tower.Config) { c.Tokens = map[common.Address]string{{1}: "1"} },
		"not a decimal number": func(c *tower.Config) { c.Tokens = map[common.Address]string{k.Token: "much"} },
		"Patience":             func(c *tower.Config) { c.Patience = time.Hour },
		"Chain.MinGrace must":  func(c *tower.Config) { c.Chain.MinGrace = -1 },
		"Limits.Names must":    func(c *tower.Config) { c.Limits.Names = -1 },
		"key of its own":       func(c *tower.Config) { c.Payees = []common.Address{c.Key.Address()} },
		"is needed":            func(c *tower.Config) { c.Chain.MinGrace = 48 * time.Hour },
		"wrong chain":          func(c *tower.Config) { c.Chain.ID = 1 },
	} {
		config := right
		change(&config)
		if _, err := tower.New(t.Context(), config); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("want %q, got %v", says, err)
		}
	}
}

// On a public chain a tower refuses an escrow that is over when the chain's clock makes one of the leaps that it may make:
// it would be paid to watch what it cannot settle.
func TestTowerGraceFloor(t *testing.T) {
	k := tilltest.New(t)
	connect := func(least time.Duration) error {
		tower, err := tower.New(t.Context(), tower.Config{Chain: tower.Chain{Backend: k.Backend, MinGrace: least}, Escrow: k.Escrow, Key: channel.NewKey(k.Keys[3]),
			Database: filepath.Join(t.TempDir(), "t.db"), Tokens: map[common.Address]string{k.Token: "1"}})
		if err == nil {
			err = tower.Close()
		}
		return err
	}
	if err := connect(0); err != nil {
		t.Errorf("ten minutes on a local chain: %v", err)
	}
	k.RPC(t, nil, "anvil_setChainId", 42161)
	if err := connect(0); !errors.Is(err, chain.ErrGrace) {
		t.Errorf("ten minutes on Arbitrum: %v, want ErrGrace", err)
	}
	if err := connect(10 * time.Minute); err != nil {
		t.Errorf("ten minutes on Arbitrum, as the operator wants it: %v", err)
	}
}
