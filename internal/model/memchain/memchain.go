// Package memchain is a chain without a node: go-ethereum's EVM over states in memory, with blocks that are made, undone
// and withheld by a test, and a clock that only a test moves. A transaction costs a tenth of a millisecond where a node
// takes ten, which is what random tests of money need. It executes real contracts and checks nonces, balances and fees as
// a node does; it has no consensus, no proofs and no gossip.
package memchain

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"sync"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core"
	"github.com/ethereum/go-ethereum/core/state"
	"github.com/ethereum/go-ethereum/core/tracing"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/core/vm"
	"github.com/ethereum/go-ethereum/params"
	"github.com/holiman/uint256"
)

// ChainID is the id of every chain of this package.
const ChainID = 1337

const blockGas = 60_000_000

// config has every released fork.
var config = func() *params.ChainConfig {
	c := *params.AllDevChainProtocolChanges
	c.BogotaTime = nil // not released
	return &c
}()

var signer = types.LatestSigner(config)

// A block is one of the chain, with what is known of its transactions.
type block struct {
	header   *types.Header
	hash     common.Hash
	txs      []*types.Transaction
	receipts []*types.Receipt
}

// A history is the blocks that stand, and the states after them. The chain's mu guards it.
type history struct {
	db     state.Database
	blocks []*block
}

// A Chain is safe for concurrent use. Its exported fields are changed by whoever holds no call to it under way.
type Chain struct {
	mu sync.Mutex
	history
	pool  map[common.Address]map[uint64]*types.Transaction // by sender and nonce
	clock uint64                                           // unix seconds of the next block
	fork  uint64                                           // tells blocks of one height apart
	muted map[common.Hash]bool                             // receipts that the node does not give out yet

	// Halted is a chain that makes no block of its own: without it every transaction is mined as it comes.
	Halted bool
	// Indexing is a node that has not indexed its transactions yet: it knows no receipt.
	Indexing bool
	// Unindexed is a node that does not find a muted transaction by its hash either: only its block shows it.
	Unindexed bool
	// Bound is the most that the node lets a transaction pay, in wei (geth: --rpc.txfeecap); nil: any.
	Bound  *big.Int
	Unpaid int // transactions that were refused for it
	// BaseFee and Tip are wei per gas, of the next block and as suggested.
	BaseFee, Tip *big.Int
	// Asked is called at each question for the newest block, if it is not nil.
	Asked func()
}

// New makes a chain of one block, with accounts that have coins and code.
func New(clock uint64, alloc types.GenesisAlloc) (*Chain, error) {
	c := &Chain{history: history{db: state.NewDatabaseForTesting()}, pool: map[common.Address]map[uint64]*types.Transaction{}, clock: clock,
		muted: map[common.Hash]bool{}, BaseFee: big.NewInt(params.GWei), Tip: big.NewInt(params.GWei)}
	s, err := state.New(types.EmptyRootHash, c.db)
	if err != nil {
		return nil, err
	}
	for address, account := range alloc {
		if account.Balance != nil {
			s.AddBalance(address, uint256.MustFromBig(account.Balance), tracing.BalanceChangeUnspecified)
		}
		s.SetNonce(address, account.Nonce, tracing.NonceChangeUnspecified)
		if len(account.Code) > 0 {
			s.SetCode(address, account.Code, tracing.CodeChangeUnspecified)
		}
		for key, value := range account.Storage {
			s.SetState(address, key, value)
		}
	}
	header := c.header(common.Hash{}, 0)
	root, err := s.Commit(rules(header), 0)
	if err != nil {
		return nil, err
	}
	header.Root = root
	c.blocks = []*block{{header: header, hash: header.Hash()}}
	return c, nil
}

func rules(h *types.Header) params.Rules { return config.Rules(h.Number, true, h.Time) }

func (c *Chain) header(parent common.Hash, number uint64) *types.Header {
	c.fork++
	return &types.Header{
		ParentHash: parent, Number: new(big.Int).SetUint64(number), Time: c.clock, GasLimit: blockGas,
		BaseFee: new(big.Int).Set(c.BaseFee), Difficulty: new(big.Int), Extra: new(big.Int).SetUint64(c.fork).Bytes(),
	}
}

func (h *history) head() *block { return h.blocks[len(h.blocks)-1] }

// Mine makes a block of what waits and can be mined, and an empty one if that is nothing. It returns its number.
func (c *Chain) Mine() (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mine()
}

func (c *Chain) mine() (uint64, error) {
	parent := c.head()
	c.clock = max(c.clock, parent.header.Time+1)
	next := &block{header: c.header(parent.hash, parent.header.Number.Uint64()+1)}
	s, err := state.New(parent.header.Root, c.db)
	if err != nil {
		return 0, err
	}
	machine := c.machine(next.header, s, vm.Config{})
	gas := core.NewGasPool(blockGas)
	for c.take(next, s, machine, gas) {
	}
	root, err := s.Commit(rules(next.header), next.header.Number.Uint64())
	if err != nil {
		return 0, err
	}
	next.header.Root, next.header.GasUsed = root, gas.Used()
	next.hash = next.header.Hash()
	for _, r := range next.receipts {
		r.BlockHash = next.hash
		for _, l := range r.Logs {
			l.BlockHash = next.hash
		}
	}
	c.blocks = append(c.blocks, next)
	return next.header.Number.Uint64(), nil
}

// take moves one transaction that can be mined from the pool into a block, the best paid first.
func (c *Chain) take(b *block, s *state.StateDB, machine *vm.EVM, gas *core.GasPool) bool {
	var best *types.Transaction
	var from common.Address
	for sender, queue := range c.pool {
		tx := queue[s.GetNonce(sender)]
		if tx == nil || tx.GasFeeCap().Cmp(b.header.BaseFee) < 0 || tx.Gas() > gas.Available(false) {
			continue
		}
		if best == nil || tx.GasTipCap().Cmp(best.GasTipCap()) > 0 || tx.GasTipCap().Cmp(best.GasTipCap()) == 0 && sender.Cmp(from) < 0 {
			best, from = tx, sender
		}
	}
	if best == nil {
		return false
	}
	delete(c.pool[from], best.Nonce())
	msg, err := core.TransactionToMessage(best, signer, b.header.BaseFee)
	if err != nil {
		return true
	}
	s.SetTxContext(best.Hash(), len(b.txs), 0)
	receipt, _, err := core.ApplyTransactionWithEVM(context.Background(), msg, gas, s, b.header.Number, common.Hash{}, b.header.Time, best, machine)
	if err != nil {
		return true // the pool let in what cannot be paid any more
	}
	receipt.EffectiveGasPrice = msg.GasPrice.ToBig()
	b.txs, b.receipts = append(b.txs, best), append(b.receipts, receipt)
	return true
}

func (c *Chain) machine(h *types.Header, s *state.StateDB, options vm.Config) *vm.EVM {
	return vm.NewEVM(vm.BlockContext{
		CanTransfer: core.CanTransfer, Transfer: core.Transfer,
		GetHash:  func(uint64) common.Hash { return common.Hash{} },
		GasLimit: h.GasLimit, BlockNumber: h.Number, Time: h.Time, Difficulty: new(big.Int), BaseFee: h.BaseFee,
		BlobBaseFee: big.NewInt(1), Random: &common.Hash{}, CostPerStateByte: params.CostPerStateByte,
	}, s, config, options)
}

// Advance moves the clock ahead and makes a block then.
func (c *Chain) Advance(seconds uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clock += seconds
	_, err := c.mine()
	return err
}

// Head is the hash of the newest block.
func (c *Chain) Head() common.Hash {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.head().hash
}

// Time is that of the newest block, in unix seconds.
func (c *Chain) Time() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.head().header.Time
}

// Reorg undoes the newest blocks and makes one more than they were instead. Of their transactions those wait again that
// keep says; the others are forgotten by the node.
func (c *Chain) Reorg(depth int, keep func(*types.Transaction) bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	depth = min(depth, len(c.blocks)-1)
	undone := slices.Clone(c.blocks[len(c.blocks)-depth:])
	c.blocks = c.blocks[:len(c.blocks)-depth]
	for _, b := range undone {
		for _, tx := range b.txs {
			if keep(tx) {
				_ = c.wait(tx, true)
			}
		}
	}
	for range depth + 1 {
		if _, err := c.mine(); err != nil {
			return err
		}
	}
	return nil
}

// Forget has the node drop all that waits.
func (c *Chain) Forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.pool)
}

// Mute has the node not know the receipts that it knows by now until Unmute.
func (c *Chain) Mute() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range c.blocks {
		for _, tx := range b.txs {
			c.muted[tx.Hash()] = true
		}
	}
}

// Unmute has the node know all receipts.
func (c *Chain) Unmute() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.muted)
}

// Errors of a node, in its words.
var (
	errKnown       = errors.New("already known")
	errNonce       = errors.New("nonce too low")
	errUnderpriced = errors.New("replacement transaction underpriced")
	errFunds       = errors.New("insufficient funds for gas * price + value")
	errBound       = errors.New("tx fee exceeds the configured cap")
)

// wait lets a transaction into the pool.
func (c *Chain) wait(tx *types.Transaction, unchecked bool) error {
	from, err := types.Sender(signer, tx)
	if err != nil {
		return err
	}
	s, err := state.New(c.head().header.Root, c.db)
	if err != nil {
		return err
	}
	if c.pool[from] == nil {
		c.pool[from] = map[uint64]*types.Transaction{}
	}
	old := c.pool[from][tx.Nonce()]
	switch {
	case unchecked:
	case tx.Nonce() < s.GetNonce(from):
		return errNonce
	case old != nil && old.Hash() == tx.Hash():
		return errKnown
	case old != nil && (tx.GasTipCap().Cmp(tenth(old.GasTipCap())) < 0 || tx.GasFeeCap().Cmp(tenth(old.GasFeeCap())) < 0):
		return errUnderpriced
	case s.GetBalance(from).ToBig().Cmp(tx.Cost()) < 0:
		return errFunds
	}
	c.pool[from][tx.Nonce()] = tx
	return nil
}

// tenth is a tenth more, the least by which a replacement pays more.
func tenth(v *big.Int) *big.Int {
	return new(big.Int).Div(new(big.Int).Mul(v, big.NewInt(110)), big.NewInt(100))
}

// Senders lists who has transactions waiting.
func (c *Chain) Senders() []common.Address {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.SortedFunc(maps.Keys(c.pool), common.Address.Cmp)
}

// SendTransaction takes a transaction, and mines it unless the chain is Halted.
func (c *Chain) SendTransaction(_ context.Context, tx *types.Transaction) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if most := new(big.Int).Mul(tx.GasFeeCap(), new(big.Int).SetUint64(tx.Gas())); c.Bound != nil && most.Cmp(c.Bound) > 0 {
		c.Unpaid++
		return errBound
	}
	if err := c.wait(tx, false); err != nil {
		return err
	}
	if c.Halted {
		return nil
	}
	_, err := c.mine()
	return err
}

// at finds a block by the number that a caller of JSON-RPC gives: nil and negative numbers are the newest.
func (h *history) at(number *big.Int) (*block, error) {
	if number == nil || number.Sign() < 0 {
		return h.head(), nil
	}
	if !number.IsUint64() || number.Uint64() >= uint64(len(h.blocks)) {
		return nil, ethereum.NotFound
	}
	return h.blocks[number.Uint64()], nil
}

func (h *history) stateAt(number *big.Int) (*state.StateDB, *types.Header, error) {
	b, err := h.at(number)
	if err != nil {
		return nil, nil, err
	}
	s, err := state.New(b.header.Root, h.db)
	return s, b.header, err
}

// find gives a mined transaction and where it is.
func (h *history) find(hash common.Hash) (*block, int) {
	for i := len(h.blocks) - 1; i >= 0; i-- {
		at := slices.IndexFunc(h.blocks[i].txs, func(tx *types.Transaction) bool { return tx.Hash() == hash })
		if at >= 0 {
			return h.blocks[i], at
		}
	}
	return nil, 0
}

// call runs a message on a block's state.
func (c *Chain) call(msg ethereum.CallMsg, number *big.Int) (*core.ExecutionResult, error) {
	s, h, err := c.stateAt(number)
	if err != nil {
		return nil, err
	}
	pending := *h
	if number == nil {
		pending.Number, pending.Time = new(big.Int).Add(h.Number, big.NewInt(1)), max(c.clock, h.Time+1)
	}
	gas := msg.Gas
	if gas == 0 || gas > params.MaxTxGas {
		gas = params.MaxTxGas
	}
	m := &core.Message{From: msg.From, To: msg.To, GasLimit: gas, Data: msg.Data, AccessList: msg.AccessList,
		Value: new(uint256.Int), GasPrice: new(uint256.Int), GasFeeCap: new(uint256.Int), GasTipCap: new(uint256.Int)}
	if msg.Value != nil {
		m.Value = uint256.MustFromBig(msg.Value)
	}
	m.SkipNonceCheck().SkipEOACheck()
	return core.ApplyMessage(c.machine(&pending, s, vm.Config{NoBaseFee: true}), m, core.NewGasPool(blockGas))
}

// A revert is the error of a node whose call was refused by the contract.
type revert struct{ data []byte }

func (r revert) Error() string  { return "execution reverted" }
func (r revert) ErrorCode() int { return 3 }
func (r revert) ErrorData() any { return fmt.Sprintf("%#x", r.data) }

func refused(r *core.ExecutionResult) error {
	if !r.Failed() {
		return nil
	}
	if errors.Is(r.Err, vm.ErrExecutionReverted) {
		return revert{r.Revert()}
	}
	return r.Err
}
