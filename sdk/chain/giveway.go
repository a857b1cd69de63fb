package chain

import (
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/ethereum/go-ethereum/core/types"
)

// ErrGaveWay is why a transaction with a budget was given up: no block took it for what it may cost, and one without a budget
// waited behind it. Nothing moved, and the call can be submitted again.
var ErrGaveWay = errors.New("fees rose above what it may cost, and a transaction behind it could not wait: nothing moved, try again later")

// maxRaise is how many times its first version's cost a transaction with a budget may cost at most.
const maxRaise = 2

// mostOf is the most that a transaction of a call may cost, in wei; nil: what MaxFee allows. The first version is always
// within it: who submits has decided that it may be sent.
func mostOf(call Call, gas uint64, f fees) *big.Int {
	if call.Budget == nil {
		return nil
	}
	first := f.price(gas)
	return larger(first, smaller(call.Budget, new(big.Int).Mul(first, big.NewInt(maxRaise))))
}

// TooDear is a call that takes more than who submitted it allows: nothing was sent.
type TooDear struct {
	Call Call
	Gas  uint64   // that it would be given
	Cost *big.Int // wei, at the present price; nil: its gas alone is too much
}

func (d *TooDear) Error() string {
	if d.Cost == nil {
		return fmt.Sprintf("chain: %s takes %d gas, and may take %d: nothing was sent", d.Call, d.Gas, d.Call.MaxGas)
	}
	return fmt.Sprintf("chain: %s costs %s wei, and may cost %s: nothing was sent", d.Call, d.Cost, d.Call.MaxCost)
}

// allowed holds a call to its MaxCost, and returns the gas and the fees that it may offer. What one of two endpoints alone asks
// refuses nothing: where what the other one asks, of gas (enough) and of fees, is within MaxCost, the call is sent with that gas and
// tip, and offers MaxCost.
func (f fees) allowed(call Call, gas, enough uint64) (uint64, fees, error) {
	if call.MaxCost == nil {
		return gas, f, nil
	}
	if f.now(f.head.baseFee, f.tip).price(gas).Cmp(call.MaxCost) > 0 {
		gas, f.tip = min(gas, enough), smaller(f.tip, f.leastTip)
		if f.leastData != nil {
			f.data = f.leastData
		}
		if cost := f.now(f.head.leastFee, f.tip).price(gas); cost.Cmp(call.MaxCost) > 0 {
			return gas, f, &TooDear{Call: call, Gas: gas, Cost: cost}
		}
	}
	left := new(big.Int).Set(call.MaxCost)
	if f.data != nil {
		left.Sub(left, f.data)
	}
	f.cap = smaller(f.cap, left.Div(left, new(big.Int).SetUint64(gas)))
	f.tip, f.leastCap = smaller(f.tip, f.cap), smaller(f.leastCap, f.cap)
	return gas, f, nil
}

// now are these fees as a block with this base fee charges them.
func (f fees) now(baseFee, tip *big.Int) fees {
	f.cap = smaller(f.cap, new(big.Int).Add(baseFee, tip))
	return f
}

// price is the most that a transaction of so much gas can cost at these fees, in wei, a rollup's charge for data included.
func (f fees) price(gas uint64) *big.Int {
	most := new(big.Int).Mul(f.cap, new(big.Int).SetUint64(gas))
	if f.data != nil {
		most.Add(most, f.data)
	}
	return most
}

// yields reports whether a transaction gives way: it has a budget, and has not been given up already.
func (tx Tx) yields() bool { return tx.Most != nil && !tx.gaveWay(tx.newest().Signed) }

// GivesWay reports whether the transaction is one with a budget that still wants to be mined.
func (tx Tx) GivesWay() bool { return tx.State == Pending && tx.yields() }

// gaveWay reports whether a version only uses up the nonce of a transaction that was to do something.
func (tx Tx) gaveWay(version *types.Transaction) bool {
	return tx.Call.Kind != Fill && len(version.Data()) == 0 && version.To() != nil && *version.To() == tx.Sender
}

// filling is a transaction as it is signed once it was given up: it pays its sender nothing.
func (tx Tx) filling() Tx {
	tx.Call.To, tx.Call.Data, tx.Gas = tx.Sender, nil, fillGas
	return tx
}

// wasFilled reports whether what was mined of a transaction only used up its nonce.
func (tx Tx) wasFilled() bool {
	return slices.ContainsFunc(tx.Attempts, func(a Attempt) bool { return a.Signed.Hash() == tx.Hash && tx.gaveWay(a.Signed) })
}

// within are these fees as far as a transaction with a budget may offer them.
func (f fees) within(tx Tx) fees {
	if !tx.yields() {
		return f
	}
	left := new(big.Int).Set(tx.Most)
	if f.data != nil {
		left.Sub(left, f.data)
	}
	f.most = smaller(f.most, left.Div(left, new(big.Int).SetUint64(tx.Gas)))
	f.cap = smaller(f.cap, f.most)
	f.tip = smaller(f.tip, f.cap)
	f.leastCap = smaller(f.leastCap, f.cap)
	return f
}

// lastOwn is the highest nonce of a transaction that must not wait for one with a budget; false if there is none.
func lastOwn(open []Tx) (nonce uint64, found bool) {
	for _, tx := range open {
		if tx.State == Pending && tx.Most == nil && (!found || tx.Nonce > nonce) {
			nonce, found = tx.Nonce, true
		}
	}
	return nonce, found
}
