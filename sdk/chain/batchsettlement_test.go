package chain_test

import (
	"context"
	"math/big"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/bindings/batchsettlement/standin"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
)

func TestBatchSettlementIsLookedFor(t *testing.T) {
	w := newWorld(t)
	_, err := chain.NewBatchSettlement(t.Context(), w.Backend)
	oneLine(t, err, chain.ErrNoContract)

	w.RPC(t, nil, "anvil_setCode", channel.BatchSettlementEscrow, standin.BatchSettlement)
	_, err = chain.NewBatchSettlement(t.Context(), w.Backend) // nothing could be deposited
	oneLine(t, err, chain.ErrNoContract)

	w.PlaceBatchSettlement(t)
	b, err := chain.NewBatchSettlement(t.Context(), w.Backend)
	if err != nil {
		t.Fatal(err)
	}
	if b.ChainID() != 31337 || b.Address() != channel.BatchSettlementEscrow || b.Grace() != 15*time.Minute || b.Domain() != channel.BatchSettlement.Domain(31337, channel.BatchSettlementEscrow) {
		t.Errorf("it is %s on chain %d, %s, %+v", b.Address(), b.ChainID(), b.Grace(), b.Domain())
	}

	for _, other := range []string{standin.ERC3009DepositCollector, hexutil.Encode([]byte{0x60, 0x20, 0x60, 0x00, 0xf3})} { // answers zero
		w.RPC(t, nil, "anvil_setCode", channel.BatchSettlementEscrow, other)
		_, err = chain.NewBatchSettlement(t.Context(), w.Backend)
		oneLine(t, err, chain.ErrNotEscrow)
	}
}

// TestBatchSettlementCalls goes through a channel's life, and at each step somebody tries it who must not.
func TestBatchSettlementCalls(t *testing.T) {
	d := newDesk(t)
	terms := d.config(1)
	salt := common.Hash{7}
	a := d.authorizeDeposit(terms.ID(), 1000, salt)
	other := d.config(2)
	d.refused(d.others, d.contract.DepositCall(other, salt, a), "") // the token's error: it was signed for another channel
	send(t, d.others, d.contract.DepositCall(terms, salt, a))
	d.refused(d.others, d.contract.DepositCall(terms, salt, a), "")
	d.holds(terms, 1000, 0)
	d.holds(other, 0, 0)
	d.register(terms)

	d.serve(terms, 500, 300)
	claim := d.claimCall(terms)
	d.refused(d.others, claim, "NotAuthorizedToClaim")
	d.refused(d.payers, claim, "NotAuthorizedToClaim")
	send(t, d.sender, claim)
	d.holds(terms, 1000, 300) // what was charged, not what was signed for
	d.received(0)

	call, due, err := d.contract.PayoutCall(t.Context(), d.receiver, d.Token)
	if err != nil || due.Uint64() != 300 {
		t.Fatalf("payout is due: %s, %v", due.Dec(), err)
	}
	send(t, d.others, call)
	d.received(300)
	if _, due, err := d.contract.PayoutCall(t.Context(), d.receiver, d.Token); err != nil || !due.IsZero() {
		t.Errorf("after a payout another is due: %s, %v", due.Dec(), err)
	}

	d.refused(d.others, d.contract.InitiateWithdrawCall(terms, *uint256.NewInt(600)), "InvalidChannel")
	d.refused(d.payers, d.contract.InitiateWithdrawCall(terms, *uint256.NewInt(701)), "WithdrawAmountExceedsAvailable")
	d.refused(d.payers, d.contract.FinalizeWithdrawCall(terms), "WithdrawalNotPending")
	send(t, d.payers, d.contract.InitiateWithdrawCall(terms, *uint256.NewInt(600)))
	state := d.on(terms)
	head, err := d.Backend.HeaderByNumber(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if state.Withdrawing.Uint64() != 600 || state.View.CloseRequestedAt != head.Time {
		t.Errorf("withdrawing %s since %d, want 600 since %d", state.Withdrawing.Dec(), state.View.CloseRequestedAt, head.Time)
	}
	d.refused(d.payers, d.contract.FinalizeWithdrawCall(terms), "WithdrawDelayNotElapsed")
	d.AdvanceTime(t, 900*time.Second)
	d.refused(d.others, d.contract.FinalizeWithdrawCall(terms), "NotAuthorizedToFinalizeWithdraw")
	send(t, d.payers, d.contract.FinalizeWithdrawCall(terms))
	d.holds(terms, 400, 300)
	if got := d.on(terms); got.View.CloseRequestedAt != 0 || !got.Withdrawing.IsZero() {
		t.Errorf("after the withdrawal the channel is %+v", got)
	}
}

func (d *desk) claimCall(terms ...channel.Terms) chain.Call {
	d.t.Helper()
	var states []channel.State
	for _, t := range terms {
		states = append(states, d.kept(t))
	}
	call, err := d.contract.SettlementCall(d.t.Context(), states)
	if err != nil {
		d.t.Fatal(err)
	}
	return call
}

func (d *desk) refundCall(s channel.State, most uint256.Int) chain.Call {
	d.t.Helper()
	call, err := d.contract.RefundCall(d.t.Context(), s, most)
	if err != nil {
		d.t.Fatal(err)
	}
	return call
}

// TestRefundTakesNothingEarned: a refund first claims what is payable, and gives back no more than the rest.
func TestRefundTakesNothingEarned(t *testing.T) {
	d := newDesk(t)
	terms := d.fund(1, 1000)
	d.serve(terms, 500, 300)
	before := d.Tokens(t, d.payer.Address())
	all := *uint256.NewInt(1_000_000)
	d.refused(d.others, d.refundCall(d.kept(terms), all), "NotAuthorizedToClaim")
	d.refused(d.payers, d.refundCall(d.kept(terms), all), "NotAuthorizedToClaim")
	forged := d.kept(terms)
	forged.Signature = append([]byte(nil), forged.Signature...)
	forged.Signature[3] ^= 1
	if err := d.contract.Simulate(t.Context(), d.sender.Address(), d.refundCall(forged, all)); err == nil {
		t.Error("a refund was made though its claim is refused")
	}

	send(t, d.sender, d.refundCall(d.kept(terms), *uint256.NewInt(200)))
	d.holds(terms, 800, 300)
	if _, err := d.payee.Observe(t.Context(), terms.ID(), d.on(terms).View); err != nil {
		t.Fatal(err)
	}
	send(t, d.sender, d.refundCall(d.kept(terms), all)) // nothing to claim: the plain call
	d.holds(terms, 300, 300)
	if got := d.Tokens(t, d.payer.Address()) - before; got != 700 {
		t.Errorf("the payer got back %d, want 700", got)
	}
	nonce := d.on(terms).RefundNonce
	if nonce.Uint64() != 2 {
		t.Errorf("refund nonce is %s after two refunds", nonce.Dec())
	}

	d.deposit(terms, 50)
	digest := d.contract.RefundDigest(terms.ID(), nonce, *uint256.NewInt(50))
	signature, err := d.sender.Key.Sign(t.Context(), digest)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := d.signer.Sign(t.Context(), digest)
	if err != nil {
		t.Fatal(err)
	}
	d.refused(d.others, d.contract.RefundSignedCall(terms, *uint256.NewInt(50), nonce, theirs), "InvalidSignature")
	send(t, d.others, d.contract.RefundSignedCall(terms, *uint256.NewInt(50), nonce, signature))
	d.holds(terms, 300, 300)
	d.refused(d.others, d.contract.RefundSignedCall(terms, *uint256.NewInt(50), nonce, signature), "InvalidRefundNonce")
}

// TestPastKeySignsAndAnotherSends: what is due under a key that sends nothing any more is claimed and refunded by whoever
// sends what it signed, in batches too, and by nobody with another key's word.
func TestPastKeySignsAndAnotherSends(t *testing.T) {
	d := newDesk(t)
	one, two := d.fund(1, 1000), d.fund(2, 1000)
	d.serve(one, 500, 300)
	d.serve(two, 400, 200)
	d.refused(d.others, d.claimCall(one), "NotAuthorizedToClaim")
	d.contract.Past = []channel.Signer{d.signer} // not the authorizer of any
	d.refused(d.others, d.claimCall(one, two), "NotAuthorizedToClaim")
	d.contract.Past = []channel.Signer{d.signer, d.sender.Key}
	send(t, d.others, d.claimCall(one, two))
	d.holds(one, 1000, 300)
	d.holds(two, 1000, 200)
	d.serve(two, 600, 450)
	call := d.refundCall(d.kept(two), *uint256.NewInt(1000))
	send(t, d.others, call)
	d.holds(two, 450, 450)
	d.refused(d.others, call, "InvalidRefundNonce")
}

// counted counts what a backend is asked.
type counted struct {
	chain.Backend
	calls int
}

func (c *counted) CallContract(ctx context.Context, msg ethereum.CallMsg, block *big.Int) ([]byte, error) {
	c.calls++
	return c.Backend.CallContract(ctx, msg, block)
}

// TestManyViewsFewRoundTrips: a payee of a thousand channels does not ask for them one by one.
func TestManyViewsFewRoundTrips(t *testing.T) {
	d := newDesk(t)
	first, last := d.fund(1, 1000), d.fund(2, 2000)
	send(t, d.payers, d.contract.InitiateWithdrawCall(last, *uint256.NewInt(5)))
	backend := &counted{Backend: d.Backend}
	contract, err := chain.NewBatchSettlement(t.Context(), backend)
	if err != nil {
		t.Fatal(err)
	}
	ids := make([]common.Hash, 1001)
	for i := range ids {
		ids[i] = common.BytesToHash([]byte{byte(i >> 8), byte(i), 1})
	}
	ids[0], ids[1000] = first.ID(), last.ID()
	backend.calls = 0
	views, head, err := contract.Confirmed(t.Context(), ids, 1)
	if err != nil {
		t.Fatal(err)
	}
	if backend.calls != 3 || head != d.Head(t) || len(views) != len(ids) {
		t.Errorf("%d views as of block %d took %d calls, want 3", len(views), head, backend.calls)
	}
	if v := views[0].View; v.Deposit.Uint64() != 1000 || v.CloseRequestedAt != 0 {
		t.Errorf("the first is %+v", v)
	}
	if v := views[1000].View; v.Deposit.Uint64() != 2000 || v.CloseRequestedAt == 0 {
		t.Errorf("the last is %+v", v)
	}
	if views[500].View != (channel.ChainView{}) {
		t.Errorf("a channel that nobody made is %+v", views[500].View)
	}
}

// TestConfirmedBatchSettlement: money counts when it is deep, a withdrawal at once.
func TestConfirmedBatchSettlement(t *testing.T) {
	d := newDesk(t)
	d.Mine(t, 5)
	terms := d.config(1)
	d.deposit(terms, 1000)
	send(t, d.payers, d.contract.InitiateWithdrawCall(terms, *uint256.NewInt(5)))
	confirmed := func() chain.Confirmed {
		views, _, err := d.contract.Confirmed(t.Context(), []common.Hash{terms.ID()}, 3)
		if err != nil {
			t.Fatal(err)
		}
		return views[0]
	}
	if c := confirmed(); !c.View.Deposit.IsZero() || c.Latest.Deposit.Uint64() != 1000 || !c.Pending() || c.View.CloseRequestedAt == 0 {
		t.Errorf("after two blocks it is %+v", c)
	}
	d.Mine(t, 1)
	if c := confirmed(); c.View.Deposit.Uint64() != 1000 || c.Pending() {
		t.Errorf("after three blocks it is %+v", c)
	}
}

// TestHugeBalance: somebody's worthless token must not keep the other channels from being read.
func TestHugeBalance(t *testing.T) {
	d := newDesk(t)
	terms := d.fund(1, 1000)
	// The slot of this channel in the stand-in's first mapping: balance in the low half.
	slot := common.BytesToHash(keccak(terms.ID(), common.Hash{}))
	d.RPC(t, nil, "anvil_setStorageAt", channel.BatchSettlementEscrow, slot, common.HexToHash("0x00000000000000000000000000000001ffffffffffffffffffffffffffffffff"))
	v := d.on(terms).View
	if v.Deposit.BitLen() != 96 || !v.Settled.Eq(uint256.NewInt(1)) {
		t.Errorf("a balance of 128 bits reads as %s, %s claimed", v.Deposit.Hex(), v.Settled.Dec())
	}
	if _, err := d.payee.Observe(t.Context(), terms.ID(), v); err != nil {
		t.Error(err)
	}
}

func TestTouchedByBatchSettlement(t *testing.T) {
	d := newDesk(t)
	touched := func(from uint64) map[common.Hash]bool {
		ids, err := d.contract.Touched(t.Context(), from, d.Head(t))
		if err != nil {
			t.Fatal(err)
		}
		return ids
	}
	only := func(what string, terms channel.Terms, do func()) {
		t.Helper()
		from := d.Head(t) + 1
		do()
		if ids := touched(from); len(ids) != 1 || !ids[terms.ID()] {
			t.Errorf("%s touches %v, want %s", what, ids, terms.ID())
		}
	}
	terms := d.config(1)
	only("a deposit", terms, func() { d.deposit(terms, 1000) })
	d.register(terms)
	d.serve(terms, 500, 300)
	only("a claim", terms, func() { send(t, d.sender, d.claimCall(terms)) })
	only("a refund", terms, func() {
		send(t, d.sender, d.refundCall(channel.State{ID: terms.ID(), Terms: terms}, *uint256.NewInt(10)))
	})
	only("a withdrawal's start", terms, func() { send(t, d.payers, d.contract.InitiateWithdrawCall(terms, *uint256.NewInt(10))) })
	d.AdvanceTime(t, 900*time.Second)
	only("a withdrawal", terms, func() { send(t, d.payers, d.contract.FinalizeWithdrawCall(terms)) })
	from := d.Head(t) + 1
	call, _, err := d.contract.PayoutCall(t.Context(), d.receiver, d.Token)
	if err != nil {
		t.Fatal(err)
	}
	send(t, d.others, call)
	if ids := touched(from); len(ids) != 0 {
		t.Errorf("a payout touches %v", ids)
	}
}
