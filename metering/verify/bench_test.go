package verify_test

import (
	"encoding/json"
	"testing"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/internal/rig"
	"github.com/gpupay/gpupay/metering/verify"
)

// BenchmarkCheck is what a payer does for a record of one minute.
func BenchmarkCheck(b *testing.B) {
	s := rig.Signed(b)
	config := verify.Config{Lease: rig.Lease(), Key: rig.NewKey(b, 1).Address(), Tolerance: 5e9}
	raw, err := json.Marshal(s)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		var got metering.SignedRecord
		if err := json.Unmarshal(raw, &got); err != nil {
			b.Fatal(err)
		}
		c, err := verify.New(config)
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Check(got); err != nil {
			b.Fatal(err)
		}
	}
}
