package audit

import (
	"fmt"
	"strings"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/wire"
)

// offers names each change of offer on the channel. A payee can sign any offer at any time: that the payer agreed to a dearer one
// it alone knows, and in a session nothing else shows it.
func (v *verifier) offers() {
	var changes, dearer []string
	for i := 1; i < len(v.Leases); i++ {
		before, err := wire.ParseOffer(v.Leases[i-1].Offer)
		after, err2 := wire.ParseOffer(v.Leases[i].Offer)
		if err != nil || err2 != nil || before.Hash == after.Hash {
			continue // what does not parse was found before
		}
		changes = append(changes, fmt.Sprintf("from lease %s on offer %s: %s base units per %s and a credit of %d s, %s per %s and %d s before",
			v.Leases[i].ID.TerminalString(), after.Hash, after.Amount.Dec(), after.Unit, after.Credit, before.Amount.Dec(), before.Unit, before.Credit))
		if v.X402 == nil && dearerThan(after.Offer, before.Offer) { // there each payment names its offer's amount
			dearer = append(dearer, v.Leases[i].ID.TerminalString())
		}
	}
	c := Check{Name: "offers", Detail: "one offer for all leases"}
	if len(changes) > 0 {
		c.Detail = strings.Join(changes[:min(len(changes), maxFindings)], "; ")
	}
	if len(changes) > maxFindings {
		c.Detail += fmt.Sprintf("; and %d more", len(changes)-maxFindings)
	}
	if len(dearer) > 0 {
		c.Look = fmt.Sprintf("%d leases began at a higher price or credit, the first of them %s: did the payer reopen the channel for it?", len(dearer), dearer[0])
	}
	v.checks = append(v.checks, c)
}

// dearerThan reports a higher price, credit or late reading.
func dearerThan(after, before wire.Offer) bool {
	price, err := after.Price()
	old, err2 := before.Price()
	if err != nil || err2 != nil {
		return true
	}
	now, err := price.Charge(uint64(time.Hour))
	was, err2 := old.Charge(uint64(time.Hour))
	return err != nil || err2 != nil || now.Gt(&was) || after.Credit > before.Credit || after.MaxGap > before.MaxGap
}

// debt holds what is owed and not vouchered at the end of each lease to what its own offer allows: a provider stops at its
// credit, so that more was not used or vouchers are missing. A debt that only a later offer's credit allows is named.
func (v *verifier) debt(newest, owed uint256.Int) {
	if len(v.Leases) == 0 {
		return
	}
	var failed findings
	least := v.Leases[0].underWay()
	for i := range v.Leases {
		most, end := v.Leases[i].underWay(), owed
		least = u256.Min(least, most)
		if i+1 < len(v.Leases) {
			end = v.Leases[i+1].OwedBefore.Int
		}
		if exceeds(end, newest, most) {
			failed.add(fmt.Errorf("%w: %s is owed and %s vouchered, the offer's credit is %s: vouchers are missing, or time is billed that was not used", ErrBundle, end.Dec(), newest.Dec(), most.Dec()))
		}
	}
	most := v.Leases[len(v.Leases)-1].underWay()
	c := Check{Name: "credit", Detail: fmt.Sprintf("%s at most may be owed and not vouchered", most.Dec()), Err: failed.err()}
	if exceeds(owed, newest, least) {
		c.Look = fmt.Sprintf("%s is owed and %s vouchered, of which an earlier offer of the channel allows %s", owed.Dec(), newest.Dec(), least.Dec())
	}
	v.checks = append(v.checks, c)
}
