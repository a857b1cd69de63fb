package chain_test

import (
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/sdk/chain"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// The outbox keeps its promises on PostgreSQL as in a file.
func TestOutbox(t *testing.T) {
	t.Run(onPostgres, func(t *testing.T) {
		t.Run("Restart", TestRestartBetweenDiskAndBroadcast)
		t.Run("Displaced", TestDisplacedTransactionGetsANewNonce)
		t.Run("Reorg", TestReorgedTransactionIsSentAgainOnce)
		t.Run("Final", TestFinalTransactionsLeaveTheOutbox)
	})
}

// Three processes with one key and one database submit at once: each nonce is
// used once, and those that only follow hear what became of theirs.
func TestProcessesShareAKey(t *testing.T) {
	w := newWorld(t)
	address := pgtest.URL(t)
	const processes, each = 3, 15
	type sent struct {
		sender *chain.Sender
		id     chain.TxID
	}
	all := make(chan sent, processes*each)
	for p := range processes {
		outbox, _ := openStore(t, address)
		s := &chain.Sender{Backend: w.Backend, Key: channel.NewKey(w.Keys[0]), Store: outbox, Poll: 20 * time.Millisecond, Follow: p > 0, Log: slog.New(slog.DiscardHandler)}
		if p == 0 {
			go func() { _ = s.Run(t.Context()) }()
		}
		for i := range uint64(each) {
			go func() {
				id, err := s.Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(i)))
				if err != nil {
					t.Error(err)
				}
				all <- sent{s, id}
			}()
		}
	}
	hashes := make(map[string]bool)
	for range processes * each {
		tx := <-all
		if tx.id == "" {
			continue
		}
		result, err := tx.sender.Wait(t.Context(), tx.id, 1)
		if err != nil {
			t.Fatal(err)
		}
		hashes[result.Hash.Hex()] = true
	}
	if got := w.nonce(t, w.payer.Address()); got != processes*each || len(hashes) != processes*each {
		t.Errorf("nonce %d, %d transactions; want %d", got, len(hashes), processes*each)
	}
}
