package chain_test

import (
	"fmt"
	"math/big"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/chain"
)

const estimateMethod = "eth_estimateGas"

// One of two endpoints says that everything takes more gas than is given away, or costs more: what is sent for others is sent all the
// same, within what it may take. What both say takes too much is refused.
func TestOneEndpointRefusesNoGift(t *testing.T) {
	w := newWorld(t)
	const maxGas = 400_000
	price := big.NewInt(3e9) // the base fee is 1 gwei at most, and so is the tip
	dear := map[string]func(*badrpc.Endpoint){
		"gas": func(e *badrpc.Endpoint) { e.On(estimateMethod, badrpc.Says("0x4e200")) },
		"tip": func(e *badrpc.Endpoint) { e.On(tipMethod, badrpc.Says(hexutil.EncodeUint64(40e9))) },
		"base fee": func(e *badrpc.Endpoint) {
			e.On("eth_getBlockByNumber", badrpc.With("baseFeePerGas", hexutil.EncodeUint64(60e9)))
		},
	}
	salt := byte(0)
	for name, ill := range dear {
		for place := range 3 {
			t.Run(fmt.Sprintf("%s, place %d", name, place), func(t *testing.T) {
				s := w.sender(t, w.Keys[1])
				backend, one, two, _ := w.pair(t)
				s.Backend = backend
				if place != 1 {
					ill(one)
				}
				if place != 0 {
					ill(two)
				}
				salt++
				call, terms := w.gift(t, salt, big.NewInt(1e18))
				call.MaxGas, call.MaxCost = maxGas, new(big.Int).Mul(price, big.NewInt(maxGas))
				id, err := s.Submit(t.Context(), call)
				if place == 2 {
					if name != "tip" && err == nil {
						t.Error("both say that it takes too much, and it is sent")
					}
					return
				}
				if err != nil {
					t.Fatalf("one endpoint alone has it refused: %v", err)
				}
				if _, err := s.Wait(t.Context(), id, 1); err != nil {
					t.Error(err)
				}
				tx := w.tx(t, s, id, terms)
				if tx.Gas > maxGas || tx.Attempts[0].Signed.GasFeeCap().Cmp(new(big.Int).Div(call.MaxCost, new(big.Int).SetUint64(tx.Gas))) > 0 {
					t.Errorf("it is given %d gas at %s wei", tx.Gas, tx.Attempts[0].Signed.GasFeeCap())
				}
			})
		}
	}
}

// What gave way to a settlement, and what reverted for another reason than gas, is sent with no more gas than before.
func TestOnlyWhatRanOutIsGivenMore(t *testing.T) {
	w := newWorld(t)
	s := w.sender(t, w.Keys[1])
	s.Stuck, s.Resend = 100*time.Millisecond, 50*time.Millisecond
	terms := w.open(t, s, 1, 1000)
	w.Automine(t, false)
	var first uint64
	for round := range 2 {
		v := w.voucher(t, terms, uint64(100*(round+1)))
		call, of := w.gift(t, 2, big.NewInt(2e15))
		id, err := s.Submit(t.Context(), call)
		if err != nil {
			t.Fatal(err)
		}
		gas := w.tx(t, s, id, of).Gas
		if first == 0 {
			first = gas
		}
		if gas > first+first/8 {
			t.Errorf("after it gave way it is given %d gas, and %d before", gas, first)
		}
		w.at(t, s, 100, 6)
		own, err := s.Submit(t.Context(), w.escrow.SettleCall(terms, v.Accepted, v.Signature))
		if err != nil {
			t.Fatal(err)
		}
		within(t, "it gives way", func() bool {
			w.at(t, s, 100, 1)
			return w.tx(t, s, own, terms).State != chain.Pending && w.tx(t, s, id, of).State != chain.Pending
		})
		w.RPC(t, nil, "anvil_setNextBlockBaseFeePerGas", (*hexutil.Big)(big.NewInt(1e9)))
		w.Mine(t, 1)
	}
	topUp := func(salt common.Hash) chain.Call {
		nonce := channel.TopUpNonce(terms.ID(), *uint256.NewInt(300), w.payer.Address(), salt)
		return w.escrow.TopUpAuthorizedCall(terms, salt, w.authorize(t, 300, nonce))
	}
	blind := badrpc.New(t, w.URL) // to what is in the block in the making
	blind.On(estimateMethod, badrpc.Says("0x18000"))
	backend, err := chain.Connect(t.Context(), blind.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	s = &chain.Sender{Backend: backend, Key: s.Key, Store: s.Store, Poll: s.Poll, Stuck: s.Stuck, Resend: s.Resend}
	var ids []chain.TxID
	for range 2 { // of one authorization: the second reverts
		id, err := s.Submit(t.Context(), topUp(common.Hash{1}))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	w.Automine(t, true)
	w.Mine(t, 1)
	within(t, "the second reverts", func() bool {
		w.looks(t, s, 1)
		return w.tx(t, s, ids[0], terms).State != chain.Pending && w.tx(t, s, ids[1], terms).State != chain.Pending
	})
	if w.tx(t, s, ids[0], terms).Succeeded == w.tx(t, s, ids[1], terms).Succeeded {
		t.Fatal("one of two top-ups of one authorization does not revert")
	}
	before := w.tx(t, s, ids[0], terms).Gas
	id, err := s.Submit(t.Context(), topUp(common.Hash{2}))
	if err != nil {
		t.Fatal(err)
	}
	if gas := w.tx(t, s, id, terms).Gas; gas > before+before/8 {
		t.Errorf("after one reverted for another reason the next is given %d gas, and %d before", gas, before)
	}
}

// What ran out of gas is sent with more, up to what such a call may take, and no further than it is allowed.
func TestWhatRanOutIsGivenMore(t *testing.T) {
	w := newWorld(t)
	s := w.sender(t, w.Keys[1])
	low := badrpc.New(t, w.URL)
	low.On(estimateMethod, badrpc.Says("0x1"))
	var err error
	if s.Backend, err = chain.Connect(t.Context(), low.URL, nil); err != nil {
		t.Fatal(err)
	}
	call, terms := w.gift(t, 1, big.NewInt(1e18))
	call.Kind, call.MaxGas = chain.RequestClose, 120_000 // takes less than it: the least gas is too little
	var given []uint64
	for range 4 {
		id, err := s.Submit(t.Context(), call)
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Wait(t.Context(), id, 1)
		tx := w.tx(t, s, id, terms)
		given = append(given, tx.Gas)
		if tx.RanOut == (err == nil) {
			t.Fatalf("given %d gas: ran out %t, %v", given, tx.RanOut, err)
		}
		if err == nil {
			break
		}
	}
	if n := len(given); n < 2 || given[1] < 2*given[0] || given[n-1] > call.MaxGas || w.view(t, terms).Deposit != *uint256.NewInt(1000) {
		t.Errorf("given %d gas", given)
	}
}

// An only endpoint says that everything takes 1 gas: whatever is called, with nothing warm, is given enough all the same.
func TestEveryKindFitsInItsLeastGas(t *testing.T) {
	d := newDesk(t)
	w := d.world
	done := make(map[chain.Kind]uint64)
	low := badrpc.New(t, w.URL)
	low.On(estimateMethod, badrpc.Says("0x1"))
	backend, err := chain.Connect(t.Context(), low.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	d.payers.Backend, d.others.Backend, d.sender.Backend = backend, backend, backend
	payer, payee := d.payers, d.sender
	must := func(s *chain.Sender, call chain.Call) {
		t.Helper()
		r := send(t, s, call)
		done[call.Kind] = max(done[call.Kind], r.Receipt.GasUsed)
		t.Logf("%s used %d gas, its least is %d", call.Kind, r.Receipt.GasUsed, chain.LeastGas(call))
	}
	amount := func(n uint64) uint256.Int { return *uint256.NewInt(n) }
	first := w.terms(1)
	first.Payee = w.payee.Address()
	must(payer, w.token.ApproveCall(w.escrow.Address(), amount(1500)))
	must(payer, w.escrow.OpenCall(first, amount(1000)))
	must(payer, w.escrow.TopUpCall(first, amount(500)))
	v := w.voucher(t, first, 700)
	must(payee, w.escrow.SettleCall(first, v.Accepted, v.Signature))
	second := w.terms(2)
	must(payee, w.escrow.OpenAuthorizedCall(second, w.authorize(t, 1000, channel.OpenNonce(second.Payer, second))))
	salt := common.HexToHash("0x77")
	must(payee, w.escrow.TopUpAuthorizedCall(second, salt, w.authorize(t, 300, channel.TopUpNonce(second.ID(), amount(300), w.payer.Address(), salt))))
	everyKind(t, d, must, first, second)
	for _, kind := range chain.Kinds(t) {
		if done[kind] == 0 {
			t.Errorf("%s was not tried", kind)
		}
	}
}

// everyKind makes the other calls of the two contracts.
func everyKind(t *testing.T, d *desk, must func(*chain.Sender, chain.Call), first, second channel.Terms) {
	t.Helper()
	w, payer, payee, ctx := d.world, d.payers, d.sender, t.Context()
	batch, err := w.escrow.SettleBatchCall(second.Payee, second.Token, []channel.State{w.voucher(t, first, 800), w.voucher(t, second, 100)})
	if err != nil {
		t.Fatal(err)
	}
	must(payer, batch)
	sign := func(digest common.Hash) []byte {
		signature, err := w.payer.Sign(ctx, digest)
		if err != nil {
			t.Fatal(err)
		}
		return signature
	}
	domain := w.escrow.Domain()
	must(payee, w.escrow.RequestCloseAuthorizedCall(first, far, sign(domain.RequestCloseDigest(first.ID(), 0, far))))
	must(payee, w.escrow.CancelCloseAuthorizedCall(first, far, sign(domain.CancelCloseDigest(first.ID(), 1, far))))
	must(payer, w.escrow.RequestCloseCall(first))
	v := w.voucher(t, second, 900)
	resume := w.PauseToken(t)
	permission, err := w.payee.Sign(ctx, domain.CloseDigest(second.ID(), v.Accepted, far))
	if err != nil {
		t.Fatal(err)
	}
	must(payer, w.escrow.CloseAuthorizedCall(second, v.Accepted, v.Signature, far, permission))
	resume()
	w.AdvanceTime(t, chaintest.Grace)
	must(payee, w.escrow.WithdrawCall(first))
	must(payer, w.escrow.WithdrawCreditAuthorizedCall(w.payer.Address(), w.Token, common.HexToAddress("0xe15e"), far,
		sign(domain.WithdrawCreditDigest(w.payer.Address(), w.Token, common.HexToAddress("0xe15e"), 0, far))))

	terms := d.config(1)
	must(d.others, d.contract.DepositCall(terms, common.Hash{8}, d.authorizeDeposit(terms.ID(), 1000, common.Hash{8})))
	must(d.others, d.contract.DepositCall(terms, common.Hash{9}, d.authorizeDeposit(terms.ID(), 1000, common.Hash{9})))
	d.register(terms)
	d.serve(terms, 500, 300)
	must(d.sender, d.claimCall(terms))
	call, _, err := d.contract.PayoutCall(ctx, d.receiver, d.Token)
	if err != nil {
		t.Fatal(err)
	}
	must(d.others, call)
	must(d.payers, d.contract.InitiateWithdrawCall(terms, *uint256.NewInt(600)))
	w.AdvanceTime(t, 16*time.Minute)
	must(d.payers, d.contract.FinalizeWithdrawCall(terms))
	d.check()
	d.serve(terms, 700, 600)
	must(d.sender, d.refundCall(d.kept(terms), *uint256.NewInt(1_000_000)))
}
