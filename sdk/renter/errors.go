package renter

import "github.com/gpupay/gpupay/sdk/internal/peer"

// What a payer meets that asks a provider.
var (
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
