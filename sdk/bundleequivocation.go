package sdk

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/ethereum/go-ethereum/common"

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

// EquivocationProof shows that a payee signed two different usage records of one
// number: whatever it says of one, the other is its word as well. Anybody can
// check it, without a chain and without trusting who shows it.
type EquivocationProof struct {
	Kind    string                   `json:"kind"`
	Offer   json.RawMessage          `json:"offer"`   // signed by the payee, and names its metering key
	Records [2]metering.SignedRecord `json:"records"` // of one lease and number, both signed by that key
}

// NewEquivocationProof makes a proof of two records, or says why they are none.
func NewEquivocationProof(offer json.RawMessage, a, b metering.SignedRecord) (*EquivocationProof, error) {
	p := &EquivocationProof{Kind: EquivocationKind, Offer: offer, Records: [2]metering.SignedRecord{a, b}}
	_, err := p.Verify()
	if err != nil {
		return nil, err
	}
	return p, nil
}

// ParseEquivocationProof reads an exported proof and verifies it.
func ParseEquivocationProof(document []byte) (*EquivocationProof, error) {
	var p EquivocationProof
	if err := exactjson.Unmarshal(document, &p); err != nil {
		return nil, fmt.Errorf("%w: it does not parse: %w", ErrNotEquivocation, err)
	}
	_, err := p.Verify()
	return &p, err
}

// Verify reports whether the proof holds, and against which payee.
func (p *EquivocationProof) Verify() (payee common.Address, err error) {
	if p.Kind != EquivocationKind {
		return payee, fmt.Errorf("%w: this is %.40q", ErrNotEquivocation, p.Kind)
	}
	offer, err := wire.ParseOffer(p.Offer)
	if err != nil {
		return payee, fmt.Errorf("%w: %w", ErrNotEquivocation, err)
	}
	a, b := p.Records[0], p.Records[1]
	if a.LeaseID != b.LeaseID || a.Sequence != b.Sequence {
		return payee, fmt.Errorf("%w: record %d of lease %s and record %d of lease %s", ErrNotEquivocation, a.Sequence, a.LeaseID, b.Sequence, b.LeaseID)
	}
	if a.OfferHash != offer.Hash {
		return payee, fmt.Errorf("%w: the first record is under offer %s, this is %s", ErrNotEquivocation, a.OfferHash, offer.Hash)
	}
	domain := metering.Domain(offer.ChainID, common.Address(offer.Escrow))
	for i, r := range p.Records {
		signer, err := eip712.Recover(r.Digest(domain), r.Signature)
		if err != nil {
			return payee, fmt.Errorf("%w: record %d of the pair: %w", ErrNotEquivocation, i+1, err)
		}
		if signer != common.Address(offer.Meter) {
			return payee, fmt.Errorf("%w: record %d of the pair is signed by %s, the offer names %s", ErrNotEquivocation, i+1, signer, offer.Meter)
		}
	}
	if a.Digest(domain) == b.Digest(domain) {
		return payee, fmt.Errorf("%w: both are the same record", ErrNotEquivocation)
	}
	return common.Address(offer.Payee), nil
}

// Equivocations returns the proofs that lie in a payer's evidence.
func (b *Bundle) Equivocations() []*EquivocationProof {
	var proofs []*EquivocationProof
	seen := make(map[[2]common.Hash]bool)
	for _, e := range b.Evidence {
		p := b.proofIn(e.Document)
		if p == nil {
			continue // something else was refused
		}
		domain := metering.Domain(b.Terms.ChainID, common.Address(b.Terms.Escrow))
		pair := [2]common.Hash{p.Records[0].Digest(domain), p.Records[1].Digest(domain)}
		if !seen[pair] {
			seen[pair] = true
			proofs = append(proofs, p)
		}
	}
	return proofs
}

// proofIn is the proof that a piece of evidence is or makes, or nil.
func (b *Bundle) proofIn(document string) *EquivocationProof {
	if p, err := ParseEquivocationProof([]byte(document)); err == nil {
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
	p, err := NewEquivocationProof(l.Offer, *pair.Accepted, *pair.Refused)
	if err != nil {
		return nil
	}
	return p
}
