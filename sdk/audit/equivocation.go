package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/eip712"
	"github.com/gpupay/gpupay/internal/exactjson"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/wire"
)

// EquivocationKind is what a proof of equivocation calls itself.
const EquivocationKind = "gpupay equivocation"

// ErrNotEquivocation says that two records do not contradict each other, or are
// not both the payee's.
var ErrNotEquivocation = errors.New("no equivocation")

// Equivocation shows that a payee signed two different usage records of one
// number, or bound two meters to one lease: whatever it says of one, the other is
// its word as well. Anybody can check it, without a chain and without trusting who
// shows it. It has Records, or Bindings.
type Equivocation struct {
	Kind     string                   `json:"kind"`
	Offer    json.RawMessage          `json:"offer"`             // signed by the payee
	Binding  *wire.MeterBinding       `json:"binding,omitempty"` // of the records' lease, where the offer names no metering key
	Records  [2]metering.SignedRecord `json:"records,omitzero"`  // of one lease and number, both signed by its metering key
	Bindings *[2]wire.MeterBinding    `json:"bindings,omitempty"`
}

// NewEquivocation makes a proof of two records, or says why they are none.
// binding is the lease's, nil where its offer names the metering key.
func NewEquivocation(offer json.RawMessage, binding *wire.MeterBinding, a, b metering.SignedRecord) (*Equivocation, error) {
	return (&Equivocation{Kind: EquivocationKind, Offer: offer, Binding: binding, Records: [2]metering.SignedRecord{a, b}}).verified()
}

// NewBindingEquivocation makes a proof of two bindings, or says why they are none.
func NewBindingEquivocation(offer json.RawMessage, a, b wire.MeterBinding) (*Equivocation, error) {
	return (&Equivocation{Kind: EquivocationKind, Offer: offer, Bindings: &[2]wire.MeterBinding{a, b}}).verified()
}

func (p *Equivocation) verified() (*Equivocation, error) {
	_, err := p.Verify()
	if err != nil {
		return nil, err
	}
	return p, nil
}

// ParseEquivocation reads an exported proof and verifies it.
func ParseEquivocation(document []byte) (*Equivocation, error) {
	var p Equivocation
	if err := exactjson.Unmarshal(document, &p); err != nil {
		return nil, fmt.Errorf("%w: it does not parse: %w", ErrNotEquivocation, err)
	}
	_, err := p.Verify()
	return &p, err
}

// Verify reports whether the proof holds, and against which payee.
func (p *Equivocation) Verify() (payee common.Address, err error) {
	if p.Kind != EquivocationKind {
		return payee, fmt.Errorf("%w: this is %.40q", ErrNotEquivocation, p.Kind)
	}
	offer, err := wire.ParseOffer(p.Offer)
	if err != nil {
		return payee, fmt.Errorf("%w: %w", ErrNotEquivocation, err)
	}
	if p.Bindings != nil {
		return common.Address(offer.Payee), p.verifyBindings(offer)
	}
	a, b := p.Records[0], p.Records[1]
	meter, err := offer.MeterOf(a.LeaseID, a.ChannelID, p.Binding)
	if err != nil {
		return payee, fmt.Errorf("%w: %w", ErrNotEquivocation, err)
	}
	if a.LeaseID != b.LeaseID || a.Sequence != b.Sequence {
		return payee, fmt.Errorf("%w: record %d of lease %s and record %d of lease %s", ErrNotEquivocation, a.Sequence, a.LeaseID, b.Sequence, b.LeaseID)
	}
	if a.OfferHash != offer.Hash {
		return payee, fmt.Errorf("%w: the first record is under offer %s, this is %s", ErrNotEquivocation, a.OfferHash, offer.Hash)
	}
	domain := metering.Domain(offer.ChainID, common.Address(offer.Escrow))
	if x402 := metering.Domain(offer.ChainID, channel.BatchSettlementEscrow); signedBy(a, x402, meter) == nil { // no offer names that contract
		domain = x402
	}
	for i, r := range p.Records {
		if err := signedBy(r, domain, meter); err != nil {
			return payee, fmt.Errorf("%w: record %d of the pair: %w", ErrNotEquivocation, i+1, err)
		}
	}
	if a.Digest(domain) == b.Digest(domain) {
		return payee, fmt.Errorf("%w: both are the same record", ErrNotEquivocation)
	}
	return common.Address(offer.Payee), nil
}

// signedBy says why a record is not signed by a meter, in the domain of a contract.
func signedBy(r metering.SignedRecord, domain common.Hash, meter common.Address) error {
	signer, err := eip712.Recover(r.Digest(domain), r.Signature)
	if err == nil && signer != meter {
		err = fmt.Errorf("it is signed by %s, the payee's meter is %s", signer, meter)
	}
	return err
}

// verifyBindings holds two bindings against each other, under whatever offers of the payee.
func (p *Equivocation) verifyBindings(offer wire.SignedOffer) error {
	a, b := p.Bindings[0], p.Bindings[1]
	escrow := common.Address(offer.Escrow)
	switch {
	case p.Binding != nil || !reflect.ValueOf(p.Records).IsZero():
		return fmt.Errorf("%w: records stand beside two meters", ErrNotEquivocation)
	case a.LeaseID != b.LeaseID:
		return fmt.Errorf("%w: meters of leases %s and %s", ErrNotEquivocation, a.LeaseID, b.LeaseID)
	case !a.SignedBy(common.Address(offer.Payee), offer.ChainID, escrow) || !b.SignedBy(common.Address(offer.Payee), offer.ChainID, escrow):
		return fmt.Errorf("%w: payee %s did not bind both meters", ErrNotEquivocation, offer.Payee)
	case a.Digest(offer.ChainID, escrow) == b.Digest(offer.ChainID, escrow):
		return fmt.Errorf("%w: both are the same meter", ErrNotEquivocation)
	}
	return nil
}

// Lease is what the proof is about.
func (p *Equivocation) Lease() common.Hash {
	if p.Bindings != nil {
		return p.Bindings[0].LeaseID
	}
	return p.Records[0].LeaseID
}

// Subject is what the payee signed two of, in words.
func (p *Equivocation) Subject() string {
	if p.Bindings != nil {
		return fmt.Sprintf("meters of lease %s", p.Lease())
	}
	return fmt.Sprintf("records %d of lease %s", p.Records[0].Sequence, p.Lease())
}

// pair is what tells a proof from others.
func (p *Equivocation) pair(chainID uint64, escrow common.Address) [2]common.Hash {
	if p.Bindings != nil {
		return [2]common.Hash{p.Bindings[0].Digest(chainID, escrow), p.Bindings[1].Digest(chainID, escrow)}
	}
	domain := metering.Domain(chainID, escrow)
	return [2]common.Hash{p.Records[0].Digest(domain), p.Records[1].Digest(domain)}
}

// Equivocations returns the proofs that lie in a payer's evidence.
func (b *Bundle) Equivocations() []*Equivocation {
	var proofs []*Equivocation
	seen := make(map[[2]common.Hash]bool)
	for _, e := range b.Evidence {
		p := b.proofIn(e.Document)
		if p == nil {
			continue // something else was refused
		}
		pair := p.pair(b.Terms.ChainID, common.Address(b.Terms.Escrow))
		if !seen[pair] {
			seen[pair] = true
			proofs = append(proofs, p)
		}
	}
	return proofs
}

// proofIn is the proof that a piece of evidence is or makes, or nil.
func (b *Bundle) proofIn(document string) *Equivocation {
	if p, err := ParseEquivocation([]byte(document)); err == nil {
		return p
	}
	var pair struct {
		Accepted *metering.SignedRecord `json:"accepted"`
		Refused  *metering.SignedRecord `json:"refused"`
	}
	if exactjson.Unmarshal([]byte(document), &pair) != nil || pair.Accepted == nil || pair.Refused == nil {
		return nil
	}
	l := b.lease(pair.Accepted.LeaseID)
	if l == nil {
		return nil
	}
	p, err := NewEquivocation(l.Offer, l.Binding, *pair.Accepted, *pair.Refused)
	if err != nil {
		return nil
	}
	return p
}
