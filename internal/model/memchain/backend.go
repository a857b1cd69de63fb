package memchain

import (
	"context"
	"errors"
	"math/big"
	"slices"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/rpc"

	"github.com/gpupay/gpupay/sdk/chain"
)

// errIndexing is what go-ethereum answers while it cannot say whether it knows a transaction.
var errIndexing = errors.New("transaction indexing is in progress")

var _ chain.Backend = (*Chain)(nil)

func (c *Chain) ChainID(context.Context) (*big.Int, error) { return big.NewInt(ChainID), nil }

func (c *Chain) BlockNumber(context.Context) (uint64, error) {
	c.ask()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.head().header.Number.Uint64(), nil
}

func (c *Chain) ask() {
	if c.Asked != nil {
		c.Asked()
	}
}

func (c *Chain) HeaderByNumber(_ context.Context, number *big.Int) (*types.Header, error) {
	c.ask()
	c.mu.Lock()
	defer c.mu.Unlock()
	b, err := c.at(number)
	if err != nil {
		return nil, err
	}
	h := types.CopyHeader(b.header)
	if number != nil && number.Int64() == int64(rpc.PendingBlockNumber) {
		h.Number.Add(h.Number, big.NewInt(1))
		h.Time = max(c.clock, h.Time+1)
	}
	return h, nil
}

func (c *Chain) HeaderByHash(_ context.Context, hash common.Hash) (*types.Header, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range slices.Backward(c.blocks) {
		if b.hash == hash {
			return types.CopyHeader(b.header), nil
		}
	}
	return nil, ethereum.NotFound
}

func (c *Chain) BlockByNumber(_ context.Context, number *big.Int) (*types.Block, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, err := c.at(number)
	if err != nil {
		return nil, err
	}
	return types.NewBlockWithHeader(b.header).WithBody(types.Body{Transactions: b.txs}), nil
}

func (c *Chain) BalanceAt(_ context.Context, account common.Address, number *big.Int) (*big.Int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, _, err := c.stateAt(number)
	if err != nil {
		return nil, err
	}
	return s.GetBalance(account).ToBig(), nil
}

func (c *Chain) NonceAt(_ context.Context, account common.Address, number *big.Int) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, _, err := c.stateAt(number)
	if err != nil {
		return 0, err
	}
	return s.GetNonce(account), nil
}

func (c *Chain) PendingNonceAt(_ context.Context, account common.Address) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, _, err := c.stateAt(nil)
	if err != nil {
		return 0, err
	}
	nonce := s.GetNonce(account)
	for c.pool[account][nonce] != nil {
		nonce++
	}
	return nonce, nil
}

func (c *Chain) CodeAt(_ context.Context, account common.Address, number *big.Int) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, _, err := c.stateAt(number)
	if err != nil {
		return nil, err
	}
	return s.GetCode(account), nil
}

func (c *Chain) PendingCodeAt(ctx context.Context, account common.Address) ([]byte, error) {
	return c.CodeAt(ctx, account, nil)
}

func (c *Chain) CallContract(_ context.Context, msg ethereum.CallMsg, number *big.Int) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, err := c.call(msg, number)
	if err != nil {
		return nil, err
	}
	return r.ReturnData, refused(r)
}

func (c *Chain) CallContractAtHash(ctx context.Context, msg ethereum.CallMsg, hash common.Hash) ([]byte, error) {
	h, err := c.HeaderByHash(ctx, hash)
	if err != nil {
		return nil, err
	}
	return c.CallContract(ctx, msg, h.Number)
}

func (c *Chain) CodeAtHash(ctx context.Context, account common.Address, hash common.Hash) ([]byte, error) {
	h, err := c.HeaderByHash(ctx, hash)
	if err != nil {
		return nil, err
	}
	return c.CodeAt(ctx, account, h.Number)
}

func (c *Chain) EstimateGas(_ context.Context, msg ethereum.CallMsg) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, err := c.call(msg, nil)
	if err != nil {
		return 0, err
	}
	return r.MaxUsedGas + r.MaxUsedGas/50, refused(r) // calls inside are given 63/64 of what is left
}

func (c *Chain) SuggestGasPrice(context.Context) (*big.Int, error) {
	return new(big.Int).Add(c.BaseFee, c.Tip), nil
}

func (c *Chain) SuggestGasTipCap(context.Context) (*big.Int, error) {
	return new(big.Int).Set(c.Tip), nil
}

func (c *Chain) TransactionReceipt(_ context.Context, hash common.Hash) (*types.Receipt, error) {
	if c.Indexing {
		return nil, errIndexing
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	b, i := c.find(hash)
	if b == nil || c.muted[hash] {
		return nil, ethereum.NotFound
	}
	r := *b.receipts[i]
	return &r, nil
}

func (c *Chain) TransactionByHash(_ context.Context, hash common.Hash) (*types.Transaction, bool, error) {
	if c.Indexing {
		return nil, false, errIndexing
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if b, i := c.find(hash); b != nil && !(c.Unindexed && c.muted[hash]) {
		return b.txs[i], false, nil
	}
	for _, queue := range c.pool {
		for _, tx := range queue {
			if tx.Hash() == hash {
				return tx, true, nil
			}
		}
	}
	return nil, false, ethereum.NotFound
}

func (c *Chain) FilterLogs(_ context.Context, q ethereum.FilterQuery) ([]types.Log, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	from, to := uint64(0), uint64(len(c.blocks)-1)
	if q.FromBlock != nil {
		from = q.FromBlock.Uint64()
	}
	if q.ToBlock != nil && q.ToBlock.Sign() >= 0 {
		to = min(to, q.ToBlock.Uint64())
	}
	var logs []types.Log
	for n := from; n <= to; n++ {
		b := c.blocks[n]
		if q.BlockHash != nil && *q.BlockHash != b.hash {
			continue
		}
		for _, r := range b.receipts {
			for _, l := range r.Logs {
				if matches(q, l) {
					logs = append(logs, *l)
				}
			}
		}
	}
	return logs, nil
}

func matches(q ethereum.FilterQuery, l *types.Log) bool {
	if len(q.Addresses) > 0 && !slices.Contains(q.Addresses, l.Address) || len(q.Topics) > len(l.Topics) {
		return false
	}
	for i, any := range q.Topics {
		if len(any) > 0 && !slices.Contains(any, l.Topics[i]) {
			return false
		}
	}
	return true
}

func (c *Chain) SubscribeFilterLogs(context.Context, ethereum.FilterQuery, chan<- types.Log) (ethereum.Subscription, error) {
	return nil, rpc.ErrNotificationsUnsupported
}

func (c *Chain) SubscribeNewHead(context.Context, chan<- *types.Header) (ethereum.Subscription, error) {
	return nil, rpc.ErrNotificationsUnsupported
}
