package chain_test

import (
	"errors"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/chain"
)

// A token that is paused from the settlement to after the withdrawal costs neither side anything: what it refused is
// credited, and fetched by the account, by anyone for the account, or by its signature to another address.
func TestCredit(t *testing.T) {
	w := newWorld(t)
	payer, payee := w.sender(t, w.Keys[0]), w.sender(t, w.Keys[1])
	ctx := t.Context()
	terms := w.open(t, payee, 1, 1000)
	if _, due, err := w.escrow.PayoutCall(ctx, w.payee.Address(), w.Token); err != nil || !due.IsZero() {
		t.Fatalf("before anything was refused: %s due, %v", due.Dec(), err)
	}

	resume := w.PauseToken(t)
	v := w.voucher(t, terms, 700)
	settled := send(t, payee, w.escrow.SettleCall(terms, v.Accepted, v.Signature))
	credited := w.escrow.Credited(settled.Receipt)
	want := chain.Credited{Account: w.payee.Address(), Token: w.Token, Amount: *uint256.NewInt(700)}
	if len(credited) != 1 || credited[0] != want {
		t.Fatalf("the receipt says %+v, want %+v", credited, want)
	}
	head := w.Head(t)
	touched, err := w.escrow.Touched(ctx, head, head)
	if err != nil || len(touched) != 1 || !touched[terms.ID()] {
		t.Errorf("touched: %v, %v: an account is no channel", touched, err)
	}
	send(t, payer, w.escrow.RequestCloseCall(terms))
	w.AdvanceTime(t, chaintest.Grace)
	send(t, payee, w.escrow.WithdrawCall(terms))
	if got := w.view(t, terms); !got.Finalized || got.Settled.Uint64() != 700 {
		t.Fatalf("after the withdrawal: %+v", got)
	}
	call, due, err := w.escrow.PayoutCall(ctx, w.payee.Address(), w.Token)
	if err != nil || due.Uint64() != 700 {
		t.Fatalf("%s due, %v", due.Dec(), err)
	}
	var refused *chain.Revert
	if err := w.escrow.Simulate(ctx, w.payer.Address(), call); !errors.As(err, &refused) || refused.Name != "TransferFailed" {
		t.Errorf("fetching it from a paused token: %v", err)
	}

	resume()
	send(t, payer, call) // by anyone
	elsewhere := common.HexToAddress("0xe15e")
	permission, err := w.payer.Sign(ctx, w.escrow.Domain().WithdrawCreditDigest(w.payer.Address(), w.Token, elsewhere, 0, far))
	if err != nil {
		t.Fatal(err)
	}
	send(t, payee, w.escrow.WithdrawCreditAuthorizedCall(w.payer.Address(), w.Token, elsewhere, far, permission))
	if a, b, c := w.Tokens(t, w.payee.Address()), w.Tokens(t, elsewhere), w.Tokens(t, w.escrow.Address()); a != 700 || b != 300 || c != 0 {
		t.Errorf("payee %d, elsewhere %d, escrow %d", a, b, c)
	}
	credit, err := w.escrow.Credit(ctx, w.payer.Address(), w.Token, nil)
	if err != nil || !credit.Amount.IsZero() || credit.Withdrawals != 1 {
		t.Errorf("what is left: %+v, %v", credit, err)
	}
	err = w.escrow.Simulate(ctx, w.payee.Address(), w.escrow.WithdrawCreditCall(w.Token, elsewhere))
	if !errors.As(err, &refused) || refused.Name != "NoCredit" {
		t.Errorf("fetching what was fetched: %v", err)
	}
}

// A payer takes its close request back by a signature that somebody else sends; it works once.
func TestCancelClose(t *testing.T) {
	w := newWorld(t)
	payee := w.sender(t, w.Keys[1])
	ctx := t.Context()
	terms := w.open(t, payee, 1, 1000)
	sign := func(digest common.Hash) []byte {
		signature, err := w.payer.Sign(ctx, digest)
		if err != nil {
			t.Fatal(err)
		}
		return signature
	}
	request := func() uint64 {
		nonce, err := w.escrow.CloseRequests(ctx, terms.ID())
		if err != nil {
			t.Fatal(err)
		}
		send(t, payee, w.escrow.RequestCloseAuthorizedCall(terms, far, sign(w.escrow.Domain().RequestCloseDigest(terms.ID(), nonce, far))))
		return nonce + 1
	}
	nonce := request()
	cancel := w.escrow.CancelCloseAuthorizedCall(terms, far, sign(w.escrow.Domain().CancelCloseDigest(terms.ID(), nonce, far)))
	send(t, payee, cancel)
	if got := w.view(t, terms); got.CloseRequestedAt != 0 || got.Finalized {
		t.Fatalf("after the cancellation: %+v", got)
	}
	request()
	var refused *chain.Revert
	if err := w.escrow.Simulate(ctx, w.payee.Address(), cancel); !errors.As(err, &refused) || refused.Name != "InvalidSignature" {
		t.Errorf("a second time: %v", err)
	}
	if got := w.view(t, terms); got.CloseRequestedAt == 0 {
		t.Errorf("the second request is gone: %+v", got)
	}
}
