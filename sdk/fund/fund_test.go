package fund_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/accounts/abi/bind"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/browser"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/fund"
	"github.com/gpupay/gpupay/sdk/units"
)

func purse(balance func(context.Context) (uint256.Int, error)) fund.Wallet {
	return fund.Wallet{Address: common.Address{1}, ChainID: big.NewInt(8453), Token: common.Address{2}, Symbol: "USDC", Decimals: 6, Balance: balance}
}

// TestPage: the page loads nothing from elsewhere, runs no script but its own, is shown in no frame, names the token and the chain, and says
// no balance that it does not know.
func TestPage(t *testing.T) {
	failed := errors.New("the endpoint hangs")
	h := purse(func(context.Context) (uint256.Int, error) { return uint256.Int{}, failed }).Handler()
	get := func(path string) (*http.Response, string) {
		res := httptest.NewRecorder()
		h.ServeHTTP(res, httptest.NewRequest(http.MethodGet, path, nil))
		return res.Result(), res.Body.String()
	}
	for path, kind := range map[string]string{"/": "text/html", "/page.js": "text/javascript", "/page.css": "text/css", "/code.png": "image/png", "/state": "application/json"} {
		res, text := get(path)
		policy := res.Header.Get("Content-Security-Policy")
		if res.StatusCode != http.StatusOK || !strings.HasPrefix(res.Header.Get("Content-Type"), kind) || !strings.Contains(policy, "default-src 'none'") || !strings.Contains(policy, "frame-ancestors 'none'") {
			t.Errorf("%s: %s %v", path, res.Status, res.Header)
		}
		if strings.Contains(text, "://") || strings.Contains(text, "innerHTML") {
			t.Errorf("%s loads what is not its own, or takes words for HTML", path)
		}
	}
	if _, text := get("/"); !strings.Contains(text, common.Address{1}.Hex()) || !strings.Contains(text, common.Address{2}.Hex()) || !strings.Contains(text, "chain 8453") {
		t.Errorf("what to send where is not said: %s", text)
	}
	if _, text := get("/state"); strings.Contains(text, "balance") || strings.Contains(text, "hangs") {
		t.Errorf("a balance that is not known: %s", text)
	}
	if res, _ := get("/index.html"); res.StatusCode != http.StatusNotFound {
		t.Errorf("/index.html: %s", res.Status)
	}
}

// TestCode: a reader of QR codes finds the payment request in the page's picture, and in what a terminal shows. It needs zbarimg.
func TestCode(t *testing.T) {
	w := purse(nil)
	var text bytes.Buffer
	if err := w.WriteCode(&text); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("zbarimg"); err != nil {
		t.Skip("no zbarimg is here: Debian's package zbar-tools has it")
	}
	res := httptest.NewRecorder()
	w.Handler().ServeHTTP(res, httptest.NewRequest(http.MethodGet, "/code.png", nil))
	for name, picture := range map[string][]byte{"page": res.Body.Bytes(), "terminal": screenshot(t, text.String())} {
		file := filepath.Join(t.TempDir(), "code.png")
		if err := os.WriteFile(file, picture, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := exec.Command("zbarimg", "-q", "--raw", file).Output()
		if err != nil || strings.TrimSpace(string(got)) != w.URI() {
			t.Errorf("%s: %q is read, %v", name, got, err)
		}
	}
}

// screenshot is how half blocks look, eight pixels wide each.
func screenshot(t *testing.T, text string) []byte {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(text), "\n")
	var shot *image.Gray
	for y, line := range lines {
		line = strings.TrimSuffix(strings.TrimPrefix(line, "\x1b[30;107m"), "\x1b[0m")
		if shot == nil {
			shot = image.NewGray(image.Rect(0, 0, 8*len([]rune(line)), 16*len(lines)))
		}
		for x, r := range []rune(line) {
			for dy := range 16 {
				light := !(r == '█' || r == '▀' && dy < 8 || r == '▄' && dy >= 8)
				for dx := range 8 {
					if light {
						shot.SetGray(8*x+dx, 16*y+dy, color.Gray{Y: 255})
					}
				}
			}
		}
	}
	var out bytes.Buffer
	if err := png.Encode(&out, shot); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// injected announces a wallet to the page as an extension does, and clicks as its owner does. What the wallet is asked is answered by the test.
const injected = `
const provider = { request: async (asked) => {
	const answer = await (await fetch("/request", { method: "POST", body: JSON.stringify(asked) })).json();
	if (answer.error) throw answer.error;
	return answer.result;
} };
const detail = Object.freeze({ info: { uuid: "1", name: "Purse", icon: "data:,", rdns: "org.example" }, provider });
const announce = () => dispatchEvent(new CustomEvent("eip6963:announceProvider", { detail }));
addEventListener("eip6963:requestProvider", announce);
addEventListener("load", async () => {
	announce();
	const twin = new CustomEvent("eip6963:announceProvider", { detail: { info: { uuid: "2", name: "Twin" }, provider } });
	const text = (id) => document.getElementById(id).textContent;
	for (const amount of ["much", "0.0000001", "7.25", "7.25", "7.25"]) {
		document.getElementById("amount").value = amount;
		const button = document.querySelector("button");
		while (button.disabled) await new Promise((next) => setTimeout(next, 10));
		document.getElementById("said").textContent = "";
		button.click();
		button.click();
		dispatchEvent(twin); // the same wallet once more, while it waits
		document.querySelectorAll("button")[1].click();
		do await new Promise((next) => setTimeout(next, 10)); while (button.disabled || text("said") === "");
		await fetch("/said", { method: "POST", body: text("said") });
	}
	while (text("balance") !== "$7.25") await new Promise((next) => setTimeout(next, 100));
	await fetch("/said", { method: "POST", body: text("balance") });
});`

// extension is a wallet of the browser, with a key that has dollars on a chain.
type extension struct {
	*testing.T
	chain *devchain.Chain
	mu    sync.Mutex
	at    string // the chain that it is on
	asks  []string
}

// sends is how often it was asked to send.
func (e *extension) sends() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Count(strings.Join(e.asks, " "), "eth_sendTransaction")
}

func (e *extension) request(method string, params []json.RawMessage) (any, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asks = append(e.asks, method)
	key := e.chain.Keys[0]
	switch method {
	case "eth_requestAccounts":
		return []common.Address{crypto.PubkeyToAddress(key.PublicKey)}, nil
	case "eth_chainId":
		return e.at, nil
	case "wallet_switchEthereumChain":
		var to struct{ ChainID string }
		if err := json.Unmarshal(params[0], &to); err != nil || strings.Count(strings.Join(e.asks, " "), method) == 1 {
			return nil, err // it stays where it is, the first time
		}
		e.at = to.ChainID
		return nil, nil
	case "eth_sendTransaction":
		if strings.Count(strings.Join(e.asks, " "), method) == 1 {
			return nil, errors.New("declined")
		}
		var tx struct {
			To      common.Address
			Data    hexutil.Bytes
			ChainID string
		}
		if err := json.Unmarshal(params[0], &tx); err != nil {
			return nil, err
		}
		if tx.ChainID != hexutil.EncodeUint64(devchain.ChainID) {
			return nil, errors.New("for whichever chain")
		}
		opts, err := bind.NewKeyedTransactorWithChainID(key, big.NewInt(devchain.ChainID))
		if err != nil {
			return nil, err
		}
		b := e.chain.Backend
		sent, err := bind.NewBoundContract(tx.To, abi.ABI{}, b, b, b).RawTransact(opts, tx.Data)
		if err != nil {
			return nil, err
		}
		return sent.Hash(), nil
	}
	return nil, fmt.Errorf("%s is not asked of wallets", method)
}

// TestBrowserWalletFills: the wallet of a real browser is asked to send what its owner typed, once for two clicks, to the right chain or not at all,
// and the page says what came of it. It needs Chromium.
func TestBrowserWalletFills(t *testing.T) {
	browser.Need(t)
	local, err := devchain.Start(t.Context(), devchain.Options{BlockTime: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = local.Close() })
	e := &extension{T: t, chain: local, at: "0x1"}
	if err := local.Fund(t.Context(), crypto.PubkeyToAddress(local.Keys[0].PublicKey), big.NewInt(0), *uint256.NewInt(10_000_000)); err != nil {
		t.Fatal(err)
	}
	token, err := chain.NewToken(t.Context(), local.Backend, local.Token)
	if err != nil {
		t.Fatal(err)
	}
	to := common.Address{9, 9}
	page := fund.Wallet{
		Address: to, ChainID: big.NewInt(devchain.ChainID), Token: local.Token, Symbol: token.Symbol, Decimals: token.Decimals,
		Balance: func(ctx context.Context) (uint256.Int, error) { return token.Balance(ctx, to) },
	}.Handler()
	said := make(chan string, 16)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		res := httptest.NewRecorder()
		page.ServeHTTP(res, r)
		for name, values := range res.Header() {
			w.Header()[name] = values
		}
		_, _ = io.WriteString(w, strings.Replace(res.Body.String(), "<main", `<script src="injected.js"></script><main`, 1))
	})
	mux.HandleFunc("GET /injected.js", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/javascript")
		_, _ = io.WriteString(w, injected)
	})
	mux.HandleFunc("POST /request", func(w http.ResponseWriter, r *http.Request) {
		var asked struct {
			Method string
			Params []json.RawMessage
		}
		_ = json.NewDecoder(r.Body).Decode(&asked)
		result, err := e.request(asked.Method, asked.Params)
		answer := map[string]any{"result": result}
		if err != nil {
			answer = map[string]any{"error": map[string]any{"code": 4001, "message": err.Error()}}
		}
		_ = json.NewEncoder(w).Encode(answer)
	})
	mux.HandleFunc("POST /said", func(_ http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		said <- string(text)
	})
	mux.HandleFunc("GET /state", func(w http.ResponseWriter, r *http.Request) { // the proxy has ended, and another program listens there
		if e.sends() == 1 {
			_, _ = io.WriteString(w, `{"address":"0x2222222222222222222222222222222222222222","balance":"7.25"}`)
			return
		}
		page.ServeHTTP(w, r)
	})
	mux.Handle("/", page)
	site := httptest.NewServer(mux)
	defer site.Close()
	browser.Open(t, site.URL)
	for _, want := range []string{"at most 6 decimals", "at most 6 decimals", "still on another chain", "declined", "Sent.", "$7.25"} {
		select {
		case text := <-said:
			if !strings.Contains(text, want) {
				t.Fatalf("%q is said, and not %q; asked %v", text, want, e.asks)
			}
		case <-time.After(time.Minute):
			t.Fatalf("the page does not say %q; asked %v", want, e.asks)
		}
	}
	if n := e.sends(); n != 2 {
		t.Errorf("it was asked to send %d times: once it declined", n)
	}
	if has, err := token.Balance(t.Context(), to); err != nil || units.Format(has, token.Decimals) != "7.25" {
		t.Errorf("%s arrived, %v", has.Dec(), err)
	}
}
