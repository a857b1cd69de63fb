// Package gpumetrics has the metrics of the GPUs that a provider or a node offers.
package gpumetrics

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpupay/gpupay/sdk/internal/inventory"
)

// Collector are the metrics of the GPUs that are offered: it looks at them when it is asked, for 5 s at most.
type Collector struct {
	Look func(context.Context) inventory.GPUs
}

var (
	descQuarantined = prometheus.NewDesc("gpupay_quarantined_gpus", "GPUs that are offered and do not work: they go into no new lease.", nil, nil)
	descHeld        = prometheus.NewDesc("gpupay_held_leases", "Leases that have ended, or that the database has forgotten, and whose GPUs could not be taken back yet: the release command fails.", nil, nil)
	descSource      = prometheus.NewDesc("gpupay_source_up", "1 while the metering source lists its GPUs.", nil, nil)
	descRestart     = prometheus.NewDesc("gpupay_restart_wanted", "1 while nothing can be metered before the program is restarted.", nil, nil)
)

// Describe names the metrics.
func (Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descQuarantined, descHeld, descSource, descRestart} {
		ch <- d
	}
}

// Collect gives them their values.
func (c Collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	gpus := c.Look(ctx)
	gauge := func(d *prometheus.Desc, v float64) { ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v) }
	gauge(descQuarantined, float64(len(gpus.Quarantined)))
	gauge(descHeld, float64(gpus.Held))
	gauge(descSource, Flag(gpus.Err == nil))
	gauge(descRestart, Flag(gpus.Restart()))
}

// Flag is a condition as the value of a metric.
func Flag(on bool) float64 {
	if on {
		return 1
	}
	return 0
}
