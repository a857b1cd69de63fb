package usage_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/internal/rig"
	"github.com/gpupay/gpupay/metering/merkle"
	"github.com/gpupay/gpupay/metering/usage"
)

func TestMeterProvesOneSample(t *testing.T) {
	m := rig.NewMeter(t)
	rig.Observe(t, m, rig.At(1), rig.At(2, rig.XID(13)), rig.At(3))
	e := m.Cut()
	p, err := m.Proof(e.Root, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Verify(e.Root, e.Samples); err != nil {
		t.Fatal(err)
	}
	var r metering.Reading
	if err := json.Unmarshal(p.Sample, &r); err != nil || r.At != rig.At(2).At || r.XIDs[0].Code != 13 {
		t.Errorf("the proven sample is %s, %v", p.Sample, err)
	}
	if !bytes.Equal(r.Encode(), p.Sample) {
		t.Errorf("a sample does not encode as itself: %s", r.Encode())
	}
	if _, err := m.Proof(common.Hash{1}, 0); !errors.Is(err, merkle.ErrProof) {
		t.Errorf("a root of somebody else: %v", err)
	}
}

func TestMeterForgetsTheOldestSamples(t *testing.T) {
	m, err := usage.NewMeter(usage.Config{Devices: []string{rig.GPU}, Keep: 4})
	if err != nil {
		t.Fatal(err)
	}
	var roots []common.Hash
	for i := range 3 {
		rig.Observe(t, m, rig.At(float64(2*i+1)), rig.At(float64(2*i+2)))
		roots = append(roots, m.Cut().Root)
	}
	if _, ok := m.Samples(roots[0]); ok {
		t.Error("keeps more than it was told")
	}
	if s, ok := m.Samples(roots[1]); !ok || len(s) != 2 {
		t.Error("forgot what it should keep")
	}
}
