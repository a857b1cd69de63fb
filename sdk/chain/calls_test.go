package chain_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/chain"
)

const far = 1 << 40 // unix seconds

// Every entry point of the escrow, called as the SDK calls it, on a real chain, balances checked to the base unit.
func TestEveryCall(t *testing.T) {
	w := newWorld(t)
	payer, payee := w.sender(t, w.Keys[0]), w.sender(t, w.Keys[1])
	ctx := t.Context()
	amount := func(n uint64) uint256.Int { return *uint256.NewInt(n) }

	// Open by the payer's own transaction, top up, settle, close.
	first := w.terms(1)
	send(t, payer, w.token.ApproveCall(w.escrow.Address(), amount(1500)))
	send(t, payer, w.escrow.OpenCall(first, amount(1000)))
	send(t, payer, w.escrow.TopUpCall(first, amount(500)))
	v := w.voucher(t, first, 700)
	send(t, payee, w.escrow.SettleCall(first, v.Accepted, v.Signature))
	if got := w.view(t, first); got.Deposit != amount(1500) || got.Settled != amount(700) || got.Finalized {
		t.Fatalf("after open, top up, settle: %+v", got)
	}
	v = w.voucher(t, first, 900)
	send(t, payee, w.escrow.CloseCall(first, v.Accepted, v.Signature))
	if got := w.view(t, first); !got.Finalized || got.Settled != amount(900) {
		t.Fatalf("after close: %+v", got)
	}

	// Open and top up gaslessly, batch, close by the payee's signature in somebody else's transaction.
	second := w.open(t, payee, 2, 2000)
	salt := common.HexToHash("0x77")
	topUp := w.authorize(t, 300, channel.TopUpNonce(second.ID(), amount(300), w.payer.Address(), salt))
	send(t, payee, w.escrow.TopUpAuthorizedCall(second, salt, topUp))
	batch, err := w.escrow.SettleBatchCall(second.Payee, second.Token, []channel.State{w.voucher(t, second, 2100)})
	if err != nil {
		t.Fatal(err)
	}
	send(t, payer, batch)
	if got := w.view(t, second); got.Deposit != amount(2300) || got.Settled != amount(2100) {
		t.Fatalf("after gasless open, top up, batch: %+v", got)
	}
	domain := w.escrow.Domain()
	permission, err := w.payee.Sign(ctx, domain.CloseDigest(second.ID(), amount(2100), far))
	if err != nil {
		t.Fatal(err)
	}
	send(t, payer, w.escrow.CloseAuthorizedCall(second, amount(2100), nil, far, permission))

	// Leave by force, by the payer's own transaction and by its signature.
	third, fourth := w.open(t, payee, 3, 400), w.open(t, payee, 4, 600)
	send(t, payer, w.escrow.RequestCloseCall(third))
	requests, err := w.escrow.CloseRequests(ctx, fourth.ID())
	if err != nil || requests != 0 {
		t.Fatalf("close requests: %d, %v", requests, err)
	}
	request, err := w.payer.Sign(ctx, domain.RequestCloseDigest(fourth.ID(), requests, far))
	if err != nil {
		t.Fatal(err)
	}
	send(t, payee, w.escrow.RequestCloseAuthorizedCall(fourth, far, request))
	if requests, err = w.escrow.CloseRequests(ctx, fourth.ID()); err != nil || requests != 1 {
		t.Fatalf("close requests: %d, %v", requests, err)
	}
	if got := w.view(t, fourth); got.CloseRequestedAt == 0 {
		t.Fatalf("after request close: %+v", got)
	}
	w.AdvanceTime(t, chaintest.Grace)
	send(t, payee, w.escrow.WithdrawCall(third))
	send(t, payee, w.escrow.WithdrawCall(fourth))

	if got := w.Tokens(t, w.payee.Address()); got != 900+2100 {
		t.Errorf("payee has %d, want 3000", got)
	}
	if got := w.Tokens(t, w.payer.Address()); got != 1_000_000_000-3000 {
		t.Errorf("payer has %d, want %d", got, 1_000_000_000-3000)
	}
	if got := w.Tokens(t, w.escrow.Address()); got != 0 {
		t.Errorf("escrow keeps %d", got)
	}
}

// A bad row in the middle of a batch costs the others nothing, and each row's place and reason is read from the events.
func TestBatchWithBadRows(t *testing.T) {
	w := newWorld(t)
	payee := w.sender(t, w.Keys[1])
	var rows []channel.State
	for salt := range byte(5) {
		rows = append(rows, w.voucher(t, w.open(t, payee, salt, 100), uint64(10*(salt+1))))
	}
	rows[1].Signature = append([]byte(nil), rows[0].Signature...)          // another channel's
	rows[2] = w.voucher(t, w.terms(200), 5)                                // never opened
	rows[3] = w.voucher(t, rows[3].Terms, 101)                             // over the deposit
	rows = append(rows, w.voucher(t, rows[0].Terms, 1))                    // stale after row 0
	named := w.terms(9)                                                    // a signer of its own, and a long salt
	named.Salt, named.AuthorizedSigner = common.MaxHash, w.payer.Address() //
	send(t, payee, w.escrow.OpenAuthorizedCall(named, w.authorize(t, 50, channel.OpenNonce(named.Payer, named))))
	rows = append(rows, w.voucher(t, named, 50))

	call, err := w.escrow.SettleBatchCall(w.payee.Address(), w.Token, rows)
	if err != nil {
		t.Fatal(err)
	}
	result := send(t, payee, call)
	// The salts of rows 0 and 5 are shorter than the others', and the last row names its signer: three groups.
	place := []uint64{0, 2, 3, 4, 5, 1, 6}
	want := map[int]chain.SkipReason{1: chain.BadSignature, 2: chain.Unknown, 3: chain.ExceedsDeposit, 5: chain.Stale}
	for _, skipped := range w.escrow.Skipped(result.Receipt) {
		row := slices.Index(place, skipped.Row)
		if want[row] != skipped.Reason || skipped.Channel != rows[row].ID {
			t.Errorf("row %d of channel %s: %s", skipped.Row, skipped.Channel, skipped.Reason)
		}
		delete(want, row)
	}
	if len(want) > 0 {
		t.Errorf("not reported: %v", want)
	}
	if got := w.Tokens(t, w.payee.Address()); got != 10+50+50 {
		t.Errorf("payee has %d, want 110", got)
	}
}

func TestBatchRefusesWhatWouldSpoilIt(t *testing.T) {
	w := newWorld(t)
	good := w.voucher(t, w.terms(1), 10)
	stranger, short, huge := good, good, good
	stranger.Terms.Payee = common.Address{1}
	short.Signature = good.Signature[:64]
	huge.Accepted = *new(uint256.Int).Lsh(uint256.NewInt(1), 96)
	for _, bad := range []channel.State{stranger, short, huge} {
		if _, err := w.escrow.SettleBatchCall(w.payee.Address(), w.Token, []channel.State{good, bad}); err == nil {
			t.Errorf("packed %+v", bad)
		}
	}
}

// What the contract refuses comes back by name, before any gas is spent.
func TestSimulateNamesTheRefusal(t *testing.T) {
	w := newWorld(t)
	payee := w.sender(t, w.Keys[1])
	terms := w.open(t, payee, 1, 100)
	over, forged := w.voucher(t, terms, 101), w.voucher(t, terms, 50)
	forged.Signature = w.voucher(t, terms, 51).Signature
	cases := map[string]chain.Call{
		"ExceedsDeposit":    w.escrow.SettleCall(terms, over.Accepted, over.Signature),
		"InvalidSignature":  w.escrow.SettleCall(terms, forged.Accepted, forged.Signature),
		"UnknownChannel":    w.escrow.WithdrawCall(w.terms(2)),
		"CloseNotRequested": w.escrow.WithdrawCall(terms),
		"NotPayer":          w.escrow.RequestCloseCall(terms),
	}
	for name, call := range cases {
		for _, err := range []error{
			w.escrow.Simulate(t.Context(), w.payee.Address(), call),
			func() error { _, err := payee.Submit(t.Context(), call); return err }(),
		} {
			var reverted *chain.Revert
			if !errors.As(err, &reverted) || reverted.Name != name {
				t.Errorf("want %s, got %v", name, err)
			}
		}
	}
	flying, err := payee.InFlight(t.Context())
	if err != nil || len(flying) != 0 {
		t.Errorf("refused calls are in the outbox: %v, %v", flying, err)
	}
}
