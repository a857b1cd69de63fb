package chain_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/sdk/chain"
)

// oneLine is what every error of the surroundings must be.
func oneLine(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("want %v, got %v", want, err)
		return
	}
	if text := err.Error(); strings.Contains(text, "\n") || len(text) > 300 {
		t.Errorf("not one clear line: %q", text)
	}
}

func TestDialSaysWhatIsWrongAndKeepsTheSecret(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no such key", http.StatusUnauthorized)
	}))
	defer refusing.Close()
	html := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }))
	defer html.Close()
	quoting := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NotFound(w, r)
		fmt.Fprint(w, "Cannot POST ", r.URL.RequestURI())
	}))
	defer quoting.Close()
	redirecting := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/else"+r.URL.Path, http.StatusFound)
		fmt.Fprint(w, r.URL.Path)
	}))
	defer redirecting.Close()
	invalid := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":1,"error":{"code":-32600,"message":"no project %s"}}`, r.URL.RequestURI())
	}))
	defer invalid.Close()
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusBadGateway)
		fmt.Fprint(w, strings.Repeat("<html>\n<p>bad gateway</p>\n", 1000))
	}))
	defer page.Close()
	urls := []string{
		page.URL + "/s3cret", quoting.URL + "/s3cret", quoting.URL + "/v3?key=s3cret", redirecting.URL + "/s3cret", invalid.URL + "/v3/s3cret", "ws" + strings.TrimPrefix(quoting.URL, "http") + "/s3cret",
		"//127.0.0.1/s3cret", "127.0.0.1:1/s3cret", "http:/127.0.0.1/s3cret", "http://127.0.0.1:1/s3cret\n", "http://127.0.0.1:port/s3cret",
		"", "localhost:8545", "ftp://host/s3cret", "http://127.0.0.1:1/s3cret", "ws://127.0.0.1:1/s3cret", "http://u:s3cret@127.0.0.1:1/?key=s3cret",
		refusing.URL + "/s3cret", html.URL + "/s3cret", "ws" + strings.TrimPrefix(html.URL, "http") + "/s3cret",
		"http://" + silent.Addr().String() + "/s3cret", "http://no-such-host.invalid/s3cret", "http://%zz/s3cret",
	}
	for _, url := range urls {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, err := chain.Dial(ctx, url)
		cancel()
		oneLine(t, err, chain.ErrUnreachable)
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: the error tells the secret: %v", url, err)
		}
	}
}

// The secret path of an endpoint reaches the endpoint and no error of a later request.
func TestSecretPathIsUsedAndNotTold(t *testing.T) {
	w := newWorld(t)
	proxy := newProxy(t, w.URL)
	client, err := chain.Dial(t.Context(), proxy.URL+"/v3/s3cret?token=s3cret")
	if err != nil {
		t.Fatal(err)
	}
	if path := proxy.lastPath(); path != "/v3/s3cret?token=s3cret" {
		t.Errorf("the endpoint saw %q", path)
	}
	for _, f := range []func(){func() { proxy.fail(http.StatusBadGateway) }, proxy.Close} {
		f()
		_, err = client.BlockNumber(t.Context())
		if err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("error %v", err)
		}
	}
}

func TestEscrowIsCheckedBeforeItIsTrusted(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	oneLine(t, chain.CheckChainID(ctx, w.Backend, 1), chain.ErrChainID)
	if err := chain.CheckChainID(ctx, w.Backend, 31337); err != nil {
		t.Error(err)
	}
	_, err := chain.NewEscrow(ctx, w.Backend, common.Address{1})
	oneLine(t, err, chain.ErrNoContract)
	_, err = chain.NewEscrow(ctx, w.Backend, w.Token) // a contract, with another EIP-712 domain or none
	oneLine(t, err, chain.ErrNotEscrow)
	_, err = chain.NewEscrow(ctx, w.Backend, chain.Factory)
	oneLine(t, err, chain.ErrNotEscrow)
	oneLine(t, w.escrow.CheckGrace(time.Hour), chain.ErrGrace)
	if err := w.escrow.CheckGrace(10 * time.Minute); err != nil {
		t.Error(err)
	}
	if err := w.escrow.CheckClock(ctx, time.Minute); err != nil {
		t.Error(err)
	}
	w.AdvanceTime(t, time.Hour)
	oneLine(t, w.escrow.CheckClock(ctx, time.Minute), chain.ErrClock)
	_, err = chain.NewToken(ctx, w.Backend, common.Address{1})
	oneLine(t, err, chain.ErrNoContract)
	if _, err = chain.NewToken(ctx, w.Backend, w.Escrow); err == nil {
		t.Error("took the escrow for a token")
	}
	_, err = w.escrow.View(ctx, common.Hash{1}, nil)
	oneLine(t, err, channel.ErrUnknown)
	_, err = chain.Deploy(ctx, w.Backend, w.payer, time.Minute)
	oneLine(t, err, chain.ErrGrace)
}

// The factory gives an escrow of one grace period the same address on every chain, and deploying it again is no error.
func TestDeployIsTheSameEverywhere(t *testing.T) {
	w := newWorld(t)
	again, err := chain.Deploy(t.Context(), w.Backend, w.payee, 10*time.Minute)
	if err != nil || again != w.Escrow {
		t.Errorf("second deployment: %s, %v; first %s", again, err, w.Escrow)
	}
	dev, err := devchain.Start(t.Context(), devchain.Options{Manual: true})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	if dev.Escrow != w.Escrow {
		t.Errorf("on another chain: %s, want %s", dev.Escrow, w.Escrow)
	}
	// An instance of one's own has another address, and the same one each time.
	own := common.HexToHash("0x5a17")
	apart, err := chain.DeploySalted(t.Context(), w.Backend, w.payee, 10*time.Minute, own)
	if err != nil || apart == w.Escrow {
		t.Fatalf("an instance apart: %s, %v", apart, err)
	}
	if same, err := chain.DeploySalted(t.Context(), w.Backend, w.payee, 10*time.Minute, own); err != nil || same != apart {
		t.Errorf("the same instance: %s, %v; it is at %s", same, err, apart)
	}
	escrow, err := chain.NewEscrow(t.Context(), w.Backend, apart)
	if err != nil {
		t.Fatal(err)
	}
	if err := escrow.VerifyCode(t.Context()); err != nil {
		t.Error(err)
	}
	// A chain without the factory gets a plain deployment.
	w.RPC(t, nil, "anvil_setCode", chain.Factory, "0x")
	plain, err := chain.Deploy(t.Context(), w.Backend, w.payee, 10*time.Minute)
	if err != nil || plain == w.Escrow {
		t.Fatalf("plain deployment: %s, %v", plain, err)
	}
	if _, err := chain.NewEscrow(t.Context(), w.Backend, plain); err != nil {
		t.Error(err)
	}
}

// Bytecode of contracts that answer every call in one way.
var (
	swallow = "0x00"                         // STOP: succeeds and says nothing, as a fallback that takes deposits does
	silent  = "0x60006000fd"                 // REVERT(0, 0)
	yes     = "0x600160005260206000f3"       // returns 1
	loud    = "0x63deadbeef6000526004601cfd" // reverts with an error of four bytes
)

func TestAuthorizationProbe(t *testing.T) {
	w := newWorld(t)
	if ok, err := w.token.SupportsAuthorization(t.Context()); err != nil || !ok {
		t.Errorf("the test token: %v, %v", ok, err)
	}
	if w.token.Name != "Test USD" || w.token.Decimals != 6 {
		t.Errorf("token: %+v", w.token)
	}
	for i, code := range []string{swallow, silent, yes, loud} {
		address := common.BytesToAddress([]byte{0xbb, byte(i)})
		w.RPC(t, nil, "anvil_setCode", address, code)
		token := *w.token
		token.Address = address
		if ok, err := token.SupportsAuthorization(t.Context()); err != nil || ok {
			t.Errorf("contract %d: %v, %v", i, ok, err)
		}
	}
	proxy := newProxy(t, w.URL)
	client, err := chain.Dial(t.Context(), proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	token, err := chain.NewToken(t.Context(), client, w.Token)
	if err != nil {
		t.Fatal(err)
	}
	proxy.fail(http.StatusServiceUnavailable)
	if _, err := token.SupportsAuthorization(t.Context()); !errors.Is(err, chain.ErrUnreachable) {
		t.Errorf("an endpoint that is down is no answer: %v", err)
	}
}

func TestContractAccounts(t *testing.T) {
	w := newWorld(t)
	contracts := chain.Contracts{Backend: w.Backend}
	// returns the magic value, whatever is asked
	accepting := "0x631626ba7e60e01b60005260206000f3"
	spinning := "0x5b600056" // loops for ever
	cases := []struct {
		code string
		want bool
	}{{accepting, true}, {yes, false}, {swallow, false}, {silent, false}, {loud, false}, {spinning, false}, {"", false}}
	for i, c := range cases {
		address := common.BytesToAddress([]byte{0xcc, byte(i)})
		if c.code != "" {
			w.RPC(t, nil, "anvil_setCode", address, c.code)
		}
		got, err := contracts.IsValidSignature(t.Context(), address, common.Hash{1}, make([]byte, 65))
		if err != nil || got != c.want {
			t.Errorf("case %d: %v, %v, want %v", i, got, err, c.want)
		}
	}
}

// Reading at a block's hash fails after a re-org instead of telling of the branch that won.
func TestViewsAtABlockThatIsGone(t *testing.T) {
	w := newWorld(t)
	payee := w.sender(t, w.Keys[1])
	w.Mine(t, 2)
	terms := w.terms(1)
	result := send(t, payee, w.escrow.OpenAuthorizedCall(terms, w.authorize(t, 100, channel.OpenNonce(terms.Payer, terms))))
	ids := []common.Hash{terms.ID(), {9}}
	views, err := w.escrow.ViewsAt(t.Context(), ids, result.Receipt.BlockHash)
	if err != nil || !views[0].Deposit.Eq(uint256.NewInt(100)) || views[1] != (channel.ChainView{}) {
		t.Fatalf("%+v, %v", views, err)
	}
	w.Reorg(t, 1)
	if views, err := w.escrow.ViewsAt(t.Context(), ids, result.Receipt.BlockHash); err == nil && !views[0].Deposit.IsZero() {
		header, err := w.Backend.HeaderByHash(t.Context(), result.Receipt.BlockHash)
		t.Logf("anvil still serves the block %v, %v", header, err)
	}
	if views, err := w.escrow.Views(t.Context(), ids); err != nil || !views[0].Deposit.IsZero() {
		t.Errorf("newest: %+v, %v", views, err)
	}
}

func TestConfirmedViews(t *testing.T) {
	w := newWorld(t)
	payee := w.sender(t, w.Keys[1])
	terms := w.open(t, payee, 1, 100)
	ids := []common.Hash{terms.ID()}
	check := func(confirmations, deposit uint64, pending bool) {
		t.Helper()
		got, _, err := w.escrow.Confirmed(t.Context(), ids, confirmations)
		if err != nil || !got[0].View.Deposit.Eq(uint256.NewInt(deposit)) || got[0].Pending() != pending {
			t.Errorf("%d confirmations: %+v, %v; want %d, pending %v", confirmations, got, err, deposit, pending)
		}
	}
	check(0, 100, false)
	check(1, 100, false)
	check(3, 0, true)
	w.Mine(t, 1)
	check(3, 0, true)
	w.Mine(t, 1)
	check(3, 100, false)
	check(1<<40, 0, true)
	// What is settled out of an unconfirmed deposit is believed as far as the deposit is.
	v := w.voucher(t, terms, 60)
	send(t, payee, w.escrow.SettleCall(terms, v.Accepted, v.Signature))
	got, _, err := w.escrow.Confirmed(t.Context(), ids, 1<<40)
	if err != nil || !got[0].View.Settled.IsZero() || !got[0].Latest.Settled.Eq(uint256.NewInt(60)) {
		t.Errorf("%+v, %v", got, err)
	}
}

// The whole client over WebSocket, new heads included.
func TestWebSocket(t *testing.T) {
	w := newWorld(t)
	client, err := chain.Dial(t.Context(), w.WS)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	escrow, err := chain.NewEscrow(t.Context(), client, w.Escrow)
	if err != nil {
		t.Fatal(err)
	}
	heads := make(chan *types.Header, 8)
	sub, err := client.SubscribeNewHead(t.Context(), heads)
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Unsubscribe()
	store, _ := openStore(t, file(t))
	s := &chain.Sender{Backend: client, Key: channel.NewKey(w.Keys[1]), Store: store, Poll: 20 * time.Millisecond}
	terms := w.terms(1)
	send(t, s, escrow.OpenAuthorizedCall(terms, w.authorize(t, 100, channel.OpenNonce(terms.Payer, terms))))
	select {
	case <-heads:
	case <-time.After(time.Minute):
		t.Error("no new head")
	}
	if _, err := escrow.View(t.Context(), terms.ID(), nil); err != nil {
		t.Error(err)
	}
}

func TestKeysStayOutOfErrors(t *testing.T) {
	w := newWorld(t)
	secret := common.Bytes2Hex(crypto.FromECDSA(w.Keys[4]))
	w.RPC(t, nil, "anvil_setBalance", addressOf(w.Keys[4]), "0x0")
	_, err := w.sender(t, w.Keys[4]).Submit(t.Context(), w.escrow.WithdrawCall(w.terms(1)))
	if err == nil || strings.Contains(strings.ToLower(err.Error()), secret) {
		t.Errorf("error %v", err)
	}
}
