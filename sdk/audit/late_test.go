package audit

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/wire"
)

func keyOf(t *testing.T) *channel.Key {
	t.Helper()
	private, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return channel.NewKey(private)
}

func amountOf(n uint64) wire.Amount { return wire.NewAmount(*uint256.NewInt(n)) }

// offerOf is an offer by a key, at 1,000 base units a second and ten seconds of credit.
func offerOf(t *testing.T, key *channel.Key, maxGap int64) wire.SignedOffer {
	t.Helper()
	signed, err := wire.SignOffer(t.Context(), key, wire.Offer{Version: 1, ChainID: 1, Escrow: wire.Address{1}, Token: wire.Address{2},
		Payee: wire.Address(key.Address()), Meter: wire.Address(key.Address()), Amount: amountOf(1000), Unit: "gpu_second",
		Credit: 10, Tick: 1000, MaxGap: maxGap, RecordEvery: 5000})
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// A bundle may owe what its offer allows: the credit, and one late reading of each device, up to the longest that a renter
// takes an offer with.
func TestLateReadingIsUnderWay(t *testing.T) {
	key := keyOf(t)
	for _, c := range []struct{ maxGap, want int64 }{{-1, 10_000}, {0, 10_000}, {3_000, 16_000}, {60_000, 130_000}, {24 * time.Hour.Milliseconds(), 130_000}} {
		l := Lease{Offer: offerOf(t, key, c.maxGap).Document, Devices: []string{"a", "b"}}
		if got := l.underWay(); got.Uint64() != uint64(c.want) {
			t.Errorf("with a gap of %d ms %s may be owed, want %d", c.maxGap, got.Dec(), c.want)
		}
	}
}

// A pair of records in a payer's evidence has one reading, like everything else in a bundle: keys that only look alike, that are
// there twice, or that nest without end make no proof.
func TestProofInEvidenceReadsOneWay(t *testing.T) {
	key := keyOf(t)
	offer := offerOf(t, key, 3000)
	domain := metering.Domain(1, common.Address{1})
	record := func(to uint64) string {
		r := metering.SignedRecord{Record: metering.Record{LeaseID: common.Hash{9}, Sequence: 1, OfferHash: offer.Hash, To: to}}
		var err error
		if r.Signature, err = key.Sign(t.Context(), r.Digest(domain)); err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	b := &Bundle{Leases: []Lease{{ID: common.Hash{9}, Offer: offer.Document}}}
	a, other := record(1), record(2)
	for document, want := range map[string]bool{
		fmt.Sprintf(`{"accepted":%s,"refused":%s}`, a, other):                          true,
		fmt.Sprintf(`{"accepted":%s,"refused":%s,"note":1}`, a, other):                 true,
		fmt.Sprintf(`{"accepted":%s,"refused":%s}`, a, a):                              false,
		fmt.Sprintf(`{"Accepted":%s,"refused":%s}`, a, other):                          false,
		fmt.Sprintf(`{"accepted":%s,"refused":%s,"refused":%s}`, a, a, other):          false,
		fmt.Sprintf(`{"accepted":%s,"refused":%s,"REFUSED":%s}`, a, a, other):          false,
		fmt.Sprintf(`{"accepted":%s,"refused":%s,"note":%s}`, a, other, nested(9_000)): false,
	} {
		if got := b.proofIn(document) != nil; got != want {
			t.Errorf("a proof: %t, want %t: %.80s", got, want, document)
		}
	}
}

func nested(depth int) string { return strings.Repeat("[", depth) + strings.Repeat("]", depth) }
