package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/eip712"
	"github.com/gpupay/gpupay/internal/exactjson"
	"github.com/gpupay/gpupay/metering"
)

// Offer is what a provider promises before a renter pays: the price, what both
// sides can lose, and who signs usage records. It is signed by the payee, and
// every usage record names its hash, so that neither side can later say that
// another price was agreed.
//
// The hash is keccak256 over the document's canonical JSON without its
// signature; fields that a reader does not know are part of it. Keys are exact:
// a document with one twice, or in another case, is no offer.
type Offer struct {
	Version     uint32         `json:"version"` // 1, or 2: it may have a Class and a Share, and may name no Meter
	ChainID     uint64         `json:"chainId"`
	Escrow      Address        `json:"escrow"`
	Token       Address        `json:"token"`
	Payee       Address        `json:"payee"`
	Meter       Address        `json:"meter,omitzero"` // signs usage records; none in an offer of version 2 by which each lease has a MeterBinding
	Amount      Amount         `json:"amount"`
	Unit        string         `json:"unit"`   // gpu_second, gpu_minute or gpu_hour
	Credit      uint64         `json:"credit"` // GPU-seconds served ahead of vouchers, at most
	MinDeposit  Amount         `json:"minDeposit"`
	MinTopUp    *Amount        `json:"minTopUp,omitempty"` // the least top-up that the provider sends for a renter
	Tick        int64          `json:"tickMillis"`
	MaxGap      int64          `json:"maxGapMillis"` // an interval longer than this is not billed
	RecordEvery int64          `json:"recordMillis"`
	Class       *Class         `json:"class,omitempty"` // the kind of all devices; nil: Devices may have several
	Share       *Share         `json:"share,omitempty"` // how leases share the devices; nil: a lease has its devices for itself
	Devices     []OfferDevices `json:"devices"`
	Simulated   bool           `json:"simulated,omitempty"` // no real GPU stands behind this offer
	Expires     int64          `json:"expires"`             // unix seconds: no lease starts after it; a lease that runs keeps its price
}

// OfferDevices is how many GPUs of one kind a provider rents out in all.
type OfferDevices struct {
	Model       string `json:"model"`
	MemoryBytes uint64 `json:"memoryBytes"`
	Count       int    `json:"count"`
}

// DevicesOf is what an offer says of devices: those of one model with the least memory that any of them has, so that an offer does not
// grow with the devices.
func DevicesOf(devices []metering.Device) []OfferDevices {
	var kinds []OfferDevices
	for _, d := range devices {
		i := slices.IndexFunc(kinds, func(k OfferDevices) bool { return k.Model == d.Name })
		if i < 0 {
			kinds = append(kinds, OfferDevices{Model: d.Name, MemoryBytes: d.MemoryBytes})
			i = len(kinds) - 1
		}
		kinds[i].Count++
		kinds[i].MemoryBytes = min(kinds[i].MemoryBytes, d.MemoryBytes)
	}
	return kinds
}

// Simulated reports whether any of the devices is.
func Simulated(devices []metering.Device) bool {
	return slices.ContainsFunc(devices, func(d metering.Device) bool { return d.Simulated })
}

// SignedOffer is an offer as published: the exact document and its signature.
type SignedOffer struct {
	Offer
	Hash      common.Hash
	Signature Bytes
	Document  json.RawMessage // as published, the signature inside
}

// newestVersion is of offers that have a class, a share, or no meter. Who reads version 1 alone refuses it before money moves, and does not
// take an honest provider's records for forged.
const newestVersion = 2

// maxOffer bounds what is signed as an offer, in bytes. A challenge and each credential repeat a part of it.
const maxOffer = 4 << 10

var offerType = crypto.Keccak256Hash([]byte("Offer(bytes32 documentHash)"))

func offerDigest(chainID uint64, escrow common.Address, hash common.Hash) common.Hash {
	domain := eip712.DomainSeparator("gpupay offer", "1", chainID, escrow)
	return eip712.Digest(domain, crypto.Keccak256Hash(offerType[:], hash[:]))
}

// SignOffer signs o with the payee's key.
func SignOffer(ctx context.Context, signer channel.Signer, o Offer) (SignedOffer, error) {
	if signer.Address() != common.Address(o.Payee) {
		return SignedOffer{}, fmt.Errorf("offer names payee %s, the key is of %s", o.Payee, signer.Address())
	}
	if err := o.check(); err != nil {
		return SignedOffer{}, err
	}
	raw, err := canonical(o)
	if err != nil {
		return SignedOffer{}, err
	}
	hash := crypto.Keccak256Hash(raw)
	sig, err := signer.Sign(ctx, offerDigest(o.ChainID, common.Address(o.Escrow), hash))
	if err != nil {
		return SignedOffer{}, fmt.Errorf("signing the offer: %w", err)
	}
	document, err := canonical(struct {
		Offer
		Signature Bytes `json:"signature"`
	}{o, sig})
	if err == nil && len(document) > maxOffer {
		return SignedOffer{}, fmt.Errorf("offer has %d bytes, at most %d are signed: what names it has to fit into a header", len(document), maxOffer)
	}
	return SignedOffer{Offer: o, Hash: hash, Signature: sig, Document: document}, err
}

// ParseOffer reads a published offer and checks its signature. It does not
// check the expiry: an expired offer still proves what a past lease cost.
func ParseOffer(document []byte) (SignedOffer, error) {
	if len(document) > maxHeader {
		return SignedOffer{}, malformed("offer has %d bytes, at most %d are read", len(document), maxHeader)
	}
	dec := json.NewDecoder(bytes.NewReader(document))
	dec.UseNumber()
	var tree map[string]any
	if err := dec.Decode(&tree); err != nil {
		return SignedOffer{}, malformed("offer: %v", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return SignedOffer{}, malformed("offer: something follows the document")
	}
	var o Offer
	if err := exactjson.Unmarshal(document, &struct {
		*Offer
		Signature *json.RawMessage `json:"signature"` // so that nothing else is spelt like it
	}{Offer: &o}); err != nil {
		return SignedOffer{}, malformed("offer: %v", err)
	}
	var signature Bytes
	text, _ := tree["signature"].(string)
	if err := signature.UnmarshalText([]byte(text)); err != nil {
		return SignedOffer{}, malformed("offer: signature: %v", err)
	}
	delete(tree, "signature")
	raw, err := canonical(tree)
	if err != nil {
		return SignedOffer{}, malformed("offer: %v", err)
	}
	signed := SignedOffer{Offer: o, Hash: crypto.Keccak256Hash(raw), Signature: signature, Document: document}
	return signed, signed.verify()
}

func (s SignedOffer) verify() error {
	if err := s.check(); err != nil {
		return err
	}
	signer, err := eip712.Recover(offerDigest(s.ChainID, common.Address(s.Escrow), s.Hash), s.Signature)
	if err != nil {
		return fmt.Errorf("offer %s: %w", s.Hash, err)
	}
	if signer != common.Address(s.Payee) {
		return fmt.Errorf("offer %s: %w: signed by %s, its payee is %s", s.Hash, channel.ErrSignature, signer, s.Payee)
	}
	return nil
}

// check refuses fields that the offer's version does not have, and such as contradict each other.
func (o Offer) check() error {
	switch {
	case o.Version < 1 || o.Version > newestVersion:
		return malformed("offer has version %d, this program reads 1 to %d", o.Version, newestVersion)
	case o.Version == 1 && o.Meter == Address{}:
		return malformed("offer of version 1 names no meter")
	case o.Version == 1 && (o.Class != nil || o.Share != nil):
		return malformed("offer of version 1 has a class or a share, which version 2 has")
	}
	gpus := 0
	for _, d := range o.Devices {
		gpus += d.Count
	}
	if o.Class != nil {
		if err := o.Class.check(); err != nil {
			return err
		}
		for _, d := range o.Devices {
			if !o.Class.Has(metering.Device{Name: d.Model, MemoryBytes: d.MemoryBytes, MIG: o.Class.MIG}) {
				return malformed("offer is of class %s, a %s with %d bytes, and has a %s with %d", o.Class.ID, o.Class.Model, o.Class.MemoryBytes, d.Model, d.MemoryBytes)
			}
		}
	}
	if o.Share != nil {
		return o.Share.check(gpus)
	}
	return nil
}

// ExpiredAt reports whether no lease may start under the offer at now.
func (o Offer) ExpiredAt(now time.Time) bool { return now.Unix() >= o.Expires }

// Price is what one GPU costs by the offer. It is an error for a unit or an amount that no lease is billed by.
func (o Offer) Price() (metering.Price, error) {
	unit, err := metering.ParseUnit(o.Unit)
	if err != nil {
		return metering.Price{}, err
	}
	price := metering.Price{Amount: o.Amount.Int, Unit: unit}
	return price, price.Validate()
}
