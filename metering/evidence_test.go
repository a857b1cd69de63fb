package metering_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/internal/rig"
)

func TestEvidenceThatContradictsItself(t *testing.T) {
	for name, lie := range map[string]func(*metering.Evidence, *metering.DeviceEvidence){
		"less in all than now":       func(e *metering.Evidence, d *metering.DeviceEvidence) { d.Total, e.Total = 1e9, 1e9 },
		"more active than allocated": func(_ *metering.Evidence, d *metering.DeviceEvidence) { d.Nanos.Active = 2e9 + 1 },
		"more slowed than allocated": func(_ *metering.Evidence, d *metering.DeviceEvidence) { d.Nanos.Throttled = 2e9 + 1 },
		"another sum since the cut":  func(e *metering.Evidence, _ *metering.DeviceEvidence) { e.Nanos-- },
		"another sum in all":         func(e *metering.Evidence, _ *metering.DeviceEvidence) { e.Total++ },
		"stamps the wrong way round": func(_ *metering.Evidence, d *metering.DeviceEvidence) { d.From, d.To = d.To, d.From },
		"negative time":              func(_ *metering.Evidence, d *metering.DeviceEvidence) { d.Nanos.Paused = -1 },
		"sums that overflow": func(e *metering.Evidence, d *metering.DeviceEvidence) {
			d.Total = 1<<63 - 1
			e.Devices = append(e.Devices, *d)
		},
	} {
		m := rig.NewMeter(t)
		rig.Observe(t, m, rig.At(1), rig.At(2), rig.At(3))
		e := m.Cut()
		if err := e.Validate(); err != nil {
			t.Fatal(err)
		}
		lie(&e, &e.Devices[0])
		if err := e.Validate(); !errors.Is(err, metering.ErrEvidence) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCanonical writes every encoded value again with its keys sorted by the
// JSON package: the hash must not depend on Go's order of fields.
func TestCanonical(t *testing.T) {
	m := rig.NewMeter(t)
	id := metering.Device{UUID: rig.GPU, Parent: "GPU-p", Slice: "1/0", MIG: true, Name: "<>&"}
	if err := m.Describe("nvml", id); err != nil {
		t.Fatal(err)
	}
	r := rig.At(2, rig.XID(79), func(r *metering.Reading) { r.Detail = "<&>" })
	rig.Observe(t, m, rig.At(1), r)
	for range 70 { // more than the lists hold
		s := m.Totals().Down/1e9 + 3
		rig.Observe(t, m, rig.At(float64(s), rig.XID(13)), rig.At(float64(s)+0.5, rig.Health(metering.Lost)))
	}
	for _, b := range [][]byte{m.Cut().Encode(), r.Encode()} {
		var v any
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatal(err)
		}
		var sorted strings.Builder
		enc := json.NewEncoder(&sorted)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(v); err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSpace(sorted.String()); got != string(b) {
			t.Errorf("not canonical:\n%s\n%s", b, got)
		}
	}
}
