package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/jmoiron/sqlx"
)

// gasMargin is added to an estimate: a row of a batch that was to be skipped may be payable by then, and the first
// payment to a payee writes a fresh slot of the token.
const gasMargin = 30_000

// leastPayoutGas is what a payout has at least: a node that does not know the claim before it yet estimates one that has
// nothing to move, and the real one would run out of gas. What is not used costs nothing.
const leastPayoutGas = 150_000

// leastGas is what a call of each kind takes, and what each channel in it takes besides, in gas: the dearest of what does the same, by
// an authorization and to an account that has nothing yet, as TestEveryKindFitsInItsLeastGas has it, rounded up. An estimate below it
// is false, and what was sent with it would run out of gas and be paid for. What is not used costs nothing.
var leastGas = map[Kind]struct{ call, channel uint64 }{
	Open:             {110_000, 11_000},
	TopUp:            {85_000, 8_000},
	Settle:           {62_000, 10_000},
	SettleBatch:      {62_000, 12_000},
	Close:            {100_000, 10_000},
	RequestClose:     {40_000, 4_000},
	CancelClose:      {40_000, 4_000},
	Withdraw:         {60_000, 8_000},
	WithdrawCredit:   {leastPayoutGas, 0},
	Payout:           {leastPayoutGas, 0},
	Deposit:          {160_000, 12_000},
	Claim:            {60_000, 24_000},
	Refund:           {110_000, 24_000},
	InitiateWithdraw: {70_000, 12_000},
	FinalizeWithdraw: {80_000, 12_000},
	Approve:          {60_000, 0},
}

// dearGas is how many times leastGas one endpoint alone may say that a call takes: a token or an account that is a contract may
// take some times as much, and what is not used costs nothing.
const dearGas = 12

// boundsOf are the least gas that a call is given, and the most that it is given by one endpoint's word against another's.
func boundsOf(call Call) (least, most uint64) {
	known, ok := leastGas[call.Kind]
	if !ok {
		return 0, dearGas * leastPayoutGas
	}
	least = known.call + known.channel*uint64(max(1, len(call.Channels)))
	return least, dearGas * least
}

// estimate runs the call at two endpoints and says how much gas to give it: the larger estimate, unless that is out of
// proportion, and never less than such a call takes. enough is the same by the smaller estimate. What the contract refuses at both
// is an error, and so is what takes more than the call's MaxGas (withinMax).
func (p *pricing) estimate(ctx context.Context, call Call) (gas, enough uint64, err error) {
	type word struct {
		gas     uint64
		refusal error
	}
	said, err := two(ctx, p.backend, func(ctx context.Context, b Backend) (word, error) {
		gas, err := b.EstimateGas(ctx, ethereum.CallMsg{From: p.address(), To: &call.To, Data: call.Data})
		if _, reverts := revertData(err); reverts {
			return word{refusal: err}, nil
		}
		return word{gas: gas}, err
	})
	if err != nil {
		return 0, 0, fmt.Errorf("chain: %s: %w", call, beyondAllowance(call, decode(err)))
	}
	var estimates []uint64
	for _, by := range said {
		if by.say.refusal == nil {
			estimates = append(estimates, by.say.gas)
		}
	}
	if len(estimates) == 0 {
		return 0, 0, fmt.Errorf("chain: %s: %w", call, decode(said[0].say.refusal))
	}
	failed, err := p.store.failedWith(ctx, call, p.now().Add(-failedFor))
	if err != nil {
		return 0, 0, err
	}
	return withinMax(call, estimates, failed)
}

// withinMax is how much gas a call is given, and how much by the smaller estimate, held to its MaxGas: who estimates its gas may be
// a contract of a stranger, which burns as much as it is given. An estimate of one of two endpoints alone refuses nothing, nor does
// that less ran out: where the smaller estimate is within MaxGas the call is given MaxGas at most, unless MaxGas ran out already.
func withinMax(call Call, estimates []uint64, failed uint64) (gas, enough uint64, err error) {
	least := []uint64{slices.Min(estimates)}
	gas, enough = gasFor(call, estimates, failed), gasFor(call, least, failed)
	if call.MaxGas == 0 || gas <= call.MaxGas {
		return gas, enough, nil
	}
	if takes := gasFor(call, least, 0); takes > call.MaxGas || failed >= call.MaxGas {
		return 0, 0, &TooDear{Call: call, Gas: gas}
	}
	return call.MaxGas, min(enough, call.MaxGas), nil
}

// gasFor is how much gas a call is given by what one or two endpoints estimate, and by how much it had when it failed lately (0:
// it did not): what ran out of gas is sent with more, not with the same.
func gasFor(call Call, estimates []uint64, failed uint64) uint64 {
	least, dear := boundsOf(call)
	lower, higher := estimates[0], estimates[0]
	for _, gas := range estimates[1:] {
		lower, higher = min(lower, gas), max(higher, gas)
	}
	gas := higher
	if len(estimates) > 1 && higher > dear && failed == 0 {
		gas = max(lower, dear)
	}
	gas += gas/4 + gasMargin
	return max(gas, least, min(2*failed, dear))
}

// failedFor is how long a transaction that ran out of gas has the next one about its channels given more.
const failedFor = 24 * time.Hour

// ranOut reports whether a version that reverted had used up its gas limit, or all but an eighth of it: a call within it that runs
// out leaves its caller a 64th of what there was, and so on outwards. One that reverts for another reason has a quarter of the
// estimate left, and more.
func ranOut(version *types.Transaction, receipt *types.Receipt) bool {
	limit := version.Gas()
	return receipt.Status != types.ReceiptStatusSuccessful && receipt.GasUsed >= limit-limit/8
}

// failedWith is the most gas that a transaction of the call's kind about one of its channels had that was mined since a moment
// and ran out of it; 0 if there is none. One that gave way, or reverted for another reason, would take no less of more gas.
func (s *Store) failedWith(ctx context.Context, call Call, since time.Time) (uint64, error) {
	if s == nil || len(call.Channels) == 0 {
		return 0, nil
	}
	ids := make([]string, len(call.Channels))
	for i, id := range call.Channels {
		ids[i] = text(id)
	}
	query, args, err := sqlx.In(`SELECT COALESCE(max(gas), 0) FROM chain_tx WHERE kind = ? AND state <> 'pending' AND ran_out = 1
		AND created_at > ? AND id IN (SELECT tx FROM chain_tx_channel WHERE channel IN (?))`, string(call.Kind), millis(since), ids)
	if err != nil {
		return 0, err
	}
	var gas uint64
	db := s.db.View()
	if err := db.GetContext(ctx, &gas, db.Rebind(query), args...); err != nil {
		return 0, fmt.Errorf("chain: reading what failed: %w", err)
	}
	return gas, nil
}

// terms are the gas and the fees that a call is sent with: as far as the sender can pay for it, and the call allows, what the
// endpoint asks that asks more, and else what the one asks that asks less.
func (p *pricing) terms(ctx context.Context, call Call) (gas uint64, f fees, err error) {
	if err := sized(call); err != nil {
		return 0, f, err
	}
	gas, enough, err := p.estimate(ctx, call)
	if err != nil {
		return 0, f, err
	}
	if f, err = p.fees(ctx); err != nil {
		return 0, f, err
	}
	if gas > f.head.limit || roomy(call, gas, f.head.limit) != nil {
		gas = enough
	}
	if err := roomy(call, gas, f.head.limit); err != nil {
		return 0, f, err
	}
	if gas > f.head.limit { // no block would ever take it
		return 0, f, &incomplete{"eth_estimateGas", fmt.Sprintf("%s takes %d gas, and a block has room for %d", call, gas, f.head.limit)}
	}
	if f.data, f.leastData, err = p.dataFee(ctx, call.Data); err != nil {
		return 0, f, err
	}
	if gas, f, err = f.allowed(call, gas, enough); err != nil {
		return 0, f, err
	}
	offer, err := p.payable(ctx, call, gas, f)
	if errors.Is(err, ErrFunds) && enough < gas {
		gas = enough
		offer, err = p.payable(ctx, call, gas, f)
	}
	return gas, offer, err
}
