package provider

import (
	"context"
	"errors"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// problems maps what can go wrong to what a renter is told. The first match
// counts. A revert's data and an internal error's text stay with us.
var problems = []struct {
	err  error
	kind wire.Problem
}{
	{wire.ErrNone, wire.PaymentRequired},
	{wire.ErrMalformed, wire.MalformedCredential},
	{wire.ErrMethod, wire.MethodUnsupported},
	{wire.ErrExpired, wire.PaymentExpired},
	{wire.ErrChallenge, wire.InvalidChallenge},
	{leasestore.ErrChallengeUsed, wire.ChallengeNotFound},
	{leasestore.ErrLockLost, wire.Unavailable},
	{channel.ErrUnknown, wire.ChannelNotFound},
	{channel.ErrFinalized, wire.ChannelFinalized},
	{channel.ErrClosing, wire.ChannelFinalized},
	{channel.ErrSigner, wire.SignerMismatch},
	{channel.ErrSignature, wire.InvalidSignature},
	{channel.ErrExceedsDeposit, wire.AmountExceedsDeposit},
	{channel.ErrDelta, wire.DeltaTooSmall},
	{channel.ErrAmount, wire.MalformedCredential},
	{gpu.ErrNoCapacity, wire.NoCapacity},
	{chain.ErrGaveWay, wire.Unavailable}, {chain.ErrTooLarge, wire.Unavailable},
}

func problemOf(err error) *wire.Problem {
	var problem *wire.Problem
	if errors.As(err, &problem) {
		return problem
	}
	for _, p := range problems {
		if errors.Is(err, p.err) {
			return p.kind.With("%v", err)
		}
	}
	var mined *chain.Reverted
	var revert *chain.Revert
	if errors.As(err, &revert) {
		return wire.TransactionReverted.With("%s", revert.Refusal())
	}
	if errors.As(err, &mined) { // it cost gas; why it reverted may not be known any more
		return wire.TransactionReverted.With("transaction %s was mined and reverted; that is final", mined.Hash)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return wire.Unavailable.With("it took too long; nothing is lost, try again")
	}
	return wire.Internal.With("a failure of the provider's own, which its log names: try again later, and tell its operator if it stays")
}
