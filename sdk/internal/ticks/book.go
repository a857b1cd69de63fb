// Package ticks checks GPU time that is paid in advance, tick by tick: each record against the provider's offer, what was signed
// for and this host's clocks, and what a provider says was charged where it shows no record of it.
package ticks

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/internal/billed"
)

// Book is what must not be forgotten of a channel that ticks are paid from. Amounts are base units.
type Book struct {
	// Charged is what the server is known to have charged, in all: the next voucher is for so much and the next price.
	Charged uint256.Int `json:"charged"`
	// Found: something was claimed, or our own voucher was shown, that this
	// database does not know of. It ends with the first record that is accepted.
	Found bool        `json:"found,omitempty"`
	Tick  *Pending    `json:"tick,omitempty"` // asked for, and its record was not yet seen
	Lost  uint256.Int `json:"lost"`           // the voucher of a tick that was charged and not answered; zero once a record came
	// Ticked: ticks were paid from the channel, and what may be charged there that no record states is told apart: up
	// to Ceiling, which the newest record's tick was signed for, as time passes; up to Plain, the most that was signed
	// since for what is no tick, at once.
	Ticked  bool        `json:"ticked,omitempty"`
	Ceiling uint256.Int `json:"ceiling"`
	Plain   uint256.Int `json:"plain"`
	// Open is a tick that was given up with no answer, for one of another number of GPUs or by a refund: what may be charged
	// for it is what it can have run for since it was asked for.
	Open    *Pending      `json:"open,omitempty"`
	Ticking *Lease        `json:"ticking,omitempty"` // the lease that is paid tick by tick
	Other   uint256.Int   `json:"other"`             // charged since that lease began for what was no tick
	Spans   []billed.Span `json:"spans,omitempty"`   // billed of each device, in all leases of the channel
}

// Pending is a tick that was asked for: its payment is sent again as it is
// until its record was seen, and the provider answers with what it had answered.
type Pending struct {
	URL    string      `json:"url"`
	Header string      `json:"header"`
	Key    string      `json:"key,omitempty"` // the idempotency key that goes with it
	Base   uint256.Int `json:"base"`          // charged before it
	Most   uint256.Int `json:"most"`          // what its voucher is for
	Prior  uint256.Int `json:"prior"`         // the most that was signed for before it

	Asked metering.Instant `json:"asked"` // on our clocks: its lease began no earlier
	Boot  string           `json:"boot"`

	GPUs   int         `json:"gpus,omitempty"`
	Hourly uint256.Int `json:"hourly"` // the price of a GPU-hour; zero in older databases
}

// Lease is one that is paid by ticks, as a checker must remember it.
type Lease struct {
	Lease      common.Hash      `json:"lease"`
	Offer      json.RawMessage  `json:"offer"`
	Devices    []string         `json:"devices"`
	OwedBefore uint256.Int      `json:"owedBefore"`
	Checker    verify.State     `json:"checker"`
	Began      metering.Instant `json:"began,omitzero"` // no earlier, on our clocks
	BeganBoot  string           `json:"beganBoot,omitempty"`
	Together   leaseClock       `json:"together,omitzero"` // that the GPUs' time in sum is held to

	// Lent is by how many ns the leases before ran ahead of our clock: so much of the channel's tolerance is used.
	Lent int64 `json:"lent,omitempty,string"`
}

// Tolerance is by how much a provider's clock may run ahead of ours on a channel that is paid by ticks. Our clock
// starts before the provider's, so that nothing that travels is in it. A provider that begins a lease at every tick
// gains it once.
const Tolerance = 250 * time.Millisecond

// MaxTick is the GPU time that one tick may cost at the offer's price, on each
// GPU: what a provider could claim for a tick that it never served.
const MaxTick = time.Minute

// Channel is a channel that ticks are paid from, as one request finds it. Whoever has its turn owns it.
type Channel struct {
	*Book
	ID        common.Hash
	Terms     channel.Terms
	Prior     uint256.Int // the most that was signed for before the request
	ForTick   bool        // the request is for a tick
	Resent    bool        // it is for a tick that was asked for before
	Clock     metering.Clock
	Tolerance time.Duration // of the wallet, for providers that are paid otherwise too
	Billed    *billed.Ledger
	Log       *slog.Logger

	apart bool // our clocks have parted since the tick's lease was heard of
}

// allowance is Tolerance, or what the wallet allows if that is less.
func (c *Channel) allowance() time.Duration { return min(Tolerance, c.Tolerance) }

// Mark has what was signed for ticks told apart from all else on a channel, by the most that this database knows to be signed for:
// what was signed before the first is no tick's, unless it was an earlier version that paid.
func (b *Book) Mark(signed uint256.Int) {
	switch {
	case b.Ticked:
	case b.Ticking == nil && b.Tick == nil:
		b.Plain = u256.Max(b.Plain, signed)
	default:
		b.Ceiling = u256.Max(b.Ceiling, signed)
	}
	b.Ticked = true
}

// Answered ends a tick whose record was accepted.
func (c *Channel) Answered() {
	c.Ceiling = c.Tick.Most
	if !c.Resent { // else something else may have been paid since
		c.Plain, c.Open = uint256.Int{}, nil
	}
	c.Tick, c.Found, c.Lost = nil, false, uint256.Int{}
}

// Violation is what a provider is caught at, as opposed to what fails here.
type Violation struct{ error }

func (v *Violation) Unwrap() error { return v.error }

// Violationf makes a Violation as fmt.Errorf makes an error.
func Violationf(format string, args ...any) error { return &Violation{fmt.Errorf(format, args...)} }
