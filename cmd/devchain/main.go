// Command devchain is a chain to try the other programs on. It lasts as long as
// the program runs, and has the escrow, a test token, stand-ins for x402's
// contracts, two accounts with coin and tokens, whose keys everybody knows, and a
// directory for databases. What they need to know of it is in a file that a shell can source.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"strconv"

	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/internal/devchain"
)

func main() { cli.Main(run) }

func run(ctx context.Context) error {
	listen := flag.String("port", cmp.Or(os.Getenv("GPUPAY_DEVCHAIN_PORT"), "8545"), "of the chain's JSON-RPC, on 127.0.0.1 ($GPUPAY_DEVCHAIN_PORT)")
	file := flag.String("env", "devchain.env", "where to write what the other programs need to know (`path`)")
	flag.Usage = func() {
		fmt.Println("devchain runs a chain to try gpupay on, with the escrow, a test token and two accounts that have some of it.\n\n" +
			"It lasts as long as the program. So do the databases in $DEVCHAIN_DIR, which it deletes when it ends.")
		flag.PrintDefaults()
	}
	flag.Parse()
	port, err := strconv.ParseUint(*listen, 10, 16)
	if err != nil {
		return fmt.Errorf("--port %q is not a port", *listen)
	}
	chain, err := devchain.NewTrial(context.WithoutCancel(ctx), devchain.Options{Port: int(port), Genesis: devchain.X402()}, *file)
	if err != nil {
		return err
	}
	defer chain.Close()
	fmt.Printf("a chain for tests, id %d, at %s, until this program ends; nothing on it is worth money, and its keys are known to everyone\n", devchain.ChainID, chain.URL)
	fmt.Println("x402's contracts on it are stand-ins of ours, not the code that is live elsewhere")
	fmt.Printf("ready: source %s\n", *file)
	<-ctx.Done()
	fmt.Printf("stopping: the chain is gone, and %s with the databases in it is deleted\n", chain.Dir)
	return nil
}
