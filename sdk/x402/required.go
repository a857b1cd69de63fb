package x402

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"

	"github.com/gpupay/gpupay/sdk/wire"
)

// FirstError is the error of a 402 that answers a request without a payment.
const FirstError = "Payment required"

// PaymentRequired is what a 402 answer asks for. Accepts are the offers of this
// scheme on EVM chains with ERC-3009 deposits; a reader drops all others.
//
// A stock client repairs its state from the first offer, whatever its network:
// give a corrective answer only the offer that was paid.
type PaymentRequired struct {
	Error      string         // a Code, or FirstError
	Resource   Resource       // URL must be set: the schema wants it
	Accepts    []Requirements // at least one when written
	Extensions json.RawMessage
}

// Resource is what is paid for.
type Resource struct {
	URL         string `json:"url"`
	Description string `json:"description,omitempty"`
	MimeType    string `json:"mimeType,omitempty"`
}

// Requirements are one offer: the price of one request, and the terms of the
// channel that it is paid from.
type Requirements struct {
	Network           Network
	Amount            wire.Amount // the most that one request costs, base units of Asset
	Asset             wire.Address
	PayTo             wire.Address
	MaxTimeoutSeconds uint64 // a deposit's authorization expires so long after it was signed
	Extra             Extra

	document json.RawMessage // as it was read: a server compares an echo with its offer text by text
}

// Extra is what the scheme adds to an offer.
type Extra struct {
	Name                string        `json:"name"`    // of Asset's EIP-712 domain
	Version             string        `json:"version"` // of the same
	AssetTransferMethod string        `json:"assetTransferMethod,omitempty"`
	ReceiverAuthorizer  wire.Address  `json:"receiverAuthorizer"`
	WithdrawDelay       uint64        `json:"withdrawDelay"`          // seconds
	MinDeposit          *wire.Amount  `json:"minDeposit,omitempty"`   // a hint: a client's own cap may be lower
	ChannelState        *ChannelState `json:"channelState,omitempty"` // of a corrective answer
	VoucherState        *VoucherState `json:"voucherState,omitempty"` // of a corrective answer
}

// ChannelState is what the server says of a channel.
type ChannelState struct {
	*Snapshot                            // nil if the server did not read the chain
	ChargedCumulativeAmount *wire.Amount `json:"chargedCumulativeAmount,omitempty"` // the base of the next voucher
}

// Snapshot is a channel as the server last read it from the chain.
type Snapshot struct {
	ChannelID           Hash        `json:"channelId"`
	Balance             wire.Amount `json:"balance"`
	TotalClaimed        wire.Amount `json:"totalClaimed"`
	WithdrawRequestedAt uint64      `json:"withdrawRequestedAt"` // unix seconds, 0 for none
	RefundNonce         wire.Amount `json:"refundNonce"`
}

// VoucherState is the newest voucher that the server has: one pair, by which a
// client knows that the figures are not made up.
type VoucherState struct {
	SignedMaxClaimable wire.Amount `json:"signedMaxClaimable"`
	Signature          Signature   `json:"signature"`
}

// Set writes the header.
func (p PaymentRequired) Set(h http.Header) error {
	if p.Resource.URL == "" || len(p.Accepts) == 0 {
		return fmt.Errorf("writing %s: no resource or nothing to accept", HeaderRequired)
	}
	return set(h, HeaderRequired, struct {
		Version    int             `json:"x402Version"`
		Error      string          `json:"error,omitempty"`
		Resource   Resource        `json:"resource"`
		Accepts    []Requirements  `json:"accepts"`
		Extensions json.RawMessage `json:"extensions,omitempty"`
	}{Version, p.Error, p.Resource, p.Accepts, p.Extensions})
}

// ParsePaymentRequired reads the header of a 402 answer. Accepts is empty if
// none of its offers is for us; a broken one that is for us is an error.
func ParsePaymentRequired(h http.Header) (PaymentRequired, error) {
	o, err := get(h, HeaderRequired)
	if err != nil {
		return PaymentRequired{}, err
	}
	o.version()
	p := PaymentRequired{
		Error:      o.note("error"),
		Resource:   readResource(o.optional("resource")),
		Extensions: o.optional("extensions").document(),
	}
	offers, ok := o.fields["accepts"].([]any)
	if !ok {
		o.fail("accepts", malformed("not an array"))
	}
	for i, offer := range offers {
		at := fmt.Sprintf("accepts[%d]", i)
		fields, ok := offer.(map[string]any)
		if !ok {
			o.fail(at, malformed("not an object"))
		}
		if a := (object{at: at, fields: fields, err: o.err}); a.payable() {
			p.Accepts = append(p.Accepts, readRequirements(a))
		}
	}
	return read(HeaderRequired, o, p)
}

func readResource(o object) Resource {
	return Resource{URL: o.note("url"), Description: o.note("description"), MimeType: o.note("mimeType")}
}

// payable reports whether an offer is of the kind that this package pays.
func (o object) payable() bool {
	extra, _ := o.fields["extra"].(map[string]any)
	if method := extra["assetTransferMethod"]; method != nil && method != TransferERC3009 {
		return false
	}
	if flow := extra["paymentFlow"]; flow != nil && flow != "authorization" {
		return false
	}
	network, _ := o.fields["network"].(string)
	return o.fields["scheme"] == Scheme && len(network) > len(namespace) && network[:len(namespace)] == namespace
}

func readRequirements(o object) Requirements {
	r := Requirements{
		Amount:            o.amount("amount"),
		Asset:             o.address("asset"),
		PayTo:             o.address("payTo"),
		MaxTimeoutSeconds: o.number("maxTimeoutSeconds", maxUint40),
		Extra:             readExtra(o.object("extra")),
		document:          o.document(),
	}
	o.into("network", &r.Network)
	if r.MaxTimeoutSeconds == 0 {
		o.fail("maxTimeoutSeconds", malformed("zero"))
	}
	return r
}

func readExtra(o object) Extra {
	e := Extra{
		Name:                o.filled("name"),
		Version:             o.filled("version"),
		AssetTransferMethod: o.note("assetTransferMethod"),
		ReceiverAuthorizer:  o.address("receiverAuthorizer"),
		WithdrawDelay:       o.number("withdrawDelay", maxUint40),
		MinDeposit:          o.someAmount("minDeposit"),
	}
	if o.has("channelState") {
		e.ChannelState = readChannelState(o.object("channelState"))
	}
	if v := o.optional("voucherState"); v.has("signedMaxClaimable") || v.has("signature") {
		e.VoucherState = &VoucherState{v.amount("signedMaxClaimable"), v.signature("signature")}
	}
	return e
}

func readChannelState(o object) *ChannelState {
	s := ChannelState{ChargedCumulativeAmount: o.someAmount("chargedCumulativeAmount")}
	for _, name := range []string{"channelId", "balance", "totalClaimed", "withdrawRequestedAt", "refundNonce"} {
		if !o.has(name) {
			continue
		}
		s.Snapshot = &Snapshot{
			ChannelID:           o.hash("channelId"),
			Balance:             o.amount("balance"),
			TotalClaimed:        o.amount("totalClaimed"),
			WithdrawRequestedAt: o.number("withdrawRequestedAt", maxUint40),
			RefundNonce:         o.amount("refundNonce"),
		}
		break
	}
	return &s
}

// errChanged keeps an echo from saying something else than its fields do.
var errChanged = errors.New("the offer was changed after it was read: build a new one")

// MarshalJSON writes an offer that was read as it was read.
func (r Requirements) MarshalJSON() ([]byte, error) {
	if r.document == nil {
		return marshal(struct {
			Scheme            string       `json:"scheme"`
			Network           Network      `json:"network"`
			Amount            wire.Amount  `json:"amount"`
			Asset             wire.Address `json:"asset"`
			PayTo             wire.Address `json:"payTo"`
			MaxTimeoutSeconds uint64       `json:"maxTimeoutSeconds"`
			Extra             Extra        `json:"extra"`
		}{Scheme, r.Network, r.Amount, r.Asset, r.PayTo, r.MaxTimeoutSeconds, r.Extra})
	}
	o, err := parse(r.document)
	if err != nil {
		return nil, err
	}
	if again := readRequirements(o); *o.err != nil || !reflect.DeepEqual(again, r) {
		return nil, errChanged
	}
	return r.document, nil
}
