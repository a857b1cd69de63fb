// Command deploy puts the escrow contract onto a chain, at the address that it
// has on every chain (through the deterministic deployment proxy, where the
// chain has one). On a local chain it can also make a test token and hand it
// out, so that the provider and renter programs have something to work with:
//
//	anvil &
//	go run ./examples/deploy --test-token --mint 0x..,0x..
package main

import (
	"context"
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
	rpc := flags.String("rpc", cli.Env("GPUPAY_RPC", "http://127.0.0.1:8545"), "`URL` of the chain's JSON-RPC ($GPUPAY_RPC)")
	grace := flags.Duration("grace", 24*time.Hour, "how long a payee has to settle after a close request; at least ten minutes, and fixed for ever")
	salt := flags.String("salt", "", "an instance apart from everybody's, one for each `text`; empty for the one that all share")
	token := flags.Bool("test-token", false, "also deploy a test token; on a local chain only")
	mint := flags.String("mint", "", "comma-separated `addresses` that get 1,000 test tokens each")
	var keys cli.KeyFlags
	keys.Register(flags, "GPUPAY_KEY")
	if err := cli.Parse(flags, os.Args[1:]); err != nil {
		return err
	}
	key, err := keys.Load()
	if err != nil {
		return err
	}
	client, err := chain.Dial(ctx, *rpc)
	if err != nil {
		return err
	}
	escrow, err := chain.DeploySalted(ctx, client, key, *grace, instance(*salt))
	if err != nil {
		return err
	}
	fmt.Printf("export GPUPAY_ESCROW=%s\n", escrow)
	if !*token {
		return nil
	}
	return testToken(ctx, client, key, *mint)
}

// instance is the salt of an instance's name.
func instance(name string) common.Hash {
	if name == "" {
		return common.Hash{}
	}
	return crypto.Keccak256Hash([]byte(name))
}

func testToken(ctx context.Context, backend chain.Backend, key *channel.Key, mint string) error {
	if err := local(ctx, backend); err != nil {
		return err
	}
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
	for _, text := range strings.FieldsFunc(mint, func(r rune) bool { return r == ',' }) {
		var to cli.Address
		if err := to.Set(text); err != nil {
			return fmt.Errorf("--mint: %w", err)
		}
		tx, err := contract.RawTransact(opts, testtoken.NewTestToken().PackMint(to.Address, big.NewInt(minted)))
		if err != nil {
			return fmt.Errorf("minting for %s: %w", to.Address, err)
		}
		if _, err := bind.WaitMined(ctx, backend, tx.Hash()); err != nil {
			return fmt.Errorf("minting for %s: %w", to.Address, err)
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
	return fmt.Errorf("--test-token is for local chains: %w", err)
}
