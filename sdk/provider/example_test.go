package provider_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/provider"
)

// A provider with a simulated GPU, on a chain in this process. Whoever asks for a lease without paying is told what it costs.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "gpupay-example-")
	must(err)
	defer os.RemoveAll(dir)
	chain, err := devchain.Start(ctx, devchain.Options{})
	must(err)
	defer chain.Close()

	server, err := provider.New(ctx, provider.Config{
		RPC: chain.URL, Escrow: chain.Escrow, Token: chain.Token, Key: channel.NewKey(chain.Keys[0]),
		Database: filepath.Join(dir, "provider.db"), PricePerGPUHour: "36.00", Source: sim.New(1, sim.Options{}),
		Terms: provider.Terms{Credit: 30 * time.Second}, Log: slog.New(slog.DiscardHandler),
	})
	must(err)
	defer server.Close()
	go server.Run(ctx) // watches the chain and settles
	site := httptest.NewServer(server)
	defer site.Close()

	answer, err := http.Post(site.URL+"/lease", "", nil)
	must(err)
	defer answer.Body.Close()
	fmt.Println(answer.Status)
	offer := server.Offer()
	fmt.Println("ahead of vouchers it serves", offer.Credit, "s")
	// Output:
	// 402 Payment Required
	// ahead of vouchers it serves 30 s
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
