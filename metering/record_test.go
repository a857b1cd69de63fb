package metering_test

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"math/big"
	"strconv"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/math"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/signer/core/apitypes"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/eip712"
	"github.com/gpupay/gpupay/metering"
)

// key signs records in tests.
type key struct{ *ecdsa.PrivateKey }

func newKey(t testing.TB, seed byte) key {
	t.Helper()
	k, err := crypto.ToECDSA(common.LeftPadBytes([]byte{seed}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return key{k}
}

func (k key) Address() common.Address { return crypto.PubkeyToAddress(k.PublicKey) }

func (k key) Sign(_ context.Context, digest common.Hash) ([]byte, error) {
	return eip712.Sign(digest, k.PrivateKey)
}

func lease(devices ...string) metering.Lease {
	if len(devices) == 0 {
		devices = []string{gpu}
	}
	return metering.Lease{
		ID:         common.HexToHash("0x11"),
		ChannelID:  common.HexToHash("0x22"),
		OfferHash:  common.HexToHash("0x33"),
		ChainID:    31337,
		Escrow:     common.HexToAddress("0x44"),
		Price:      price(555, metering.Second),
		OwedBefore: *uint256.NewInt(1000),
		Devices:    devices,
	}
}

func TestRecorderChains(t *testing.T) {
	l, k := lease(), newKey(t, 1)
	m := newMeter(t)
	rec, err := metering.NewRecorder(l, k, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := rec.Last(); ok {
		t.Error("a new recorder has a last record")
	}
	observe(t, m, at(1), at(2))
	first := next(t, rec, m, false)
	observe(t, m, at(3))
	last, _ := rec.Last()
	rec, err = metering.NewRecorder(l, k, new(throughJSON(t, last))) // restart
	if err != nil {
		t.Fatal(err)
	}
	second := next(t, rec, m, true)

	if first.Sequence != 1 || first.Previous != (common.Hash{}) || first.Nanos != 1e9 || first.Owed.Uint64() != 1555 {
		t.Errorf("first %+v", first.Record)
	}
	domain := metering.Domain(l.ChainID, l.Escrow)
	if second.Sequence != 2 || second.Previous != first.Digest(domain) || second.Nanos != 2e9 || second.Owed.Uint64() != 2110 {
		t.Errorf("second %+v", second.Record)
	}
	if second.From != first.To || second.To != uint64(at(3).At.Wall) || second.EvidenceHash != second.Evidence.Hash() {
		t.Errorf("second %+v", second.Record)
	}
	if _, err := rec.Next(t.Context(), m.Cut(), false); !errors.Is(err, metering.ErrFinal) {
		t.Errorf("a record after the final one: %v", err)
	}
}

func next(t testing.TB, rec *metering.Recorder, m *metering.Meter, final bool) metering.SignedRecord {
	t.Helper()
	s, err := rec.Next(t.Context(), m.Cut(), final)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRecorderRefuses(t *testing.T) {
	l, k := lease(), newKey(t, 1)
	m := newMeter(t)
	observe(t, m, at(1), at(2))
	lostCut := m.Cut()
	observe(t, m, at(3))
	rec, err := metering.NewRecorder(l, k, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rec.Next(t.Context(), m.Cut(), false); !errors.Is(err, metering.ErrEvidence) {
		t.Errorf("a cut that follows one without a record: %v", err)
	}
	lostCut.Nanos++
	if _, err := rec.Next(t.Context(), lostCut, false); !errors.Is(err, metering.ErrEvidence) {
		t.Errorf("evidence that does not add up: %v", err)
	}
	for name, last := range map[string]metering.Record{
		"another lease":   {LeaseID: common.Hash{1}},
		"another channel": {LeaseID: l.ID},
		"another start":   {LeaseID: l.ID, ChannelID: l.ChannelID, OfferHash: l.OfferHash, Devices: 1},
		"another number":  {LeaseID: l.ID, ChannelID: l.ChannelID, OfferHash: l.OfferHash, OwedBefore: l.OwedBefore, Devices: 2},
	} {
		if _, err := metering.NewRecorder(l, k, &last); !errors.Is(err, metering.ErrRecord) {
			t.Errorf("goes on after a record of %s: %v", name, err)
		}
	}
	l.Devices = nil
	if _, err := metering.NewRecorder(l, k, nil); !errors.Is(err, metering.ErrDevice) {
		t.Errorf("a lease of nothing: %v", err)
	}
}

// TestDigestEqualsApitypes holds the hand-laid digest against go-ethereum's,
// whose input is the published type.
func TestDigestEqualsApitypes(t *testing.T) {
	r := metering.Record{
		LeaseID: common.HexToHash("0x1"), ChannelID: common.HexToHash("0x2"), OfferHash: common.HexToHash("0x3"), Sequence: 4,
		Previous: common.HexToHash("0x5"), Nanos: 6, Devices: 7, OwedBefore: *uint256.NewInt(8), Owed: *uint256.NewInt(9),
		From: 10, To: 11, Final: true, EvidenceHash: common.HexToHash("0xc"),
	}
	escrow := common.HexToAddress("0xe5c")
	inner := strings.TrimSuffix(strings.TrimPrefix(metering.RecordType, "UsageRecord("), ")")
	var fields []apitypes.Type
	for _, f := range strings.Split(inner, ",") {
		kind, name, _ := strings.Cut(f, " ")
		fields = append(fields, apitypes.Type{Name: name, Type: kind})
	}
	message := apitypes.TypedDataMessage{}
	b, err := json.Marshal(r)
	if err != nil || json.Unmarshal(b, &message) != nil {
		t.Fatal(err)
	}
	message["devices"] = strconv.Itoa(int(r.Devices))
	typed := apitypes.TypedData{
		Types: apitypes.Types{
			"EIP712Domain": {{Name: "name", Type: "string"}, {Name: "version", Type: "string"},
				{Name: "chainId", Type: "uint256"}, {Name: "verifyingContract", Type: "address"}},
			"UsageRecord": fields,
		},
		PrimaryType: "UsageRecord",
		Domain: apitypes.TypedDataDomain{Name: "gpupay usage record", Version: "1",
			ChainId: (*math.HexOrDecimal256)(big.NewInt(31337)), VerifyingContract: escrow.Hex()},
		Message: message,
	}
	want, _, err := apitypes.TypedDataAndHash(typed)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Digest(metering.Domain(31337, escrow)); got != common.BytesToHash(want) {
		t.Errorf("digest %s, want %x", got, want)
	}
}

func signed(t testing.TB) metering.SignedRecord {
	t.Helper()
	m := newMeter(t)
	observe(t, m, at(1), at(2, xid(13)), at(3, health(metering.Lost)))
	rec, err := metering.NewRecorder(lease(), newKey(t, 1), nil)
	if err != nil {
		t.Fatal(err)
	}
	return next(t, rec, m, false)
}

func TestRecordJSONRefuses(t *testing.T) {
	good, err := json.Marshal(signed(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string][2]string{
		"a hash in capitals":     {`"leaseId":"0x00`, `"leaseId":"0x0A`},
		"a short hash":           {`"leaseId":"0x00`, `"leaseId":"0x`},
		"no 0x":                  {`"leaseId":"0x00`, `"leaseId":"0000`},
		"a leading zero":         {`"nanos":"1000000000","devices"`, `"nanos":"01000000000","devices"`},
		"a plus":                 {`"nanos":"1000000000","devices"`, `"nanos":"+1000000000","devices"`},
		"over 64 bits":           {`"nanos":"1000000000","devices"`, `"nanos":"18446744073709551616","devices"`},
		"a number for an amount": {`"owed":"1555"`, `"owed":1555`},
		"a negative amount":      {`"owed":"1555"`, `"owed":"-1555"`},
		"a hex amount":           {`"owed":"1555"`, `"owed":"0x613"`},
		"an empty amount":        {`"owed":"1555"`, `"owed":""`},
		"over 96 bits":           {`"owed":"1555"`, `"owed":"79228162514264337593543950336"`},
		"negative devices":       {`"devices":1`, `"devices":-1`},
		"a short signature":      {`"signature":"0x`, `"signature":"0x00`},
		"no object":              {string(good), `[]`},
		"an unquoted total":      {`"total":"1000000000"`, `"total":1000000000`},
	} {
		bad := strings.Replace(string(good), change[0], change[1], 1)
		if bad == string(good) {
			t.Fatalf("%s: the case changes nothing", name)
		}
		var s metering.SignedRecord
		if err := json.Unmarshal([]byte(bad), &s); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzRecordJSON(f *testing.F) {
	good, err := json.Marshal(signed(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"record":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var s, again metering.SignedRecord
		if json.Unmarshal(b, &s) != nil {
			return
		}
		out, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(out, &again); err != nil {
			t.Fatalf("does not read what it wrote: %v", err)
		}
		if again.Record != s.Record || again.Evidence.Hash() != s.Evidence.Hash() {
			t.Fatalf("%s came back as %s", b, out)
		}
	})
}
