package usage_test

import (
	"testing"

	"github.com/gpupay/gpupay/metering/internal/rig"
	"github.com/gpupay/gpupay/metering/usage"
)

// BenchmarkObserve is one tick of one device, its sample included.
func BenchmarkObserve(b *testing.B) {
	b.Run("kept", func(b *testing.B) { benchmarkObserve(b, 0) })
	b.Run("hashed only", func(b *testing.B) { benchmarkObserve(b, -1) })
}

func benchmarkObserve(b *testing.B, keep int) {
	m, err := usage.NewMeter(usage.Config{Devices: []string{rig.GPU}, Keep: keep})
	if err != nil {
		b.Fatal(err)
	}
	r := rig.At(1)
	for i := 0; b.Loop(); i++ {
		r.At.Mono += 1e9
		r.At.Boot += 1e9
		rig.Observe(b, m, r)
		if i%3600 == 3599 {
			m.Cut()
		}
	}
}
