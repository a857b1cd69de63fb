package audit

import (
	"fmt"
	"slices"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Comparison is what two bundles of one channel say about each other.
type Comparison struct {
	// Equivocations are pairs of records, or of meters of a lease, that the payee
	// signed and that contradict each other. Each is a proof for anybody.
	Equivocations []*Equivocation
	// Checks are what else was compared. What fails shows that one of the two is
	// incomplete or false, and not which.
	Checks []Check
}

// Compare holds what two sides kept about a channel against each other:
// what a payee shows to its auditor and what it showed to the payer, say. Verify
// both first. Bundles of two moments may differ by what is under way: records and
// vouchers worth the offer's credit.
func Compare(a, b *Bundle) Comparison {
	c := &comparer{a: a, b: b}
	if a.Channel != b.Channel || a.Terms != b.Terms {
		c.note("one channel", fmt.Errorf("%w: one is of channel %s, the other of %s", ErrBundle, a.Channel, b.Channel))
		return c.Comparison
	}
	c.note("one channel", nil)
	c.leases()
	c.vouchers()
	return c.Comparison
}

type comparer struct {
	Comparison
	a, b *Bundle
}

func (c *comparer) note(name string, err error) {
	c.Checks = append(c.Checks, Check{Name: "both: " + name, Detail: fmt.Sprintf("the %s's and the %s's agree", c.a.Keeper, c.b.Keeper), Err: err})
}

// leases wants each lease that says anything about money in both.
func (c *comparer) leases() {
	var missing, terms, records findings
	for _, pair := range [][2]*Bundle{{c.a, c.b}, {c.b, c.a}} {
		for i := range pair[0].Leases {
			l, other := &pair[0].Leases[i], pair[1].lease(pair[0].Leases[i].ID)
			if other == nil && len(l.Records) > 0 && !pair[1].holed() {
				missing.add(fmt.Errorf("%w: lease %s, with %d records, is only in the %s's", ErrBundle, l.ID, len(l.Records), pair[0].Keeper))
			}
			if other == nil || pair[0] != c.a {
				continue
			}
			if l.offerHash() != other.offerHash() || l.OwedBefore.Int != other.OwedBefore.Int || !sameDevices(l.Devices, other.Devices) {
				terms.add(fmt.Errorf("%w: lease %s has another offer, beginning or devices in each", ErrBundle, l.ID))
			}
			terms.add(c.bindings(l, other))
			records.add(c.records(l, other))
		}
	}
	c.note("leases", missing.err())
	c.note("terms of leases", terms.err())
	c.note("records", records.err())
}

func (b *Bundle) lease(id common.Hash) *Lease {
	i := slices.IndexFunc(b.Leases, func(l Lease) bool { return l.ID == id })
	if i < 0 {
		return nil
	}
	return &b.Leases[i]
}

// offerHash is zero for an offer that does not parse.
func (l *Lease) offerHash() common.Hash {
	offer, err := wire.ParseOffer(l.Offer)
	if err != nil {
		return common.Hash{}
	}
	return offer.Hash
}

func sameDevices(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

// bindings compares the meters of one lease.
func (c *comparer) bindings(l, other *Lease) error {
	if l.Binding.Same(other.Binding) {
		return nil
	}
	if l.Binding != nil && other.Binding != nil {
		if p, err := NewBindingEquivocation(l.Offer, *l.Binding, *other.Binding); err == nil {
			c.Equivocations = append(c.Equivocations, p)
		}
	}
	return fmt.Errorf("%w: another meter is bound to lease %s in each", ErrBundle, l.ID)
}

// records compares the records of one lease. The payee has at least those that it
// sent; the payer lacks none but the last ones, worth the credit.
func (c *comparer) records(l, other *Lease) error {
	if c.a.holed() != c.b.holed() {
		return c.ticks(l, other)
	}
	domain := metering.Domain(c.a.Terms.ChainID, common.Address(c.a.Terms.Escrow))
	var failed findings
	for i := range min(len(l.Records), len(other.Records)) {
		one, two := l.Records[i], other.Records[i]
		if one.Digest(domain) == two.Digest(domain) {
			continue
		}
		if p, err := NewEquivocation(l.Offer, l.Binding, one, two); err == nil {
			c.Equivocations = append(c.Equivocations, p)
		}
		failed.add(fmt.Errorf("%w: record %d of lease %s is not the same in both", ErrBundle, i+1, l.ID))
	}
	longer, shorter, keeper := l, other, c.b.Keeper
	if len(l.Records) < len(other.Records) {
		longer, shorter, keeper = other, l, c.a.Keeper
	}
	if len(longer.Records) == len(shorter.Records) {
		return failed.err()
	}
	last, before := longer.Records[len(longer.Records)-1].Owed, shorter.OwedBefore.Int
	if n := len(shorter.Records); n > 0 {
		before = shorter.Records[n-1].Owed
	}
	if keeper == KeptByPayee && c.a.Keeper != c.b.Keeper {
		failed.add(fmt.Errorf("%w: the payee's has %d records of lease %s, the payer was sent %d", ErrBundle, len(shorter.Records), l.ID, len(longer.Records)))
	} else if credit := longer.underWay(); exceeds(last, before, credit) {
		failed.add(fmt.Errorf("%w: the %s's lacks records of lease %s that say %s owed instead of %s, more than the credit of %s", ErrBundle, keeper, l.ID, last.Dec(), before.Dec(), credit.Dec()))
	}
	return failed.err()
}

// ticks compares the records of one lease of which the payer was shown some: the payee
// has each of them.
func (c *comparer) ticks(l, other *Lease) error {
	shown, all := l, other
	if c.b.holed() {
		shown, all = other, l
	}
	domain := metering.Domain(c.a.Terms.ChainID, common.Address(c.a.Terms.Escrow))
	numbered := make(map[uint64]metering.SignedRecord, len(all.Records))
	for _, r := range all.Records {
		numbered[r.Sequence] = r
	}
	var failed findings
	for _, one := range shown.Records {
		two, ok := numbered[one.Sequence]
		if !ok {
			failed.add(fmt.Errorf("%w: the payer was sent record %d of lease %s, which the payee's lacks", ErrBundle, one.Sequence, l.ID))
			continue
		}
		if one.Digest(domain) == two.Digest(domain) {
			continue
		}
		if p, err := NewEquivocation(l.Offer, l.Binding, one, two); err == nil {
			c.Equivocations = append(c.Equivocations, p)
		}
		failed.add(fmt.Errorf("%w: record %d of lease %s is not the same in both", ErrBundle, one.Sequence, l.ID))
	}
	return failed.err()
}

// exceeds reports whether a is over b by more than most.
func exceeds(a, b, most uint256.Int) bool {
	_, overflow := b.AddOverflow(&b, &most)
	return !overflow && a.Gt(&b)
}

// vouchers: nobody holds one that the payer has not signed by its own books, and
// the payee has all but those that are under way.
func (c *comparer) vouchers() {
	payee, payer := c.a, c.b
	if payee.Keeper == KeptByPayer {
		payee, payer = payer, payee
	}
	if payee.Keeper == payer.Keeper {
		return
	}
	held, signed := payee.newest(), payer.newest()
	var most uint256.Int
	for i := range payer.Leases {
		most = payer.Leases[i].underWay()
	}
	most.Add(&most, &payer.Prepaid.Int)
	var err error
	switch {
	case held.Gt(&signed):
		err = fmt.Errorf("%w: the payee has a voucher for %s, the payer's books end at %s", ErrBundle, held.Dec(), signed.Dec())
	case exceeds(signed, held, most) && payer.X402 == nil: // there a later voucher may be over less
		err = fmt.Errorf("%w: the payer signed for %s, the payee shows a voucher for %s", ErrBundle, signed.Dec(), held.Dec())
	}
	c.note("vouchers", err)
}

// newest is the highest voucher.
func (b *Bundle) newest() (most uint256.Int) {
	for _, v := range b.Vouchers {
		most = u256.Max(most, v.Cumulative.Int)
	}
	return most
}
