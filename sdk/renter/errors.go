package renter

import (
	"github.com/gpupay/gpupay/sdk/internal/paystream"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/internal/rental"
)

// What a renter meets. Every other error says what happened and wraps nothing
// that a caller would branch on.
var (
	// ErrFlood says that the provider sends records faster than it offered to.
	ErrFlood = paystream.ErrFlood
	// ErrBudget says that a cap or the deposit is used up. Close now, and all is paid.
	ErrBudget = rental.ErrBudget
	// ErrNeverFunded says that a channel that was meant to be opened was not and cannot be
	// any more. No money is in it.
	ErrNeverFunded = rental.ErrNeverFunded

	// ErrOffer is an offer that does not hold together. Nothing was signed.
	ErrOffer = peer.ErrOffer
	// ErrUnreachable says that the provider cannot be reached.
	ErrUnreachable = peer.ErrUnreachable
	// ErrSilent says that the provider sent no usage record for too long. Nothing is owed for the time.
	ErrSilent = peer.ErrSilent
	// ErrDemand says that the provider demands money that no record accounts for.
	ErrDemand = peer.ErrDemand
	// ErrProtocol says that the provider's stream is not what it should be.
	ErrProtocol = peer.ErrProtocol
	// ErrRefused says that the provider does not close the channel. Leave gets the deposit back without it.
	ErrRefused = peer.ErrRefused
)
