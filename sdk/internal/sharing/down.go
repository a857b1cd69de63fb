package sharing

import (
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// SetDown has nothing be served of all, for a reason that renters are told; nil: it is served.
func (all Services) SetDown(why error) {
	for _, s := range all {
		s.SetDown(why)
	}
}

// Down is why nothing is served, of the first by name that says so; empty: all are served.
func (all Services) Down() string {
	for _, class := range slices.Sorted(maps.Keys(all)) {
		s := all[class]
		s.mu.Lock()
		down := s.down
		s.mu.Unlock()
		if down != nil {
			return down.Error()
		}
	}
	return ""
}

var descUp = prometheus.NewDesc("gpupay_upstream_up", "1 while what serves the GPUs that are shared works; 0: nothing is served, rented or billed of them.", nil, nil)

// Describe names the metric.
func (all Services) Describe(ch chan<- *prometheus.Desc) { ch <- descUp }

// Collect is nothing where no GPUs are shared.
func (all Services) Collect(ch chan<- prometheus.Metric) {
	if len(all) == 0 {
		return
	}
	up := 1.0
	if all.Down() != "" {
		up = 0
	}
	ch <- prometheus.MustNewConstMetric(descUp, prometheus.GaugeValue, up)
}
