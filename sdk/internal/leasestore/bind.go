package leasestore

import (
	"context"
	"encoding/json"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Bind says in the row of a lease that begins whose key signs its records, where its offer does not: meter. A payee signs for it, once: it does
// so between the two writes of a lease, and nobody has it before the second one, after which the row is what counts. A lease that does not
// come to that write is over, and its id never used again. payee is nil at a node, whose gateways have the key.
func (r *Row) Bind(ctx context.Context, payee channel.Signer, channelID common.Hash, offer wire.SignedOffer, meter common.Address) error {
	if offer.NamesMeter() {
		return nil
	}
	r.MeterKey = meter.Hex()
	if payee == nil {
		return nil
	}
	binding, err := wire.BindMeter(ctx, payee, offer.Offer, wire.MeterBinding{
		LeaseID: common.HexToHash(r.ID), ChannelID: channelID, OfferHash: offer.Hash, Meter: wire.Address(meter)})
	if err != nil {
		return err
	}
	fault.Point(fault.MeterBound)
	text, err := json.Marshal(binding)
	r.Binding = string(text)
	return err
}
