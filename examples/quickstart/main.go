// Command quickstart runs the whole of gpupay in one process and needs nothing beforehand: a chain, a provider, two renters,
// and at the end a ledger. It exits non-zero if a line of that does not add up to the base unit.
package main

import (
	"context"
	"flag"
	"log/slog"
	"os"

	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/internal/quickstart"
)

func main() {
	gpu := flag.String("gpu", "auto", "where GPUs come from: nvml, sim, sim:N, or auto")
	verbose := flag.Bool("v", false, "show the programs' own logs")
	flag.Parse()
	cli.Main(func(ctx context.Context) error {
		var log *slog.Logger
		if *verbose {
			log = slog.New(slog.NewTextHandler(os.Stderr, nil))
		}
		return quickstart.Run(ctx, *gpu, log)
	})
}
