package usage_test

import (
	"errors"
	"testing"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/internal/rig"
	"github.com/gpupay/gpupay/metering/usage"
)

func TestRecorderChains(t *testing.T) {
	l, k := rig.Lease(), rig.NewKey(t, 1)
	m := rig.NewMeter(t)
	rec, err := usage.NewRecorder(l, k, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := rec.Last(); ok {
		t.Error("a new recorder has a last record")
	}
	rig.Observe(t, m, rig.At(1), rig.At(2))
	first := rig.Next(t, rec, m, false)
	rig.Observe(t, m, rig.At(3))
	last, _ := rec.Last()
	rec, err = usage.NewRecorder(l, k, new(rig.ThroughJSON(t, last))) // restart
	if err != nil {
		t.Fatal(err)
	}
	second := rig.Next(t, rec, m, true)

	if first.Sequence != 1 || first.Previous != (common.Hash{}) || first.Nanos != 1e9 || first.Owed.Uint64() != 1555 {
		t.Errorf("first %+v", first.Record)
	}
	domain := metering.Domain(l.ChainID, l.Escrow)
	if second.Sequence != 2 || second.Previous != first.Digest(domain) || second.Nanos != 2e9 || second.Owed.Uint64() != 2110 {
		t.Errorf("second %+v", second.Record)
	}
	if second.From != first.To || second.To != uint64(rig.At(3).At.Wall) || second.EvidenceHash != second.Evidence.Hash() {
		t.Errorf("second %+v", second.Record)
	}
	if _, err := rec.Next(t.Context(), m.Cut(), false); !errors.Is(err, usage.ErrFinal) {
		t.Errorf("a record after the final one: %v", err)
	}
}

func TestRecorderRefuses(t *testing.T) {
	l, k := rig.Lease(), rig.NewKey(t, 1)
	m := rig.NewMeter(t)
	rig.Observe(t, m, rig.At(1), rig.At(2))
	lostCut := m.Cut()
	rig.Observe(t, m, rig.At(3))
	rec, err := usage.NewRecorder(l, k, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rec.Next(t.Context(), m.Cut(), false); !errors.Is(err, metering.ErrEvidence) {
		t.Errorf("a cut that follows one without a record: %v", err)
	}
	lostCut.Nanos++
	if _, err := rec.Next(t.Context(), lostCut, false); !errors.Is(err, metering.ErrEvidence) {
		t.Errorf("evidence that does not add up: %v", err)
	}
	for name, last := range map[string]metering.Record{
		"another lease":   {LeaseID: common.Hash{1}},
		"another channel": {LeaseID: l.ID},
		"another start":   {LeaseID: l.ID, ChannelID: l.ChannelID, OfferHash: l.OfferHash, Devices: 1},
		"another number":  {LeaseID: l.ID, ChannelID: l.ChannelID, OfferHash: l.OfferHash, OwedBefore: l.OwedBefore, Devices: 2},
	} {
		if _, err := usage.NewRecorder(l, k, &last); !errors.Is(err, metering.ErrRecord) {
			t.Errorf("goes on after a record of %s: %v", name, err)
		}
	}
	l.Devices = nil
	if _, err := usage.NewRecorder(l, k, nil); !errors.Is(err, metering.ErrDevice) {
		t.Errorf("a lease of nothing: %v", err)
	}
}

// TestRecorderRefusesAnotherModel: no record is drafted of a device that is described as none that the offer has, whether it bills its time or
// not; one that nobody has described yet bills nothing, and may be in a record.
func TestRecorderRefusesAnotherModel(t *testing.T) {
	l := rig.Lease()
	l.Models = []metering.Model{{Name: "Good GPU", MemoryBytes: 80 << 30}}
	rec, err := usage.NewRecorder(l, rig.NewKey(t, 1), nil)
	if err != nil {
		t.Fatal(err)
	}
	m := rig.NewMeter(t)
	draft := func(name string) error {
		t.Helper()
		if name != "" {
			if err := m.Describe("nvml", metering.Device{UUID: l.Devices[0], Name: name, MemoryBytes: 80 << 30}); err != nil {
				t.Fatal(err)
			}
		}
		_, err := rec.Draft(m.Cut(), false)
		return err
	}
	if err := draft(""); err != nil {
		t.Errorf("of one that is not described: %v", err)
	}
	if err := draft("Good GPU"); err != nil {
		t.Errorf("of one that the offer has: %v", err)
	}
	if err := draft("Good GPU PCIe"); !errors.Is(err, metering.ErrModel) {
		t.Errorf("of another one: %v", err)
	}
}
