// Package ledger is what a provider's or a renter's database says of money and GPU time, one line each: settlements, leases, and the gas
// that was paid. It holds no key, no lease secret, no access to a GPU and nothing of what was computed.
package ledger

import (
	"cmp"
	"math/big"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
)

// Kind is what a line is about.
type Kind string

// The kinds of lines. Amounts of settlements are what the chain moved, those of leases what was charged: they are not to be added up.
const (
	Settlement Kind = "settlement"
	Lease      Kind = "lease"
	Gas        Kind = "gas" // a transaction that settled nothing
)

// Entry is a line.
type Entry struct {
	Kind Kind
	// Time of a settlement is when its transaction was signed, and where none of this database is known when it was seen; of a lease, when
	// it began. UTC.
	Time         time.Time
	Counterparty common.Address // the payer in a provider's books, the payee in a renter's; zero where a transaction has several or none
	Channel      common.Hash
	Transaction  common.Hash // zero: it was nobody's of this database, as a watchtower's is, or a provider's in a renter's books
	Block        uint64
	Lease        common.Hash // of a settlement: where its channel had one alone
	Detail       string      // of a transaction what it did, of a lease its state
	Nanos        uint64      // GPU time, over all devices
	Amount       uint256.Int // base units
	Token        common.Address
	Gas          *big.Int // wei, this line's part of what its transaction cost; nil where there is none
}

// Books are the lines of a database, by their time.
type Books struct {
	Entries []Entry
	// Decimals are those of the tokens that the database knows: a renter's does, a provider's asks the chain each time.
	Decimals map[common.Address]uint8
}

// Between is the lines from one moment on and before another; a zero time is no bound.
func (b *Books) Between(from, to time.Time) *Books {
	within := &Books{Decimals: b.Decimals}
	for _, e := range b.Entries {
		if !e.Time.Before(from) && (to.IsZero() || e.Time.Before(to)) {
			within.Entries = append(within.Entries, e)
		}
	}
	return within
}

// Totals are sums over lines. Amounts are base units of all tokens together.
type Totals struct {
	Settlements, Leases int
	Settled             uint256.Int // what the chain moved
	Charged             uint256.Int // by the leases' usage records
	Nanos               big.Int     // GPU time of the leases
	Gas                 big.Int     // wei
}

// Totals adds the lines up.
func (b *Books) Totals() Totals {
	var sum Totals
	for _, e := range b.Entries {
		switch e.Kind {
		case Settlement:
			sum.Settlements++
			sum.Settled.Add(&sum.Settled, &e.Amount)
		case Lease:
			sum.Leases++
			sum.Charged.Add(&sum.Charged, &e.Amount)
			sum.Nanos.Add(&sum.Nanos, new(big.Int).SetUint64(e.Nanos))
		}
		if e.Gas != nil {
			sum.Gas.Add(&sum.Gas, e.Gas)
		}
	}
	return sum
}

// sort has lines by their time, and those of one time in one order always.
func sort(entries []Entry) {
	slices.SortStableFunc(entries, func(a, b Entry) int {
		return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Block, b.Block), a.Transaction.Cmp(b.Transaction), a.Channel.Cmp(b.Channel), a.Lease.Cmp(b.Lease))
	})
}
