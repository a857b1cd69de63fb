package audit

import (
	"context"
	"fmt"

	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
)

// In a bundle of a channel of x402 vouchers say nothing of what was charged, since
// they are ceilings. What was claimed has to be in the payee's records, and what
// rounding left of its many short leases adds up. A payer is shown the records that
// answer its ticks and no others: those of what was metered between two ticks, of
// streams and of metered requests it never had.

// holed reports a bundle whose keeper was not shown all records.
func (b *Bundle) holed() bool { return b.X402 != nil && b.Keeper == KeptByPayer }

// offeredEscrow is the escrow that an offer must name: the channel's. What x402 pays
// for is offered under our own, which is not where it is paid.
func (v *verifier) offeredEscrow(offer wire.SignedOffer) wire.Address {
	if v.X402 != nil {
		return offer.Escrow
	}
	return v.Terms.Escrow
}

// carry adds what a lease's final record leaves uncharged.
func (v *verifier) carry(offer wire.SignedOffer, last metering.SignedRecord) error {
	left, err := offer.Uncharged(last.Nanos, last.Final)
	v.carried += left
	return err
}

// follows reports whether a lease may begin with so much owed where the one before ended
// with so much.
func (v *verifier) follows(before, begins uint256.Int) bool {
	if v.holed() { // what was charged in between was not shown
		return !begins.Lt(&before)
	}
	return v.carries(before, begins)
}

// carries reports whether what was carried explains that a lease begins with so much
// more owed than the one before ended with, and takes it off.
func (v *verifier) carries(before, begins uint256.Int) (ok bool) {
	v.carried, ok = wire.CarriesTo(before, begins, v.carried)
	return ok
}

// claimed holds what was claimed to what was metered, and to the ceiling that the
// payer signed. A refund lowers the deposit, so that the newest voucher may be over
// more. What a payer's records do not say may be of other requests: it has to look.
func (v *verifier) claimed(newest, owed uint256.Int, known bool) {
	most := owed
	most.AddUint64(&most, v.carried/metering.Fractions)
	var err error
	switch {
	case len(v.Leases) > 0 && !known:
		err = fmt.Errorf("%w: what is owed is not known: see above", ErrBundle)
	case v.Settled.Gt(&most) && !v.holed():
		err = fmt.Errorf("%w: %s is claimed, the records say %s: records are missing, or more was claimed than was metered", ErrBundle, v.Settled.Dec(), most.Dec())
	case v.Settled.Gt(&newest):
		err = fmt.Errorf("%w: %s is claimed, the newest voucher is over %s", ErrBundle, v.Settled.Dec(), newest.Dec())
	case v.Settled.Gt(&v.Deposit.Int):
		err = fmt.Errorf("%w: %s is claimed of a deposit of %s", ErrBundle, v.Settled.Dec(), v.Deposit.Dec())
	}
	v.note("records and claims", fmt.Sprintf("%s owed, %s claimed under a voucher over %s, deposit %s", owed.Dec(), v.Settled.Dec(), newest.Dec(), v.Deposit.Dec()), err)
	if err == nil && v.Settled.Gt(&most) {
		v.checks[len(v.checks)-1].Look = "more is claimed than the records of ticks say: did the payer pay for other requests from the channel, or for time between two ticks?"
	}
}

// onX402 compares a bundle's amounts with x402's contract.
func (v *verifier) onX402(ctx context.Context, backend chain.Backend) (channel.ChainView, error) {
	contract, err := chain.NewBatchSettlement(ctx, backend)
	if err == nil && contract.ChainID() != v.terms.ChainID {
		err = fmt.Errorf("%w: the channel is on chain %d, the endpoint serves %d", chain.ErrChainID, v.terms.ChainID, contract.ChainID())
	}
	if err != nil {
		return channel.ChainView{}, err
	}
	on, err := contract.State(ctx, v.Channel)
	return on.View, err
}

// settlementKinds is what each method of x402's contract is called in a bundle. Only
// a refund is ever sent with a claim in one call.
var settlementKinds = map[string]chain.Kind{
	"deposit": chain.Deposit, "claim": chain.Claim, "claimWithSignature": chain.Claim,
	"refund": chain.Refund, "refundWithSignature": chain.Refund, "multicall": chain.Refund,
	"initiateWithdraw": chain.InitiateWithdraw, "finalizeWithdraw": chain.FinalizeWithdraw,
}

// calls is the interface of the contract that a bundle's channel is in, and what its
// methods are called.
func (b *Bundle) calls() (*abi.ABI, map[string]chain.Kind) {
	if b.X402 != nil {
		return chain.BatchSettlementABI(), settlementKinds
	}
	return escrowABI, escrowKinds
}
