package settle_test

import (
	"errors"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
)

// A token that refuses a settlement costs the payee nothing: the vouchers are settled, once, what they brought is
// credited, other settlements go on, and the money is fetched when the token pays again.
func TestRefusedSettlementIsCreditedAndFetched(t *testing.T) {
	k := newTill(t)
	var all []channel.Terms
	for i := range byte(4) {
		all = append(all, k.Open(i, 1000))
		k.Accept(all[i], 175)
	}
	first := all[0]
	resume := k.PauseToken(t)
	var refused *chain.Revert
	if err := k.Settler.Settle(t.Context()); !errors.As(err, &refused) || refused.Name != "TransferFailed" {
		t.Fatalf("Settle: %v, want it to say that the token does not pay out", err)
	}
	if done := k.Settlements(); len(done) != 1 || len(done[0].Channels) != 4 || !is(done[0].Paid, 700) {
		t.Fatalf("settlements: %+v, want one of all channels", done)
	}
	if held := k.Settler.Held(); !is(held, 700) {
		t.Errorf("%s are held", held.Dec())
	}
	for _, terms := range all {
		if s := k.State(terms); !is(s.Settled, 175) {
			t.Errorf("settled %s, want 175", s.Settled.Dec())
		}
	}

	// A payout that waits holds up no settlement.
	k.Accept(first, 500)
	k.Settler.Policy.MinValue = *uint256.NewInt(100)
	k.Run(k.Settler.Run)
	k.Eventually("it is settled all the same", func() bool { s := k.State(first); return is(s.Settled, 500) })
	k.Eventually("it is told", func() bool { return len(k.Settlements()) >= 2 })
	time.Sleep(10 * poll)
	if done := k.Settlements(); len(done) != 2 {
		t.Errorf("%d settlements, want two: what is credited is settled", len(done))
	}
	resume()
	k.Eventually("the credit is fetched", func() bool { return k.Tokens(t, k.Key.Address()) == 1025 })
	k.Eventually("nothing is held", func() bool { return is(k.Settler.Held(), 0) })
	credit, err := k.Contract.Credit(t.Context(), k.Key.Address(), k.Token, nil)
	if err != nil || !credit.Amount.IsZero() {
		t.Errorf("credit left: %+v, %v", credit, err)
	}
}

// What a stranger or a watchtower had credited is found by the settler too, and left where it is while it is not worth
// the gas.
func TestCreditIsFetchedWhenItIsWorthTheGas(t *testing.T) {
	k := newTill(t)
	terms := k.Open(1, 1000)
	k.Accept(terms, 300)
	resume := k.PauseToken(t)
	state := k.State(terms)
	k.Send(k.Others, k.Contract.SettleCall(terms, state.Accepted, state.Signature))
	resume()
	k.Settler.Policy.MaxFeeShare, k.Settler.Policy.CoinPrice = 50, *uint256.NewInt(1e18)
	if err := k.Settler.Settle(t.Context(), terms.ID()); err != nil {
		t.Fatal(err)
	}
	if held := k.Settler.Held(); !is(held, 300) {
		t.Errorf("%s are held", held.Dec())
	}
	k.Balance(0) // one base unit is worth a wei here: no share of 300 pays for any gas
	k.Settler.Policy.CoinPrice = *uint256.NewInt(1)
	k.Settler.Recall()
	if err := k.Settler.Settle(t.Context(), terms.ID()); err != nil {
		t.Fatal(err)
	}
	k.Balance(300) // gas costs one unit here, rounded up; half a percent of 300 is more
}
