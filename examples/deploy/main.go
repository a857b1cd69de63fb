// Command deploy puts the escrow contract onto a chain, at the address that it
// has on every chain (through the deterministic deployment proxy, where the
// chain has one). On a local chain it can also make a test token and hand it
// out, so that the provider and renter programs have something to work with:
//
//	anvil &
//	go run ./examples/deploy --test-token --mint 0x..,0x..
//
// Who has no such chain starts examples/devchain, which has all of it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"os"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/accounts/abi/bind/v2"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/rpc"

	"github.com/gpupay/gpupay/bindings/batchsettlement/standin"
	"github.com/gpupay/gpupay/bindings/testtoken"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/sdk/chain"
)

// localChains are the ids of chains whose tokens are worth nothing.
var localChains = []uint64{31337, 1337}

const minted = 1_000_000_000 // base units for each address: 1,000 test tokens

func main() { cli.Main(run) }

func run(ctx context.Context) error {
	flags := flag.NewFlagSet("deploy", flag.ContinueOnError)
	cli.About(flags, "puts the escrow contract onto a chain, at the address that it has on every chain, and prints the address.\n\n"+
		"On a local chain it can also make a test token. Who has no chain starts devchain, which has all of it. ")
	endpoint := flags.String("rpc", cli.Env("GPUPAY_RPC", "http://127.0.0.1:8545"), "`URL` of the chain's JSON-RPC ($GPUPAY_RPC)")
	grace := flags.Duration("grace", 24*time.Hour, "how long a payee has to settle after a close request; at least ten minutes, and fixed for ever")
	salt := flags.String("salt", "", "an instance apart from everybody's, one for each `text`, which renters must name; empty for the one that all share")
	token := flags.Bool("test-token", false, "also deploy a test token; on a local chain only")
	x402 := flags.Bool("x402-stand-in", false, "also put stand-ins for x402's contracts at their addresses; on a local chain of anvil or hardhat only")
	mint := flags.String("mint", "", "comma-separated `addresses` that get 1,000 test tokens each; with --test-token")
	var keys cli.KeyFlags
	keys.Register(flags, "GPUPAY_KEY")
	if err := cli.Parse(flags, os.Args[1:]); err != nil {
		return err
	}
	if *mint != "" && !*token {
		return errors.New("--mint hands out the test token that --test-token deploys: give both, or mint with the token's own tools")
	}
	receivers, err := addresses(*mint)
	if err != nil {
		return fmt.Errorf("--mint: %w", err)
	}
	key, err := keys.Load()
	if err != nil {
		return err
	}
	client, err := chain.Dial(ctx, *endpoint)
	if err != nil {
		return err
	}
	if *token || *x402 { // before anything is sent
		if err := local(ctx, client); err != nil {
			return err
		}
	}
	escrow, err := chain.DeploySalted(ctx, client, key, *grace, instance(*salt))
	if err != nil {
		return err
	}
	fmt.Printf("export GPUPAY_ESCROW=%s\n", escrow)
	if *x402 {
		if err := standIn(ctx, client.Client()); err != nil {
			return err
		}
	}
	if !*token {
		return nil
	}
	return testToken(ctx, client, key, receivers)
}

func addresses(text string) ([]common.Address, error) {
	var all []common.Address
	for item := range strings.SplitSeq(text, ",") {
		var a cli.Address
		if err := a.Set(strings.TrimSpace(item)); err != nil {
			return nil, err
		}
		if a.Address != (common.Address{}) {
			all = append(all, a.Address)
		}
	}
	return all, nil
}

// standIn puts code of ours where x402's contracts are on public chains, as only
// nodes for tests let anybody.
func standIn(ctx context.Context, node *rpc.Client) error {
	for _, c := range []struct {
		at   common.Address
		code string
	}{{channel.BatchSettlementEscrow, standin.BatchSettlement}, {channel.BatchSettlementCollector, standin.ERC3009DepositCollector}} {
		err := node.CallContext(ctx, nil, "anvil_setCode", c.at, c.code)
		if err != nil {
			err = node.CallContext(ctx, nil, "hardhat_setCode", c.at, c.code)
		}
		if err != nil {
			return fmt.Errorf("--x402-stand-in: this node lets nobody place code, as anvil and hardhat do: %w", err)
		}
	}
	fmt.Fprintln(os.Stderr, "x402's contracts on this chain are stand-ins of ours, not the code that is live elsewhere")
	return nil
}

// instance is the salt of an instance's name.
func instance(name string) common.Hash {
	if name == "" {
		return common.Hash{}
	}
	return crypto.Keccak256Hash([]byte(name))
}

func testToken(ctx context.Context, backend chain.Backend, key *channel.Key, receivers []common.Address) error {
	id, err := backend.ChainID(ctx)
	if err != nil {
		return err
	}
	opts := &bind.TransactOpts{From: key.Address(), Context: ctx, Signer: func(_ common.Address, tx *types.Transaction) (*types.Transaction, error) {
		signer := types.LatestSignerForChainID(id)
		signature, err := key.Sign(ctx, signer.Hash(tx))
		if err != nil {
			return nil, err
		}
		signature[64] -= 27 // transactions carry the parity alone
		return tx.WithSignature(signer, signature)
	}}
	address, tx, err := bind.DeployContract(opts, common.FromHex(testtoken.TestTokenMetaData.Bin), backend, nil)
	if err != nil {
		return fmt.Errorf("deploying the test token: %w", err)
	}
	if _, err := bind.WaitMined(ctx, backend, tx.Hash()); err != nil {
		return fmt.Errorf("deploying the test token: %w", err)
	}
	fmt.Printf("export GPUPAY_TOKEN=%s\n", address)
	contract := bind.NewBoundContract(address, abi.ABI{}, backend, backend, backend)
	for _, to := range receivers {
		tx, err := contract.RawTransact(opts, testtoken.NewTestToken().PackMint(to, big.NewInt(minted)))
		if err != nil {
			return fmt.Errorf("minting for %s: %w", to, err)
		}
		if _, err := bind.WaitMined(ctx, backend, tx.Hash()); err != nil {
			return fmt.Errorf("minting for %s: %w", to, err)
		}
	}
	return nil
}

// local refuses to make money out of nothing where money is real.
func local(ctx context.Context, backend chain.Backend) error {
	var err error
	for _, id := range localChains {
		if err = chain.CheckChainID(ctx, backend, id); err == nil {
			return nil
		}
	}
	return fmt.Errorf("test tokens and stand-ins are for local chains: %w", err)
}
