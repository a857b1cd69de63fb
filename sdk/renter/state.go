package renter

import (
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Phase is how far a rental has come.
type Phase string

const (
	PhaseOpening  = Phase(rental.PhaseOpening)  // the channel may or may not be funded
	PhaseRunning  = Phase(rental.PhaseRunning)  // the lease runs, or did when we last heard of it
	PhaseDisputed = Phase(rental.PhaseDisputed) // the provider was caught: nothing more is paid, the deposit is still to be got back
	PhaseClosing  = Phase(rental.PhaseClosing)  // being closed with the provider's help
	PhaseLeaving  = Phase(rental.PhaseLeaving)  // being left without it
	PhaseClosed   = Phase(rental.PhaseClosed)   // the refund is here, or the channel was never funded; a re-org could still undo that
	PhaseFinished = Phase(rental.PhaseFinished) // and no re-org can any more
)

// State is what a rental has come to, for a person to look at. Amounts
// are base units.
type State struct {
	Channel  common.Hash
	Escrow   common.Address // the contract that holds its deposit
	Payer    common.Address // whose deposit it is
	Token    common.Address // it is paid in
	Lease    common.Hash
	URL      string
	Phase    Phase
	Service  string // active, suspended or ended, as the provider says; empty while not attached
	Devices  []string
	GPUs     int
	For      time.Duration  // Options.For
	Share    metering.Share // how the offer has its GPUs shared; zero: they are the rental's own
	Price    metering.Price // of one GPU
	Sequence uint64         // of the newest checked record
	Nanos    uint64         // GPU time in checked records
	Owed     uint256.Int    // by checked records
	Paid     uint256.Int    // by vouchers
	Deposit  uint256.Int
	// Promised is what signed authorizations may still move into the channel, until
	// Until.
	Promised uint256.Int
	Until    time.Time
	Heard    time.Time // when the newest record came
	Reason   string    // why the lease ended, or what the provider was caught at
	Closed   *Closing  // how it ended, once it did
}

// Closing is how a channel ended on the chain. Amounts are base units.
type Closing struct {
	Channel  common.Hash `json:"channel"`
	Deposit  uint256.Int `json:"deposit"`
	Owed     uint256.Int `json:"owed"`     // by checked records
	Signed   uint256.Int `json:"signed"`   // the newest voucher: the most that could be settled
	Settled  uint256.Int `json:"settled"`  // what the provider got
	Refunded uint256.Int `json:"refunded"` // what came back
	Forced   bool        `json:"forced"`   // without the provider's help
	Note     string      `json:"note,omitempty"`
}

// offered is what a State says of an offer.
type offered struct {
	price metering.Price
	share metering.Share
}

// stateOf is what a rental's row says; what vouchers do is not in it. The offer is the row's.
func stateOf(row rental.Row, offer offered) State {
	s := State{
		Channel: row.Terms.ID(), Escrow: row.Terms.Escrow, Payer: row.Terms.Payer, Token: row.Terms.Token, Lease: row.Lease, URL: row.URL, Phase: Phase(row.Phase), Devices: row.Devices, GPUs: row.GPUs,
		Price: offer.price, For: row.Options.For, Share: offer.share,
		Owed: row.OwedBefore, Deposit: row.Deposit, Reason: row.Ended, Closed: (*Closing)(row.Closed),
	}
	if s.Promised = row.Outstanding(); !s.Promised.IsZero() {
		s.Until = time.Unix(int64(row.Until()), 0)
	}
	if row.Dispute != "" {
		s.Reason = row.Dispute
	}
	if row.Checker != nil {
		s.Sequence, s.Nanos, s.Owed = row.Checker.Sequence, row.Checker.Nanos, row.Checker.Owed
	}
	return s
}

// offerOf is what a State says of a row's offer, whose signature is checked for it: that takes longer than all else that a State says.
func offerOf(row rental.Row) (o offered) {
	if offer, err := wire.ParseOffer(row.Offer); err == nil {
		o.price = metering.Price{Amount: offer.Amount.Int, Unit: metering.Unit(offer.Unit)}
		if offer.Share != nil {
			o.share = metering.Share{GPUs: offer.Share.GPUs, Slots: offer.Share.Slots}
		}
	}
	return o
}
