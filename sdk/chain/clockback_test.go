package chain_test

import (
	"context"
	"math/big"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
)

// TestOutboxAfterAClockSetBack: a wall clock that is set back, before a look or
// after one, puts off the next broadcast and the next fee by no more than Resend
// and Stuck, which then hold as before.
func TestOutboxAfterAClockSetBack(t *testing.T) {
	for name, looked := range map[string]bool{"by a process that looked before": true, "by one that starts": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			store, _ := openStore(t, file(t))
			wire := &mute{Backend: w.Backend}
			now := time.Now()
			s := &chain.Sender{Backend: wire, Key: w.payer, Store: store, Stuck: time.Hour, Resend: time.Minute, Now: func() time.Time { return now }}
			w.Automine(t, false)
			if _, err := s.Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(7))); err != nil {
				t.Fatal(err)
			}
			if looked {
				s.Sync(t.Context())
			}
			now = now.Add(-30 * 24 * time.Hour)
			step := func(wait time.Duration, broadcasts int64, versions int) {
				t.Helper()
				now = now.Add(wait)
				if err := s.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
				flying, err := s.InFlight(context.Background())
				if err != nil || len(flying) != 1 {
					t.Fatalf("in flight: %v, %v", flying, err)
				}
				if got := wire.broadcast.Load(); got != broadcasts || len(flying[0].Attempts) != versions {
					t.Errorf("%d broadcasts of %d versions, want %d of %d", got, len(flying[0].Attempts), broadcasts, versions)
				}
			}
			step(0, 1, 1) // it was sent now, as far as anybody can tell
			step(59*time.Second, 1, 1)
			step(time.Second, 2, 1)
			step(59*time.Second, 2, 1)
			step(time.Second, 3, 1)
			flying, _ := s.InFlight(t.Context())
			w.RPC(t, nil, "anvil_setNextBlockBaseFeePerGas", (*hexutil.Big)(new(big.Int).Mul(flying[0].Attempts[0].Signed.GasFeeCap(), big.NewInt(2))))
			w.Mine(t, 1) // a block passes it over
			step(57*time.Minute, 4, 1)
			step(time.Minute, 5, 2)
		})
	}
}

// TestBudgetsAfterAClockSetBack: what was sent while the clock was a month ahead counts in every budget from when the clock was
// set back on, for as long as the budget's time and no longer.
func TestBudgetsAfterAClockSetBack(t *testing.T) {
	w := newWorld(t)
	store, db := openStore(t, file(t))
	now := time.Now()
	s := &chain.Sender{Backend: w.Backend, Key: w.payer, Store: store, Now: func() time.Time { return now }}
	about := common.Hash{7}
	if err := store.Sponsor(t.Context(), about, w.payer.Address()); err != nil {
		t.Fatal(err)
	}
	submit := func() {
		t.Helper()
		call := w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(7))
		call.Channels = []common.Hash{about}
		if _, err := s.Submit(t.Context(), call); err != nil {
			t.Fatal(err)
		}
	}
	now = now.Add(30 * 24 * time.Hour)
	submit()
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := db.Update(t.Context(), func(tx *sqlx.Tx) error {
		_, err := tx.Exec(`UPDATE chain_tx SET succeeded = 0`) // as of one that reverted
		return err
	}); err != nil {
		t.Fatal(err)
	}
	w.Automine(t, false)
	submit()
	counts := func(mined, flying bool) {
		t.Helper()
		since := now.Add(-time.Hour)
		all, payers, err := s.Sponsored(t.Context(), since, now, w.payer.Address(), chain.Approve)
		if err != nil || all.Sign() > 0 != mined || payers.Cmp(all) != 0 {
			t.Errorf("sent for others: %s, for the payer %s, %v", all, payers, err)
		}
		lost, risked, err := s.Wasted(t.Context(), since, chain.Approve)
		if err != nil || lost.Sign() > 0 != mined || risked.Sign() > 0 != flying {
			t.Errorf("lost %s, at risk %s, %v", lost, risked, err)
		}
		recent, err := s.Recent(t.Context(), since, chain.Approve)
		if err != nil || len(recent) > 0 != mined || mined && len(recent) != 2 {
			t.Errorf("recent are %d, %v", len(recent), err)
		}
	}
	counts(true, true)
	now = now.Add(-30 * 24 * time.Hour)
	counts(true, true)
	now = now.Add(59 * time.Minute)
	counts(true, true)
	now = now.Add(2 * time.Minute)
	counts(false, true)
}

// TestBudgetsOutliveAKey: what an outbox's key before this one sent counts in every budget: a rotation renews none.
func TestBudgetsOutliveAKey(t *testing.T) {
	w := newWorld(t)
	store, db := openStore(t, file(t))
	about := common.Hash{7}
	if err := store.Sponsor(t.Context(), about, w.payer.Address()); err != nil {
		t.Fatal(err)
	}
	call := w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(7))
	call.Channels = []common.Hash{about}
	spent := func(key *channel.Key) (all, payers, lost *big.Int) {
		t.Helper()
		s := &chain.Sender{Backend: w.Backend, Key: key, Store: store}
		id, err := s.Submit(t.Context(), call)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Wait(t.Context(), id, 1); err != nil {
			t.Fatal(err)
		}
		if err := db.Update(t.Context(), func(tx *sqlx.Tx) error {
			_, err := tx.Exec(`UPDATE chain_tx SET succeeded = 0`) // as of one that reverted
			return err
		}); err != nil {
			t.Fatal(err)
		}
		since := time.Now().Add(-time.Hour)
		if all, payers, err = s.Sponsored(t.Context(), since, time.Now(), w.payer.Address(), chain.Approve); err != nil {
			t.Fatal(err)
		}
		if lost, _, err = s.Wasted(t.Context(), since, chain.Approve); err != nil {
			t.Fatal(err)
		}
		return all, payers, lost
	}
	one, _, _ := spent(w.payee)
	all, payers, lost := spent(w.payer)
	if all.Cmp(one) <= 0 || payers.Cmp(all) != 0 || lost.Cmp(all) != 0 {
		t.Errorf("the first key spent %s; both: %s, for the payer %s, lost %s", one, all, payers, lost)
	}
}
