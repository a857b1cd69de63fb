package wire

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/math"
	"github.com/ethereum/go-ethereum/signer/core/apitypes"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/exactjson"
)

// bound is an offer of version 2 and a binding under it.
func bound(t *testing.T, payee *channel.Key) (SignedOffer, MeterBinding) {
	t.Helper()
	o := testOffer(payee.Address())
	o.Version, o.Meter = 2, Address{}
	offer, err := SignOffer(context.Background(), payee, o)
	if err != nil {
		t.Fatal(err)
	}
	b, err := BindMeter(context.Background(), payee, o, MeterBinding{LeaseID: common.Hash{1}, ChannelID: common.Hash{2}, OfferHash: offer.Hash, Meter: Address{3}})
	if err != nil {
		t.Fatal(err)
	}
	return offer, b
}

// TestBindingsAreOfOneLease: only what the payee signed, for this lease, channel and offer, says whose key signs the records.
func TestBindingsAreOfOneLease(t *testing.T) {
	payee := testKey(t, 1)
	offer, b := bound(t, payee)
	if meter, err := offer.MeterOf(b.LeaseID, b.ChannelID, &b); err != nil || meter != (common.Address{3}) {
		t.Fatalf("%s, %v", meter, err)
	}
	for name, change := range map[string]func(*MeterBinding){
		"another lease":   func(b *MeterBinding) { b.LeaseID[0]++ },
		"another channel": func(b *MeterBinding) { b.ChannelID[0]++ },
		"another offer":   func(b *MeterBinding) { b.OfferHash[0]++ },
		"another meter":   func(b *MeterBinding) { b.Meter[0]++ },
		"no signature":    func(b *MeterBinding) { b.Signature = nil },
	} {
		forged := b
		change(&forged)
		if meter, err := offer.MeterOf(b.LeaseID, b.ChannelID, &forged); !errors.Is(err, ErrMeter) {
			t.Errorf("%s: %s, %v", name, meter, err)
		}
		if forged, err := BindMeter(context.Background(), payee, offer.Offer, forged); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if _, err := offer.MeterOf(b.LeaseID, b.ChannelID, &forged); (err == nil) != (name == "another meter" || name == "no signature") {
			t.Errorf("%s, signed: %v", name, err)
		}
	}
	if _, err := offer.MeterOf(b.LeaseID, b.ChannelID, nil); !errors.Is(err, ErrMeter) {
		t.Errorf("no binding: %v", err)
	}
	named, err := SignOffer(context.Background(), payee, testOffer(payee.Address()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := named.MeterOf(b.LeaseID, b.ChannelID, &b); !errors.Is(err, ErrMeter) {
		t.Errorf("beside a named meter: %v", err)
	}
	if _, err := BindMeter(context.Background(), testKey(t, 2), offer.Offer, b); err == nil {
		t.Error("a stranger binds")
	}
	if _, err := BindMeter(context.Background(), payee, offer.Offer, MeterBinding{}); err == nil {
		t.Error("nobody is bound")
	}
}

// TestOfferVersions: version 1 names its meter, version 2 has none, and no other is read.
func TestOfferVersions(t *testing.T) {
	payee := testKey(t, 1)
	for version := range uint32(4) {
		for _, meter := range []Address{{}, {9}} {
			o := testOffer(payee.Address())
			o.Version, o.Meter = version, meter
			want := version == 2 || version == 1 && meter != Address{}
			if _, err := SignOffer(t.Context(), payee, o); (err == nil) != want {
				t.Errorf("version %d with meter %s is signed: %v", version, meter, err)
			}
			document, err := signTree(t.Context(), payee, o, treeOf(t, o))
			if err != nil {
				t.Fatal(err)
			}
			if _, err = ParseOffer(document); (err == nil) != want {
				t.Errorf("version %d with meter %s: %v", version, meter, err)
			}
			if o.NamesMeter() != (meter != Address{}) {
				t.Errorf("version %d with meter %s names it: %v", version, meter, o.NamesMeter())
			}
			if meter == (Address{}) && strings.Contains(string(document), "meter\"") {
				t.Errorf("%s", document)
			}
		}
	}
}

// TestBindingEqualsApitypes: what the payee signs is what any wallet makes of the type.
func TestBindingEqualsApitypes(t *testing.T) {
	offer, b := bound(t, testKey(t, 1))
	want, _, err := apitypes.TypedDataAndHash(apitypes.TypedData{
		Types: apitypes.Types{
			"EIP712Domain": {{Name: "name", Type: "string"}, {Name: "version", Type: "string"}, {Name: "chainId", Type: "uint256"}, {Name: "verifyingContract", Type: "address"}},
			"MeterBinding": {{Name: "leaseId", Type: "bytes32"}, {Name: "channelId", Type: "bytes32"}, {Name: "offerHash", Type: "bytes32"}, {Name: "meter", Type: "address"}},
		},
		PrimaryType: "MeterBinding",
		Domain:      apitypes.TypedDataDomain{Name: "gpupay meter binding", Version: "1", ChainId: math.NewHexOrDecimal256(int64(offer.ChainID)), VerifyingContract: offer.Escrow.String()},
		Message:     apitypes.TypedDataMessage{"leaseId": b.LeaseID.Hex(), "channelId": b.ChannelID.Hex(), "offerHash": b.OfferHash.Hex(), "meter": b.Meter.String()},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := b.Digest(offer.ChainID, common.Address(offer.Escrow)); got != common.BytesToHash(want) {
		t.Errorf("%s, apitypes has %x", got, want)
	}
}

// TestBindingVector: the golden vector, for other implementations, is what a payee signs and what is taken.
func TestBindingVector(t *testing.T) {
	raw, err := os.ReadFile("testdata/meter-binding.json")
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		ChainID uint64       `json:"chainId"`
		Escrow  Address      `json:"escrow"`
		Payee   Address      `json:"payee"`
		Binding MeterBinding `json:"binding"`
		Digest  common.Hash  `json:"digest"`
	}
	if err := exactjson.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	payee := testKey(t, 1)
	again, err := BindMeter(context.Background(), payee, Offer{ChainID: v.ChainID, Escrow: v.Escrow, Payee: v.Payee}, v.Binding)
	if err != nil {
		t.Fatal(err)
	}
	if got := v.Binding.Digest(v.ChainID, common.Address(v.Escrow)); got != v.Digest || !bytes.Equal(again.Signature, v.Binding.Signature) {
		t.Errorf("digest %s, signature %s", got, again.Signature)
	}
	if !v.Binding.SignedBy(common.Address(v.Payee), v.ChainID, common.Address(v.Escrow)) {
		t.Error("its payee did not sign it")
	}
}
