package chain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/accounts/abi/bind/v2"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/rpc"
)

// ErrAnswer is an endpoint that answers and leaves out, or garbles, what the answer must say. It is as good as
// unreachable, and is ErrUnreachable too: asking again later, or another endpoint, may help.
var ErrAnswer = errors.New("RPC endpoint gave an incomplete answer")

// incomplete says what was missing from the answer to which method.
type incomplete struct{ method, missing string }

func (e *incomplete) Error() string {
	return fmt.Sprintf("%s: %s: %s; if it stays so, use another endpoint", ErrAnswer, e.method, e.missing)
}

// Is makes it ErrAnswer and ErrUnreachable.
func (e *incomplete) Is(target error) bool { return target == ErrAnswer || target == ErrUnreachable }

// Checked is the backend with every answer looked at before it is used: a field that is left out is an error (ErrAnswer),
// never a zero that could be taken for an amount. A backend that is not a JSON-RPC client is returned as it is.
func Checked(backend Backend) Backend {
	client, ok := backend.(rpcBackend)
	if !ok {
		return backend
	}
	return &checked{rpcBackend: client, rpc: client.Client()}
}

// rpcBackend is *ethclient.Client.
type rpcBackend interface {
	Backend
	bind.BlockHashContractCaller
	Client() *rpc.Client
}

type checked struct {
	rpcBackend
	rpc *rpc.Client
}

// Client hides the client: what is asked of it directly is not checked.
func (c *checked) Client() {}

// answered passes on what an endpoint means as an error, and makes ErrAnswer of what is left: answers that do not parse.
func answered(method string, err error) error {
	var said rpc.Error
	if err == nil || isTransport(err) || errors.Is(err, ethereum.NotFound) || errors.As(err, &said) {
		return err
	}
	return &incomplete{method, line(err.Error())}
}

// patience bounds how often a read at a block that another node of the endpoint has told of is tried, patiencePause apart.
const (
	patience      = 12
	patiencePause = 250 * time.Millisecond
)

// patient reads at a block (nil: the newest). Behind a balancer the node that answers may not have the block yet that
// another one has told of: it is asked again for a while.
func patient[T any](ctx context.Context, block *big.Int, read func() (T, error)) (T, error) {
	for try := 1; ; try++ {
		v, err := read()
		if err == nil || block == nil || try == patience || !isBehind(err) || Pause(ctx, patiencePause) != nil {
			return v, err
		}
	}
}

// isBehind reports whether a node says that it does not have a block yet, in the words of the clients there are.
func isBehind(err error) bool {
	var said rpc.Error
	if !errors.As(err, &said) {
		return false
	}
	text := strings.ToLower(said.Error())
	for _, words := range []string{"header not found", "unknown block", "block not found", "could not find block", "outofrange", "out of range"} {
		if strings.Contains(text, words) {
			return true
		}
	}
	return false
}

func (c *checked) ChainID(ctx context.Context) (*big.Int, error) {
	id, err := c.rpcBackend.ChainID(ctx)
	if err == nil && id.Sign() == 0 {
		return nil, &incomplete{"eth_chainId", "it is 0"}
	}
	return id, answered("eth_chainId", err)
}

func (c *checked) BlockNumber(ctx context.Context) (uint64, error) {
	n, err := c.rpcBackend.BlockNumber(ctx)
	return n, answered("eth_blockNumber", err)
}

func (c *checked) HeaderByNumber(ctx context.Context, number *big.Int) (*types.Header, error) {
	header, err := c.rpcBackend.HeaderByNumber(ctx, number)
	if err = answered("eth_getBlockByNumber", err); err != nil {
		return nil, err
	}
	if number != nil && number.Sign() >= 0 && header.Number.Cmp(number) != 0 {
		return nil, &incomplete{"eth_getBlockByNumber", fmt.Sprintf("asked for block %s, it gave block %s", number, header.Number)}
	}
	return header, nil
}

func (c *checked) HeaderByHash(ctx context.Context, hash common.Hash) (*types.Header, error) {
	header, err := c.rpcBackend.HeaderByHash(ctx, hash)
	return header, answered("eth_getBlockByHash", err)
}

func (c *checked) BalanceAt(ctx context.Context, account common.Address, block *big.Int) (*big.Int, error) {
	balance, err := c.rpcBackend.BalanceAt(ctx, account, block)
	return balance, answered("eth_getBalance", err)
}

func (c *checked) NonceAt(ctx context.Context, account common.Address, block *big.Int) (uint64, error) {
	nonce, err := patient(ctx, block, func() (uint64, error) { return c.rpcBackend.NonceAt(ctx, account, block) })
	return nonce, answered("eth_getTransactionCount", err)
}

func (c *checked) PendingNonceAt(ctx context.Context, account common.Address) (uint64, error) {
	nonce, err := c.rpcBackend.PendingNonceAt(ctx, account)
	return nonce, answered("eth_getTransactionCount", err)
}

func (c *checked) CodeAt(ctx context.Context, account common.Address, block *big.Int) ([]byte, error) {
	code, err := c.rpcBackend.CodeAt(ctx, account, block)
	return code, answered("eth_getCode", err)
}

func (c *checked) CallContract(ctx context.Context, msg ethereum.CallMsg, block *big.Int) ([]byte, error) {
	out, err := patient(ctx, block, func() ([]byte, error) { return c.rpcBackend.CallContract(ctx, msg, block) })
	return out, answered("eth_call", err)
}

func (c *checked) CallContractAtHash(ctx context.Context, msg ethereum.CallMsg, block common.Hash) ([]byte, error) {
	out, err := c.rpcBackend.CallContractAtHash(ctx, msg, block)
	return out, answered("eth_call", err)
}

func (c *checked) EstimateGas(ctx context.Context, msg ethereum.CallMsg) (uint64, error) {
	gas, err := c.rpcBackend.EstimateGas(ctx, msg)
	if err == nil && gas == 0 {
		return 0, &incomplete{"eth_estimateGas", "it is 0"}
	}
	return gas, answered("eth_estimateGas", err)
}

func (c *checked) SuggestGasPrice(ctx context.Context) (*big.Int, error) {
	price, err := c.rpcBackend.SuggestGasPrice(ctx)
	return price, answered("eth_gasPrice", err)
}

func (c *checked) SuggestGasTipCap(ctx context.Context) (*big.Int, error) {
	tip, err := c.rpcBackend.SuggestGasTipCap(ctx)
	return tip, answered("eth_maxPriorityFeePerGas", err)
}

func (c *checked) FilterLogs(ctx context.Context, q ethereum.FilterQuery) ([]types.Log, error) {
	logs, err := c.rpcBackend.FilterLogs(ctx, q)
	if err == nil && logs == nil { // none at all is an empty list
		return nil, &incomplete{"eth_getLogs", "no list of events"}
	}
	return logs, answered("eth_getLogs", err)
}

func (c *checked) TransactionByHash(ctx context.Context, hash common.Hash) (*types.Transaction, bool, error) {
	tx, pending, err := c.rpcBackend.TransactionByHash(ctx, hash)
	if err == nil && tx.Hash() != hash {
		return nil, false, &incomplete{"eth_getTransactionByHash", "it gave another transaction"}
	}
	return tx, pending, answered("eth_getTransactionByHash", err)
}

func (c *checked) TransactionReceipt(ctx context.Context, hash common.Hash) (*types.Receipt, error) {
	receipt, _, err := c.charged(ctx, hash)
	return receipt, err
}

// charged reads a receipt, and what a rollup charged for its data beside the gas, in wei; nil where nothing is said of it.
func (c *checked) charged(ctx context.Context, hash common.Hash) (*types.Receipt, *big.Int, error) {
	const method = "eth_getTransactionReceipt"
	var raw json.RawMessage
	if err := c.rpc.CallContext(ctx, &raw, method, hash); err != nil {
		return nil, nil, answered(method, err)
	}
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil, ethereum.NotFound
	}
	var fields struct {
		Status *hexutil.Uint64 `json:"status"`
		L1Fee  *hexutil.Big    `json:"l1Fee"`
	}
	receipt := new(types.Receipt)
	if err := errors.Join(json.Unmarshal(raw, &fields), json.Unmarshal(raw, receipt)); err != nil {
		return nil, nil, answered(method, err)
	}
	if fields.Status == nil {
		return nil, nil, &incomplete{method, "no status of " + hash.Hex()}
	}
	return receipt, (*big.Int)(fields.L1Fee), sound(receipt, hash)
}

// transactions lists what a block holds, as far as it says whose they are.
func (c *checked) transactions(ctx context.Context, number *big.Int) ([]sent, error) {
	const method = "eth_getBlockByNumber"
	var block struct {
		Number       *hexutil.Big `json:"number"`
		Transactions []sent       `json:"transactions"`
	}
	if err := c.rpc.CallContext(ctx, &block, method, hexutil.EncodeBig(number), true); err != nil {
		return nil, answered(method, err)
	}
	if block.Number == nil || block.Number.ToInt().Cmp(number) != 0 || block.Transactions == nil {
		return nil, &incomplete{method, "no transactions of block " + number.String()}
	}
	return block.Transactions, nil
}
