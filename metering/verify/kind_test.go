package verify_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/metering"
)

// TestCheckerMeetsAnUnknownKind: a record whose evidence is of a kind that this version does not know is refused in words that say so,
// whatever its evidence looks like: it is not called a forgery, and a later version may pay it.
func TestCheckerMeetsAnUnknownKind(t *testing.T) {
	for _, evidence := range []string{
		`{"kind":"tokens","tokens":"17"}`,
		`{"devices":"none","kind":"tokens","nanos":[1]}`, // other types under the same keys
		`{"devices":[],"kind":"tokens","maxGap":"3000000000","nanos":"0","root":"0x0000000000000000000000000000000000000000000000000000000000000000","samples":"0","simulated":false,"source":"nvml","tick":"1000000000","total":"0"}`,
	} {
		m := newMarket(t)
		m.run(5)
		s := m.next()
		s.EvidenceHash = crypto.Keccak256Hash([]byte(evidence))
		m.resign(&s)
		document, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(document, &fields); err != nil {
			t.Fatal(err)
		}
		fields["evidence"] = json.RawMessage(evidence)
		if document, err = json.Marshal(fields); err != nil {
			t.Fatal(err)
		}
		var read metering.SignedRecord
		if err := json.Unmarshal(document, &read); err != nil {
			t.Errorf("%s does not parse: %v", evidence, err)
			continue
		}
		before := m.check.State()
		err = m.check.Check(read)
		if !errors.Is(err, metering.ErrKind) || !strings.Contains(err.Error(), `"tokens"`) || !strings.Contains(err.Error(), "update") {
			t.Errorf("%s: %v", evidence, err)
		}
		if after := m.check.State(); after.Last != before.Last || after.Last == (common.Hash{}) {
			t.Error("a record that was refused moved the checker")
		}
	}
}
