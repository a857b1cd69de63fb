package programs

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/proxying"
	"github.com/gpupay/gpupay/sdk/budget"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/proxy"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
)

const tale = "One two three four five six seven eight nine ten eleven twelve."

// taleServer writes the tale word by word, or what is missing of it, and after some words nothing more, until its caller is gone.
func taleServer(t *testing.T, words int) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_, _ = io.WriteString(w, `{"object":"list","data":[{"id":"m","object":"model"}]}`)
			return
		}
		var q struct {
			Messages []struct{ Role, Content string }
			Continue bool `json:"continue_final_message"`
		}
		_ = json.NewDecoder(r.Body).Decode(&q)
		left := tale
		if q.Continue {
			left = strings.TrimPrefix(tale, q.Messages[len(q.Messages)-1].Content)
		}
		w.Header().Set("Content-Type", "text/event-stream")
		for n, word := range strings.SplitAfter(left, " ") {
			if n == words {
				<-r.Context().Done()
				return
			}
			_, _ = fmt.Fprintf(w, "data: {\"id\":\"c%d\",\"choices\":[{\"index\":0,\"delta\":{\"content\":%q},\"finish_reason\":null}]}\n\n", words, word)
			_ = http.NewResponseController(w).Flush()
			time.Sleep(50 * time.Millisecond)
		}
		_, _ = fmt.Fprintf(w, "data: {\"id\":\"c%d\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n", words)
	}))
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s
}

// serveTale runs a sidecar before one as a program.
func (w *world) serveTale(t *testing.T, key, words int) (url string, p *program) {
	t.Helper()
	listen := freeAddress(t)
	p = w.start(t, fmt.Sprintf("serve --gpu sim --upstream %s --slots 4 --price 3.60 --min-deposit 0.10 --db sidecar%d.db --poll 200ms --record-every 1s --listen %s", taleServer(t, words).URL, key, listen), "GPUPAY_KEY="+w.secrets[key])
	p.wait(t, "renting out")
	return "http://" + listen, p
}

// funds is what a payer has, in base units.
const funds = 100_000_000

// payer is an account with funds, and coin.
func (w *world) payer(t *testing.T) (*ecdsa.PrivateKey, common.Address) {
	t.Helper()
	private, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	address := crypto.PubkeyToAddress(private.PublicKey)
	if err := w.Fund(t.Context(), address, big.NewInt(1e18), *uint256.NewInt(funds)); err != nil {
		t.Fatal(err)
	}
	return private, address
}

func (w *world) balance(t *testing.T, of common.Address) uint64 {
	t.Helper()
	token, err := chain.NewToken(t.Context(), w.Backend, w.Token)
	if err != nil {
		t.Fatal(err)
	}
	balance, err := token.Balance(t.Context(), of)
	if err != nil {
		t.Fatal(err)
	}
	return balance.Uint64()
}

// TestKilledBetweenTwoTokens: a sidecar's process is killed while it streams an answer. Its caller has the whole text, as one answer, and pays
// the provider that went on, once; who was killed is paid nothing, and what was set aside there comes back.
func TestKilledBetweenTwoTokens(t *testing.T) {
	w := newWorld(t)
	private, payer := w.payer(t)
	first, killed := w.serveTale(t, 2, 4)
	second, _ := w.serveTale(t, 3, -1)
	list, _ := json.Marshal([]map[string]any{{"url": first, "model": "m", "prefill": true}, {"url": second, "model": "m", "prefill": true}})
	w.write(t, "providers.json", list)
	p := proxying.Proxying{
		Dir: filepath.Join(w.dir, "proxy"), Key: channel.NewKey(private), Budget: "20/day", Providers: filepath.Join(w.dir, "providers.json"), Out: io.Discard,
		Client: renter.Config{RPC: w.URL, Token: w.Token, Patience: 3 * time.Second, Caps: wallet.Caps{PricePerGPUHour: "5"},
			Chain: wallet.Chain{Poll: 50 * time.Millisecond, ClockTolerance: 24 * time.Hour}},
	}
	url, stop := runProxy(t, p)
	listed(t, url, 2)

	res := postChat(t, url, `{"model":"m","stream":true,"messages":[{"role":"user","content":"Count."}],"max_tokens":100,"provider":{"order":["`+first+`"]}}`)
	defer res.Body.Close()
	var text strings.Builder
	events, ends := bufio.NewScanner(res.Body), 0
	for words := 0; events.Scan(); {
		event, is := strings.CutPrefix(events.Text(), "data: ")
		if !is {
			continue
		}
		if event == "[DONE]" {
			ends++
			continue
		}
		var e struct {
			ID      string
			Choices []struct{ Delta struct{ Content string } }
		}
		if err := json.Unmarshal([]byte(event), &e); err != nil || e.ID != "c4" || len(e.Choices) != 1 {
			t.Fatalf("%s: %v", event, err)
		}
		text.WriteString(e.Choices[0].Delta.Content)
		if words++; words == 4 {
			if err := killed.cmd.Process.Kill(); err != nil { // SIGKILL
				t.Fatal(err)
			}
		}
	}
	if text.String() != tale || ends != 1 || events.Err() != nil || res.Trailer.Get(proxy.HeaderAttempts) != "2" || res.Trailer.Get(proxy.HeaderCost) == "" {
		t.Errorf("%q, %d ends, %v, %v", text.String(), ends, events.Err(), res.Trailer)
	}
	stop()

	back := make(chan error, 1)
	closing, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	go func() { back <- p.Return(closing) }()
	a, b := crypto.PubkeyToAddress(w.Keys[2].PublicKey), crypto.PubkeyToAddress(w.Keys[3].PublicKey)
	for over := false; !over; {
		select {
		case err := <-back:
			if err != nil {
				t.Fatal(err)
			}
			over = true
		case <-time.After(time.Second):
			if w.balance(t, b) > 0 { // the one who lives is paid: then the other's grace period passes
				if err := w.AdvanceTime(5 * time.Minute); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	spent, settled := funds-w.balance(t, payer), w.settled(t, p, 2)
	if w.balance(t, a) != 0 || w.balance(t, b) != spent || settled != spent || spent == 0 || spent > 250*60 { // a slot's second is 250
		t.Errorf("%d base units were spent and %d settled: %d for who was killed, %d for who went on", spent, settled, w.balance(t, a), w.balance(t, b))
	}
}

// settled is what the payer's books say that so many channels were settled for, which the budget's count is, too.
func (w *world) settled(t *testing.T, p proxying.Proxying, channels int) (all uint64) {
	t.Helper()
	c := p.Client
	c.Key, c.Database, c.Log = p.Key, filepath.Join(p.Dir, "payments.db"), slog.New(slog.DiscardHandler)
	c.Caps = wallet.Caps{PricePerGPUHour: "5", PerLease: wallet.Unlimited, PerDay: wallet.Unlimited, PerPayee: wallet.Unlimited}
	client, err := renter.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	rentals, err := client.History(t.Context())
	if err != nil || len(rentals) != channels {
		t.Fatal(rentals, err)
	}
	for _, r := range rentals {
		if r.Closed == nil {
			t.Fatalf("channel %s is %s", r.Channel, r.Phase)
		}
		all += r.Closed.Settled.Uint64()
	}
	books, err := budget.Open(t.Context(), filepath.Join(p.Dir, "budget.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer books.Close()
	counted, err := books.Counted(t.Context(), time.Now(), "")
	if err != nil || uint64(counted.BaseUnits()) != all {
		t.Errorf("the budget counts %s, and %d were settled: %v", counted, all, err)
	}
	return all
}

func runProxy(t *testing.T, p proxying.Proxying) (url string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- p.Run(ctx, l, nil) }()
	return "http://" + l.Addr().String(), func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	}
}

// listed waits until a proxy knows the offers of so many providers.
func listed(t *testing.T, url string, n int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		models, err := http.Get(url + "/v1/models")
		if err == nil {
			text, _ := io.ReadAll(models.Body)
			_ = models.Body.Close()
			if strings.Count(string(text), `"prefill":true`) == n {
				return
			}
		}
		if time.Now().After(end) {
			t.Fatalf("the proxy does not list %d providers", n)
		}
	}
}

func postChat(t *testing.T, url, body string) *http.Response {
	t.Helper()
	res, err := http.Post(url+"/v1/chat/completions", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(res.Body)
		t.Fatalf("%d %s", res.StatusCode, text)
	}
	return res
}
