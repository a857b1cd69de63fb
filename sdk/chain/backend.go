// Package chain is the only package that talks JSON-RPC to a chain.
//
// It knows four things: how to reach an endpoint (Dial), what the escrow contract says about a channel and how each
// of its entry points is called (Escrow), whether a token can be paid without the payer's own transaction (Token),
// and how a transaction gets onto the chain and stays there (Sender).
//
// It promises that a transaction is on disk before it is broadcast, that a restart neither forgets nor doubles one,
// that nothing is believed which was not read from the chain, and that no error or log line carries a private key or
// the secret path of an RPC endpoint.
package chain

import (
	"context"
	"math/big"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/accounts/abi/bind/v2"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
)

// Backend is what this package needs of a chain. *ethclient.Client has it, and so does the client of go-ethereum's
// simulated chain.
type Backend interface {
	bind.ContractBackend
	bind.DeployBackend

	ChainID(ctx context.Context) (*big.Int, error)
	BlockNumber(ctx context.Context) (uint64, error)
	HeaderByHash(ctx context.Context, hash common.Hash) (*types.Header, error)
	BalanceAt(ctx context.Context, account common.Address, block *big.Int) (*big.Int, error)
	NonceAt(ctx context.Context, account common.Address, block *big.Int) (uint64, error)
	BlockByNumber(ctx context.Context, number *big.Int) (*types.Block, error)
	TransactionByHash(ctx context.Context, hash common.Hash) (tx *types.Transaction, pending bool, err error)
	SubscribeNewHead(ctx context.Context, ch chan<- *types.Header) (ethereum.Subscription, error)
}
