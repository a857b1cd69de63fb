package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// TestServeBeforeAnInferenceServer: one command puts a price on a server that runs already. It is reached by who pays, under the operator's
// name and not the renter's, and by nobody else.
func TestServeBeforeAnInferenceServer(t *testing.T) {
	var asked []string
	engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			asked = append(asked, r.URL.Path+" "+r.Header.Get("Authorization"))
			time.Sleep(200 * time.Millisecond)
		}
		_, _ = io.WriteString(w, `{"choices":[{"message":{"content":"Hello"},"finish_reason":"stop"}]}`)
	}))
	t.Cleanup(engine.Close)
	chain, err := devchain.Start(t.Context(), devchain.Options{BlockTime: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { chain.Close() })
	t.Setenv("GPUPAY_KEY", hexutil.Encode(crypto.FromECDSA(chain.Keys[0])))
	t.Setenv("GPUPAY_UPSTREAM_KEY", "of-the-operator")
	address := free(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, strings.Fields("serve --gpu sim --price 36 --upstream "+engine.URL+" --slots 3 --log-level error --admin= --rpc "+chain.URL+" --escrow "+chain.Escrow.Hex()+
			" --token "+chain.Token.Hex()+" --listen "+address+" --record-every 1s --db "+filepath.Join(t.TempDir(), "provider.db")))
	}()
	chat := func(client *http.Client) (int, string) {
		resp, err := client.Post("http://"+address+"/v1/chat/completions", "application/json", strings.NewReader(`{"messages":[]}`))
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return resp.StatusCode, string(text) + errorText(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if status, text := chat(http.DefaultClient); status == http.StatusUnauthorized {
			break
		} else if time.Now().After(end) || status != 0 {
			t.Fatalf("a stranger is answered %d %s", status, text)
		}
	}
	key, err := crypto.GenerateKey()
	if err := errors.Join(err, chain.Fund(ctx, crypto.PubkeyToAddress(key.PublicKey), big.NewInt(0), *uint256.NewInt(10_000_000))); err != nil {
		t.Fatal(err)
	}
	client, err := renter.New(ctx, renter.Config{
		RPC: chain.URL, Token: chain.Token, Key: channel.NewKey(key), Database: filepath.Join(t.TempDir(), "renter.db"), Log: slog.New(slog.DiscardHandler),
		Caps: wallet.Caps{PricePerGPUHour: "40.00", PerLease: "10", PerDay: "10", PerPayee: "10"}, Chain: wallet.Chain{Poll: 100 * time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	rental, err := client.Rent(ctx, "http://"+address, renter.Options{Share: true})
	if err != nil {
		t.Fatal(err)
	}
	go rental.Run(ctx)
	if status, text := chat(&http.Client{Transport: rental.Transport(nil)}); status != http.StatusOK || !strings.Contains(text, "Hello") {
		t.Errorf("a renter is answered %d %s", status, text)
	}
	if len(asked) != 1 || asked[0] != "/v1/chat/completions Bearer of-the-operator" {
		t.Errorf("the inference server was asked %q", asked)
	}
	closing, err := rental.Close(ctx)
	if err != nil || closing.Settled.IsZero() || closing.Settled != closing.Owed || closing.Settled.GtUint64(10_000) {
		t.Errorf("closed with %+v, %v: a third of a GPU for less than a second was used", closing, err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestUpstreamFlagsGoTogether: what cannot be sold is refused before anything is begun.
func TestUpstreamFlagsGoTogether(t *testing.T) {
	t.Setenv("GPUPAY_KEY", strings.Repeat("1", 64))
	contracts := " --gpu sim --escrow 0x" + strings.Repeat("1", 40) + " --token 0x" + strings.Repeat("2", 40)
	for args, says := range map[string]string{
		"--upstream http://127.0.0.1:1": "--slots", "--slots 3": "--upstream", "--upstream http://127.0.0.1:1 --slots 3 --price A=1,B=2": "one price",
		"--upstream ftp://127.0.0.1 --slots 3": "http",
	} {
		if err := run(t.Context(), strings.Fields("serve "+args+contracts+" --db "+filepath.Join(t.TempDir(), "provider.db"))); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", args, err)
		}
	}
}

// TestWhatIsSoldIsSaid: whoever starts a provider before an inference server reads which one, how it is sold, and whether it answers.
func TestWhatIsSoldIsSaid(t *testing.T) {
	t.Parallel()
	many := strings.Fields(strings.Repeat("m ", mostNamed+2))
	for says, answer := range map[string]struct {
		models []string
		err    error
	}{"its models: a, b\n": {[]string{"a", "b"}, nil}, "m and 2 more\n": {many, nil}, "lists no models": {}, "IT DOES NOT ANSWER, so that nothing is rented out until it does: refused": {nil, errors.New("refused")}} {
		var out strings.Builder
		upstream{url: "http://127.0.0.1:8000", slots: 32}.say(t.Context(), &out, func(context.Context) ([]string, error) { return answer.models, answer.err })
		if !strings.Contains(out.String(), says) || !strings.Contains(out.String(), "selling http://127.0.0.1:8000 by the request: 32 at once") {
			t.Errorf("want %q: %s", says, out.String())
		}
	}
	upstream{}.say(t.Context(), nil, nil) // without one nothing is said
}

// TestTrialIsForNobodyElse: the chain within the program is for who tries it. What renters elsewhere would come to, and what would be opened
// again when the chain is gone, is refused.
func TestTrialIsForNobodyElse(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, args := range []string{"--domain gpu.example.org", "--public-url https://gpu.example.org", "--db provider.db", "--payout 0x" + strings.Repeat("1", 40)} {
		err := run(t.Context(), strings.Fields("serve --gpu sim --upstream http://127.0.0.1:1 --slots 3 "+args))
		if err == nil || !strings.Contains(err.Error(), "give --rpc, --escrow and --token") {
			t.Errorf("%s: %v", args, err)
		}
	}
	const sell = "serve --gpu sim --upstream http://127.0.0.1:1 --slots 3"
	for set, says := range map[[2]string]string{
		{"GPUPAY_DB", "provider.db"}: "give --rpc, --escrow and --token", {"GPUPAY_RPC", "http://127.0.0.1:1"}: "($GPUPAY_ESCROW) is empty",
		{"GPUPAY_TOKEN", "0x" + strings.Repeat("1", 40)}: "($GPUPAY_ESCROW) is empty", {"GPUPAY_CHAIN_ID", "8453"}: "($GPUPAY_ESCROW) is empty",
	} {
		t.Run(set[0], func(t *testing.T) { // a chain may be named, and more, where no command line shows it
			t.Setenv("GPUPAY_KEY", strings.Repeat("1", 64))
			t.Setenv(set[0], set[1])
			if err := run(t.Context(), strings.Fields(sell)); err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("%v", err)
			}
		})
	}
}
