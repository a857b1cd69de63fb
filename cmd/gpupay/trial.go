package main

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"path/filepath"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/internal/devchain"
)

// trialFile is where a renter's program finds the chain within this one.
const trialFile = "devchain.env"

const trialSays = `NO CHAIN IS NAMED, so this sells on one within this program, to try it: no real money moves. Its token is worth nothing, its
keys are known to everyone, and all of it is gone when this program ends, with the databases in %s.
To be paid, give a real chain: --rpc, --escrow, --token and your key ('gpupay deploy' puts the escrow on a chain).
A renter on this machine: . ./%s; GPUPAY_KEY=$RENTER_KEY gpupay rent --share --db $DEVCHAIN_DIR/renter.db
`

// embedded reports whether an inference server is to be sold and no chain is named: then the chain is one within this program.
func (s *serve) embedded() bool {
	return s.upstream.url != "" && !s.flags.Given("rpc", "escrow", "token", "chain-id")
}

// embed starts that chain, and has the provider be on it. What goes with a chain that lasts is refused: renters elsewhere, and a database
// that is opened again.
func (s *serve) embed(ctx context.Context) (done func(), err error) {
	if s.flags.Given("domain", "public-url", "db", "payout") {
		return nil, cli.Usage(errors.New("--domain, --public-url, --db and --payout are for a chain that lasts, and none is named: give --rpc, --escrow and --token, or leave these out to try it on a chain within this program"))
	}
	ctx = context.WithoutCancel(ctx) // vouchers are settled after an interrupt
	chain, err := devchain.NewTrial(ctx, devchain.Options{}, trialFile)
	if err != nil {
		return nil, err
	}
	c := &s.config
	c.RPC, c.Escrow, c.Token, c.Database = chain.URL, chain.Escrow, chain.Token, filepath.Join(chain.Dir, "provider.db")
	if c.Key == nil {
		c.Key = channel.NewKey(chain.Keys[0])
	}
	if err := chain.Fund(ctx, c.Key.Address(), big.NewInt(1e18), uint256.Int{}); err != nil {
		return nil, errors.Join(err, chain.Close())
	}
	if !s.flags.Given("gpu") {
		s.gpu = anyGPU()
	}
	fmt.Printf(trialSays, chain.Dir, trialFile)
	return func() { _ = chain.Close() }, nil
}

// anyGPU is what this host has, or a simulated GPU.
func anyGPU() string {
	source, err := cli.Source("nvml")
	if err != nil {
		return "sim"
	}
	_ = source.Close()
	return "nvml"
}
