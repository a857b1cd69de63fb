package chain

import (
	"context"
	"fmt"
	"strings"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/accounts/abi/bind/v2"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
)

// indexing is what go-ethereum answers, as plain text, while it cannot say yet
// whether it knows a transaction: at start, and after a long stop.
const indexing = "transaction indexing is in progress"

// Receipt reads a transaction's receipt. ethereum.NotFound means that the node
// does not know it, or does not know yet.
func Receipt(ctx context.Context, backend bind.DeployBackend, hash common.Hash) (*types.Receipt, error) {
	receipt, err := backend.TransactionReceipt(ctx, hash)
	if err != nil && strings.Contains(err.Error(), indexing) {
		return nil, fmt.Errorf("%w: %s", ethereum.NotFound, indexing)
	}
	return receipt, err
}
