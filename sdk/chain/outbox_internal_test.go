package chain

import (
	"math/big"
	"path/filepath"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel/store"
)

func emptyOutbox(t *testing.T) *Store {
	t.Helper()
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "outbox.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	s, err := OpenStore(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func queued(t *testing.T, s *Store, chain, nonce uint64) Tx {
	t.Helper()
	tx := Tx{ID: newTxID(), Chain: chain, Sender: common.Address{1}, Nonce: nonce, Call: Call{Kind: Approve}, Gas: 1, State: Pending, CreatedAt: time.Now()}
	tx.Attempts = []Attempt{{Signed: types.NewTx(&types.DynamicFeeTx{ChainID: new(big.Int).SetUint64(chain), Nonce: nonce})}}
	if err := s.insert(t.Context(), tx); err != nil {
		t.Fatal(err)
	}
	return tx
}

// A process that read a row before another one made it final does not write it again, and its cost counts once.
func TestFinalRowStays(t *testing.T) {
	s := emptyOutbox(t)
	tx := queued(t, s, 1, 0)
	tx.State, tx.Cost, tx.Succeeded, tx.Hash = Final, big.NewInt(5), true, common.Hash{5}
	late := tx
	late.State, late.Cost, late.Succeeded, late.Hash = Mined, big.NewInt(7), false, common.Hash{7}
	again := tx
	again.Cost = big.NewInt(9)
	for _, write := range []Tx{tx, late, again} {
		if err := s.record(t.Context(), write); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Get(t.Context(), tx.ID)
	if err != nil || got.State != Final || !got.Succeeded || got.Hash != tx.Hash {
		t.Errorf("a final row became %+v (%v)", got, err)
	}
	if gas, err := s.gas(t.Context(), 1, tx.Sender); err != nil || gas.Int64() != 5 {
		t.Errorf("gas %s, want 5 (%v)", gas, err)
	}
}

// A transaction is in the outbox with its channels, or not at all: who asks what was sent about a channel would send it again.
func TestOutboxRowIsWhole(t *testing.T) {
	s := emptyOutbox(t)
	tx := queued(t, s, 1, 0)
	second := Attempt{Signed: types.NewTx(&types.DynamicFeeTx{ChainID: big.NewInt(1), GasTipCap: big.NewInt(1)})}
	if err := s.attempt(t.Context(), tx, second); err != nil {
		t.Fatal(err)
	}
	var numbers int
	db := s.db.View()
	if err := db.GetContext(t.Context(), &numbers, `SELECT COUNT(DISTINCT number) FROM chain_attempt`); err != nil || numbers != 2 {
		t.Errorf("two versions have %d numbers (%v)", numbers, err)
	}
	err := s.db.Update(t.Context(), func(db *sqlx.Tx) error {
		_, err := db.Exec(`DROP TABLE chain_tx_channel`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	tx.ID, tx.Nonce, tx.Call.Channels = newTxID(), 1, []common.Hash{{1}}
	tx.Attempts = []Attempt{{Signed: types.NewTx(&types.DynamicFeeTx{ChainID: big.NewInt(1), Nonce: 1})}}
	if err := s.insert(t.Context(), tx); err == nil {
		t.Error("a transaction is queued whose channels were not written")
	}
	if _, err := s.Get(t.Context(), tx.ID); err == nil {
		t.Error("and it is in the outbox")
	}
}

// A key's nonces on one chain say nothing of those on another.
func TestNonceIsPerChain(t *testing.T) {
	s := emptyOutbox(t)
	queued(t, s, 1, 7)
	for chain, want := range map[uint64]uint64{1: 8, 2: 0} {
		if got, err := s.nextNonce(t.Context(), chain, common.Address{1}); err != nil || got != want {
			t.Errorf("chain %d: next nonce %d, want %d (%v)", chain, got, want, err)
		}
	}
}
