// Package chaintest gives tests a real chain: an anvil process of their own on a free port, with the escrow and the test
// token deployed, that can be told to stop mining, to jump in time and to change its mind about the past.
package chaintest

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/accounts/abi/bind/v2"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/ethclient"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/bindings/testtoken"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
)

// NoAnvil is the environment variable that, set to 1, lets tests be skipped that need anvil. Without it they fail.
const NoAnvil = "GPUPAY_NO_ANVIL"

// Grace is the grace period of the test's escrow.
const Grace = 10 * time.Minute

// A Chain is one anvil process.
type Chain struct {
	URL     string // http; the same port speaks WebSocket
	WS      string
	Backend *ethclient.Client
	Keys    []*ecdsa.PrivateKey // each has 10,000 coins
	Escrow  common.Address
	Token   common.Address
}

// Anvil starts a chain that mines each transaction at once, with the contracts deployed, and ends it with the test.
func Anvil(t testing.TB, args ...string) *Chain {
	t.Helper()
	c := bare(t, args...)
	ctx := t.Context()
	var err error
	if c.Escrow, err = chain.Deploy(ctx, c.Backend, channel.NewKey(c.Keys[9]), Grace); err != nil {
		t.Fatalf("chaintest: deploying the escrow: %v", err)
	}
	opts := bind.NewKeyedTransactor(c.Keys[9], big.NewInt(31337))
	opts.Context = ctx
	address, tx, err := bind.DeployContract(opts, common.FromHex(testtoken.TestTokenMetaData.Bin), c.Backend, nil)
	if err != nil {
		t.Fatalf("chaintest: deploying the token: %v", err)
	}
	c.success(t, tx.Hash())
	c.Token = address
	return c
}

// State is everything that is on the chain, for Load.
func (c *Chain) State(t testing.TB) []byte {
	t.Helper()
	var state hexutil.Bytes
	c.RPC(t, &state, "anvil_dumpState")
	return state
}

// Load starts a chain with what State said of another one, which had these contracts. Time has gone on meanwhile.
func Load(t testing.TB, state []byte, escrow, token common.Address) *Chain {
	t.Helper()
	c := bare(t)
	c.Escrow, c.Token = escrow, token
	c.RPC(t, nil, "anvil_loadState", hexutil.Bytes(state))
	c.RPC(t, nil, "evm_setTime", hexutil.Uint64(time.Now().Unix()))
	c.Mine(t, 1)
	return c
}

func bare(t testing.TB, args ...string) *Chain {
	t.Helper()
	if os.Getenv(NoAnvil) == "1" {
		t.Skip("chaintest: " + NoAnvil + "=1: this test needs anvil and was left out on request")
	}
	binary, err := find()
	if err != nil {
		t.Fatalf("chaintest: %v; run `npm ci` first, or set %s=1 to leave these tests out", err, NoAnvil)
	}
	c := &Chain{}
	for i := range uint32(10) {
		c.Keys = append(c.Keys, key(t, i))
	}
	port := start(t, binary, args)
	c.URL, c.WS = fmt.Sprintf("http://127.0.0.1:%s", port), fmt.Sprintf("ws://127.0.0.1:%s", port)
	if c.Backend, err = chain.Dial(t.Context(), c.URL); err != nil {
		t.Fatalf("chaintest: %v", err)
	}
	t.Cleanup(c.Backend.Close)
	for _, k := range c.Keys {
		c.RPC(t, nil, "anvil_setBalance", crypto.PubkeyToAddress(k.PublicKey), (*hexutil.Big)(coins))
	}
	return c
}

var coins = new(big.Int).Mul(big.NewInt(10_000), big.NewInt(1e18))

// find looks for the binary of the npm package, not its script: a script would leave anvil behind when it is killed.
func find() (string, error) {
	dir, err := Root()
	if err != nil {
		return "", err
	}
	found, err := filepath.Glob(filepath.Join(dir, "node_modules", "@foundry-rs", "anvil-*", "bin", "anvil*"))
	if err != nil || len(found) == 0 {
		return "", errors.New("anvil is not installed in node_modules")
	}
	return found[0], nil
}

// Root is the repository's root: the directory with go.mod at or above the working directory.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("no go.mod above the test")
		}
	}
}

// start runs anvil on a port of its own choice and returns the port.
func start(t testing.TB, binary string, args []string) string {
	t.Helper()
	// What anvil writes of old states goes with the test: it is killed, and would leave it in the user's home.
	states, err := os.MkdirTemp("", "gpupay-anvil-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(states) })
	cmd := exec.Command(binary, append([]string{"--port", "0", "--host", "127.0.0.1", "--accounts", "0", "--cache-path", states}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	stop, started, ended := make(chan struct{}), make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		// The kernel ends anvil with the thread that began it (die), so this thread must last as long.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		die(cmd)
		err := cmd.Start()
		started <- err
		if err == nil {
			<-stop
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("chaintest: starting anvil: %v", err)
	}
	t.Cleanup(func() { close(stop); <-ended })

	port := make(chan string, 1)
	go listen(out, port, stop)
	select {
	case p, ok := <-port:
		if ok {
			return p
		}
		t.Fatal("chaintest: anvil ended before it listened")
	case <-time.After(30 * time.Second):
		t.Fatal("chaintest: anvil did not listen within 30 s")
	}
	return ""
}

// listen finds the port in what anvil prints, and says it aloud when anvil ends before it should: every test on it would
// fail for a reason that is none of its own.
func listen(out io.Reader, port chan<- string, stop <-chan struct{}) {
	defer close(port)
	var last string
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if _, address, ok := strings.Cut(lines.Text(), "Listening on "); ok {
			port <- address[strings.LastIndex(address, ":")+1:]
		}
		last = lines.Text()
	}
	select {
	case <-stop:
	default:
		fmt.Fprintf(os.Stderr, "chaintest: anvil ended by itself; its last words: %q, %v\n", last, lines.Err())
	}
}

func key(t testing.TB, n uint32) *ecdsa.PrivateKey {
	t.Helper()
	k, err := crypto.ToECDSA(crypto.Keccak256([]byte{'c', 'h', 'a', 'i', 'n', byte(n)}))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// RPC calls a method of anvil; result may be nil.
func (c *Chain) RPC(t testing.TB, result any, method string, args ...any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := c.Backend.Client().CallContext(ctx, result, method, args...); err != nil {
		t.Fatalf("chaintest: %s: %v", method, err)
	}
}

// Mine makes n blocks.
func (c *Chain) Mine(t testing.TB, n int) {
	t.Helper()
	c.RPC(t, nil, "anvil_mine", hexutil.Uint64(n))
}

// Automine says whether each transaction is mined at once.
func (c *Chain) Automine(t testing.TB, on bool) {
	t.Helper()
	c.RPC(t, nil, "evm_setAutomine", on)
}

// Reorg replaces the newest depth blocks by empty ones, one more than they were, as a branch that won.
func (c *Chain) Reorg(t testing.TB, depth int) {
	t.Helper()
	c.RPC(t, nil, "anvil_reorg", depth, []any{})
	c.Mine(t, 1)
}

// AdvanceTime moves the chain's clock ahead and makes a block.
func (c *Chain) AdvanceTime(t testing.TB, d time.Duration) {
	t.Helper()
	c.RPC(t, nil, "evm_increaseTime", hexutil.Uint64(d/time.Second))
	c.Mine(t, 1)
}

// Head is the number of the newest block.
func (c *Chain) Head(t testing.TB) uint64 {
	t.Helper()
	n, err := c.Backend.BlockNumber(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Mint gives an address test tokens.
func (c *Chain) Mint(t testing.TB, to common.Address, amount uint64) {
	t.Helper()
	token := testtoken.NewTestToken()
	c.Transact(t, c.Keys[9], c.Token, token.PackMint(to, new(big.Int).SetUint64(amount)))
}

// PauseToken has the test token refuse everything, until the returned function is called. Its books stay as they are.
func (c *Chain) PauseToken(t testing.TB) (resume func()) {
	t.Helper()
	code, err := c.Backend.CodeAt(t.Context(), c.Token, nil)
	if err != nil {
		t.Fatalf("chaintest: reading the token's code: %v", err)
	}
	c.RPC(t, nil, "anvil_setCode", c.Token, hexutil.Bytes{0x5f, 0x5f, 0xfd}) // revert
	return func() { c.RPC(t, nil, "anvil_setCode", c.Token, hexutil.Bytes(code)) }
}

// Tokens is an address's balance of test tokens.
func (c *Chain) Tokens(t testing.TB, owner common.Address) uint64 {
	t.Helper()
	token, err := chain.NewToken(t.Context(), c.Backend, c.Token)
	if err != nil {
		t.Fatal(err)
	}
	var balance uint256.Int
	if balance, err = token.Balance(t.Context(), owner); err != nil {
		t.Fatal(err)
	}
	return balance.Uint64()
}

// Transact sends one transaction and waits for it; it must succeed. It mines a block itself where anvil does not.
func (c *Chain) Transact(t testing.TB, from *ecdsa.PrivateKey, to common.Address, data []byte) {
	t.Helper()
	opts := bind.NewKeyedTransactor(from, big.NewInt(31337))
	opts.Context = t.Context()
	bound := bind.NewBoundContract(to, abi.ABI{}, c.Backend, c.Backend, c.Backend)
	tx, err := bound.RawTransact(opts, data)
	if err != nil {
		t.Fatalf("chaintest: sending to %s: %v", to, err)
	}
	c.success(t, tx.Hash())
}

// success waits until a transaction is mined. Where anvil does not mine by itself, it is told to.
func (c *Chain) success(t testing.TB, hash common.Hash) {
	t.Helper()
	for try := range 500 {
		receipt, err := c.Backend.TransactionReceipt(t.Context(), hash)
		switch {
		case err == nil && receipt.Status == 1:
			return
		case err == nil:
			t.Fatalf("chaintest: transaction %s reverted", hash)
		case !errors.Is(err, ethereum.NotFound):
			t.Fatalf("chaintest: transaction %s: %v", hash, err)
		}
		if try == 50 {
			c.Mine(t, 1)
		}
		time.Sleep(2 * time.Millisecond)
	}
	t.Fatalf("chaintest: transaction %s is not mined", hash)
}
