package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
)

// TestOneOfferReadsOneWay: a payee signs, by its exact keys, a document that has
// another spelling of a key. Who shows the hash and who reads the value would
// mean different prices, so it is no offer.
func TestOneOfferReadsOneWay(t *testing.T) {
	private, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	key := channel.NewKey(private)
	offer := Offer{
		Version: 1, ChainID: 1, Escrow: Address{1}, Token: Address{2}, Payee: Address(key.Address()), Meter: Address(key.Address()),
		Amount: NewAmount(*uint256.NewInt(1000)), Unit: "gpu_second", Credit: 60, Tick: 1000, MaxGap: 3000, RecordEvery: 5000,
		Devices: []OfferDevices{{Model: "H100", Count: 1}}, Expires: time.Now().Add(time.Hour).Unix(),
	}
	for name, test := range map[string]struct {
		change func(map[string]any)
		want   bool
	}{
		"as it is":          {func(map[string]any) {}, true},
		"a key of tomorrow": {func(o map[string]any) { o["region"] = "eu" }, true},
		"another case":      {func(o map[string]any) { o["AMOUNT"] = "9000" }, false},
		"instead of it":     {func(o map[string]any) { o["Amount"] = o["amount"]; delete(o, "amount") }, false},
		"within a list":     {func(o map[string]any) { o["devices"].([]any)[0].(map[string]any)["Count"] = 8 }, false},
		"the signature":     {func(o map[string]any) { o["Signature"] = "0x00" }, false},
	} {
		tree := treeOf(t, offer)
		test.change(tree)
		document, err := signTree(t.Context(), key, offer, tree)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := ParseOffer(document)
		if (err == nil) != test.want || err != nil && !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: amount %s, %v", name, parsed.Amount.Dec(), err)
		}
		twice := strings.Replace(string(document), `"unit":`, `"unit":"gpu_hour","unit":`, 1)
		if _, err := ParseOffer([]byte(twice)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s, with a key twice: %v", name, err)
		}
	}
}

func signTree(ctx context.Context, key *channel.Key, o Offer, tree map[string]any) ([]byte, error) {
	raw, err := canonical(tree)
	if err != nil {
		return nil, err
	}
	signature, err := key.Sign(ctx, offerDigest(o.ChainID, common.Address(o.Escrow), crypto.Keccak256Hash(raw)))
	if err != nil {
		return nil, err
	}
	tree["signature"] = Bytes(signature)
	return canonical(tree)
}

// treeOf is what an offer's document holds, to be changed before it is signed.
func treeOf(t *testing.T, o Offer) (tree map[string]any) {
	t.Helper()
	raw, err := canonical(o)
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if err := dec.Decode(&tree); err != nil {
		t.Fatal(err)
	}
	return tree
}
