package rental

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/slots"
	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/internal/billed"
	"github.com/gpupay/gpupay/sdk/internal/sharedcredit"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Phase is how far a rental has come, on disk.
type Phase string

const (
	PhaseOpening  Phase = "opening"  // the channel may or may not be funded
	PhaseRunning  Phase = "running"  // the lease runs, or did when we last heard of it
	PhaseDisputed Phase = "disputed" // the provider was caught: nothing more is paid, the deposit is still to be got back
	PhaseClosing  Phase = "closing"  // being closed with the provider's help
	PhaseLeaving  Phase = "leaving"  // being left without it
	PhaseClosed   Phase = "closed"   // the refund is here, or the channel was never funded; a re-org could still undo that
	PhaseFinished Phase = "finished" // and no re-org can any more
)

// Row is what a rental must not forget. Amounts are base units.
type Row struct {
	URL     string          `json:"url"`
	Terms   channel.Terms   `json:"terms"`
	Offer   json.RawMessage `json:"offer"`
	GPUs    int             `json:"gpus"`
	Options Options         `json:"options"`
	Deposit uint256.Int     `json:"deposit"` // meant for it, until the chain has it
	// Seen is the newest block as of which the chain had Deposit; zero before it did. SeenTime is its time in unix seconds,
	// and no later than our clock could be off then; zero in older databases.
	Seen     uint64      `json:"seen,omitempty"`
	SeenTime int64       `json:"seenTime,omitempty"`
	MinDelta uint256.Int `json:"minDelta"`

	// Made is when the rental was put on disk, unix seconds; zero in databases that
	// did not keep it.
	Made int64 `json:"made,omitempty"`

	// Sponsored: the provider sends deposits that we only sign.
	Sponsored bool `json:"sponsored"`
	// Coinless: our coin did not pay for a top-up, and the provider sends it and those after it.
	Coinless bool `json:"coinless,omitempty"`
	// Funding is the open as it was signed: sent again after a crash, it can
	// move the money only once.
	Funding *wire.Payload `json:"funding,omitempty"`
	// TopUp is the same for a top-up that is not known to have arrived.
	TopUp *wire.Payload `json:"topUp,omitempty"`
	// Moved is what deposits of ours have moved into the channel, by transactions that
	// were mined and authorizations that were seen used and have ended. It never falls.
	Moved uint256.Int `json:"moved"`
	// Before is the deposit that TopUp adds to.
	Before uint256.Int `json:"before"`
	// TopUps counts them: it is the salt that tells equal ones apart.
	TopUps uint64 `json:"topUps"`
	// Promises are the authorizations that were signed for this channel and may
	// still move money into it, or could after a re-org.
	Promises []Promise `json:"promises,omitempty"`

	// PastOffers are those that a lease was asked for under before Offer: it may
	// have begun with an answer that got lost.
	PastOffers []json.RawMessage `json:"pastOffers,omitempty"`

	// Asked is when the lease was first asked for, on our clocks: a lease whose
	// first byte got lost began after it.
	Asked     *metering.Instant `json:"asked,omitempty"`
	AskedBoot string            `json:"askedBoot,omitempty"`

	// Vouchers counts those that were sent, roughly: a crash loses a few.
	Vouchers uint64 `json:"vouchers,omitempty"`
	// Beside is what of the payee's credit other channels could not have any more, at the newest record.
	Beside map[common.Hash]*sharedcredit.Taken `json:"beside,omitempty"`
	// Books are of the requests of a lease that shares GPUs, as of the newest record; Requested is the highest number of them then.
	Books     *slots.Books `json:"books,omitempty"`
	Requested uint64       `json:"requested,omitempty"`
	// Spans are the stretches of each device's time that were billed.
	Spans []billed.Span `json:"spans,omitempty"`

	Lease      common.Hash        `json:"lease"`
	Secret     string             `json:"secret,omitempty"`
	Devices    []string           `json:"devices,omitempty"`
	Access     json.RawMessage    `json:"-"` // often a password: the lease's stream brings it again
	OwedBefore uint256.Int        `json:"owedBefore"`
	Binding    *wire.MeterBinding `json:"binding,omitempty"` // whose key signs its records; nil: the one that its offer names
	Checker    *verify.State      `json:"checker,omitempty"`
	Ended      string             `json:"ended,omitempty"` // why the lease is over
	Dispute    string             `json:"dispute,omitempty"`
	// OfSite is whether Dispute is held against the rental's site alone: nothing that the payee signed proves it.
	OfSite bool     `json:"ofSite,omitempty"`
	Closed *Closing `json:"closed,omitempty"`

	// Past are the channel's leases before this one.
	Past []Past `json:"past,omitempty"`
	// Carried is what they used and were not charged for, in metering.Fractions: the next lease is, once it makes a base unit.
	Carried uint64 `json:"carried,omitempty"`
	// Recalled is the newest voucher of ours that a provider showed and this database had forgotten.
	Recalled uint256.Int `json:"recalled,omitzero"`
	// Cancels numbers the close request that is being taken back, zero: none is.
	Cancels uint64 `json:"cancels,omitempty"`

	Phase Phase `json:"-"`
}

// Options are renter.Options, as they are kept with the rental.
type Options struct {
	GPUs     int           `json:"gpus"`
	Deposit  string        `json:"deposit"`
	TopUp    string        `json:"topUp"`
	PayEvery time.Duration `json:"payEvery"`
	Prepay   time.Duration `json:"prepay"`
	Gasless  bool          `json:"gasless"`
	For      time.Duration `json:"for"`
	Class    string        `json:"class,omitempty"`
	Share    bool          `json:"share,omitempty"`
}

// Closing is a renter.Closing, as it is kept with the rental: how its channel ended on the chain.
type Closing struct {
	Channel  common.Hash `json:"channel"`
	Deposit  uint256.Int `json:"deposit"`
	Owed     uint256.Int `json:"owed"`
	Signed   uint256.Int `json:"signed"`
	Settled  uint256.Int `json:"settled"`
	Refunded uint256.Int `json:"refunded"`
	Forced   bool        `json:"forced"`
	Note     string      `json:"note,omitempty"`
}

// Past is a lease of the channel that was before the rental's.
type Past struct {
	ID         common.Hash     `json:"id"`
	Offer      json.RawMessage `json:"offer"`
	Devices    []string        `json:"devices"`
	OwedBefore uint256.Int     `json:"owedBefore"`

	Binding *wire.MeterBinding `json:"binding,omitempty"` // as of the rental's lease

	// Heard is when its newest record came, on our clocks: the next lease began after it. Nil in older databases.
	Heard     *metering.Instant `json:"heard,omitempty"`
	HeardBoot string            `json:"heardBoot,omitempty"`
}

// Found reports a rental that was found on the chain, of which no offer is known.
func (row Row) Found() bool { return len(row.Offer) == 0 || string(row.Offer) == "null" }

// IsOver reports a rental that is over in the books.
func (row *Row) IsOver() bool { return row.Phase == PhaseClosed || row.Phase == PhaseFinished }

// Knows reports whether what a lease begins with is what this database has, with what the leases before were not charged, or no
// more than a voucher that it had forgotten and the base unit that forgotten leases may have left. What of it is then still
// carried is the second result.
func (row *Row) Knows(lease wire.Lease) (carried uint64, ok bool) {
	if carried, ok = wire.CarriesTo(row.OwedBefore, lease.OwedBefore.Int, row.Carried); ok {
		return carried, true
	}
	if row.Recalled.IsZero() || row.Recalled.Lt(&row.OwedBefore) || lease.OwedBefore.Lt(&row.OwedBefore) {
		return 0, false
	}
	if _, ok = wire.CarriesTo(row.Recalled, lease.OwedBefore.Int, metering.Fractions); ok || lease.OwedBefore.Lt(&row.Recalled) {
		return metering.Fractions - 1, true
	}
	return 0, false
}

// TopUpType is how the next top-up gets onto the chain: as the open did, until our coin did not pay for one. From then on the
// provider sends them: our own are told apart by how many top-ups were before them, all of which the outbox has then.
func (row *Row) TopUpType() string {
	switch {
	case row.Coinless:
		return wire.TypeAuthorization
	case row.Funding == nil:
		return ""
	}
	return row.Funding.Type
}

// Promise is an authorization that this renter signed and may have handed out:
// whoever has it can move its value into the channel, once, until it ends.
type Promise struct {
	Nonce common.Hash `json:"nonce"`
	Value uint256.Int `json:"value"`
	Until uint64      `json:"until"`           // unix seconds: the token refuses it from then on
	Used  bool        `json:"used"`            // as of the newest look; a re-org may undo it
	Given bool        `json:"given,omitempty"` // the provider may have it
}

// Promised keeps an authorization in the books, before it is handed out.
func (row *Row) Promised(a *wire.Authorization) {
	if a == nil || slices.ContainsFunc(row.Promises, func(p Promise) bool { return p.Nonce == a.Nonce && p.Until == a.ValidBefore.Uint64() }) {
		return
	}
	row.Promises = append(row.Promises, Promise{Nonce: a.Nonce, Value: a.Value.Int, Until: a.ValidBefore.Uint64()})
}

// Give marks an authorization before it is sent to the provider. It reports whether
// that is new, and to be kept first.
func (row *Row) Give(a *wire.Authorization) (fresh bool) {
	for i, p := range row.Promises {
		if a != nil && p.Nonce == a.Nonce && !p.Given {
			row.Promises[i].Given, fresh = true, true
		}
	}
	return fresh
}

// Outstanding is what signed authorizations may still move into the channel.
func (row *Row) Outstanding() uint256.Int {
	return sumOf(row.Promises, func(p Promise) bool { return !p.Used })
}

// Arrived is what deposits of ours have moved into the channel: what is there at
// least, whatever an endpoint says.
func (row *Row) Arrived() uint256.Int {
	sum := sumOf(row.Promises, func(p Promise) bool { return p.Used })
	return *sum.Add(&sum, &row.Moved)
}

// retire takes authorizations that have ended out of the books. What they moved
// stays in Moved.
func (row *Row) retire(now uint64) {
	var left, ended []Promise
	for _, p := range row.Promises {
		if now < p.Until {
			left = append(left, p)
		} else {
			ended = append(ended, p)
		}
	}
	moved := sumOf(ended, func(p Promise) bool {
		return p.Used && !slices.ContainsFunc(left, func(q Promise) bool { return q.Nonce == p.Nonce })
	})
	row.Moved.Add(&row.Moved, &moved)
	row.Promises = left
}

// sumOf adds up the promises that count. Several of one nonce, which a crash may
// leave, can move only one of their values.
func sumOf(promises []Promise, counts func(Promise) bool) (sum uint256.Int) {
	most := make(map[common.Hash]uint256.Int)
	for _, p := range promises {
		if before := most[p.Nonce]; counts(p) && p.Value.Gt(&before) {
			most[p.Nonce] = p.Value
		}
	}
	for _, value := range most {
		sum.Add(&sum, &value)
	}
	return sum
}

// GoodUntil says what is still handed out, for an error about an open.
func (row *Row) GoodUntil() string {
	if until := row.Until(); until != 0 {
		return fmt.Sprintf(" (the deposit that was signed for it may be sent until %s)", time.Unix(int64(until), 0).UTC().Format(time.RFC3339))
	}
	return ""
}

// fundedBy is when the deposit of the open can come no more: zero for one by our
// own transaction, which the outbox knows. A database that is a copy from before
// the authorization was signed does not have it: it is as good as one signed when
// the rental was made.
func (row *Row) fundedBy() uint64 {
	if row.Funding == nil {
		return 0
	}
	if row.Funding.Authorization == nil {
		if row.Funding.Type != wire.TypeAuthorization || row.Made == 0 {
			return 0
		}
		return uint64(row.Made) + uint64(wallet.AuthorizationTTL/time.Second)
	}
	return row.Funding.Authorization.ValidBefore.Uint64()
}

// fallbackBy is when a deposit can come no more that another copy of this database
// may have signed for the provider to send, in place of the transaction that this
// one would send: zero where no provider sends any. Until then a rental that was
// never funded is over, and not for good.
func (row *Row) fallbackBy() uint64 {
	if row.Funding == nil || row.Funding.Authorization != nil || !row.Sponsored || row.Made == 0 {
		return 0
	}
	return uint64(row.Made) + uint64(wallet.AuthorizationTTL/time.Second)
}

// Until is when the last of the unused authorizations ends, zero if there is none.
func (row *Row) Until() (last uint64) {
	for _, p := range row.Promises {
		if !p.Used {
			last = max(last, p.Until)
		}
	}
	return last
}
