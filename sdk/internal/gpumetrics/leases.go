package gpumetrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpupay/gpupay/metering"
)

// Leases counts what is metered in leases.
type Leases struct {
	GPU  prometheus.Counter
	Gaps *prometheus.CounterVec
}

// NewLeases are at nothing.
func NewLeases() Leases {
	return Leases{
		GPU:  prometheus.NewCounter(prometheus.CounterOpts{Name: "gpupay_gpu_seconds_total", Help: "GPU-seconds billed in signed records."}),
		Gaps: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "gpupay_unbilled_seconds_total", Help: "Device time in leases that was not billed, by class."}, []string{"class"}),
	}
}

// Recorded counts a record that is on disk.
func (m Leases) Recorded(rec metering.SignedRecord) {
	m.GPU.Add(time.Duration(rec.Evidence.Nanos).Seconds())
	for _, d := range rec.Evidence.Devices {
		m.Gaps.WithLabelValues("gap").Add(time.Duration(d.Nanos.Gap).Seconds())
		m.Gaps.WithLabelValues("down").Add(time.Duration(d.Nanos.Down).Seconds())
	}
}
