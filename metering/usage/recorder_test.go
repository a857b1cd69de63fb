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
