package metering

import (
	"encoding/json"
	"math/big"
	"strconv"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/math"
	"github.com/ethereum/go-ethereum/signer/core/apitypes"
	"github.com/holiman/uint256"
)

// TestDigestEqualsApitypes holds the hand-laid digest against go-ethereum's,
// whose input is the published type.
func TestDigestEqualsApitypes(t *testing.T) {
	r := Record{
		LeaseID: common.HexToHash("0x1"), ChannelID: common.HexToHash("0x2"), OfferHash: common.HexToHash("0x3"), Sequence: 4,
		Previous: common.HexToHash("0x5"), Nanos: 6, Devices: 7, OwedBefore: *uint256.NewInt(8), Owed: *uint256.NewInt(9),
		From: 10, To: 11, Final: true, EvidenceHash: common.HexToHash("0xc"),
	}
	escrow := common.HexToAddress("0xe5c")
	inner := strings.TrimSuffix(strings.TrimPrefix(recordType, "UsageRecord("), ")")
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
	if got := r.Digest(Domain(31337, escrow)); got != common.BytesToHash(want) {
		t.Errorf("digest %s, want %x", got, want)
	}
}
