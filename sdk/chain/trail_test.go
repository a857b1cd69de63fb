package chain_test

import (
	"os"
	"testing"
	"testing/fstest"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/chain"
)

// TestWaitingIsKeptByAnUpdate: a database from when all contracts shared their rows keeps how long its channels have waited.
func TestWaitingIsKeptByAnUpdate(t *testing.T) {
	for _, name := range []string{"file", onPostgres} {
		t.Run(name, func(t *testing.T) { testWaitingIsKept(t) })
	}
}

func testWaitingIsKept(t *testing.T) {
	ctx := t.Context()
	db, err := store.Open(ctx, file(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	first, err := os.ReadFile("migrations/0001_chain.sql")
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Migrate(ctx, "chain", fstest.MapFS{"0001_chain.sql": {Data: first}}); err != nil {
		t.Fatal(err)
	}
	terms := channel.Terms{ChainID: 7, Escrow: common.Address{1}, Payer: common.Address{2}, Payee: common.Address{3}, Token: common.Address{4}}
	payee := &channel.Payee{Store: db.Payee(), Domain: channel.EscrowDomain(terms.ChainID, terms.Escrow)}
	if _, err := payee.Register(ctx, terms, channel.ChainView{Deposit: *uint256.NewInt(5)}); err != nil {
		t.Fatal(err)
	}
	began, now := time.UnixMilli(1_700_000_000_000), time.UnixMilli(1_700_000_900_000)
	err = db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.Exec(tx.Rebind(`INSERT INTO chain_since (channel, since) VALUES (?, ?)`), terms.ID().Hex(), began.UnixMilli())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	txs, err := chain.OpenStore(ctx, db)
	if err != nil {
		t.Fatal(err)
	}
	ids := []common.Hash{terms.ID(), {9}}
	since, err := txs.Since(ctx, terms.ChainID, terms.Escrow, ids, now)
	if err != nil || !since[ids[0]].Equal(began) || !since[ids[1]].Equal(now) {
		t.Errorf("waiting since %v, %v; want %s and %s", since, err, began, now)
	}
}

// TestWaitingIsEachContractsOwn: what one settler forgets, another of the same store still waits for.
func TestWaitingIsEachContractsOwn(t *testing.T) {
	ctx := t.Context()
	txs, _ := openStore(t, file(t))
	id, other := common.Hash{1}, common.Hash{2}
	a, b := common.Address{1}, common.Address{2}
	at := func(minutes int) time.Time {
		return time.UnixMilli(1_700_000_000_000).Add(time.Duration(minutes) * time.Minute)
	}
	since := func(chain uint64, contract common.Address, minute int, ids ...common.Hash) map[common.Hash]time.Time {
		t.Helper()
		got, err := txs.Since(ctx, chain, contract, ids, at(minute))
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	since(1, a, 0, id, other)
	since(1, b, 1, id)
	since(2, a, 2, id)
	since(1, b, 3) // the settler of b has nothing that waits any more
	if got := since(1, a, 4, id, other); !got[id].Equal(at(0)) || !got[other].Equal(at(0)) {
		t.Errorf("of the first contract: %v", got)
	}
	if got := since(2, a, 5, id); !got[id].Equal(at(2)) {
		t.Errorf("of the same address on another chain: %v", got)
	}
	if got := since(1, b, 6, id); !got[id].Equal(at(6)) {
		t.Errorf("forgotten, and waits since %v", got)
	}
}

// TestRestartOfAWait: what waited for has come, and what came after it is not as old. It makes nobody older.
func TestRestartOfAWait(t *testing.T) {
	ctx := t.Context()
	txs, _ := openStore(t, file(t))
	ids, contract := []common.Hash{{1}, {2}}, common.Address{1}
	at := func(minutes int) time.Time {
		return time.UnixMilli(1_700_000_000_000).Add(time.Duration(minutes) * time.Minute)
	}
	since := func(minute int) map[common.Hash]time.Time {
		t.Helper()
		got, err := txs.Since(ctx, 1, contract, ids, at(minute))
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	since(0)
	for _, restart := range []struct {
		ids []common.Hash
		to  int
	}{{ids[:1], 5}, {ids[:1], 3}, {nil, 9}} {
		if err := txs.Restart(ctx, 1, contract, restart.ids, at(restart.to)); err != nil {
			t.Fatal(err)
		}
	}
	if got := since(9); !got[ids[0]].Equal(at(5)) || !got[ids[1]].Equal(at(0)) {
		t.Errorf("they wait since %v", got)
	}
}

// TestWaitingSinceTomorrow: a clock that is set back makes nobody wait until it is there again.
func TestWaitingSinceTomorrow(t *testing.T) {
	ctx := t.Context()
	txs, _ := openStore(t, file(t))
	id, contract := common.Hash{1}, common.Address{1}
	right := time.UnixMilli(1_700_000_000_000)
	for i, want := range []struct{ now, since time.Time }{
		{right.Add(24 * time.Hour), right.Add(24 * time.Hour)},
		{right, right},
		{right.Add(time.Hour), right},
	} {
		got, err := txs.Since(ctx, 1, contract, []common.Hash{id}, want.now)
		if err != nil || !got[id].Equal(want.since) {
			t.Errorf("look %d at %s: waits since %v, %v; want %s", i, want.now, got[id], err, want.since)
		}
	}
}
