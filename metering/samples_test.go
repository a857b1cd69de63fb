package metering_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/merkle"
)

func TestMeterProvesOneSample(t *testing.T) {
	m := newMeter(t)
	observe(t, m, at(1), at(2, xid(13)), at(3))
	e := m.Cut()
	p, err := m.Proof(e.Root, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Verify(e.Root, e.Samples); err != nil {
		t.Fatal(err)
	}
	var r metering.Reading
	if err := json.Unmarshal(p.Sample, &r); err != nil || r.At != at(2).At || r.XIDs[0].Code != 13 {
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
	m, err := metering.NewMeter(metering.Config{Devices: []string{gpu}, Keep: 4})
	if err != nil {
		t.Fatal(err)
	}
	var roots []common.Hash
	for i := range 3 {
		observe(t, m, at(float64(2*i+1)), at(float64(2*i+2)))
		roots = append(roots, m.Cut().Root)
	}
	if _, ok := m.Samples(roots[0]); ok {
		t.Error("keeps more than it was told")
	}
	if s, ok := m.Samples(roots[1]); !ok || len(s) != 2 {
		t.Error("forgot what it should keep")
	}
}
