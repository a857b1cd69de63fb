package bindings_test

import (
	"context"
	"crypto/ecdsa"
	"math/big"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/ethclient"
	"github.com/ethereum/go-ethereum/rpc"

	"github.com/gpupay/gpupay/bindings"
	"github.com/gpupay/gpupay/bindings/testtoken"
	"github.com/gpupay/gpupay/internal/chaintest"
)

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
	url := chaintest.Anvil(t, "--hardfork", "osaka").URL
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
