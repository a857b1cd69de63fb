package devchain_test

import (
	"math/big"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/params"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/sdk/chain"
)

func TestStart(t *testing.T) {
	began := time.Now()
	c, err := devchain.Start(t.Context(), devchain.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	t.Logf("started in %s", time.Since(began))
	client, err := chain.Dial(t.Context(), c.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	escrow, err := chain.NewEscrow(t.Context(), client, c.Escrow)
	if err != nil {
		t.Fatal(err)
	}
	if escrow.ChainID() != devchain.ChainID || escrow.Grace() != chain.MinGrace {
		t.Errorf("chain %d, grace %s", escrow.ChainID(), escrow.Grace())
	}
	if err := escrow.CheckClock(t.Context(), 5*time.Second); err != nil {
		t.Error(err)
	}
	someone := common.Address{7}
	if err := c.Fund(t.Context(), someone, big.NewInt(5), *uint256.NewInt(6)); err != nil {
		t.Fatal(err)
	}
	token, err := chain.NewToken(t.Context(), client, c.Token)
	if err != nil {
		t.Fatal(err)
	}
	balance, err := token.Balance(t.Context(), someone)
	if err != nil || !balance.Eq(uint256.NewInt(6)) {
		t.Errorf("tokens %s, %v", balance.Dec(), err)
	}
	if wei, err := client.BalanceAt(t.Context(), someone, nil); err != nil || wei.Int64() != 5 {
		t.Errorf("coins %s, %v", wei, err)
	}
	if ok, err := token.SupportsAuthorization(t.Context()); err != nil || !ok {
		t.Errorf("gasless: %v, %v", ok, err)
	}
	if params.AllDevChainProtocolChanges.BogotaTime == nil {
		t.Error("go-ethereum's own rules were changed, for everyone in this process")
	}
}

func TestAdvanceTime(t *testing.T) {
	c, err := devchain.Start(t.Context(), devchain.Options{Manual: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	before, err := c.Backend.HeaderByNumber(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.AdvanceTime(time.Hour); err != nil {
		t.Fatal(err)
	}
	after, err := c.Backend.HeaderByNumber(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := after.Time - before.Time; d < 3600 || d > 3700 {
		t.Errorf("moved by %d s, want an hour", d)
	}
	n := after.Number.Uint64()
	time.Sleep(200 * time.Millisecond)
	if got, err := c.Backend.BlockNumber(t.Context()); err != nil || got != n {
		t.Errorf("a manual chain made blocks by itself: %d after %d, %v", got, n, err)
	}
}
