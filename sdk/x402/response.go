package x402

import (
	"net/http"

	"github.com/gpupay/gpupay/sdk/wire"
)

// SettleResponse says what became of a payment. Stock clients read it at every
// status, and then no PAYMENT-REQUIRED: never send both.
//
// Of a request that was charged, ChargedAmount must be set, also to zero: a
// client takes none for zero, and drops what does not add up with
// ChannelState.ChargedCumulativeAmount. A refund has no ChargedAmount.
type SettleResponse struct {
	Success       bool
	ErrorReason   string // a Code, if not Success
	ErrorMessage  string
	Transaction   Transaction // of a deposit or a refund
	Network       Network
	Payer         *wire.Address
	Amount        *wire.Amount // that Transaction moved, base units
	ChargedAmount *wire.Amount // for this request, at most the offer's amount
	ChannelState  *ChannelState
}

type settleExtra struct {
	ChargedAmount *wire.Amount  `json:"chargedAmount,omitempty"`
	ChannelState  *ChannelState `json:"channelState,omitempty"`
}

// Set writes the header.
func (r SettleResponse) Set(h http.Header) error {
	var amount string
	if r.Amount != nil {
		amount = r.Amount.Dec()
	}
	var extra *settleExtra
	if r.ChargedAmount != nil || r.ChannelState != nil {
		extra = &settleExtra{r.ChargedAmount, r.ChannelState}
	}
	return set(h, HeaderResponse, struct {
		Success      bool          `json:"success"`
		ErrorReason  string        `json:"errorReason,omitempty"`
		ErrorMessage string        `json:"errorMessage,omitempty"`
		Transaction  Transaction   `json:"transaction"`
		Network      Network       `json:"network"`
		Payer        *wire.Address `json:"payer,omitempty"`
		Amount       string        `json:"amount"`
		Extra        *settleExtra  `json:"extra,omitempty"`
	}{r.Success, r.ErrorReason, r.ErrorMessage, r.Transaction, r.Network, r.Payer, amount, extra})
}

// ParseSettleResponse reads the receipt of an answer. ErrNone means that there
// is none.
func ParseSettleResponse(h http.Header) (SettleResponse, error) {
	o, err := get(h, HeaderResponse)
	if err != nil {
		return SettleResponse{}, err
	}
	extra := o.optional("extra")
	r := SettleResponse{
		Success:       o.flag("success"),
		ErrorReason:   o.note("errorReason"),
		ErrorMessage:  o.note("errorMessage"),
		ChargedAmount: extra.someAmount("chargedAmount"),
	}
	o.into("transaction", &r.Transaction)
	o.into("network", &r.Network)
	if o.has("payer") {
		payer := o.address("payer")
		r.Payer = &payer
	}
	if o.note("amount") != "" {
		r.Amount = o.someAmount("amount")
	}
	if extra.has("channelState") {
		r.ChannelState = readChannelState(extra.object("channelState"))
	}
	return read(HeaderResponse, o, r)
}
