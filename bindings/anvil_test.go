package bindings_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"math/big"
	"os"
	"os/exec"
	"regexp"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/ethclient"
	"github.com/ethereum/go-ethereum/rpc"

	"github.com/gpupay/gpupay/bindings"
	"github.com/gpupay/gpupay/bindings/testtoken"
)

const anvil = "../node_modules/.bin/anvil"

var (
	escrowABI = bindings.NewChannelEscrow()
	tokenABI  = testtoken.NewTestToken()
	oneCoin   = new(big.Int).Exp(big.NewInt(10), big.NewInt(18), nil)
)

// A chain is an anvil process of this test, which mines one block a transaction.
type chain struct {
	*ethclient.Client
	t   *testing.T
	rpc *rpc.Client
	id  *big.Int
	url string
}

// startChain runs anvil on a free port until the test ends.
func startChain(t *testing.T) *chain {
	t.Helper()
	if _, err := os.Stat(anvil); err != nil {
		t.Skip("no anvil in node_modules: run `npm ci` to check the contracts on a real chain")
	}
	url := launch(t)
	client, err := rpc.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	c := &chain{Client: ethclient.NewClient(client), t: t, rpc: client, url: url}
	if c.id, err = c.ChainID(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// launch starts anvil and returns its URL. The port is the system's choice, so tests can run side by side.
func launch(t *testing.T) string {
	t.Helper()
	cmd := exec.Command(anvil, "--port", "0", "--accounts", "1", "--hardfork", "osaka")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	listening := regexp.MustCompile(`Listening on (\S+)`)
	found := make(chan string, 1)
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if m := listening.FindStringSubmatch(lines.Text()); m != nil {
				found <- "http://" + m[1]
			}
		}
	}()
	select {
	case url := <-found:
		return url
	case <-time.After(30 * time.Second):
		t.Fatal("anvil did not say where it listens within 30 s")
		return ""
	}
}

// account makes a key that can pay for gas.
func (c *chain) account() *ecdsa.PrivateKey {
	c.t.Helper()
	key, err := crypto.GenerateKey()
	if err != nil {
		c.t.Fatal(err)
	}
	balance := (*bigHex)(oneCoin)
	if err := c.rpc.CallContext(c.t.Context(), nil, "anvil_setBalance", address(key), balance); err != nil {
		c.t.Fatal(err)
	}
	return key
}

// send has a transaction mined and returns its receipt; a nil `to` deploys. A transaction that reverts ends the test.
func (c *chain) send(key *ecdsa.PrivateKey, to *common.Address, data []byte) *types.Receipt {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	nonce, err := c.PendingNonceAt(ctx, address(key))
	if err != nil {
		c.t.Fatal(err)
	}
	tx := types.MustSignNewTx(key, types.LatestSignerForChainID(c.id), &types.DynamicFeeTx{
		ChainID: c.id, Nonce: nonce, To: to, Data: data, Gas: 16_000_000,
		GasFeeCap: big.NewInt(5_000_000_000), GasTipCap: big.NewInt(1),
	})
	if err := c.SendTransaction(ctx, tx); err != nil {
		c.t.Fatalf("sending: %v", err)
	}
	for {
		receipt, err := c.TransactionReceipt(ctx, tx.Hash())
		if err == nil && receipt.Status == types.ReceiptStatusSuccessful {
			return receipt
		}
		if err == nil {
			c.t.Fatalf("transaction %s reverted", tx.Hash())
		}
		select {
		case <-ctx.Done():
			c.t.Fatalf("transaction %s not mined: %v", tx.Hash(), err)
		case <-time.After(time.Millisecond):
		}
	}
}

// deploy creates a contract and returns its address.
func (c *chain) deploy(key *ecdsa.PrivateKey, code []byte) common.Address {
	c.t.Helper()
	return c.send(key, nil, code).ContractAddress
}

func address(key *ecdsa.PrivateKey) common.Address {
	return crypto.PubkeyToAddress(key.PublicKey)
}

// bigHex is a number as JSON-RPC writes it.
type bigHex big.Int

func (b *bigHex) MarshalText() ([]byte, error) {
	return []byte("0x" + (*big.Int)(b).Text(16)), nil
}
