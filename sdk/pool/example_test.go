package pool_test

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
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/route"
	"github.com/gpupay/gpupay/sdk/sidecar"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// A pool with half a token a day sends a request to a provider that it knows by its URL alone: the rental is opened for it, paid, and
// closed at the end. Chain, GPU, inference server and renter are in this process.
func Example() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	dir, err := os.MkdirTemp("", "gpupay-example-")
	check(err)
	defer os.RemoveAll(dir)
	chain, err := devchain.Start(ctx, devchain.Options{BlockTime: 100 * time.Millisecond})
	check(err)
	defer chain.Close()
	vllm := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(300 * time.Millisecond)
		_, _ = io.WriteString(w, `{"choices":[{"message":{"content":"Hello"},"finish_reason":"stop"}]}`)
	}))
	defer vllm.Close()
	server, err := sidecar.New(ctx, sidecar.Config{Upstream: vllm.URL, Provider: provider.Config{
		RPC: chain.URL, Escrow: chain.Escrow, Token: chain.Token, Key: channel.NewKey(chain.Keys[0]), Database: filepath.Join(dir, "provider.db"),
		PricePerGPUHour: "36.00", Share: provider.Share{Slots: 32}, Source: sim.New(1, sim.Options{}),
		Metering: provider.Metering{Tick: 100 * time.Millisecond, RecordEvery: 200 * time.Millisecond},
		Chain:    provider.Chain{Poll: 50 * time.Millisecond, ClockTolerance: time.Hour}, Log: slog.New(slog.DiscardHandler),
	}})
	check(err)
	defer server.Close()
	go server.Run(ctx)
	site := httptest.NewServer(server)
	defer site.Close()

	private, err := crypto.GenerateKey()
	check(err)
	check(chain.Fund(ctx, crypto.PubkeyToAddress(private.PublicKey), big.NewInt(1e18), *uint256.NewInt(10_000_000)))
	client, err := renter.New(ctx, renter.Config{
		RPC: chain.URL, Token: chain.Token, Key: channel.NewKey(private), Database: filepath.Join(dir, "renter.db"),
		Caps:  wallet.Caps{PricePerGPUHour: "40.00", PerLease: "10", PerDay: "10", PerPayee: "10"},
		Chain: wallet.Chain{Poll: 50 * time.Millisecond, ClockTolerance: time.Hour}, Log: slog.New(slog.DiscardHandler),
	})
	check(err)
	defer client.Close()
	p, err := pool.Open(ctx, pool.Config{Client: client, File: filepath.Join(dir, "pool.db"), Budget: "0.50", Log: slog.New(slog.DiscardHandler)})
	check(err)
	check(p.Set([]pool.Candidate{{URL: site.URL, Model: "llama"}}))
	for len(p.Endpoints()) == 0 { // its offer is fetched and verified
		time.Sleep(10 * time.Millisecond)
	}
	endpoint := p.Endpoints()[0]
	fmt.Println("base units for a second in a slot:", endpoint.Price.PerSlotSecond)

	hold, err := p.Reserve(ctx, "", endpoint, route.Base(5000))
	check(err)
	request, err := http.NewRequest(http.MethodPost, "http://any/v1/chat/completions", strings.NewReader(`{"messages":[]}`))
	check(err)
	answer, err := hold.RoundTrip(request)
	check(err)
	text, err := io.ReadAll(answer.Body)
	check(err)
	check(answer.Body.Close())
	check(hold.Done(ctx, route.Nano{}))
	fmt.Println(answer.StatusCode, strings.Contains(string(text), "Hello"))
	left, err := p.Left("")
	check(err)
	fmt.Println("half a token, less a request and what two seconds may cost:", left.Cmp(route.Base(498_000)) > 0)
	check(p.Close(ctx))
	// Output:
	// base units for a second in a slot: 312.5
	// 200 true
	// half a token, less a request and what two seconds may cost: true
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
