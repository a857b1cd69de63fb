// Package localchain makes money out of nothing on a chain where it is worth nothing: a test token, and stand-ins for x402's
// contracts. On every other chain it refuses.
package localchain

import (
	"context"
	"fmt"
	"math/big"

	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/accounts/abi/bind/v2"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/rpc"

	"github.com/gpupay/gpupay/bindings/batchsettlement/standin"
	"github.com/gpupay/gpupay/bindings/testtoken"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
)

// ids are those of chains whose tokens are worth nothing.
var ids = []uint64{31337, 1337}

// Minted is what DeployToken gives each receiver, in base units: 1,000 test tokens.
const Minted = 1_000_000_000

// Check refuses a chain where money may be real.
func Check(ctx context.Context, backend chain.Backend) error {
	var err error
	for _, id := range ids {
		if err = chain.CheckChainID(ctx, backend, id); err == nil {
			return nil
		}
	}
	return fmt.Errorf("test tokens and stand-ins are for local chains: %w", err)
}

// PlaceX402 puts code of ours where x402's contracts are on public chains, as only nodes for tests let anybody.
func PlaceX402(ctx context.Context, node *rpc.Client) error {
	for _, c := range []struct {
		at   common.Address
		code string
	}{{channel.BatchSettlementEscrow, standin.BatchSettlement}, {channel.BatchSettlementCollector, standin.ERC3009DepositCollector}} {
		err := node.CallContext(ctx, nil, "anvil_setCode", c.at, c.code)
		if err != nil {
			err = node.CallContext(ctx, nil, "hardhat_setCode", c.at, c.code)
		}
		if err != nil {
			return fmt.Errorf("this node lets nobody place code, as anvil and hardhat do: %w", err)
		}
	}
	return nil
}

// DeployToken deploys a test token, which anyone can mint, and gives each receiver Minted of it.
func DeployToken(ctx context.Context, backend chain.Backend, key *channel.Key, receivers []common.Address) (common.Address, error) {
	if err := Check(ctx, backend); err != nil {
		return common.Address{}, err
	}
	id, err := backend.ChainID(ctx)
	if err != nil {
		return common.Address{}, err
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
		return common.Address{}, fmt.Errorf("deploying the test token: %w", err)
	}
	if _, err := bind.WaitMined(ctx, backend, tx.Hash()); err != nil {
		return common.Address{}, fmt.Errorf("deploying the test token: %w", err)
	}
	contract := bind.NewBoundContract(address, abi.ABI{}, backend, backend, backend)
	for _, to := range receivers {
		tx, err := contract.RawTransact(opts, testtoken.NewTestToken().PackMint(to, big.NewInt(Minted)))
		if err != nil {
			return address, fmt.Errorf("minting for %s: %w", to, err)
		}
		if _, err := bind.WaitMined(ctx, backend, tx.Hash()); err != nil {
			return address, fmt.Errorf("minting for %s: %w", to, err)
		}
	}
	return address, nil
}
