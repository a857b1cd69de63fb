package chain

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/ethereum/go-ethereum/accounts/abi/bind/v2"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
)

// ErrIndexing is a node that cannot say yet whether it knows a transaction. It is neither there nor absent: money that
// moves only once must wait for a better answer.
var ErrIndexing = errors.New("the node is still indexing transactions")

// indexing is what go-ethereum answers, as plain text, while it cannot say yet
// whether it knows a transaction: at start, and after a long stop.
const indexing = "transaction indexing is in progress"

// Receipt reads a transaction's receipt and checks that nothing is left out of it. ethereum.NotFound means that the node
// does not know it; ErrIndexing, that it does not know yet; ErrAnswer, that a field is missing.
func Receipt(ctx context.Context, backend bind.DeployBackend, hash common.Hash) (*types.Receipt, error) {
	receipt, _, err := charged(ctx, backend, hash)
	return receipt, err
}

// charged is Receipt and what a rollup charged for the transaction's data beside its gas, in wei; nil if nothing is said.
func charged(ctx context.Context, backend bind.DeployBackend, hash common.Hash) (*types.Receipt, *big.Int, error) {
	var receipt *types.Receipt
	var data *big.Int
	var err error
	if reader, ok := backend.(interface {
		charged(context.Context, common.Hash) (*types.Receipt, *big.Int, error)
	}); ok {
		receipt, data, err = reader.charged(ctx, hash)
	} else {
		receipt, err = backend.TransactionReceipt(ctx, hash)
	}
	if err != nil && strings.Contains(err.Error(), indexing) {
		return nil, nil, fmt.Errorf("%w: transaction %s", ErrIndexing, hash)
	}
	if err == nil {
		err = sound(receipt, hash)
	}
	if err != nil {
		return nil, nil, err
	}
	return receipt, data, nil
}

// sound checks what decides over money and may be absent from a receipt: some nodes serve receipts of pending
// transactions, without their block.
func sound(r *types.Receipt, hash common.Hash) error {
	missing := ""
	switch {
	case r == nil:
		missing = "nothing"
	case r.TxHash != hash:
		missing = fmt.Sprintf("it is of %s", r.TxHash)
	case r.BlockNumber == nil || !r.BlockNumber.IsUint64():
		missing = "no blockNumber"
	case r.BlockHash == (common.Hash{}):
		missing = "no blockHash"
	case r.GasUsed == 0:
		missing = "no gasUsed"
	case len(r.PostState) > 0:
		missing = "a state root instead of a status"
	default:
		return nil
	}
	return &incomplete{"eth_getTransactionReceipt", missing + " in the receipt of " + hash.Hex()}
}
