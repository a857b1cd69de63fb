package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/exactjson"
	"github.com/gpupay/gpupay/metering"
)

var update = flag.Bool("update", false, "write testdata/offers.json again")

// sharedOffer is an offer of version 2: eight slots on two GPUs of one class.
func sharedOffer(payee common.Address) Offer {
	o := testOffer(payee)
	o.Version = 2
	o.Class = &Class{ID: "h100", Model: "NVIDIA H100 80GB HBM3", MemoryBytes: 80 << 30}
	o.Share = &Share{GPUs: 2, Slots: 8}
	o.Devices = []OfferDevices{{Model: "NVIDIA H100 80GB HBM3", MemoryBytes: 79 << 30, Count: 8}}
	return o
}

type object = map[string]any

func at(tree object, key string) object { return tree[key].(object) }

// offerChanges are what can be wrong with a class and a share, and what cannot.
var offerChanges = []struct {
	name   string
	valid  bool
	change func(object)
}{
	{"a class and a share", true, func(object) {}},
	{"a class alone", true, func(o object) { delete(o, "share") }},
	{"a share alone", true, func(o object) { delete(o, "class") }},
	{"neither", true, func(o object) { delete(o, "class"); delete(o, "share") }},
	{"no meter", true, func(o object) { delete(o, "meter") }},
	{"a slice", true, func(o object) { at(o, "class")["mig"] = true }},
	{"the most slots", true, func(o object) { at(o, "share")["slots"] = metering.MaxSlots }},
	{"a key of tomorrow", true, func(o object) { at(o, "class")["driver"] = "570.86" }},
	{"version 1 with a class", false, func(o object) { o["version"] = 1; delete(o, "share") }},
	{"version 1 with a share", false, func(o object) { o["version"] = 1; delete(o, "class") }},
	{"version 3", false, func(o object) { o["version"] = 3 }},
	{"a class without a name", false, func(o object) { at(o, "class")["id"] = "" }},
	{"a name in capitals", false, func(o object) { at(o, "class")["id"] = "H100" }},
	{"a name with a space", false, func(o object) { at(o, "class")["id"] = "h 100" }},
	{"a long name", false, func(o object) { at(o, "class")["id"] = strings.Repeat("h", maxClassID+1) }},
	{"no model", false, func(o object) { at(o, "class")["model"] = "" }},
	{"a model with a line break", false, func(o object) { at(o, "class")["model"] = "H100\n" }},
	{"a model beyond ASCII", false, func(o object) { at(o, "class")["model"] = "H\u0301100" }},
	{"no memory", false, func(o object) { at(o, "class")["memoryBytes"] = 0 }},
	{"more memory than a number holds", false, func(o object) { at(o, "class")["memoryBytes"] = uint64(maxClassMemory) + 2 }},
	{"negative memory", false, func(o object) { at(o, "class")["memoryBytes"] = -1 }},
	{"memory with a fraction", false, func(o object) { at(o, "class")["memoryBytes"] = 85899345920.5 }},
	{"devices of another model", false, func(o object) { at(o, "class")["model"] = "NVIDIA A100" }},
	{"devices of other memory", false, func(o object) { at(o, "class")["memoryBytes"] = 40 << 30 }},
	{"a key in another case", false, func(o object) { at(o, "class")["ID"] = "a100" }},
	{"a share's key in another case", false, func(o object) { at(o, "share")["Slots"] = 1 }},
	{"no slots", false, func(o object) { at(o, "share")["slots"] = 0 }},
	{"too many slots", false, func(o object) { at(o, "share")["slots"] = metering.MaxSlots + 1 }},
	{"slots of no GPU", false, func(o object) { at(o, "share")["gpus"] = 0 }},
	{"slots of more GPUs than there are", false, func(o object) { at(o, "share")["gpus"] = 9 }},
	{"a longest time", true, func(o object) { at(o, "share")["maxSeconds"] = 1800 }},
	{"the longest of them", true, func(o object) { at(o, "share")["maxSeconds"] = MaxRequestSeconds }},
	{"no longest time, in words", true, func(o object) { at(o, "share")["maxSeconds"] = nil }},
	{"a longest time of nothing", false, func(o object) { at(o, "share")["maxSeconds"] = 0 }},
	{"a longer time than that", false, func(o object) { at(o, "share")["maxSeconds"] = MaxRequestSeconds + 1 }},
	{"a longest time with a fraction", false, func(o object) { at(o, "share")["maxSeconds"] = 1800.5 }},
	{"a negative longest time", false, func(o object) { at(o, "share")["maxSeconds"] = -1 }},
	{"a longest time in words", false, func(o object) { at(o, "share")["maxSeconds"] = "1800" }},
	{"a longest time in another case", false, func(o object) { at(o, "share")["maxseconds"] = 1800 }},
	{"half a slot", false, func(o object) { at(o, "share")["slots"] = 0.5 }},
	{"a class that is a list", false, func(o object) { o["class"] = []any{} }},
	{"no class, in words", true, func(o object) { o["class"] = nil }},
}

// offerVector is an offer and what any implementation makes of it: the document that is hashed, the digest that is signed, and whether it is
// an offer at all, which its signature does not say.
type offerVector struct {
	Name      string         `json:"name"`
	Valid     bool           `json:"valid"`
	Unsigned  string         `json:"unsigned"` // the document without its signature, canonical
	Hash      common.Hash    `json:"hash"`
	Digest    common.Hash    `json:"digest"`
	Signature Bytes          `json:"signature"`
	ChainID   uint64         `json:"chainId"`
	Escrow    common.Address `json:"escrow"`
	Payee     common.Address `json:"payee"`
}

func newOfferVector(t *testing.T, key *channel.Key, n int) offerVector {
	t.Helper()
	o, c := sharedOffer(key.Address()), offerChanges[n]
	tree := treeOf(t, o)
	c.change(tree)
	unsigned, err := canonical(tree)
	if err != nil {
		t.Fatal(err)
	}
	hash := crypto.Keccak256Hash(unsigned)
	digest := offerDigest(o.ChainID, common.Address(o.Escrow), hash)
	signature, err := key.Sign(t.Context(), digest)
	if err != nil {
		t.Fatal(err)
	}
	return offerVector{c.name, c.valid, string(unsigned), hash, digest, signature, o.ChainID, common.Address(o.Escrow), key.Address()}
}

// document is the offer as published.
func (v offerVector) document() []byte {
	return []byte(strings.TrimSuffix(v.Unsigned, "}") + `,"signature":"` + v.Signature.String() + `"}`)
}

// TestOfferVectors: what is signed and what is taken of classes and shares stands in a file for other implementations.
func TestOfferVectors(t *testing.T) {
	const file = "testdata/offers.json"
	key := testKey(t, 1)
	var now struct {
		Offers []offerVector `json:"offers"`
	}
	for n := range offerChanges {
		now.Offers = append(now.Offers, newOfferVector(t, key, n))
	}
	if *update {
		raw, err := json.MarshalIndent(now, "", "  ")
		if err == nil {
			err = os.WriteFile(filepath.FromSlash(file), append(raw, '\n'), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	kept := now
	kept.Offers = nil
	if err := exactjson.Unmarshal(raw, &kept); err != nil {
		t.Fatal(err)
	}
	if !slices.EqualFunc(kept.Offers, now.Offers, func(a, b offerVector) bool {
		return a.Name == b.Name && bytes.Equal(a.document(), b.document()) && a.Digest == b.Digest
	}) {
		t.Error("the file has other vectors: go test ./sdk/wire -run TestOfferVectors -update, if this is meant")
	}
	for _, v := range kept.Offers {
		o, err := ParseOffer(v.document())
		if (err == nil) != v.Valid || err != nil && !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", v.Name, err)
		}
		if err == nil && o.Hash != v.Hash {
			t.Errorf("%s: its hash is %s, want %s", v.Name, o.Hash, v.Hash)
		}
	}
}

// TestOfferIsNotSignedThatNobodyReads: a payee does not sign what every reader refuses.
func TestOfferIsNotSignedThatNobodyReads(t *testing.T) {
	key := testKey(t, 1)
	for name, change := range map[string]func(*Offer){
		"version": func(o *Offer) { o.Version = 1 },
		"class":   func(o *Offer) { o.Class.ID = "H" },
		"share":   func(o *Offer) { o.Share.GPUs = 0 },
		"devices": func(o *Offer) { o.Devices[0].Model = "another" },
	} {
		o := sharedOffer(key.Address())
		change(&o)
		if _, err := SignOffer(t.Context(), key, o); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLeaseIsOfItsOffersClass: records under an offer with a class are held to it, a whole GPU in place of a slice included, and those of a share
// to its slots.
func TestLeaseIsOfItsOffersClass(t *testing.T) {
	o := sharedOffer(common.Address{1})
	l := o.Meters(metering.Lease{})
	if l.Share != (metering.Share{GPUs: 2, Slots: 8}) || len(l.Models) != 1 {
		t.Fatalf("%+v", l)
	}
	is := metering.Device{Name: "NVIDIA H100 80GB HBM3", MemoryBytes: 79 << 30}
	for name, test := range map[string]struct {
		change func(*metering.Device)
		want   bool
	}{
		"as it is":      {func(*metering.Device) {}, true},
		"other model":   {func(d *metering.Device) { d.Name = "NVIDIA H100 PCIe" }, false},
		"less memory":   {func(d *metering.Device) { d.MemoryBytes = 40 << 30 }, false},
		"a slice of it": {func(d *metering.Device) { d.MIG = true }, false},
	} {
		d := is
		test.change(&d)
		if o.Class.Has(d) != test.want || l.Models[0].Is(d) != test.want {
			t.Errorf("%s: of the class %v, of the lease %v", name, o.Class.Has(d), l.Models[0].Is(d))
		}
	}
	o.Class, o.Share = nil, nil
	if l := o.Meters(metering.Lease{}); l.Share.Shared() || len(l.Models) != 1 || l.Models[0].MIG != nil || !l.Models[0].Is(metering.Device{Name: is.Name, MemoryBytes: is.MemoryBytes, MIG: true}) {
		t.Errorf("without a class: %+v", l)
	}
}
