package interop

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/x402/x402client"
)

// shop is a server of the official packages, and a renter of ours that has tokens and no coin.
type shop struct {
	*testing.T
	chain    *chaintest.Chain
	contract *chain.BatchSettlement
	url      string
	receiver common.Address
	key      *channel.Key
	database string
	paid     []x402client.Payment
	mu       sync.Mutex
}

// shopDeposit is what the server wants in a channel at a time.
const shopDeposit = 10_000

func newShop(t *testing.T) *shop {
	t.Helper()
	needNode(t)
	t.Parallel()
	s := &shop{T: t, chain: chaintest.Anvil(t), database: filepath.Join(t.TempDir(), "renter.db")}
	s.chain.PlaceBatchSettlement(t)
	var err error
	if s.contract, err = chain.NewBatchSettlement(t.Context(), s.chain.Backend); err != nil {
		t.Fatal(err)
	}
	s.receiver = crypto.PubkeyToAddress(s.chain.Keys[2].PublicKey)
	private, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	s.key = channel.NewKey(private)
	s.chain.Mint(t, s.key.Address(), purse)
	s.open()
	return s
}

// open starts the server.
func (s *shop) open() {
	s.Helper()
	token, err := chain.NewToken(s.Context(), s.chain.Backend, s.chain.Token)
	if err != nil {
		s.Fatal(err)
	}
	input, err := json.Marshal(map[string]any{
		"rpc": s.chain.URL, "operatorKey": hexutil.Encode(crypto.FromECDSA(s.chain.Keys[1])), "receiver": s.receiver,
		"token": s.chain.Token, "tokenName": token.Name, "minDeposit": fmt.Sprint(shopDeposit),
	})
	if err != nil {
		s.Fatal(err)
	}
	cmd := exec.Command("node", "x402server.mjs")
	in, err := cmd.StdinPipe()
	if err != nil {
		s.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		in.Close() // its sign to end
		if err := cmd.Wait(); err != nil || s.Failed() {
			s.Logf("x402server.mjs: %v\n%s", err, stderr.String())
		}
	})
	if _, err := in.Write(append(input, '\n')); err != nil {
		s.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	var said struct{ URL string }
	if err != nil || json.Unmarshal([]byte(line), &said) != nil {
		s.Fatalf("x402server.mjs said %q: %v\n%s", line, err, stderr.String())
	}
	s.url = said.URL
}

// client is a renter on the shop's database. Its caps are tight: 0.05 in a channel.
func (s *shop) client(caps wallet.Caps, options x402client.Options) (*x402client.Client, *renter.Client) {
	s.Helper()
	renter, err := renter.New(s.Context(), renter.Config{
		Key: s.key, RPC: s.chain.URL, Token: s.chain.Token, Database: s.database, Caps: caps,
		Chain: wallet.Chain{Poll: 20 * time.Millisecond, ClockTolerance: time.Hour}, Log: slog.New(slog.DiscardHandler),
		// the tests move the chain's clock
	})
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { renter.Close() })
	options.OnPaid = func(p x402client.Payment) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.paid = append(s.paid, p)
	}
	client, err := x402client.New(s.Context(), renter.Wallet(), options)
	if err != nil {
		s.Fatal(err)
	}
	return client, renter
}

var (
	shopCaps    = wallet.Caps{PricePerGPUHour: "1", PerLease: "0.05", PerDay: "0.05", PerPayee: "0.05"}
	shopOptions = x402client.Options{MaxPrice: "0.001"}
)

// buy fetches an answer that costs use base units and returns how many the server has served.
func (s *shop) buy(client *x402client.Client, method string, use int) int {
	s.Helper()
	served, err := s.tryBuy(client, method, use)
	if err != nil {
		s.Fatal(err)
	}
	return served
}

func (s *shop) tryBuy(client *x402client.Client, method string, use int) (int, error) {
	req, err := http.NewRequestWithContext(s.Context(), method, fmt.Sprintf("%s/paid?use=%d", s.url, use), nil)
	if err != nil {
		return 0, err
	}
	const text = "say it twice"
	if method == http.MethodPost {
		req.Body = io.NopCloser(strings.NewReader(text)) // without GetBody
	}
	resp, err := client.Client().Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var answer struct {
		Served int
		Echo   string
		Error  string
	}
	body, err := io.ReadAll(resp.Body)
	if err == nil {
		err = json.Unmarshal(body, &answer)
	}
	if err == nil && (resp.StatusCode != http.StatusOK || (method == http.MethodPost) != (answer.Echo == text)) {
		err = fmt.Errorf("%s: %s %s", resp.Status, body, resp.Header)
	}
	return answer.Served, err
}

func (s *shop) control(what string) {
	s.Helper()
	resp, err := http.Get(s.url + "/control/" + what)
	if err != nil {
		s.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		s.Fatalf("%s: %s %s %v", what, resp.Status, body, err)
	}
}

// only is the one channel that the client knows.
func (s *shop) only(client *x402client.Client) x402client.Channel {
	s.Helper()
	all, err := client.Channels(s.Context())
	if err != nil || len(all) != 1 {
		s.Fatalf("channels: %+v, %v", all, err)
	}
	return all[0]
}

// tokens holds both sides' balances to the base unit.
func (s *shop) tokens(payer, receiver uint64) {
	s.Helper()
	if p, r := s.chain.Tokens(s.T, s.key.Address()), s.chain.Tokens(s.T, s.receiver); p != payer || r != receiver {
		s.Errorf("payer has %d, receiver %d, want %d and %d", p, r, payer, receiver)
	}
}

// TestRenterPaysOfficialServer: deposit without a coin, many requests whose charge is less than their price, a body that
// is sent twice, a claim between two requests, a second deposit, a part and then all of the rest refunded, and the same
// channel again after that. Every base unit is where it belongs.
func TestRenterPaysOfficialServer(t *testing.T) {
	s := newShop(t)
	client, _ := s.client(shopCaps, shopOptions)
	total := uint64(0)
	for i, use := range []int{1000, 700, 0, 1, 999, 700, 300} {
		method := []string{http.MethodGet, http.MethodPost}[i%2]
		if served := s.buy(client, method, use); served != i+1 {
			t.Fatalf("request %d was served %d times", i, served)
		}
		total += uint64(use)
	}
	c := s.only(client)
	if c.Charged.Uint64() != total || c.Deposit.Uint64() != shopDeposit || c.Status != channel.Open {
		t.Fatalf("after %d: %+v", total, c)
	}
	s.tokens(purse-shopDeposit, 0)
	s.control("claim")
	s.tokens(purse-shopDeposit, total)
	for range 9 { // into a second deposit
		s.buy(client, http.MethodGet, 1000)
		total += 1000
	}
	if c = s.only(client); c.Charged.Uint64() != total || c.Deposit.Uint64() != 2*shopDeposit {
		t.Fatalf("after %d: %+v", total, c)
	}
	part, err := client.Refund(t.Context(), s.url+"/paid", "0.0005")
	if err != nil || part.Amount.Uint64() != 500 || part.Left.Uint64() != 2*shopDeposit-total-500 {
		t.Fatalf("a part: %+v, %v", part, err)
	}
	s.buy(client, http.MethodGet, 10)
	total += 10
	rest, err := client.Refund(t.Context(), s.url+"/paid", "")
	if err != nil || rest.Amount.Uint64() != 2*shopDeposit-total-500 || !rest.Left.IsZero() {
		t.Fatalf("the rest: %+v, %v", rest, err)
	}
	s.tokens(purse-total, 4700-1000) // what was claimed of it beside the refunds waits for the next payout
	s.buy(client, http.MethodGet, 250)
	total += 250
	s.control("claim")
	s.tokens(purse-total-(shopDeposit-250), total)
	if again := s.only(client); again.ID != c.ID || again.Charged.Uint64() != total || len(s.paid) != 18 {
		t.Errorf("after a refund: %+v, %d payments", again, len(s.paid))
	}
}

// TestRenterIsRepairedByOfficialServer: a renter that lost its database finds the channel again, one whose answer got
// lost learns what it cost, and calls at once are all served and all paid, once each.
func TestRenterIsRepairedByOfficialServer(t *testing.T) {
	s := newShop(t)
	client, _ := s.client(shopCaps, shopOptions)
	s.buy(client, http.MethodGet, 600)
	s.buy(client, http.MethodGet, 700)

	s.control("break")
	if _, err := s.tryBuy(client, http.MethodPost, 400); err == nil || errors.Is(err, x402client.ErrLostAnswer) {
		t.Fatalf("a lost answer to a POST: %v", err) // not sent again: it may do something twice
	}
	if served := s.buy(client, http.MethodPost, 100); served != 4 {
		t.Fatalf("%d served", served)
	}
	s.control("break")
	if _, err := s.tryBuy(client, http.MethodGet, 50); !errors.Is(err, x402client.ErrLostAnswer) {
		t.Fatalf("a lost answer to a GET: %v", err) // sent again, and shown to be charged
	}
	if c := s.only(client); c.Charged.Uint64() != 1850 || c.Dispute != "" {
		t.Fatalf("after the lost answers: %+v", c)
	}

	s.database = filepath.Join(t.TempDir(), "new.db")
	client, _ = s.client(shopCaps, shopOptions)
	s.buy(client, http.MethodGet, 150)
	c := s.only(client)
	if c.Charged.Uint64() != 2000 || c.Deposit.Uint64() != shopDeposit || c.Signed.Uint64() != 2850 {
		t.Fatalf("with a new database: %+v", c)
	}

	var wait sync.WaitGroup
	for range 6 {
		wait.Go(func() {
			if _, err := s.tryBuy(client, http.MethodGet, 100); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if c := s.only(client); c.Charged.Uint64() != 2600 {
		t.Errorf("after six at once: %+v", c)
	}
	s.control("claim")
	s.tokens(purse-shopDeposit, 2600)
}

// TestRenterLeavesOfficialServer: with the server gone, the money comes back from the contract; what the server had not
// claimed in the delay comes back too. Meanwhile nothing is paid, and it takes coin.
func TestRenterLeavesOfficialServer(t *testing.T) {
	s := newShop(t)
	client, _ := s.client(shopCaps, shopOptions)
	s.buy(client, http.MethodGet, 1000)
	s.control("claim")
	s.buy(client, http.MethodGet, 300)
	id := s.only(client).ID
	if _, err := client.Leave(t.Context(), id); !errors.Is(err, wallet.ErrNoGas) {
		t.Fatalf("leaving without a coin: %v", err)
	}
	if _, err := s.tryBuy(client, http.MethodGet, 1); !errors.Is(err, channel.ErrClosing) {
		t.Errorf("paying while leaving: %v", err)
	}
	s.chain.RPC(t, nil, "anvil_setBalance", s.key.Address(), "0xde0b6b3a7640000")
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() { _, err := client.Leave(ctx, id); left <- err }()
	s.until(func() bool {
		state, err := s.contract.State(t.Context(), id)
		return err == nil && state.View.CloseRequestedAt != 0
	})
	cancel() // as a crash would
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	s.chain.AdvanceTime(t, 15*time.Minute)
	refund, err := client.Leave(t.Context(), id)
	if err != nil || refund.Amount.Uint64() != shopDeposit-1000 || !refund.Left.IsZero() {
		t.Fatalf("left with %+v, %v", refund, err)
	}
	s.tokens(purse-1000, 1000)
	s.control("forget") // it would go on from what it was owed
	s.buy(client, http.MethodGet, 200)
	if c := s.only(client); c.ID != id || c.Deposit.Uint64() != 1000+shopDeposit {
		t.Errorf("paying again: %+v", c)
	}
}

func (s *shop) until(done func() bool) {
	s.Helper()
	for range 3000 {
		if done() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.Fatal("it did not happen")
}
