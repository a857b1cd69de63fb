package audit

import (
	"cmp"
	"slices"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/metering"
)

// Join makes one of the bundles that one side kept of one channel. An
// archive has several of a channel of x402 that was pruned, used again and pruned
// again, and each shows only what was used since the one before. Those that
// contradict each other stay apart, for Compare. What comes out is as true
// as what went in: verify it.
func Join(bundles []*Bundle) []*Bundle {
	parts := slices.Clone(bundles)
	slices.SortStableFunc(parts, func(a, b *Bundle) int {
		one, two := a.lastBefore(), b.lastBefore()
		return cmp.Or(a.Settled.Cmp(&b.Settled.Int), one.Cmp(&two))
	})
	var joined []*Bundle
	for _, part := range parts {
		i := slices.IndexFunc(joined, part.continues)
		if i < 0 {
			joined = append(joined, part)
			continue
		}
		joined[i] = joined[i].joinedBy(part)
	}
	return joined
}

// lastBefore is what was owed when the newest lease began.
func (b *Bundle) lastBefore() (owed uint256.Int) {
	if n := len(b.Leases); n > 0 {
		owed = b.Leases[n-1].OwedBefore.Int
	}
	return owed
}

// continues reports whether a bundle is of the channel and the side of an earlier
// one, and says nothing else of a lease that is in both.
func (b *Bundle) continues(earlier *Bundle) bool {
	if b.Channel != earlier.Channel || b.Keeper != earlier.Keeper || b.terms() != earlier.terms() {
		return false
	}
	return !slices.ContainsFunc(b.Leases, func(l Lease) bool {
		other := earlier.lease(l.ID)
		return other != nil && !b.sameLease(&l, other)
	})
}

// sameLease reports whether two are one lease, as it was at two moments.
func (b *Bundle) sameLease(l, other *Lease) bool {
	if l.offerHash() != other.offerHash() || l.OwedBefore.Int != other.OwedBefore.Int || !sameDevices(l.Devices, other.Devices) || !l.Binding.Same(other.Binding) {
		return false
	}
	terms := b.terms()
	domain := metering.Domain(terms.ChainID, terms.Escrow)
	for i := range min(len(l.Records), len(other.Records)) {
		if l.Records[i].Digest(domain) != other.Records[i].Digest(domain) || !slices.Equal(l.Records[i].Signature, other.Records[i].Signature) {
			return false
		}
	}
	return true
}

// joinedBy is a bundle with what a later one adds to it.
func (b *Bundle) joinedBy(later *Bundle) *Bundle {
	all := *later
	all.Prepaid.Int = u256.Max(b.Prepaid.Int, later.Prepaid.Int)
	all.Leases = slices.Clone(b.Leases)
	for _, l := range later.Leases {
		if i := slices.IndexFunc(all.Leases, func(o Lease) bool { return o.ID == l.ID }); i < 0 {
			all.Leases = append(all.Leases, l)
		} else if len(l.Records) > len(all.Leases[i].Records) {
			all.Leases[i] = l
		}
	}
	all.Vouchers = union(b.Vouchers, later.Vouchers, func(v, o Voucher) bool { return v.Cumulative.Int == o.Cumulative.Int })
	slices.SortStableFunc(all.Vouchers, func(v, o Voucher) int { return v.Cumulative.Cmp(&o.Cumulative.Int) })
	all.Transactions = union(b.Transactions, later.Transactions, func(t, o Transaction) bool { return t == o })
	all.Evidence = union(b.Evidence, later.Evidence, func(e, o Evidence) bool { return e == o })
	return &all
}

// union is what is in one list, and what of another is not.
func union[T any](one, two []T, same func(T, T) bool) []T {
	all := slices.Clone(one)
	for _, t := range two {
		if !slices.ContainsFunc(one, func(o T) bool { return same(t, o) }) {
			all = append(all, t)
		}
	}
	return all
}
