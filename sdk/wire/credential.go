package wire

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/ethereum/go-ethereum/common"
)

// Conditions that the two sides tell apart.
var (
	ErrChallenge = errors.New("challenge was not issued here")
	ErrExpired   = errors.New("challenge expired")
	ErrMethod    = errors.New("payment method is not supported")
	ErrNone      = errors.New("no Payment credential")
)

// Actions of a session credential. Release is gpupay's own: it ends the lease
// and leaves the channel open, so that the last usage record can be paid
// exactly before the channel is closed.
const (
	ActionOpen    = "open"
	ActionTopUp   = "topUp"
	ActionVoucher = "voucher"
	ActionRelease = "release"
	ActionClose   = "close"
)

// Types of a funding payload.
const (
	TypeHash          = "hash"          // the payer sent the transaction
	TypeAuthorization = "authorization" // the payer signed ERC-3009, the provider sends it
)

// Credential answers a challenge: the Authorization header.
type Credential struct {
	Challenge Challenge `json:"challenge"`
	Source    string    `json:"source,omitempty"` // did:pkh:eip155:<chain>:<payer>
	Payload   Payload   `json:"payload"`
}

// Payload is the session method's part of a credential. Which fields stand
// depends on Action and Type; Validate says what is missing.
//
// LeaseSecret and Proof are gpupay's: one of them is needed to attach to a
// lease, to read how to reach the GPU, to release or to close, because
// everything else in a payload may have become public on-chain.
type Payload struct {
	Action            string         `json:"action"`
	Type              string         `json:"type,omitempty"`
	ChannelID         common.Hash    `json:"channelId"`
	Hash              *common.Hash   `json:"hash,omitempty"`
	Authorization     *Authorization `json:"authorization,omitempty"`
	AdditionalDeposit *Amount        `json:"additionalDeposit,omitempty"`
	CumulativeAmount  *Amount        `json:"cumulativeAmount,omitempty"`
	Signature         Bytes          `json:"signature,omitempty"`
	VoucherSignature  Bytes          `json:"voucherSignature,omitempty"`
	AuthorizedSigner  *Address       `json:"authorizedSigner,omitempty"`
	Salt              *common.Hash   `json:"salt,omitempty"`
	Deposit           *Payload       `json:"deposit,omitempty"`
	LeaseSecret       string         `json:"leaseSecret,omitempty"`
	Proof             Bytes          `json:"proof,omitempty"`
}

// Authorization is an ERC-3009 ReceiveWithAuthorization: the payer lets the
// escrow, and nobody else, pull Value once.
type Authorization struct {
	From        Address     `json:"from"`
	To          Address     `json:"to"`
	Value       Amount      `json:"value"`
	ValidAfter  Amount      `json:"validAfter"`  // unix seconds
	ValidBefore Amount      `json:"validBefore"` // unix seconds
	Nonce       common.Hash `json:"nonce"`
}

// Header is the Authorization value.
func (c Credential) Header() (string, error) {
	text, err := encode(c)
	if err != nil {
		return "", err
	}
	return Scheme + " " + text, nil
}

// ParseCredential reads the Payment credential of a request. ErrNone means
// that there is none.
func ParseCredential(h http.Header) (Credential, error) {
	for _, value := range h.Values("Authorization") {
		scheme, text, ok := strings.Cut(strings.TrimSpace(value), " ")
		if !ok || !strings.EqualFold(scheme, Scheme) {
			continue
		}
		var c Credential
		if err := decode("credential", strings.TrimSpace(text), &c); err != nil {
			return Credential{}, err
		}
		return c, c.Payload.Validate()
	}
	return Credential{}, ErrNone
}

// Validate checks that the payload has the fields of its action.
func (p *Payload) Validate() error {
	if p.ChannelID == (common.Hash{}) {
		return malformed("payload lacks channelId")
	}
	switch p.Action {
	case ActionOpen:
		return p.validateOpen()
	case ActionTopUp:
		return p.validateTopUp()
	case ActionVoucher, ActionClose:
		return p.validateVoucher()
	case ActionRelease:
		return p.forbid(p.Deposit != nil, "deposit")
	}
	return malformed("action %.40q is not open, topUp, voucher, release or close", p.Action)
}

func (p *Payload) forbid(present bool, field string) error {
	if present {
		return malformed("%s: %s does not belong there", p.Action, field)
	}
	return nil
}

func (p *Payload) need(present bool, field string) error {
	if !present {
		return malformed("%s: %s is missing", p.Action, field)
	}
	return nil
}

func (p *Payload) validateOpen() error {
	return errors.Join(
		p.validateFunding(),
		p.need(p.Salt != nil, "salt"),
		p.need(p.CumulativeAmount != nil, "cumulativeAmount"),
		p.need(len(p.voucherSignature()) > 0, "the voucher's signature"),
		p.forbid(p.Deposit != nil, "deposit"),
	)
}

func (p *Payload) validateTopUp() error {
	return errors.Join(
		p.validateFunding(),
		p.need(p.AdditionalDeposit != nil && !p.AdditionalDeposit.IsZero(), "a positive additionalDeposit"),
		p.need(p.Type == TypeHash || p.Salt != nil, "salt"),
		p.forbid(p.Deposit != nil, "deposit"),
	)
}

func (p *Payload) validateFunding() error {
	switch p.Type {
	case "", TypeHash:
		p.Type = TypeHash
		return p.need(p.Hash != nil, "hash")
	case TypeAuthorization:
		return errors.Join(p.need(p.Authorization != nil, "authorization"), p.need(len(p.Signature) > 0, "signature"))
	}
	return malformed("%s: type %.40q is not hash or authorization", p.Action, p.Type)
}

func (p *Payload) validateVoucher() error {
	err := errors.Join(
		p.need(p.CumulativeAmount != nil, "cumulativeAmount"),
		p.need(len(p.Signature) > 0, "signature"),
	)
	if err != nil || p.Deposit == nil {
		return err
	}
	if p.Action == ActionClose {
		return p.forbid(true, "deposit")
	}
	if p.Deposit.Action != ActionOpen && p.Deposit.Action != ActionTopUp {
		return malformed("deposit: action %.40q is not open or topUp", p.Deposit.Action)
	}
	if p.Deposit.ChannelID == (common.Hash{}) {
		p.Deposit.ChannelID = p.ChannelID
	}
	if p.Deposit.ChannelID != p.ChannelID {
		return malformed("deposit is for channel %s, the voucher for %s", p.Deposit.ChannelID, p.ChannelID)
	}
	// A merged open needs no voucher of its own: the outer one stands for it.
	if p.Deposit.Action == ActionOpen && p.Deposit.CumulativeAmount == nil {
		p.Deposit.CumulativeAmount = p.CumulativeAmount
		p.Deposit.VoucherSignature = p.Signature
	}
	return p.Deposit.Validate()
}

// voucherSignature is where the voucher of this payload was signed: a gasless
// open uses signature for ERC-3009.
func (p *Payload) voucherSignature() Bytes {
	if len(p.VoucherSignature) > 0 {
		return p.VoucherSignature
	}
	if p.Type == TypeAuthorization {
		return nil
	}
	return p.Signature
}

// VoucherSignature is the signature over (channelId, cumulativeAmount).
func (p *Payload) Voucher() Bytes { return p.voucherSignature() }

// Source is the did:pkh of a payer on a chain.
func Source(chainID uint64, payer common.Address) string {
	return fmt.Sprintf("did:pkh:eip155:%d:%s", chainID, payer.Hex())
}

// ParseSource is the inverse of Source.
func ParseSource(s string) (chainID uint64, payer common.Address, err error) {
	parts := strings.Split(s, ":")
	if len(parts) != 5 || parts[0] != "did" || parts[1] != "pkh" || parts[2] != "eip155" || !common.IsHexAddress(parts[4]) {
		return 0, common.Address{}, malformed("source %.90q is not did:pkh:eip155:<chain>:<address>", s)
	}
	chainID, err = strconv.ParseUint(parts[3], 10, 64)
	if err != nil {
		return 0, common.Address{}, malformed("source %.90q has no chain id", s)
	}
	return chainID, common.HexToAddress(parts[4]), nil
}
