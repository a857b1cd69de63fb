package wire

import (
	"encoding/json"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
)

// Tick is the body of the answer to a tick over x402: one metered piece of a lease.
type Tick struct {
	LeaseID   common.Hash            `json:"leaseId"`
	ChannelID common.Hash            `json:"channelId"`
	OfferHash common.Hash            `json:"offerHash"`
	Devices   []string               `json:"devices"`
	Access    json.RawMessage        `json:"access"` // how the GPUs are reached; null when the lease is over
	State     string                 `json:"state"`
	Charged   Amount                 `json:"charged"` // for this tick, base units
	Record    *metering.SignedRecord `json:"record"`  // the usage record that states it
}
