package metering_test

import (
	"encoding/json"
	"testing"

	"github.com/gpupay/gpupay/metering"
)

// BenchmarkObserve is one tick of one device, its sample included.
func BenchmarkObserve(b *testing.B) {
	b.Run("kept", func(b *testing.B) { benchmarkObserve(b, 0) })
	b.Run("hashed only", func(b *testing.B) { benchmarkObserve(b, -1) })
}

func benchmarkObserve(b *testing.B, keep int) {
	m, err := metering.NewMeter(metering.Config{Devices: []string{gpu}, Keep: keep})
	if err != nil {
		b.Fatal(err)
	}
	r := at(1)
	for i := 0; b.Loop(); i++ {
		r.At.Mono += 1e9
		r.At.Boot += 1e9
		observe(b, m, r)
		if i%3600 == 3599 {
			m.Cut()
		}
	}
}

// BenchmarkCheck is what a payer does for a record of one minute.
func BenchmarkCheck(b *testing.B) {
	s := signed(b)
	config := metering.CheckerConfig{Lease: lease(), Key: newKey(b, 1).Address(), Tolerance: 5e9}
	raw, err := json.Marshal(s)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		var got metering.SignedRecord
		if err := json.Unmarshal(raw, &got); err != nil {
			b.Fatal(err)
		}
		c, err := metering.NewChecker(config)
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Check(got); err != nil {
			b.Fatal(err)
		}
	}
}
