package wire

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"
)

// Receipt is the Payment-Receipt header of a success, and the data of a
// stream's last event.
type Receipt struct {
	Method             string       `json:"method"`
	Intent             string       `json:"intent"`
	Status             string       `json:"status"` // always "success": a failure is a Problem
	Timestamp          string       `json:"timestamp"`
	Reference          common.Hash  `json:"reference"` // the channel's id
	ChallengeID        string       `json:"challengeId"`
	ChannelID          common.Hash  `json:"channelId"`
	AcceptedCumulative Amount       `json:"acceptedCumulative"`
	Spent              Amount       `json:"spent"`
	ChainID            uint64       `json:"chainId"`
	Units              string       `json:"units,omitempty"` // GPU-nanoseconds metered in the lease
	TxHash             *common.Hash `json:"txHash,omitempty"`
}

// NewReceipt fills what every receipt has.
func NewReceipt(now time.Time, challengeID string, chainID uint64, channelID common.Hash, accepted, spent Amount) Receipt {
	return Receipt{
		Method: Method, Intent: Intent, Status: "success",
		Timestamp:          now.UTC().Format(time.RFC3339),
		Reference:          channelID,
		ChallengeID:        challengeID,
		ChannelID:          channelID,
		AcceptedCumulative: accepted,
		Spent:              spent,
		ChainID:            chainID,
	}
}

// Set writes the receipt's header.
func (r Receipt) Set(h http.Header) error {
	text, err := encode(r)
	if err != nil {
		return err
	}
	h.Set("Payment-Receipt", text)
	return nil
}

// ParseReceipt reads the receipt of an answer. ErrNone means there is none.
func ParseReceipt(h http.Header) (Receipt, error) {
	text := h.Get("Payment-Receipt")
	if text == "" {
		return Receipt{}, ErrNone
	}
	var r Receipt
	if err := decode("receipt", text, &r); err != nil {
		return Receipt{}, err
	}
	if r.Status != "success" || r.Method != Method || r.Intent != Intent {
		return Receipt{}, malformed("receipt of %s/%s with status %q", r.Method, r.Intent, r.Status)
	}
	return r, nil
}

// NeedVoucher is the data of payment-need-voucher: service waits for a voucher
// of at least RequiredCumulative. If that is above Deposit, top up first.
type NeedVoucher struct {
	ChannelID          common.Hash `json:"channelId"`
	RequiredCumulative Amount      `json:"requiredCumulative"`
	AcceptedCumulative Amount      `json:"acceptedCumulative"`
	Deposit            Amount      `json:"deposit"`
}

// Lease is the data of a stream's first event: what was rented and how to
// reach it. Secret stands only in the answer that created the lease.
type Lease struct {
	LeaseID    common.Hash     `json:"leaseId"`
	ChannelID  common.Hash     `json:"channelId"`
	Secret     string          `json:"secret,omitempty"`
	OfferHash  common.Hash     `json:"offerHash"`
	Devices    []string        `json:"devices"`
	OwedBefore Amount          `json:"owedBefore"` // the channel's spent amount when the lease began
	State      string          `json:"state"`
	Access     json.RawMessage `json:"access"` // what the allocator said about reaching the devices
	// Voucher is the newest that the provider has of the channel: a payer whose database was restored has forgotten it. nil: none.
	Voucher *HeldVoucher `json:"voucher,omitempty"`
	// Binding says whose key signs the lease's records, where its offer does not. nil: the offer does.
	Binding *MeterBinding `json:"binding,omitempty"`
}

// Released is the answer to a release: the lease's final record, null where it has none, and the newest voucher that the provider
// has of the channel, as in a Lease.
type Released struct {
	Record  json.RawMessage `json:"record"`
	Voucher *HeldVoucher    `json:"voucher,omitempty"`
}

// HeldVoucher is a voucher of the channel that stands beside it. Its signature is the payer's own.
type HeldVoucher struct {
	CumulativeAmount Amount `json:"cumulativeAmount"`
	Signature        Bytes  `json:"signature"`
}

// Status is the data of a status event: the lease was suspended, resumed or
// ended, and why.
type Status struct {
	State  string `json:"state"`
	Reason string `json:"reason,omitempty"`
}
