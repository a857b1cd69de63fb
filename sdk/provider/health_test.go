package provider

import (
	"context"
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
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
)

func (w *ward) health() (int, health) {
	w.Helper()
	w.provider.leases.Offered.Sick.Expire()
	rec := httptest.NewRecorder()
	w.provider.Health().ServeHTTP(rec, httptest.NewRequest("GET", "/healthz", nil))
	var h health
	if err := json.Unmarshal(rec.Body.Bytes(), &h); err != nil {
		w.Fatal(err)
	}
	return rec.Code, h
}

// TestHealthTellsTheTruth: of two GPUs one is away, then both, then the driver wants
// a restart: health and metrics say so, and 503 only where it concerns all.
func TestHealthTellsTheTruth(t *testing.T) {
	w := newWard(t)
	waitFor(t, func() bool { _, ok := w.provider.settlement.chainSeen(); return ok })
	if code, h := w.health(); code != http.StatusOK || h.Status != "ok" || h.Source != "ok" || h.ChainSeen == nil || *h.ChainSeen > 60 || h.Coin == "" || h.Restart || h.Quarantined == nil {
		t.Errorf("healthy: %d %+v", code, h)
	}
	w.host.set(nil, sim.UUID(0))
	lease := w.open(1, 500_000, "")
	w.step(3)
	w.in(lease, leasestore.Suspended)
	code, h := w.health()
	if code != http.StatusOK || !strings.HasPrefix(h.Status, "degraded") || !slices.Equal(h.Quarantined, []string{sim.UUID(0)}) || h.Leases != 1 || h.Unmetered != 1 {
		t.Errorf("one away: %d %+v", code, h)
	}
	if got := w.metric("gpupay_quarantined_gpus"); got != "1" {
		t.Errorf("%s in quarantine", got)
	}
	w.host.set(fmt.Errorf("driver upgraded: %w", metering.ErrRestart))
	if code, h = w.health(); code != http.StatusServiceUnavailable || !h.Restart || !strings.Contains(h.Status, "driver upgraded") || len(h.Quarantined) != 2 {
		t.Errorf("restart wanted: %d %+v", code, h)
	}
	if up, restart := w.metric("gpupay_source_up"), w.metric("gpupay_restart_wanted"); up != "0" || restart != "1" {
		t.Errorf("source %s, restart %s", up, restart)
	}
}

// mixed is a host whose second GPU is another one.
type mixed struct {
	*sim.Source
	change func(*metering.Device)
}

func (m mixed) Devices(ctx context.Context) ([]metering.Device, error) {
	all, err := m.Source.Devices(ctx)
	m.change(&all[1])
	return all, err
}

// TestMixedGPUsAreRefused: one price does not sell a GPU and a slice.
func TestMixedGPUsAreRefused(t *testing.T) {
	for name, change := range map[string]func(*metering.Device){
		"another model":   func(d *metering.Device) { d.Name = "Cheap GPU" },
		"a slice":         func(d *metering.Device) { d.MIG = true },
		"half the memory": func(d *metering.Device) { d.MemoryBytes /= 2 },
	} {
		all, err := mixed{testclock.GPUs(2), change}.Devices(t.Context())
		if err = errors.Join(err, inventory.OfOneKind(all)); err == nil || !strings.Contains(err.Error(), "of one kind") {
			t.Errorf("%s: %v", name, err)
		}
	}
	r := newRig(t)
	config := r.config
	config.Database, config.Source = t.TempDir()+"/other.db", mixed{testclock.GPUs(2), func(d *metering.Device) { d.MIG = true }}
	if p, err := New(t.Context(), config); err == nil {
		p.Close()
		t.Error("a provider of a GPU and a slice started")
	} else if !strings.Contains(err.Error(), "of one kind") {
		t.Error(err)
	}
	config.Source, config.Metering.MaxGap = testclock.GPUs(2), config.Metering.Tick*3/2
	if p, err := New(t.Context(), config); err == nil || !strings.Contains(err.Error(), "MaxGap") {
		t.Errorf("a gap of one and a half ticks: %v %v", p, err)
	}
}
