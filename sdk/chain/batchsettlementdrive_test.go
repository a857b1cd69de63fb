package chain_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/settle"
)

func keccak(words ...common.Hash) []byte {
	var data []byte
	for _, w := range words {
		data = append(data, w[:]...)
	}
	return crypto.Keccak256(data)
}

// transactions is how many transactions an account has sent.
func (d *desk) transactions(of common.Address) uint64 {
	d.t.Helper()
	n, err := d.Backend.NonceAt(d.t.Context(), of, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	return n
}

// TestSettlerClaimsManyAtOnce: thirty channels in one transaction, and one more for the money.
func TestSettlerClaimsManyAtOnce(t *testing.T) {
	d := newDesk(t)
	var all []channel.Terms
	var sum uint64
	for i := range 30 {
		terms := d.fund(byte(i+1), 1000)
		d.serve(terms, 500, 100+uint64(i))
		sum += 100 + uint64(i)
		all = append(all, terms)
	}
	if err := d.settler.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, terms := range all {
		d.holds(terms, 1000, 100+uint64(i))
		if left := d.kept(terms).Unsettled(); !left.IsZero() {
			t.Errorf("%s of channel %s count as unsettled", left.Dec(), terms.ID())
		}
	}
	d.received(sum)
	reports := d.reports()
	if len(reports) != 1 || len(reports[0].Channels) != 30 || reports[0].Paid.Uint64() != sum || len(reports[0].Skipped) != 0 {
		t.Fatalf("settlements %+v, want one of 30 channels and %d", reports, sum)
	}
	if n := d.transactions(d.sender.Address()); n != 2 {
		t.Errorf("%d transactions, want a claim and a payout", n)
	}
	t.Logf("claim of 30 channels: %s wei of gas", reports[0].Gas)

	if err := d.settler.Settle(t.Context()); err != nil { // nothing is left
		t.Fatal(err)
	}
	if n := d.transactions(d.sender.Address()); n != 2 {
		t.Errorf("settling nothing took %d transactions", n-2)
	}
}

// TestBadRowHoldsUpNobody: a claim is all or nothing, so the row that the contract refuses must be found and left out.
func TestBadRowHoldsUpNobody(t *testing.T) {
	d := newDesk(t)
	const n = 9
	var all []channel.Terms
	for i := range n {
		terms := d.fund(byte(i+1), 1000)
		d.serve(terms, 500, 400)
		all = append(all, terms)
	}
	bad := all[4]
	// Between the last look and the claim the payer got its money back: nothing of it is left to claim.
	send(t, d.payers, d.contract.InitiateWithdrawCall(bad, *uint256.NewInt(1000)))
	d.AdvanceTime(t, 900*time.Second)
	send(t, d.payers, d.contract.FinalizeWithdrawCall(bad))
	d.holds(bad, 0, 0)

	err := d.settler.Settle(t.Context())
	var revert *chain.Revert
	if !errors.As(err, &revert) || revert.Name != "ClaimExceedsBalance" || !strings.Contains(err.Error(), bad.ID().Hex()) {
		t.Errorf("settling says %v, want ClaimExceedsBalance of channel %s", err, bad.ID())
	}
	for _, terms := range all {
		if terms != bad {
			d.holds(terms, 1000, 400)
			if strings.Contains(err.Error(), terms.ID().Hex()) {
				t.Errorf("channel %s is blamed", terms.ID())
			}
		}
	}
	d.received((n - 1) * 400)
}

// TestPayerTakesItsVouchersBack: a payer that is its own signer gives its account code after it was served, and is then
// asked by ERC-1271 only. The loss is real, which is why a payee wants an authorized signer; the others must not share it.
func TestPayerTakesItsVouchersBack(t *testing.T) {
	d := newDesk(t)
	good, bad := d.fund(1, 1000), d.config(2)
	bad.AuthorizedSigner = common.Address{}
	d.deposit(bad, 1000)
	d.register(bad)
	d.serve(good, 500, 400)
	honest := d.signer
	d.signer = d.world.payer
	d.serve(bad, 500, 400)
	d.signer = honest
	d.RPC(t, nil, "anvil_setCode", d.payer.Address(), "0x60206000f3") // answers zero to everything

	err := d.settler.Settle(t.Context())
	var revert *chain.Revert
	if !errors.As(err, &revert) || revert.Name != "InvalidSignature" || !strings.Contains(err.Error(), bad.ID().Hex()) {
		t.Errorf("settling says %v, want InvalidSignature of channel %s", err, bad.ID())
	}
	d.holds(good, 1000, 400)
	d.holds(bad, 1000, 0)
	d.received(400)
}

// TestWhatIsLeftIsClaimed: where a withdrawal took a part of what is payable, the payee gets the rest.
func TestWhatIsLeftIsClaimed(t *testing.T) {
	d := newDesk(t)
	terms := d.fund(1, 1000)
	d.serve(terms, 800, 800)
	send(t, d.payers, d.contract.InitiateWithdrawCall(terms, *uint256.NewInt(500)))
	d.AdvanceTime(t, 900*time.Second)
	send(t, d.payers, d.contract.FinalizeWithdrawCall(terms))
	if err := d.settler.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.holds(terms, 500, 500)
	d.received(500)
}

// TestWithdrawalIsSeenAndClaimedAgainst: the settler would wait for an hour, but its payer wants out.
func TestWithdrawalIsSeenAndClaimedAgainst(t *testing.T) {
	d := newDesk(t)
	d.settler.Policy = settle.Policy{Interval: time.Hour, MaxAge: time.Hour}
	terms, quiet := d.fund(1, 1000), d.fund(2, 1000)
	d.serve(terms, 500, 400)
	d.serve(quiet, 500, 400)
	d.check()
	d.during(d.settler.Run)

	send(t, d.payers, d.contract.InitiateWithdrawCall(terms, *uint256.NewInt(1000)))
	d.check()
	if s := d.kept(terms); s.Status != channel.Closing || s.CloseRequestedAt == 0 {
		t.Fatalf("after one look the channel is %+v", s)
	}
	v, err := d.contract.Domain().Sign(t.Context(), d.signer, terms.ID(), *uint256.NewInt(600))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.payee.Accept(t.Context(), v); !errors.Is(err, channel.ErrClosing) {
		t.Errorf("a voucher during a withdrawal: %v", err)
	}
	d.until("the claim is paid out", func() bool { return d.Tokens(t, d.receiver) == 400 })
	d.holds(quiet, 1000, 0)

	d.AdvanceTime(t, 900*time.Second)
	send(t, d.payers, d.contract.FinalizeWithdrawCall(terms))
	d.check()
	d.holds(terms, 400, 400)
	if s := d.kept(terms); s.Status != channel.Open || s.Deposit.Uint64() != 400 {
		t.Errorf("after the withdrawal the channel is %+v", s)
	}
}

// TestDepositReorgedAway: what the chain takes back is not there to be spent.
func TestDepositReorgedAway(t *testing.T) {
	d := newDesk(t)
	d.Mine(t, 5)
	terms := d.fund(1, 1000)
	d.deposit(terms, 500)
	d.check()
	if s := d.kept(terms); s.Deposit.Uint64() != 0 { // registered as of one block, looked at as of three
		t.Errorf("a deposit of one block counts: %+v", s)
	}
	d.Mine(t, 3)
	d.check()
	if s := d.kept(terms); s.Deposit.Uint64() != 1500 {
		t.Fatalf("after its confirmations the channel is %+v", s)
	}
	d.Reorg(t, 4) // the second deposit is gone, with the blocks after it
	d.Mine(t, 3)
	d.check()
	if s := d.kept(terms); s.Deposit.Uint64() != 1000 {
		t.Fatalf("after the re-org the channel is %+v", s)
	}
	v, err := d.contract.Domain().Sign(t.Context(), d.signer, terms.ID(), *uint256.NewInt(1200))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.payee.Accept(t.Context(), v); !errors.Is(err, channel.ErrExceedsDeposit) {
		t.Errorf("a voucher over what is left: %v", err)
	}
}

// TestClaimReorgedAway: a claim that the chain takes back is made again.
func TestClaimReorgedAway(t *testing.T) {
	d := newDesk(t)
	terms := d.fund(1, 1000)
	d.serve(terms, 500, 400)
	d.Mine(t, 3)
	d.check()
	d.during(d.sender.Run)
	if err := d.settler.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.received(400)
	d.Reorg(t, 2) // claim and payout
	d.until("claim and payout are on the chain again", func() bool {
		d.Mine(t, 1)
		_ = d.watcher.Check(t.Context())
		if err := d.settler.Settle(t.Context()); err != nil {
			t.Log(err)
		}
		return d.Tokens(t, d.receiver) == 400
	})
	d.holds(terms, 1000, 400)
}

// TestPayoutLeftBehind: who crashed between a claim and its payout fetches the money at the next start, once.
func TestPayoutLeftBehind(t *testing.T) {
	d := newDesk(t)
	terms := d.fund(1, 1000)
	d.serve(terms, 500, 400)
	send(t, d.sender, d.claimCall(terms))
	d.received(0)
	if err := d.settler.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.received(400)
	if n := d.transactions(d.sender.Address()); n != 2 {
		t.Errorf("%d transactions, want a claim and a payout", n)
	}
}

// TestUnknownAuthorizerIsSaid: a key that is neither the payee nor its authorizer learns why it gets nothing.
func TestUnknownAuthorizerIsSaid(t *testing.T) {
	d := newDesk(t)
	terms := d.config(1)
	terms.PayeeAuthorizer = common.Address{0xdd}
	d.deposit(terms, 1000)
	d.register(terms)
	d.serve(terms, 500, 400)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := d.settler.Settle(ctx)
	var revert *chain.Revert
	if !errors.As(err, &revert) || revert.Name != "NotAuthorizedToClaim" {
		t.Errorf("settling says %v", err)
	}
}
