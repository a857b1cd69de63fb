package x402

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/gpupay/gpupay/sdk/wire"
)

// PaymentPayload is the payment that comes with a request.
type PaymentPayload struct {
	Accepted   Requirements // the offer that is paid, echoed
	Resource   *Resource
	Payload    Payload
	Extensions json.RawMessage // the answer's, echoed
}

// Type says what a payment does beside showing a voucher.
type Type string

// The types. The voucher of a deposit or of type voucher pays for the request;
// that of a refund is over what was charged already, and the request gets
// nothing but the refund.
const (
	TypeDeposit Type = "deposit"
	TypeVoucher Type = "voucher"
	TypeRefund  Type = "refund"
)

// Payload is the scheme's part of a payment.
type Payload struct {
	Type    Type
	Config  ChannelConfig
	Voucher Voucher
	Deposit *Deposit     // of TypeDeposit, and always there
	Refund  *wire.Amount // of TypeRefund: base units, above zero; nil for all that was not charged
}

// ChannelConfig is what a channel is fixed to for life: see Terms.
type ChannelConfig struct {
	Payer              wire.Address `json:"payer"`
	PayerAuthorizer    wire.Address `json:"payerAuthorizer"` // signs vouchers; zero means the payer
	Receiver           wire.Address `json:"receiver"`
	ReceiverAuthorizer wire.Address `json:"receiverAuthorizer"`
	Token              wire.Address `json:"token"`
	WithdrawDelay      uint64       `json:"withdrawDelay"` // seconds
	Salt               Hash         `json:"salt"`
}

// Voucher lets the receiver claim MaxClaimableAmount base units of the channel,
// all vouchers before it included.
type Voucher struct {
	ChannelID          Hash        `json:"channelId"`
	MaxClaimableAmount wire.Amount `json:"maxClaimableAmount"`
	Signature          Signature   `json:"signature"`
}

// Deposit is money for the channel that the receiver may draw from the payer.
type Deposit struct {
	Amount        wire.Amount // base units, above zero
	Authorization Authorization
}

// Authorization is the rest of an ERC-3009 ReceiveWithAuthorization of the
// payer to channel.BatchSettlementCollector: see Payload.Authorization.
type Authorization struct {
	ValidAfter  Seconds   `json:"validAfter"`
	ValidBefore Seconds   `json:"validBefore"`
	Salt        Hash      `json:"salt"` // tells equal deposits apart; not the channel's
	Signature   Signature `json:"signature"`
}

// Set writes the header.
func (p PaymentPayload) Set(h http.Header) error {
	if err := p.Payload.whole(); err != nil {
		return fmt.Errorf("writing %s: %w", HeaderSignature, err)
	}
	return set(h, HeaderSignature, struct {
		Version    int             `json:"x402Version"`
		Payload    Payload         `json:"payload"`
		Extensions json.RawMessage `json:"extensions,omitempty"`
		Resource   *Resource       `json:"resource,omitempty"`
		Accepted   Requirements    `json:"accepted"`
	}{Version, p.Payload, p.Extensions, p.Resource, p.Accepted})
}

// whole reports a payload whose parts are not those of its type.
func (p Payload) whole() error {
	switch p.Type {
	case TypeDeposit, TypeVoucher, TypeRefund:
	default:
		return fmt.Errorf("%w: type %.40q", CodePayloadType, p.Type)
	}
	if (p.Deposit != nil) != (p.Type == TypeDeposit) || (p.Refund != nil && p.Type != TypeRefund) {
		return malformed("the parts of a %s do not belong together", p.Type)
	}
	if p.Deposit != nil && p.Deposit.Amount.IsZero() {
		return malformed("a deposit of nothing")
	}
	if p.Refund != nil && p.Refund.IsZero() {
		return fmt.Errorf("%w: a refund of nothing", CodeRefundAmountInvalid)
	}
	return nil
}

// MarshalJSON writes the fields of the payload's type.
func (p Payload) MarshalJSON() ([]byte, error) {
	type authorization struct {
		ERC3009 Authorization `json:"erc3009Authorization"`
	}
	type deposit struct {
		Amount        wire.Amount   `json:"amount"`
		Authorization authorization `json:"authorization"`
	}
	var d *deposit
	if p.Deposit != nil {
		d = &deposit{p.Deposit.Amount, authorization{p.Deposit.Authorization}}
	}
	return marshal(struct {
		Type    Type          `json:"type"`
		Config  ChannelConfig `json:"channelConfig"`
		Voucher Voucher       `json:"voucher"`
		Deposit *deposit      `json:"deposit,omitempty"`
		Amount  *wire.Amount  `json:"amount,omitempty"`
	}{p.Type, p.Config, p.Voucher, d, p.Refund})
}

// ParsePaymentPayload reads the payment of a request. ErrNone means that there
// is none. An error that says more than that something is malformed is a Code.
func ParsePaymentPayload(h http.Header) (PaymentPayload, error) {
	o, err := get(h, HeaderSignature)
	if err != nil {
		return PaymentPayload{}, err
	}
	o.version()
	p := PaymentPayload{
		Accepted:   readAccepted(o.object("accepted")),
		Payload:    readPayload(o.object("payload")),
		Extensions: o.optional("extensions").document(),
	}
	if r := o.optional("resource"); r.fields != nil {
		resource := readResource(r)
		p.Resource = &resource
	}
	return read(HeaderSignature, o, p)
}

// readAccepted reads the echo of an offer. The state of a corrective answer is
// no part of what was offered.
func readAccepted(o object) Requirements {
	if o.text("scheme") != Scheme {
		o.fail("scheme", fmt.Errorf("%w: %.40q", CodeScheme, o.fields["scheme"]))
	}
	if extra := o.optional("extra"); extra.fields != nil {
		delete(extra.fields, "channelState")
		delete(extra.fields, "voucherState")
		if m := extra.note("assetTransferMethod"); m != "" && m != TransferERC3009 {
			o.fail("extra.assetTransferMethod", fmt.Errorf("%w: %.40q", CodeERC3009Required, m))
		}
	}
	return readRequirements(o)
}

func readPayload(o object) Payload {
	p := Payload{Type: Type(o.text("type")), Config: readConfig(o.object("channelConfig")), Voucher: readVoucher(o.object("voucher"))}
	switch p.Type {
	case TypeDeposit:
		p.Deposit = readDeposit(o.object("deposit"))
	case TypeRefund:
		p.Refund = o.someAmount("amount")
	}
	if err := p.whole(); err != nil {
		o.fail("type", err)
	}
	return p
}

func readConfig(o object) ChannelConfig {
	return ChannelConfig{
		Payer:              o.address("payer"),
		PayerAuthorizer:    o.address("payerAuthorizer"),
		Receiver:           o.address("receiver"),
		ReceiverAuthorizer: o.address("receiverAuthorizer"),
		Token:              o.address("token"),
		WithdrawDelay:      o.number("withdrawDelay", maxUint40),
		Salt:               o.hash("salt"),
	}
}

func readVoucher(o object) Voucher {
	if text, ok := o.fields["channelId"].(string); ok && unhex(make([]byte, 32), []byte(text)) != nil {
		o.fail("channelId", fmt.Errorf("%w: %.20q", CodeChannelIDInvalid, text))
	}
	return Voucher{o.hash("channelId"), o.amount("maxClaimableAmount"), o.signature("signature")}
}

func readDeposit(o object) *Deposit {
	by := o.object("authorization")
	if *o.err == nil && !by.has("erc3009Authorization") {
		by.fail("erc3009Authorization", fmt.Errorf("%w: there is none", CodeERC3009Required))
	}
	a := by.object("erc3009Authorization")
	d := Deposit{Amount: o.amount("amount"), Authorization: Authorization{Salt: a.hash("salt"), Signature: a.signature("signature")}}
	a.into("validAfter", &d.Authorization.ValidAfter)
	a.into("validBefore", &d.Authorization.ValidBefore)
	return &d
}
