package sdk

import (
	"context"
	"encoding/json"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// bind says in a row whose key signs the records of a lease that begins, where its offer does not: of the key that
// metered, or of our own where meter is zero. A payee signs for it, once: it does so between the two writes of a lease,
// and nobody has it before the second one, after which the row is what counts. A lease that does not come to that
// write is over, and its id never used again.
func (h *lessor) bind(ctx context.Context, row *leasestore.Row, channelID common.Hash, offer wire.SignedOffer, meter common.Address) error {
	if offer.NamesMeter() {
		return nil
	}
	if meter == (common.Address{}) {
		meter = h.meterKey.Address()
	}
	row.MeterKey = meter.Hex()
	if h.binder == nil {
		return nil
	}
	binding, err := wire.BindMeter(ctx, h.binder, offer.Offer, wire.MeterBinding{
		LeaseID: common.HexToHash(row.ID), ChannelID: channelID, OfferHash: offer.Hash, Meter: wire.Address(meter)})
	if err != nil {
		return err
	}
	fault.Point(fault.MeterBound)
	text, err := json.Marshal(binding)
	row.Binding = string(text)
	return err
}

// signer is the metering key of an address, and our newest one where that is not here.
func (h *lessor) signer(meter common.Address) metering.Signer {
	for _, past := range h.pastKeys {
		if past.Address() == meter {
			return past
		}
	}
	return h.meterKey
}
