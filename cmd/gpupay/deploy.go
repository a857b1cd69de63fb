package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	urfave "github.com/urfave/cli/v3"

	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/chain/localchain"
)

// deploy puts the escrow contract onto a chain.
type deploy struct {
	flags       *cli.Flags
	rpc, salt   string
	grace       time.Duration
	token, x402 bool
	mint        []string
}

const deployMore = `The address is the same on every chain, through the deterministic deployment proxy where the chain has one, and is printed
as a line that a shell can source. Who deploys has no power over the contract.

On a local chain it can also make a test token and hand it out, so that there is something to try 'serve' and 'rent' with.`

func newDeploy(app *cli.App) *deploy {
	d := &deploy{flags: app.Flags("deploy", "deploy")}
	f := d.flags
	f.RPC(&d.rpc, "")
	f.Key()
	f.Actions("What is deployed")
	f.Duration(&d.grace, "grace", 24*time.Hour, "how long a payee has to settle after a close request; at least ten minutes, and fixed for ever")
	f.Text(&d.salt, "salt", "", "an instance apart from everybody's, one for each `text`, which renters must name; empty for the one that all share")
	f.Actions("On a local chain only")
	f.Bool(&d.token, "test-token", "also deploy a test token")
	f.List(&d.mint, "mint", "comma-separated `addresses` that get 1,000 test tokens each; with --test-token")
	f.Bool(&d.x402, "x402-stand-in", "also put stand-ins for x402's contracts at their addresses; with anvil or hardhat")
	return d
}

func (d *deploy) command() *urfave.Command {
	return d.flags.Command("put the escrow contract onto a chain", deployMore, func(ctx context.Context, _ []string) error { return d.run(ctx) })
}

func (d *deploy) run(ctx context.Context) error {
	if len(d.mint) > 0 && !d.token {
		return cli.Usage(errors.New("--mint hands out the test token that --test-token deploys: give both, or mint with the token's own tools"))
	}
	var receivers []common.Address
	for _, text := range d.mint {
		to, err := cli.Address(text)
		if err != nil {
			return cli.Usage(fmt.Errorf("--mint: %q is not %w", text, err))
		}
		receivers = append(receivers, to)
	}
	key, err := d.flags.LoadKey()
	if err != nil {
		return err
	}
	client, err := chain.Dial(ctx, d.rpc)
	if err != nil {
		return err
	}
	if d.token || d.x402 { // before anything is sent
		if err := localchain.Check(ctx, client); err != nil {
			return err
		}
	}
	var salt common.Hash
	if d.salt != "" {
		salt = crypto.Keccak256Hash([]byte(d.salt))
	}
	escrow, err := chain.DeploySalted(ctx, client, key, d.grace, salt)
	if err != nil {
		return err
	}
	fmt.Printf("export GPUPAY_ESCROW=%s\n", escrow)
	if d.x402 {
		if err := localchain.PlaceX402(ctx, client.Client()); err != nil {
			return fmt.Errorf("--x402-stand-in: %w", err)
		}
		fmt.Fprintln(os.Stderr, "x402's contracts on this chain are stand-ins of ours, not the code that is live elsewhere")
	}
	if !d.token {
		return nil
	}
	token, err := localchain.DeployToken(ctx, client, key, receivers)
	if token != (common.Address{}) {
		fmt.Printf("export GPUPAY_TOKEN=%s\n", token)
	}
	return err
}
