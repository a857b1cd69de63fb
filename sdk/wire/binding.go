package wire

import (
	"context"
	"errors"
	"fmt"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/eip712"
)

// ErrMeter says that it is not known whose key signs the records of a lease.
var ErrMeter = errors.New("no meter is bound to the lease")

// BindingType is the EIP-712 type of a meter binding, in the domain {name "gpupay meter binding", version "1", chainId,
// verifyingContract: the escrow}.
const BindingType = "MeterBinding(bytes32 leaseId,bytes32 channelId,bytes32 offerHash,address meter)"

var bindingTypeHash = eip712.TypeHash(BindingType)

// MeterBinding is the payee's word that one key, a node's own, signs the usage records of one lease: the record of any
// other key is nobody's. A lease has one for its whole life, so that two different ones of a lease convict the payee.
type MeterBinding struct {
	LeaseID   common.Hash `json:"leaseId"`
	ChannelID common.Hash `json:"channelId"`
	OfferHash common.Hash `json:"offerHash"` // of an offer that names no meter itself (version 2)
	Meter     Address     `json:"meter"`
	Signature Bytes       `json:"signature"` // the payee's: 65 bytes r, s, v
}

// Digest is what the payee signs.
func (b MeterBinding) Digest(chainID uint64, escrow common.Address) common.Hash {
	var buf [5 * 32]byte
	domain := eip712.DomainSeparator("gpupay meter binding", "1", chainID, escrow)
	return eip712.Digest(domain, eip712.Words(buf[:0]).Hash(bindingTypeHash).Hash(b.LeaseID).Hash(b.ChannelID).Hash(b.OfferHash).Address(common.Address(b.Meter)).Sum())
}

// BindMeter signs with the payee's key that a key signs the records of a lease under an offer. Nobody may have it before
// it is on disk, and none may be signed for a lease that has one.
func BindMeter(ctx context.Context, payee channel.Signer, offer Offer, b MeterBinding) (MeterBinding, error) {
	if payee.Address() != common.Address(offer.Payee) {
		return b, fmt.Errorf("lease %s: its offer names payee %s, the key is of %s", b.LeaseID, offer.Payee, payee.Address())
	}
	if b.Meter == (Address{}) {
		return b, fmt.Errorf("lease %s: %w: the meter has no address", b.LeaseID, ErrMeter)
	}
	var err error
	if b.Signature, err = payee.Sign(ctx, b.Digest(offer.ChainID, common.Address(offer.Escrow))); err != nil {
		return b, fmt.Errorf("lease %s: binding its meter: %w", b.LeaseID, err)
	}
	return b, nil
}

// SignedBy reports whether a payee signed the binding, for leases of channels in an escrow.
func (b MeterBinding) SignedBy(payee common.Address, chainID uint64, escrow common.Address) bool {
	signer, err := eip712.Recover(b.Digest(chainID, escrow), b.Signature)
	return err == nil && signer == payee && b.Meter != (Address{})
}

// Of reports whether the binding is of a lease, on a channel and under an offer.
func (b MeterBinding) Of(lease, channelID, offer common.Hash) bool {
	return b.LeaseID == lease && b.ChannelID == channelID && b.OfferHash == offer
}

// NamesMeter reports whether the offer itself says whose key signs the records of all leases under it.
func (o Offer) NamesMeter() bool { return o.Meter != Address{} }

// MeterOf returns whose key signs the records of a lease under the offer: the one that the offer names, or that the payee
// bound to the lease.
func (s SignedOffer) MeterOf(lease, channelID common.Hash, b *MeterBinding) (common.Address, error) {
	switch {
	case s.NamesMeter() && b == nil:
		return common.Address(s.Meter), nil
	case s.NamesMeter():
		return common.Address{}, fmt.Errorf("lease %s: %w: its offer names %s, and a binding stands beside it", lease, ErrMeter, s.Meter)
	case b == nil:
		return common.Address{}, fmt.Errorf("lease %s: %w: its offer names none, and no binding is shown", lease, ErrMeter)
	case !b.Of(lease, channelID, s.Hash):
		return common.Address{}, fmt.Errorf("lease %s: %w: the binding is of lease %s, channel %s and offer %s", lease, ErrMeter, b.LeaseID, b.ChannelID, b.OfferHash)
	case !b.SignedBy(common.Address(s.Payee), s.ChainID, common.Address(s.Escrow)):
		return common.Address{}, fmt.Errorf("lease %s: %w: %w: payee %s did not bind meter %s to it", lease, ErrMeter, channel.ErrSignature, s.Payee, b.Meter)
	}
	return common.Address(b.Meter), nil
}

// Same reports whether two bindings say one thing, whatever their signatures. Either may be nil: no meter is bound.
func (b *MeterBinding) Same(other *MeterBinding) bool {
	if b == nil || other == nil {
		return b == other
	}
	return b.Meter == other.Meter && b.Of(other.LeaseID, other.ChannelID, other.OfferHash)
}
