// Package devchain is a whole chain inside this process, for examples and tests: go-ethereum's simulated one, with the
// escrow and a test token deployed, served over JSON-RPC on a loopback port like any other. Nothing on it is worth money,
// its keys are known to everyone, and it is gone when the process ends.
package devchain

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/accounts/abi/bind/v2"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/eth/ethconfig"
	"github.com/ethereum/go-ethereum/ethclient"
	"github.com/ethereum/go-ethereum/ethclient/simulated"
	"github.com/ethereum/go-ethereum/node"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/bindings/batchsettlement/standin"
	"github.com/gpupay/gpupay/bindings/testtoken"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
)

// ChainID is the id of the embedded chain.
const ChainID = 1337

// Options of a chain. The zero value is a chain with a block a second and four funded keys.
type Options struct {
	BlockTime time.Duration // 0: one second. Block times are whole seconds apart, so less makes the chain's clock run ahead
	Manual    bool          // no blocks but those of Mine and AdvanceTime
	Grace     time.Duration // of the escrow; 0: ten minutes, the least there is
	Keys      int           // funded keys; 0: 4
	Port      int           // of the JSON-RPC, on 127.0.0.1; 0: any free one

	Genesis types.GenesisAlloc // accounts that are there from the beginning, beside those of the keys
}

// A Chain is running when Start returns it.
type Chain struct {
	Backend *ethclient.Client
	URL     string              // JSON-RPC over HTTP
	Keys    []*ecdsa.PrivateKey // each has 1000 coins for gas
	Escrow  common.Address
	Token   common.Address // open mint, ERC-3009 and permit, six decimals

	sim       *simulated.Backend
	faucet    *ecdsa.PrivateKey
	elsewhere bool       // another process makes the blocks
	mining    sync.Mutex // the simulated chain makes one block at a time
	stop      context.CancelFunc
	done      chan struct{}
}

var coins = new(big.Int).Mul(big.NewInt(1000), big.NewInt(1e18))

// Start makes a chain, deploys the contracts, and makes blocks until the context ends or Close is called.
func Start(ctx context.Context, opts Options) (*Chain, error) {
	c := &Chain{faucet: key("faucet"), done: make(chan struct{})}
	alloc := types.GenesisAlloc{crypto.PubkeyToAddress(c.faucet.PublicKey): {Balance: new(big.Int).Mul(coins, big.NewInt(1e6))}}
	for i := range max(opts.Keys, 4) {
		k := key(fmt.Sprintf("account %d", i))
		c.Keys = append(c.Keys, k)
		alloc[crypto.PubkeyToAddress(k.PublicKey)] = types.Account{Balance: coins}
	}
	maps.Copy(alloc, opts.Genesis)
	if err := c.serve(alloc, opts.Port); err != nil {
		return nil, err
	}
	client, err := chain.Dial(ctx, c.URL)
	if err != nil {
		return nil, errors.Join(err, c.sim.Close())
	}
	c.Backend = client
	run, stop := context.WithCancel(ctx)
	c.stop = stop
	if err := c.deploy(run, opts); err != nil {
		stop()
		close(c.done)
		return nil, errors.Join(err, c.Close())
	}
	go c.mine(run, opts)
	return c, nil
}

// serve starts the simulated chain with its JSON-RPC on a loopback port, a free one if it is 0.
func (c *Chain) serve(alloc types.GenesisAlloc, port int) (failed error) {
	if port != 0 {
		c.URL = fmt.Sprintf("http://127.0.0.1:%d", port)
		c.sim, failed = simulate(alloc, port)
		return failed
	}
	for range 5 { // somebody may take the free port first
		port, err := freePort()
		if err != nil {
			return fmt.Errorf("devchain: no free port: %w", err)
		}
		c.sim, failed = simulate(alloc, port)
		if failed == nil {
			c.URL = fmt.Sprintf("http://127.0.0.1:%d", port)
			return nil
		}
	}
	return failed
}

func simulate(alloc types.GenesisAlloc, port int) (sim *simulated.Backend, err error) {
	defer func() { // go-ethereum reports a port that is taken by a panic
		if r := recover(); r != nil {
			err = fmt.Errorf("devchain: starting the chain: %v", r)
		}
	}()
	return simulated.NewBackend(alloc, func(n *node.Config, e *ethconfig.Config) {
		rules := *e.Genesis.Config
		rules.BogotaTime = nil // not released, and it quadruples the gas of everything
		genesis := *e.Genesis
		genesis.Config = &rules
		genesis.ExtraData = make([]byte, 32)
		rand.Read(genesis.ExtraData) // never fails; each chain is told from the one before it
		e.Genesis = &genesis
		n.HTTPHost, n.HTTPPort = "127.0.0.1", port
		n.HTTPModules = []string{"eth", "net", "web3"}
		n.HTTPVirtualHosts = []string{"*"}
	}), nil
}

func freePort() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port, nil
}

func (c *Chain) deploy(ctx context.Context, opts Options) error {
	grace := opts.Grace
	if grace == 0 {
		grace = chain.MinGrace
	}
	mining, stop := context.WithCancel(ctx)
	mined := make(chan struct{})
	go func() {
		defer close(mined)
		c.serveDeployment(mining)
	}()
	defer func() { stop(); <-mined }()

	var err error
	if c.Escrow, err = chain.Deploy(ctx, c.Backend, channel.NewKey(c.faucet), grace); err != nil {
		return err
	}
	address, tx, err := bind.DeployContract(c.opts(ctx), common.FromHex(testtoken.TestTokenMetaData.Bin), c.Backend, nil)
	if err := c.await(ctx)(tx, err); err != nil {
		return fmt.Errorf("devchain: deploying the token: %w", err)
	}
	c.Token = address
	return nil
}

// X402 is the genesis of a chain with stand-ins for x402's contracts, at the addresses of the real ones.
func X402() types.GenesisAlloc {
	return types.GenesisAlloc{
		channel.BatchSettlementEscrow:    {Code: common.FromHex(standin.BatchSettlement), Balance: new(big.Int)},
		channel.BatchSettlementCollector: {Code: common.FromHex(standin.ERC3009DepositCollector), Balance: new(big.Int)},
	}
}

// serveDeployment makes a block when there is something for it, and no other: each block moves the chain's clock a second
// ahead, and it should start in step with ours.
func (c *Chain) serveDeployment(ctx context.Context) {
	for chain.Pause(ctx, 10*time.Millisecond) == nil {
		if waiting, err := c.Backend.PendingTransactionCount(ctx); err == nil && waiting > 0 {
			c.Mine()
		}
	}
}

func (c *Chain) opts(ctx context.Context) *bind.TransactOpts {
	opts := bind.NewKeyedTransactor(c.faucet, big.NewInt(ChainID))
	opts.Context = ctx
	return opts
}

func (c *Chain) mine(ctx context.Context, opts Options) {
	defer close(c.done)
	if opts.Manual {
		<-ctx.Done()
		return
	}
	every := opts.BlockTime
	if every <= 0 {
		every = time.Second
	}
	c.tick(ctx, every)
}

func (c *Chain) tick(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			c.Mine()
		}
	}
}

// Mine makes one block now and returns its hash.
func (c *Chain) Mine() common.Hash {
	c.mining.Lock()
	defer c.mining.Unlock()
	return c.sim.Commit()
}

// AdvanceTime moves the chain's clock ahead and makes a block, as if that much time had passed without one.
func (c *Chain) AdvanceTime(d time.Duration) error {
	c.mining.Lock()
	defer c.mining.Unlock()
	var err error
	for range 20 { // time can only be moved while nothing waits to be mined, and somebody may send something just now
		c.sim.Commit()
		if err = c.sim.AdjustTime(d); err == nil {
			return nil
		}
	}
	return fmt.Errorf("devchain: moving the clock ahead by %s: %w", d, err)
}

// Fund gives an address native coin (wei) and test tokens (base units), and returns when it has them.
func (c *Chain) Fund(ctx context.Context, to common.Address, wei *big.Int, tokens uint256.Int) error {
	opts := c.opts(ctx)
	if wei != nil && wei.Sign() > 0 {
		opts.Value, opts.GasLimit = wei, 21_000 // given, so that nobody looks for code at the address
		plain := bind.NewBoundContract(to, abi.ABI{}, c.Backend, c.Backend, c.Backend)
		if err := c.await(ctx)(plain.RawTransact(opts, nil)); err != nil {
			return fmt.Errorf("devchain: funding %s: %w", to, err)
		}
		opts.Value, opts.GasLimit = nil, 0
	}
	if tokens.IsZero() {
		return nil
	}
	token := testtoken.NewTestToken()
	if err := c.await(ctx)(bind.Transact(token.Instance(c.Backend, c.Token), opts, token.PackMint(to, tokens.ToBig()))); err != nil {
		return fmt.Errorf("devchain: minting for %s: %w", to, err)
	}
	return nil
}

// ErrOther says that a chain is not one of this package's.
var ErrOther = errors.New("it is not a chain of devchain's")

// Gives gives an address tokens, and a coin, on a chain that another process has started: its faucet's key is known to everyone. A chain
// of another id, or whose faucet has nothing, is ErrOther, and nothing is sent to it.
func Gives(ctx context.Context, rpc string, token, to common.Address, tokens uint256.Int) error {
	client, err := chain.Dial(ctx, rpc)
	if err != nil {
		return err
	}
	defer client.Close()
	c := &Chain{Backend: client, Token: token, faucet: key("faucet"), elsewhere: true}
	id, err := client.ChainID(ctx)
	if err != nil {
		return err
	}
	has, err := client.BalanceAt(ctx, crypto.PubkeyToAddress(c.faucet.PublicKey), nil)
	if err != nil {
		return err
	}
	if id.Cmp(big.NewInt(ChainID)) != 0 || has.Cmp(coins) < 0 {
		return ErrOther
	}
	return c.Fund(ctx, to, big.NewInt(1e18), tokens)
}

// await has what a binding just sent mined, at once.
func (c *Chain) await(ctx context.Context) func(*types.Transaction, error) error {
	return func(tx *types.Transaction, err error) error {
		if err != nil {
			return err
		}
		for {
			if !c.elsewhere {
				c.Mine()
			}
			receipt, err := c.Backend.TransactionReceipt(ctx, tx.Hash())
			if err == nil && receipt.Status != types.ReceiptStatusSuccessful {
				return fmt.Errorf("transaction %s reverted", tx.Hash())
			}
			if err == nil {
				return nil
			}
			if err := chain.Pause(ctx, 10*time.Millisecond); err != nil { // the node indexes a block after it has it
				return err
			}
		}
	}
}

// Close stops the chain. Everything on it is gone.
func (c *Chain) Close() error {
	c.stop()
	<-c.done
	c.Backend.Close()
	return c.sim.Close()
}

// key derives a key that is the same each time, and a secret to nobody.
func key(name string) *ecdsa.PrivateKey {
	k, err := crypto.ToECDSA(crypto.Keccak256([]byte("gpupay devchain " + name)))
	if err != nil {
		panic("devchain: " + err.Error())
	}
	return k
}
