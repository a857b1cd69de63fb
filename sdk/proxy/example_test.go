package proxy_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/pool"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/proxy"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/sidecar"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// A program that knows nothing of payments asks this machine's proxy for an answer, as it would ask OpenAI, and a provider is paid for it
// out of a budget of half a dollar a day. Chain, GPU, inference server, provider and proxy are in this process.
func Example() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	dir, err := os.MkdirTemp("", "gpupay-example-")
	check(err)
	defer os.RemoveAll(dir)
	chain, err := devchain.Start(ctx, devchain.Options{BlockTime: 100 * time.Millisecond})
	check(err)
	defer chain.Close()
	site := provides(ctx, chain, dir)
	defer site.Close()

	private, err := crypto.GenerateKey()
	check(err)
	check(chain.Fund(ctx, crypto.PubkeyToAddress(private.PublicKey), big.NewInt(0), *uint256.NewInt(10_000_000)))
	client, err := renter.New(ctx, renter.Config{
		RPC: chain.URL, Token: chain.Token, Key: channel.NewKey(private), Database: filepath.Join(dir, "renter.db"),
		Caps:  wallet.Caps{PricePerGPUHour: "40.00", PerLease: "10", PerDay: "10", PerPayee: "10"},
		Chain: wallet.Chain{Poll: 50 * time.Millisecond, ClockTolerance: time.Hour}, Log: slog.New(slog.DiscardHandler),
	})
	check(err)
	defer client.Close()
	payer, err := pool.Open(ctx, pool.Config{Client: client, File: filepath.Join(dir, "pool.db"), Budget: "0.50", Log: slog.New(slog.DiscardHandler)})
	check(err)
	check(payer.Set([]pool.Candidate{{URL: site.URL, Model: "llama"}}))
	for len(payer.Endpoints()) == 0 { // its offer is fetched and verified
		time.Sleep(10 * time.Millisecond)
	}
	server, err := proxy.New(proxy.Config{Pool: proxy.FromPool(payer)})
	check(err)
	local := httptest.NewServer(server)
	defer local.Close()

	answer, err := http.Post(local.URL+"/v1/chat/completions", "application/json", strings.NewReader(`{"model":"llama","messages":[{"role":"user","content":"Hi"}]}`))
	check(err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	check(err)
	fmt.Println(answer.StatusCode, string(text))
	fmt.Println("from the provider:", answer.Header.Get(proxy.HeaderProvider) == site.URL, "attempts:", answer.Header.Get(proxy.HeaderAttempts))
	fmt.Println("for less than a tenth of a cent:", strings.HasPrefix(answer.Header.Get(proxy.HeaderCost), "0.000"))
	check(payer.Close(ctx))
	// Output:
	// 200 {"choices":[{"message":{"content":"Hello"},"finish_reason":"stop"}]}
	// from the provider: true attempts: 1
	// for less than a tenth of a cent: true
}

// provides is a provider before an inference server.
func provides(ctx context.Context, chain *devchain.Chain, dir string) *httptest.Server {
	vllm := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"choices":[{"message":{"content":"Hello"},"finish_reason":"stop"}]}`)
	}))
	server, err := sidecar.New(ctx, sidecar.Config{Upstream: vllm.URL, Provider: provider.Config{
		RPC: chain.URL, Escrow: chain.Escrow, Token: chain.Token, Key: channel.NewKey(chain.Keys[0]), Database: filepath.Join(dir, "provider.db"),
		PricePerGPUHour: "36.00", Share: provider.Share{Slots: 32}, Source: sim.New(1, sim.Options{}),
		Metering: provider.Metering{Tick: 100 * time.Millisecond, RecordEvery: 200 * time.Millisecond},
		Chain:    provider.Chain{Poll: 50 * time.Millisecond, ClockTolerance: time.Hour}, Log: slog.New(slog.DiscardHandler),
	}})
	check(err)
	go func() {
		_ = server.Run(ctx)
		vllm.Close()
		_ = server.Close()
	}()
	return httptest.NewServer(server)
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
