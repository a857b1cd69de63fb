package chain_test

import (
	"context"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/sdk/chain"
)

// Whatever field a receipt lacks: no panic, one clear error, and all is well once the endpoint is.
func TestReceiptWithoutAField(t *testing.T) {
	w := newWorld(t)
	for _, field := range []string{"blockNumber", "blockHash", "status", "gasUsed", "logs", "transactionHash", "cumulativeGasUsed", "logsBloom"} {
		for name, fault := range map[string]badrpc.Fault{"left out": badrpc.Without(field), "null": badrpc.With(field, nil)} {
			t.Run(field+" "+name, func(t *testing.T) {
				s, bad, log := w.badSender(t)
				bad.On(receiptMethod, fault)
				before := w.nonce(t, s.Address())
				id, err := s.Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1)))
				if err != nil {
					t.Fatal(err)
				}
				within(t, "it is mined", func() bool { return w.nonce(t, s.Address()) > before })
				if err := s.Sync(t.Context()); err != nil {
					t.Error(err)
				}
				if said := log.String(); strings.Count(said, chain.ErrAnswer.Error()) != 1 || !strings.Contains(said, "tx="+string(id)) {
					t.Errorf("want one line that the answer is incomplete, got %s", said)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				if _, err := s.Wait(ctx, id, 1); err == nil {
					t.Error("took an incomplete receipt")
				}
				bad.Heal()
				if _, err := s.Wait(t.Context(), id, 1); err != nil {
					t.Error(err)
				}
				if strings.Contains(log.String(), "re-org") {
					t.Error("cried re-org")
				}
			})
		}
	}
}

// A receipt without a price costs what its block's base fee says, never its gas in wei; a rollup's charge for data counts.
func TestCostOfAReceipt(t *testing.T) {
	w := newWorld(t)
	const l1 = 123_456_789_000_000
	for name, faults := range map[string][]badrpc.Fault{
		"no price": {badrpc.Without("effectiveGasPrice")}, "null price": {badrpc.With("effectiveGasPrice", nil)},
		"data charged": {badrpc.With("l1Fee", (*hexutil.Big)(big.NewInt(l1)))},
	} {
		t.Run(name, func(t *testing.T) {
			s, bad, _ := w.badSender(t)
			before := balance(t, w, s)
			bad.On(receiptMethod, faults...)
			result := send(t, s, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1)))
			want := new(big.Int).Sub(before, balance(t, w, s))
			if name == "data charged" {
				want.Add(want, big.NewInt(l1))
			}
			spent, err := s.GasSpent(t.Context())
			if err != nil || spent.Cmp(want) != 0 || result.Cost.Cmp(want) != 0 {
				t.Errorf("spent %s, the result says %s, want %s (%v)", spent, result.Cost, want, err)
			}
		})
	}
}

// On a rollup a call is only affordable with what its data costs, and that counts in what it may cost.
func TestDataFeeIsReckonedWith(t *testing.T) {
	w := newWorld(t)
	s, _, _ := w.badSender(t)
	// returns 10^15 whatever it is asked
	w.RPC(t, nil, "anvil_setCode", "0x420000000000000000000000000000000000000F", "0x66038d7ea4c6800060005260206000f3")
	w.RPC(t, nil, "anvil_setBalance", s.Address(), (*hexutil.Big)(big.NewInt(1_000_000_000_000_000)))
	approve := w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1))
	if _, err := s.Submit(t.Context(), approve); !errors.Is(err, chain.ErrFunds) {
		t.Errorf("its data alone costs all there is: %v", err)
	}
	w.RPC(t, nil, "anvil_setBalance", s.Address(), (*hexutil.Big)(big.NewInt(1e18)))
	w.Automine(t, false)
	if _, err := s.Submit(t.Context(), approve); err != nil {
		t.Fatal(err)
	}
	flying, err := s.InFlight(t.Context())
	if err != nil || len(flying) != 1 {
		t.Fatal(flying, err)
	}
	if price := flying[0].Price(); price.Cmp(big.NewInt(1_250_000_000_000_000)) < 0 {
		t.Errorf("it may cost %s, its data alone costs 1.25e15", price)
	}
}

// A final row is not written again, and a transaction is final when Finality blocks lie over its own and not one before.
func TestFinality(t *testing.T) {
	w := newWorld(t)
	s, bad, _ := w.badSender(t)
	send(t, s, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1)))
	state := func() chain.TxState {
		t.Helper()
		if err := s.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		all, err := s.Recent(t.Context(), time.Now().Add(-time.Hour), chain.Approve)
		if err != nil || len(all) != 1 {
			t.Fatal(all, err)
		}
		return all[0].State
	}
	w.Mine(t, int(s.Finality)-1)
	if got := state(); got != chain.Mined {
		t.Fatalf("%s after %d blocks, final is %d", got, s.Finality-1, s.Finality)
	}
	w.Mine(t, 1)
	if got := state(); got != chain.Final {
		t.Fatalf("%s after %d blocks", got, s.Finality)
	}
	before, err := s.GasSpent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bad.On(receiptMethod, badrpc.With("status", "0x0"))
	w.looks(t, s, 3)
	after, err := s.GasSpent(t.Context())
	if err != nil || after.Cmp(before) != 0 || state() != chain.Final {
		t.Errorf("%s became %s (%v)", before, after, err)
	}
}
