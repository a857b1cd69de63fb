package chain_test

import (
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/chain"
)

// pair is a client of two endpoints before one chain, each of which can misbehave, and what it logs.
func (w *world) pair(t *testing.T) (backend chain.Backend, one, two *badrpc.Endpoint, log *record) {
	t.Helper()
	one, two, log = badrpc.New(t, w.URL), badrpc.New(t, w.URL), &record{}
	backend, err := chain.Connect(t.Context(), one.URL+","+two.URL, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(log.String())
		}
	})
	return backend, one, two, log
}

// One of two endpoints fails in any way: everything goes on with the other, and that is said once.
func TestEndpointFailsOver(t *testing.T) {
	w := newWorld(t)
	for name, fault := range map[string]badrpc.Fault{
		"down": badrpc.Status(http.StatusServiceUnavailable), "rate limit": badrpc.Status(http.StatusTooManyRequests),
		"limit as an error": badrpc.Fail(-32005, "rate limit exceeded"), "null": badrpc.Null,
	} {
		t.Run(name, func(t *testing.T) {
			backend, one, _, log := w.pair(t)
			for _, method := range []string{"eth_blockNumber", "eth_getBlockByNumber", "eth_getBalance", "eth_getTransactionCount", "eth_call", "eth_estimateGas",
				"eth_getCode", tipMethod, receiptMethod, "eth_sendRawTransaction", "eth_getLogs"} {
				one.On(method, fault)
			}
			if _, err := backend.CallContract(t.Context(), ethereum.CallMsg{To: &w.Token, Data: common.FromHex("0x313ce567")}, nil); err != nil {
				t.Errorf("the token's decimals: %v", err)
			}
			store, _ := openStore(t, file(t))
			s := &chain.Sender{Backend: backend, Key: w.payer, Store: store, Poll: 10 * time.Millisecond}
			send(t, s, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1)))
			if n := strings.Count(log.String(), "RPC endpoint fails"); n != 1 {
				t.Errorf("it is said %d times", n)
			}
		})
	}
}

// A deposit that one endpoint alone claims, or a close request that one alone hides: the cautious answer counts, and the
// contradiction is said in one line.
func TestEndpointsContradictEachOther(t *testing.T) {
	w := newWorld(t)
	backend, one, two, log := w.pair(t)
	escrow, err := chain.NewEscrow(t.Context(), backend, w.Escrow)
	if err != nil {
		t.Fatal(err)
	}
	payee := w.sender(t, w.Keys[1])
	terms := w.open(t, payee, 1, 1000)
	confirmed := func() (chain.Confirmed, error) {
		t.Helper()
		got, _, err := escrow.Confirmed(t.Context(), []common.Hash{terms.ID()}, 1)
		if err != nil {
			return chain.Confirmed{}, err
		}
		return got[0], nil
	}
	if got, err := confirmed(); err != nil || got.View.Deposit.Uint64() != 1000 || got.Pending() || log.String() != "" {
		t.Fatalf("%+v, %v, %s", got, err, log)
	}
	old := callAnswer(t, w, terms)
	v := w.voucher(t, terms, 400)
	send(t, payee, w.escrow.TopUpAuthorizedCall(terms, common.Hash{1}, w.authorize(t, 500, channel.TopUpNonce(terms.ID(), *uint256.NewInt(500), w.payer.Address(), common.Hash{1}))))
	send(t, payee, w.escrow.SettleCall(terms, v.Accepted, v.Signature))
	send(t, w.sender(t, w.Keys[0]), w.escrow.RequestCloseCall(terms))
	for i, liar := range []*badrpc.Endpoint{one, two} { // the top-up, the settlement and the close request are hidden
		liar.On("eth_call", badrpc.Says(old))
		got, err := confirmed()
		if err != nil || got.View.Deposit.Uint64() != 1000 || !got.Pending() || got.View.CloseRequestedAt == 0 || !got.Latest.Settled.IsZero() || !got.Disputed {
			t.Errorf("liar %d: %+v, %v", i, got, err)
		}
		liar.Heal()
	}
	if n := strings.Count(log.String(), chain.ErrContradiction.Error()); n != 2 {
		t.Errorf("it is said %d times, want 2", n)
	}
	w.AdvanceTime(t, 2*chaintest.Grace)
	send(t, payee, w.escrow.WithdrawCall(terms))
	two.On("eth_call", badrpc.Says(old))
	if got, err := confirmed(); err != nil || got.View.Finalized || !got.Disputed {
		t.Errorf("whether the channel is over is in doubt: %+v, %v", got, err)
	}
	if n := strings.Count(log.String(), chain.ErrContradiction.Error()); n != 3 {
		t.Errorf("it is said %d times, want 3", n)
	}
	two.Heal()
	if got, err := confirmed(); err != nil || !got.View.Finalized {
		t.Errorf("%+v, %v", got, err)
	}
}

// An endpoint that claims to be a block ahead says that a channel is over, or hides that its payer wants out: it alone is not
// believed. Nor is one that is merely behind a contradiction.
func TestEndpointAhead(t *testing.T) {
	w := newWorld(t)
	backend, one, two, log := w.pair(t)
	escrow, err := chain.NewEscrow(t.Context(), backend, w.Escrow)
	if err != nil {
		t.Fatal(err)
	}
	payee := w.sender(t, w.Keys[1])
	terms := w.open(t, payee, 1, 1000)
	open := callAnswer(t, w, terms)
	send(t, w.sender(t, w.Keys[0]), w.escrow.RequestCloseCall(terms))
	closing := callAnswer(t, w, terms)
	w.AdvanceTime(t, 2*chaintest.Grace)
	send(t, payee, w.escrow.WithdrawCall(terms))
	over := callAnswer(t, w, terms)
	for _, liar := range []*badrpc.Endpoint{one, two} {
		for name, c := range map[string]struct{ liar, other hexutil.Bytes }{"over": {over, closing}, "hidden": {open, closing}} {
			liar.On("eth_call", badrpc.Says(c.liar))
			liar.On("eth_blockNumber", badrpc.Says(hexutil.Uint64(w.Head(t)+1)))
			honest := two
			if liar == two {
				honest = one
			}
			honest.On("eth_call", badrpc.Says(c.other))
			got, _, err := escrow.Confirmed(t.Context(), []common.Hash{terms.ID()}, 1)
			if err != nil || got[0].View.Finalized || got[0].View.CloseRequestedAt == 0 || !got[0].Disputed {
				t.Errorf("%s: %+v, %v", name, got, err)
			}
			liar.Heal()
			honest.Heal()
		}
	}
	if strings.Contains(log.String(), chain.ErrContradiction.Error()) {
		t.Errorf("it is called a contradiction: %s", log)
	}
}

// One endpoint alone, the first or the second, can keep nothing from being sent: not with a revert, nor by denying the coin.
func TestOneEndpointRefuses(t *testing.T) {
	w := newWorld(t)
	backend, one, two, _ := w.pair(t)
	for _, liar := range []*badrpc.Endpoint{one, two} {
		for method, fault := range map[string]badrpc.Fault{
			"eth_estimateGas": badrpc.Fail(3, "execution reverted"), "eth_getBalance": badrpc.Says("0x0"),
		} {
			liar.On(method, fault)
			store, _ := openStore(t, file(t))
			s := &chain.Sender{Backend: backend, Key: w.payer, Store: store, Poll: 10 * time.Millisecond}
			send(t, s, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1)))
			liar.Heal()
		}
		liar.On("eth_call", badrpc.Fail(3, "execution reverted"))
		if _, err := backend.CallContract(t.Context(), ethereum.CallMsg{To: &w.Token, Data: common.FromHex("0x313ce567")}, nil); err != nil {
			t.Errorf("the token's decimals: %v", err)
		}
		liar.Heal()
	}
	one.On("eth_estimateGas", badrpc.Fail(3, "execution reverted"))
	two.On("eth_estimateGas", badrpc.Fail(3, "execution reverted"))
	store, _ := openStore(t, file(t))
	s := &chain.Sender{Backend: backend, Key: w.payer, Store: store}
	var refused *chain.Revert
	if _, err := s.Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1))); !errors.As(err, &refused) {
		t.Errorf("both refuse: %v", err)
	}
}

// callAnswer is what the node says of a channel now.
func callAnswer(t *testing.T, w *world, terms channel.Terms) hexutil.Bytes {
	t.Helper()
	var out hexutil.Bytes
	bad := badrpc.New(t, w.URL)
	bad.On("eth_call", func(x *badrpc.Exchange) { _ = out.UnmarshalJSON(x.Result) })
	client, err := chain.Dial(t.Context(), bad.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	escrow, err := chain.NewEscrow(t.Context(), client, w.Escrow)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := escrow.View(t.Context(), terms.ID(), nil); err != nil {
		t.Fatal(err)
	}
	return out
}

// An endpoint that hides the events of a close request hides nothing where there is another one.
func TestEventsOfTwoEndpoints(t *testing.T) {
	w := newWorld(t)
	backend, one, two, _ := w.pair(t)
	escrow, err := chain.NewEscrow(t.Context(), backend, w.Escrow)
	if err != nil {
		t.Fatal(err)
	}
	terms := w.open(t, w.sender(t, w.Keys[1]), 1, 1000)
	for _, liar := range []*badrpc.Endpoint{one, two} {
		liar.On("eth_getLogs", badrpc.Says([]string{}))
		if got, err := escrow.Touched(t.Context(), 0, w.Head(t)); err != nil || !got[terms.ID()] {
			t.Errorf("%v, %v", got, err)
		}
		liar.Heal()
	}
}

// A receipt is final when both endpoints have it, or one has and the other does not answer.
func TestFinalReceiptOfTwoEndpoints(t *testing.T) {
	t.Run("both say so", func(t *testing.T) { testFinalReceipt(t, nil) })
	t.Run("the other is down", func(t *testing.T) { testFinalReceipt(t, badrpc.Status(http.StatusServiceUnavailable)) })
}

func testFinalReceipt(t *testing.T, then badrpc.Fault) {
	w := newWorld(t)
	backend, _, two, log := w.pair(t)
	store, _ := openStore(t, file(t))
	s := &chain.Sender{Backend: backend, Key: w.payer, Store: store, Poll: 10 * time.Millisecond, Finality: 2}
	two.On(receiptMethod, badrpc.With("status", "0x0"))
	send(t, s, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1)))
	state := func() chain.TxState {
		w.Mine(t, 3)
		if err := s.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		all, err := s.Recent(t.Context(), time.Now().Add(-time.Hour), chain.Approve)
		if err != nil || len(all) != 1 {
			t.Fatal(all, err)
		}
		return all[0].State
	}
	if got := state(); got != chain.Mined || !strings.Contains(log.String(), "contradict") {
		t.Errorf("%s, though one endpoint says that it reverted", got)
	}
	two.Heal()
	if then != nil {
		two.On(receiptMethod, then)
	}
	if got := state(); got != chain.Final {
		t.Errorf("%s, and nobody says anything else", got)
	}
}

// An endpoint that is far behind another is asked after it, until it has caught up.
func TestEndpointFarBehindIsAskedLast(t *testing.T) {
	w := newWorld(t)
	backend, one, _, _ := w.pair(t)
	first := func() uint64 {
		t.Helper()
		if _, _, err := chain.Heads(t.Context(), backend); err != nil {
			t.Fatal(err)
		}
		n, err := backend.BlockNumber(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	stuck := w.Head(t)
	one.Stick(stuck)
	w.Mine(t, chain.FarBehind)
	if n := first(); n != stuck {
		t.Errorf("%d blocks behind: the first to be asked is at %d, not at %d", chain.FarBehind, n, stuck)
	}
	w.Mine(t, 1)
	if n := first(); n != w.Head(t) {
		t.Errorf("one more block behind: the first to be asked is at %d, not at %d", n, w.Head(t))
	}
	one.Stick(w.Head(t))
	w.Mine(t, 1)
	if n := first(); n != w.Head(t)-1 {
		t.Errorf("it has caught up: the first to be asked is at %d", n)
	}
}

// Endpoints of two chains are refused at the start; one that is down is not needed, and is used once it is up.
func TestEndpointsAtTheStart(t *testing.T) {
	w := newWorld(t)
	other := badrpc.New(t, w.URL)
	other.On("eth_chainId", badrpc.Says("0x1"))
	_, err := chain.Connect(t.Context(), w.URL+", "+other.URL, nil)
	oneLine(t, err, chain.ErrChainID)
	_, err = chain.Connect(t.Context(), "http://127.0.0.1:1/s3cret,http://127.0.0.1:2/s3cret", nil)
	oneLine(t, err, chain.ErrUnreachable)
	if err != nil && strings.Contains(err.Error(), "s3cret") {
		t.Errorf("the error tells the secret: %v", err)
	}
	backend, err := chain.Connect(t.Context(), "http://127.0.0.1:1/,"+w.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := chain.CheckChainID(t.Context(), backend, 31337); err != nil {
		t.Error(err)
	}
}

// TestEndpointGoesBack: an endpoint that answers for an old block, at which a channel had no deposit yet, is not believed
// and no reason to write that down.
func TestEndpointGoesBack(t *testing.T) {
	w := newWorld(t)
	bad := badrpc.New(t, w.URL)
	backend, err := chain.Connect(t.Context(), bad.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	escrow, err := chain.NewEscrow(t.Context(), backend, w.Escrow)
	if err != nil {
		t.Fatal(err)
	}
	read := func() error {
		_, _, err := escrow.Fresh(t.Context(), []common.Hash{{1}}, 1)
		return err
	}
	for range 2 {
		w.Mine(t, 3)
		if err := read(); err != nil {
			t.Fatal(err)
		}
	}
	bad.On("eth_blockNumber", badrpc.Aged) // as it was at the first look
	if err := read(); !errors.Is(err, chain.ErrBehind) {
		t.Errorf("an answer from before the last one: %v", err)
	}
	bad.Heal()
	if err := read(); err != nil {
		t.Errorf("the endpoint is well again: %v", err)
	}
}

// One endpoint alone has no transaction count as reverted, whichever of the two it is.
func TestFalseRevert(t *testing.T) {
	w := newWorld(t)
	backend, one, two, _ := w.pair(t)
	store, _ := openStore(t, file(t))
	s := &chain.Sender{Backend: backend, Key: w.payer, Store: store, Poll: 10 * time.Millisecond}
	for i, liar := range []*badrpc.Endpoint{one, two} {
		liar.On(receiptMethod, badrpc.With("status", "0x0"))
		result := send(t, s, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(uint64(i))))
		all, err := s.Recent(t.Context(), time.Now().Add(-time.Hour), chain.Approve)
		if err != nil || len(all) != i+1 || !all[i].Succeeded || all[i].ID != result.ID {
			t.Errorf("%+v, %v", all, err)
		}
		liar.Heal()
	}
}
