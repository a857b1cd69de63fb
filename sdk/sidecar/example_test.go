package sidecar_test

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
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/sidecar"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// An inference server gets a price: 36 tokens an hour for its GPU, which 32 requests share. A renter sends one as it would to any server of
// OpenAI's API, and pays for the time that it took. Chain, GPU, server and renter are in this process.
func Example() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	dir, err := os.MkdirTemp("", "gpupay-example-")
	must(err)
	defer os.RemoveAll(dir)
	chain, err := devchain.Start(ctx, devchain.Options{BlockTime: 100 * time.Millisecond})
	must(err)
	defer chain.Close()
	vllm := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(300 * time.Millisecond)
		_, _ = io.WriteString(w, `{"choices":[{"message":{"content":"Hello"},"finish_reason":"stop"}]}`)
	}))
	defer vllm.Close()

	server, err := sidecar.New(ctx, sidecar.Config{
		Upstream: vllm.URL,
		Provider: provider.Config{
			RPC: chain.URL, Escrow: chain.Escrow, Token: chain.Token, Key: channel.NewKey(chain.Keys[0]), Database: filepath.Join(dir, "provider.db"),
			PricePerGPUHour: "36.00", Share: provider.Share{Slots: 32}, Source: sim.New(1, sim.Options{}),
			Metering: provider.Metering{Tick: 100 * time.Millisecond, RecordEvery: 200 * time.Millisecond},
			Chain:    provider.Chain{Poll: 50 * time.Millisecond, ClockTolerance: time.Hour}, Log: slog.New(slog.DiscardHandler),
		},
	})
	must(err)
	defer server.Close()
	go server.Run(ctx) // watches the chain and the inference server
	site := httptest.NewServer(server)
	defer site.Close()

	private, err := crypto.GenerateKey()
	must(err)
	must(chain.Fund(ctx, crypto.PubkeyToAddress(private.PublicKey), big.NewInt(1e18), *uint256.NewInt(10_000_000)))
	client, err := renter.New(ctx, renter.Config{
		RPC: chain.URL, Token: chain.Token, Key: channel.NewKey(private), Database: filepath.Join(dir, "renter.db"),
		Caps:  wallet.Caps{PricePerGPUHour: "40.00", PerLease: "10", PerDay: "10", PerPayee: "10"},
		Chain: wallet.Chain{Poll: 50 * time.Millisecond, ClockTolerance: time.Hour}, Log: slog.New(slog.DiscardHandler),
	})
	must(err)
	defer client.Close()
	rental, err := client.Rent(ctx, site.URL, renter.Options{Share: true})
	must(err)
	paying, stop := context.WithCancel(ctx)
	defer stop()
	go rental.Run(paying) // checks what is billed, and pays
	to, err := rental.Endpoint()
	must(err)
	browser := http.Client{Transport: rental.Transport(nil)}
	answer, err := browser.Post(to.String()+"/v1/chat/completions", "application/json", strings.NewReader(`{"messages":[]}`))
	must(err)
	text, err := io.ReadAll(answer.Body)
	must(err)
	must(answer.Body.Close())
	fmt.Println(answer.StatusCode, strings.Contains(string(text), "Hello"))
	closing, err := rental.Close(ctx)
	must(err)
	fmt.Println("paid:", !closing.Settled.IsZero() && closing.Settled == closing.Owed, "and less than a tenth of the GPU's second:", closing.Settled.LtUint64(1000))
	// Output:
	// 200 true
	// paid: true and less than a tenth of the GPU's second: true
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
