package sweep

import (
	"context"
	"errors"
	"log/slog"
	"math/big"
	"path/filepath"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/chain"
)

var cold = common.HexToAddress("0xc01d")

// till is a sweeper on a chain, and its outbox.
type till struct {
	*testing.T
	*chaintest.Chain
	*Sweeper
	path string
}

func newTill(t *testing.T, url string, c *chaintest.Chain) *till {
	t.Helper()
	k := &till{T: t, Chain: c, path: filepath.Join(t.TempDir(), "provider.db")}
	k.open(url)
	return k
}

// open makes the sweeper anew on its outbox, as after a crash.
func (k *till) open(url string) {
	k.Helper()
	db, err := store.Open(k.Context(), k.path)
	if err != nil {
		k.Fatal(err)
	}
	k.Cleanup(func() { db.Close() })
	txs, err := chain.OpenStore(k.Context(), db)
	if err != nil {
		k.Fatal(err)
	}
	backend, err := chain.Connect(k.Context(), url, nil)
	if err != nil {
		k.Fatal(err)
	}
	sender := &chain.Sender{Backend: backend, Key: channel.NewKey(k.Keys[1]), Store: txs, Poll: 10 * time.Millisecond, Finality: 4, Stuck: time.Hour, Log: slog.New(slog.DiscardHandler)}
	k.Sweeper = Policy{To: cold}.Sweeper(sender, Terms{Token: k.Chain.Token, Reserve: *uint256.NewInt(100), Least: *uint256.NewInt(50), Settlements: 20, Contracts: []chain.Contract{&chain.Escrow{}}})
}

func (k *till) passes() {
	k.Helper()
	if err := k.pass(k.Context()); err != nil {
		k.Fatal(err)
	}
}

func (k *till) has(own, moved uint64) {
	k.Helper()
	if got := k.Tokens(k.T, crypto.PubkeyToAddress(k.Keys[1].PublicKey)); got != own {
		k.Errorf("the key has %d, want %d", got, own)
	}
	if got := k.Tokens(k.T, cold); got != moved {
		k.Errorf("the cold address has %d, want %d", got, moved)
	}
}

// TestWhatIsAboveTheReserveIsMovedOnce: the reserve stays, what is not worth a transaction waits, and nothing is moved while a transfer
// may still be undone, after a restart either; a new process begins no second one.
func TestWhatIsAboveTheReserveIsMovedOnce(t *testing.T) {
	t.Parallel()
	c := chaintest.Anvil(t)
	k, own := newTill(t, c.URL, c), crypto.PubkeyToAddress(c.Keys[1].PublicKey)
	k.passes()
	k.has(0, 0)
	c.Mint(t, own, 149)
	k.passes()
	k.has(149, 0) // 49 are not worth it
	c.Mint(t, own, 851)
	k.passes()
	k.has(100, 900)
	c.Mint(t, own, 1000)
	k.passes()
	k.has(1100, 900) // the first may be undone
	k.open(c.URL)
	k.passes()
	k.has(1100, 900)
	c.Mine(t, 5)
	k.passes()
	k.has(100, 1900)
	c.Mine(t, 5)
	k.passes()
	k.has(100, 1900)
}

// TestTransferThatWaits: while a transfer is on disk and not mined, whatever has come meanwhile is not moved beside it; a new process
// sends the same one, and with what it moved the reserve stays.
func TestTransferThatWaits(t *testing.T) {
	t.Parallel()
	c := chaintest.Anvil(t)
	k, own := newTill(t, c.URL, c), crypto.PubkeyToAddress(c.Keys[1].PublicKey)
	c.Mint(t, own, 1000)
	c.Automine(t, false)
	for range 3 {
		k.passes()
		k.open(c.URL)
	}
	flying, err := k.sender.InFlight(t.Context())
	if err != nil || len(flying) != 1 {
		t.Fatalf("%d transfers, %v", len(flying), err)
	}
	c.Automine(t, true)
	c.Mine(t, 1)
	k.passes()
	k.has(100, 900)
}

// TestReorgMovesNothingTwice: a transfer that a re-org undid is sent again, and none beside it.
func TestReorgMovesNothingTwice(t *testing.T) {
	t.Parallel()
	c := chaintest.Anvil(t)
	k, own := newTill(t, c.URL, c), crypto.PubkeyToAddress(c.Keys[1].PublicKey)
	c.Mint(t, own, 1000)
	k.Reserve = *uint256.NewInt(600) // as much again would be there
	k.passes()
	k.has(600, 400)
	c.Mine(t, 2)
	k.passes() // it is seen mined
	c.Reorg(t, 3)
	for range 5 {
		k.passes()
		c.Mine(t, 1)
	}
	k.passes()
	k.has(600, 400)
	all, err := k.sender.Find(t.Context(), k.id(), Kind)
	if err != nil || len(all) != 1 {
		t.Errorf("%d transfers, %v", len(all), err)
	}
}

// TestOldBalanceIsNotMoved: what an endpoint says that does not know the last transfer is not moved.
func TestOldBalanceIsNotMoved(t *testing.T) {
	t.Parallel()
	c := chaintest.Anvil(t)
	late := badrpc.New(t, c.URL)
	k, own := newTill(t, late.URL, c), crypto.PubkeyToAddress(c.Keys[1].PublicKey)
	c.Mint(t, own, 1000)
	k.Reserve = *uint256.NewInt(600)
	before := c.Head(t)
	k.passes()
	c.Mine(t, 6)
	k.passes()
	k.has(600, 400)
	late.Stick(before)
	if _, err := k.balance(t.Context(), before+1); !errors.Is(err, chain.ErrBehind) {
		t.Errorf("%v", err)
	}
	_ = k.pass(t.Context())
	late.Heal()
	k.has(600, 400)
}

// TestSweepNeedsCoinAndToken: where the coin is gone or the token refuses, nothing is sent, and it is tried again.
func TestSweepNeedsCoinAndToken(t *testing.T) {
	t.Parallel()
	c := chaintest.Anvil(t)
	k, own := newTill(t, c.URL, c), crypto.PubkeyToAddress(c.Keys[1].PublicKey)
	c.Mint(t, own, 1000)
	coin, err := c.Backend.BalanceAt(t.Context(), own, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, little := range []string{"0x1", "0x11c37937e08000"} { // 0.005 of a coin would pay for a transfer
		c.RPC(t, nil, "anvil_setBalance", own, little)
		if err := k.pass(t.Context()); !errors.Is(err, chain.ErrFunds) {
			t.Errorf("with %s wei: %v", little, err)
		}
		k.has(1000, 0)
	}
	c.RPC(t, nil, "anvil_setBalance", own, "0x"+new(big.Int).Set(coin).Text(16))
	resume := c.PauseToken(t)
	if err := k.pass(t.Context()); err == nil {
		t.Error("the token refuses, and it is not said")
	}
	resume()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	k.every = 20 * time.Millisecond
	done := make(chan struct{})
	go func() { defer close(done); _ = k.Sweeper.Run(ctx) }()
	for c.Tokens(t, cold) != 900 && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	<-done
	k.has(100, 900)
}

// TestColdAddressIsCold: an address from which nothing comes back, or that is the provider's, is refused; without one nothing is moved.
func TestColdAddressIsCold(t *testing.T) {
	token, escrow, own, past := common.HexToAddress("0x01"), common.HexToAddress("0x02"), common.HexToAddress("0x03"), common.HexToAddress("0x04")
	for _, to := range []common.Address{token, escrow, own, past, channel.BatchSettlementEscrow, channel.BatchSettlementCollector} {
		if err := (Policy{To: to}).Check(token, escrow, own, past); !errors.Is(err, ErrAddress) {
			t.Errorf("%s: %v", to, err)
		}
	}
	for _, to := range []common.Address{cold, {}} {
		if err := (Policy{To: to}).Check(token, escrow, own, past); err != nil {
			t.Error(err)
		}
	}
	if err := (Policy{To: cold, Every: -1}).Check(token, escrow); err == nil {
		t.Error("a negative time")
	}
	if s := (Policy{}).Sweeper(&chain.Sender{}, Terms{Token: token}); s != nil {
		t.Errorf("%+v", s)
	}
}
