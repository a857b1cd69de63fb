package provider

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/internal/gpumetrics"
)

// fetched is what a handler of an operator's answers, of health as JSON.
func fetched(t *testing.T, h http.Handler, into any) (int, string) {
	t.Helper()
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
	if into != nil {
		if err := json.Unmarshal(rec.Body.Bytes(), into); err != nil {
			t.Fatal(err)
		}
	}
	return rec.Code, rec.Body.String()
}

// TestNodesHealthTellsTheTruth: a node says how its GPUs are in health and metrics, and a gateway which node is out of reach.
func TestNodesHealthTellsTheTruth(t *testing.T) {
	o := newOutpost(t)
	o.stop()
	host := &sickHost{Source: testclock.GPUs(2)}
	o.config.Source = host
	o.start()
	r := newRig(t, o.link)
	for _, c := range []struct {
		name    string
		broken  error
		away    []string
		code    int
		status  string
		source  int
		restart bool
	}{
		{"well", nil, nil, 200, "ok", 1, false},
		{"one away", nil, []string{sim.UUID(1)}, 200, "degraded: 1 GPUs in quarantine", 1, false},
		{"both away", nil, []string{sim.UUID(0), sim.UUID(1)}, 200, "degraded: 2 GPUs in quarantine", 1, false},
		{"nothing is listed", errors.New("driver gone"), nil, 503, "driver gone", 0, false},
		{"a restart is wanted", fmt.Errorf("driver upgraded: %w", metering.ErrRestart), nil, 503, "driver upgraded", 0, true},
	} {
		host.set(c.broken, c.away...)
		away := len(c.away)
		if c.broken != nil {
			away = 2
		}
		eventually(t, "the node's health where "+c.name, func() bool {
			var h health
			code, _ := fetched(t, o.node.Health(), &h)
			return code == c.code && strings.HasPrefix(h.Status, c.status) && len(h.Quarantined) == away && h.Restart == c.restart
		})
		_, metrics := fetched(t, o.node.Metrics(), nil)
		for _, want := range []string{fmt.Sprintf("gpupay_quarantined_gpus %d\n", away), fmt.Sprintf("gpupay_source_up %d\n", c.source), fmt.Sprintf("gpupay_restart_wanted %g\n", gpumetrics.Flag(c.restart))} {
			if !strings.Contains(metrics, want) {
				t.Errorf("%s: no %sin\n%s", c.name, want, metrics)
			}
		}
	}
	host.set(nil)
	o.set(true, nil)
	eventually(t, "the gateway to miss its node", func() bool {
		var h health
		code, _ := fetched(t, r.provider.Health(), &h)
		return code == 200 && strings.HasPrefix(h.Status, "degraded") && slices.Equal(h.Away, []string{"north"})
	})
	if _, metrics := fetched(t, r.provider.Metrics(), nil); !strings.Contains(metrics, "gpupay_unreachable_nodes 1\n") {
		t.Error(metrics)
	}
	o.set(false, nil)
	eventually(t, "the gateway to find its node", func() bool {
		var h health
		_, _ = fetched(t, r.provider.Health(), &h)
		return h.Status == "ok" && len(h.Away) == 0
	})
	if _, metrics := fetched(t, r.provider.Metrics(), nil); !strings.Contains(metrics, "gpupay_unreachable_nodes 0\n") {
		t.Error(metrics)
	}
}
