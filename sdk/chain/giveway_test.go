package chain_test

import (
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common/hexutil"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
)

// gift is an open that somebody else signed, with a budget.
func (w *world) gift(t *testing.T, salt byte, budget *big.Int) (chain.Call, channel.Terms) {
	t.Helper()
	terms := w.terms(salt)
	call := w.escrow.OpenAuthorizedCall(terms, w.authorize(t, 1000, channel.OpenNonce(terms.Payer, terms)))
	call.Budget = budget
	return call, terms
}

// at mines blocks with a base fee of so many times a gwei while the sender looks.
func (w *world) at(t *testing.T, s *chain.Sender, gwei int64, blocks int) {
	t.Helper()
	for range blocks {
		w.RPC(t, nil, "anvil_setNextBlockBaseFeePerGas", (*hexutil.Big)(big.NewInt(gwei*1e9)))
		w.looks(t, s, 1)
	}
}

func (w *world) tx(t *testing.T, s *chain.Sender, id chain.TxID, terms channel.Terms) chain.Tx {
	t.Helper()
	all, err := s.Find(t.Context(), terms.ID())
	if err != nil {
		t.Fatal(err)
	}
	for _, tx := range all {
		if tx.ID == id {
			return tx
		}
	}
	t.Fatalf("transaction %s is gone", id)
	return chain.Tx{}
}

// Fees rise a hundredfold while three transactions for others stand before a settlement: the settlement is mined, and the
// others cost a nonce each.
func TestGiftsGiveWayToASettlement(t *testing.T) {
	w := newWorld(t)
	s := w.sender(t, w.Keys[1])
	s.Stuck, s.Resend = 100*time.Millisecond, 50*time.Millisecond
	terms := w.open(t, s, 1, 1000)
	v := w.voucher(t, terms, 600)
	w.Automine(t, false)
	budget := big.NewInt(2e15)
	var gifts []chain.TxID
	var of []channel.Terms
	for salt := range byte(3) {
		call, terms := w.gift(t, 2+salt, budget)
		id, err := s.Submit(t.Context(), call)
		if err != nil {
			t.Fatal(err)
		}
		gifts, of = append(gifts, id), append(of, terms)
	}
	before := balance(t, w, s)
	w.at(t, s, 100, 8) // nothing waits behind them: they wait as they are, within their budgets
	if spent := new(big.Int).Sub(before, balance(t, w, s)); spent.Sign() != 0 {
		t.Fatalf("%s wei were spent while no fee was enough", spent)
	}
	for i, id := range gifts {
		if tx := w.tx(t, s, id, of[i]); tx.Price().Cmp(budget) > 0 || !tx.GivesWay() {
			t.Errorf("one may cost %s of %s", tx.Price(), budget)
		}
	}
	own, err := s.Submit(t.Context(), w.escrow.SettleCall(terms, v.Accepted, v.Signature))
	if err != nil {
		t.Fatal(err)
	}
	within(t, "the settlement is mined", func() bool {
		w.at(t, s, 100, 1)
		return w.tx(t, s, own, terms).State != chain.Pending
	})
	if settled := w.view(t, terms).Settled; settled.Uint64() != 600 {
		t.Errorf("settled %s", settled.Dec())
	}
	for i, id := range gifts {
		_, err := s.Wait(t.Context(), id, 1)
		var over *chain.Reverted
		if !errors.As(err, &over) || !errors.Is(err, chain.ErrGaveWay) {
			t.Errorf("who waits for it hears %v", err)
		}
		tx := w.tx(t, s, id, of[i])
		if tx.Succeeded || tx.Cost.Cmp(big.NewInt(21_000*102e9)) > 0 { // a nonce's gas at the price of the day
			t.Errorf("succeeded %v, for %s wei", tx.Succeeded, tx.Cost)
		}
	}
	w.Automine(t, true)
	w.RPC(t, nil, "anvil_setNextBlockBaseFeePerGas", (*hexutil.Big)(big.NewInt(1e9)))
	w.Mine(t, 1)
	again, over := w.gift(t, 2, budget)
	send(t, s, again) // when fees have fallen it is sent anew
	if v := w.view(t, over); v.Deposit.Uint64() != 1000 {
		t.Errorf("deposit %s", v.Deposit.Dec())
	}
}

// The fee of what is sent for others is raised within its budget, and what can not be is mined when fees fall.
func TestGiftIsRaisedWithinItsBudget(t *testing.T) {
	w := newWorld(t)
	s := w.sender(t, w.Keys[1])
	s.Stuck, s.Resend = 100*time.Millisecond, 50*time.Millisecond
	w.Automine(t, false)
	call, terms := w.gift(t, 1, big.NewInt(1e18))
	id, err := s.Submit(t.Context(), call)
	if err != nil {
		t.Fatal(err)
	}
	first := w.tx(t, s, id, terms).Attempts[0].Signed
	most := new(big.Int).Mul(first.GasFeeCap(), new(big.Int).SetUint64(2*first.Gas()))
	w.RPC(t, nil, "anvil_dropAllTransactions")
	w.RPC(t, nil, "anvil_setNextBlockBaseFeePerGas", (*hexutil.Big)(new(big.Int).Div(new(big.Int).Mul(first.GasFeeCap(), big.NewInt(3)), big.NewInt(2))))
	w.Mine(t, 1)
	within(t, "its fee is raised", func() bool {
		w.looks(t, s, 1)
		return len(w.tx(t, s, id, terms).Attempts) > 1
	})
	w.at(t, s, 100, 8)
	tx := w.tx(t, s, id, terms)
	for _, a := range tx.Attempts {
		if price := new(big.Int).Mul(a.Signed.GasFeeCap(), new(big.Int).SetUint64(a.Signed.Gas())); price.Cmp(most) > 0 || len(a.Signed.Data()) == 0 {
			t.Errorf("a version may cost %s of %s wei", price, most)
		}
	}
	within(t, "it is mined when fees fall", func() bool {
		w.at(t, s, 1, 1)
		return w.tx(t, s, id, terms).Succeeded
	})
	if tx = w.tx(t, s, id, terms); tx.Cost.Cmp(most) > 0 {
		t.Errorf("it cost %s of %s wei", tx.Cost, most)
	}
}

// A transaction that was given up may be mined before what uses up its nonce: then it is what counts.
func TestGiftIsMinedAfterAll(t *testing.T) {
	w := newWorld(t)
	s := w.sender(t, w.Keys[1])
	s.Stuck, s.Resend = 100*time.Millisecond, time.Hour
	setup := w.sender(t, w.Keys[2])
	settled := w.open(t, setup, 9, 1000)
	v := w.voucher(t, settled, 600)
	w.Automine(t, false)
	call, terms := w.gift(t, 1, big.NewInt(1))
	id, err := s.Submit(t.Context(), call)
	if err != nil {
		t.Fatal(err)
	}
	own, err := s.Submit(t.Context(), w.escrow.SettleCall(settled, v.Accepted, v.Signature))
	if err != nil {
		t.Fatal(err)
	}
	within(t, "it is given up", func() bool {
		w.at(t, s, 100, 1)
		return len(w.tx(t, s, id, terms).Attempts) > 1
	})
	w.RPC(t, nil, "anvil_dropAllTransactions")
	w.RPC(t, nil, "anvil_setNextBlockBaseFeePerGas", (*hexutil.Big)(big.NewInt(1e9)))
	w.Mine(t, 1)
	if err := w.Backend.SendTransaction(t.Context(), w.tx(t, s, id, terms).Attempts[0].Signed); err != nil {
		t.Fatal(err)
	}
	s.Resend = 50 * time.Millisecond
	within(t, "both are mined", func() bool {
		w.at(t, s, 1, 1)
		return w.tx(t, s, own, settled).Succeeded && w.tx(t, s, id, terms).Succeeded
	})
	if _, err := s.Wait(t.Context(), id, 1); err != nil {
		t.Error(err)
	}
	if n := w.nonce(t, s.Address()); n != 2 {
		t.Errorf("nonce %d", n)
	}
}

// What is sent for somebody else and there is no coin to raise gives way as well: to use up its nonce takes less.
func TestGiftThatCannotBePaidGivesWay(t *testing.T) {
	w := newWorld(t)
	s := w.sender(t, w.Keys[1])
	s.Stuck, s.Resend = 100*time.Millisecond, 50*time.Millisecond
	terms := w.open(t, s, 1, 1000)
	v := w.voucher(t, terms, 600)
	w.Automine(t, false)
	call, of := w.gift(t, 2, big.NewInt(1e18))
	id, err := s.Submit(t.Context(), call)
	if err != nil {
		t.Fatal(err)
	}
	own, err := s.Submit(t.Context(), w.escrow.SettleCall(terms, v.Accepted, v.Signature))
	if err != nil {
		t.Fatal(err)
	}
	tx := w.tx(t, s, id, of)
	first := tx.Price()
	coin := new(big.Int).Div(new(big.Int).Mul(first, big.NewInt(9)), big.NewInt(10)) // for the nonce alone, at thrice the fee
	w.RPC(t, nil, "anvil_setBalance", s.Address(), (*hexutil.Big)(coin))
	dear := new(big.Int).Div(new(big.Int).Mul(tx.Attempts[0].Signed.GasFeeCap(), big.NewInt(3)), big.NewInt(2)) // within its budget
	within(t, "it gives way", func() bool {
		w.RPC(t, nil, "anvil_setNextBlockBaseFeePerGas", (*hexutil.Big)(dear))
		w.looks(t, s, 1)
		return w.tx(t, s, id, of).State != chain.Pending
	})
	if _, err := s.Wait(t.Context(), id, 1); !errors.Is(err, chain.ErrGaveWay) {
		t.Errorf("who waits for it hears %v", err)
	}
	w.RPC(t, nil, "anvil_setBalance", s.Address(), (*hexutil.Big)(big.NewInt(1e18)))
	within(t, "the settlement is mined", func() bool {
		w.looks(t, s, 1)
		return w.tx(t, s, own, terms).State != chain.Pending
	})
	if settled := w.view(t, terms).Settled; settled.Uint64() != 600 {
		t.Errorf("settled %s", settled.Dec())
	}
}
