package metering_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
)

func sum(parts ...[]byte) []byte {
	h := sha256.Sum256(bytes.Join(parts, nil))
	return h[:]
}

func leaves(n int) (out [][]byte) {
	for i := range n {
		out = append(out, fmt.Appendf(nil, "sample %d", i))
	}
	return out
}

// TestRootIsRFC6962 builds the tree of three leaves by hand.
func TestRootIsRFC6962(t *testing.T) {
	l := leaves(3)
	leaf := func(b []byte) []byte { return sum([]byte{0}, b) }
	node := func(a, b []byte) []byte { return sum([]byte{1}, a, b) }
	want := common.BytesToHash(node(node(leaf(l[0]), leaf(l[1])), leaf(l[2])))
	if got := metering.Root(l); got != want {
		t.Errorf("root %s, want %s", got, want)
	}
	if got := metering.Root(nil); got != common.BytesToHash(sum()) {
		t.Errorf("the root of nothing is %s", got)
	}
}

// TestRootIsThatOfCertificateTransparency holds roots against those that its logs are tested with.
func TestRootIsThatOfCertificateTransparency(t *testing.T) {
	var l [][]byte
	for _, leaf := range []string{"", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"} {
		l = append(l, common.Hex2Bytes(leaf))
	}
	for n, want := range map[int]string{
		1: "0x6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
		2: "0xfac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
		8: "0x5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
	} {
		if got := metering.Root(l[:n]); got != common.HexToHash(want) {
			t.Errorf("%d leaves: root %s, want %s", n, got, want)
		}
	}
}

func TestEverySampleIsProven(t *testing.T) {
	for n := 1; n <= 33; n++ {
		l := leaves(n)
		root := metering.Root(l)
		for i := range n {
			p, err := metering.Prove(l, uint64(i))
			if err != nil {
				t.Fatal(err)
			}
			if err := throughJSON(t, p).Verify(root, uint64(n)); err != nil {
				t.Errorf("sample %d of %d: %v", i, n, err)
			}
		}
	}
}

func TestForgedProofsAreRefused(t *testing.T) {
	l := leaves(7)
	root := metering.Root(l)
	good, err := metering.Prove(l, 4)
	if err != nil {
		t.Fatal(err)
	}
	forge := func(change func(*metering.Proof)) metering.Proof {
		p := good
		p.Path, p.Sample = slices.Clone(p.Path), bytes.Clone(p.Sample)
		change(&p)
		return p
	}
	node := sum([]byte{0}, l[0])
	tests := map[string]metering.Proof{
		"sample":          forge(func(p *metering.Proof) { p.Sample[0] ^= 1 }),
		"index":           forge(func(p *metering.Proof) { p.Index = 5 }),
		"index out":       forge(func(p *metering.Proof) { p.Index = 7 }),
		"count":           forge(func(p *metering.Proof) { p.Count = 8 }),
		"path":            forge(func(p *metering.Proof) { p.Path[1][0] ^= 1 }),
		"longer path":     forge(func(p *metering.Proof) { p.Path = append(p.Path, common.Hash{}) }),
		"shorter path":    forge(func(p *metering.Proof) { p.Path = p.Path[1:] }),
		"no path":         forge(func(p *metering.Proof) { p.Path = nil }),
		"node for a leaf": {Count: 7, Index: 0, Path: good.Path[1:], Sample: node},
		"nothing":         {},
	}
	for name, p := range tests {
		if err := p.Verify(root, 7); !errors.Is(err, metering.ErrProof) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := good.Verify(root, 8); !errors.Is(err, metering.ErrProof) {
		t.Errorf("another number of samples: %v", err)
	}
	if err := good.Verify(metering.Root(leaves(6)), 7); !errors.Is(err, metering.ErrProof) {
		t.Errorf("another root: %v", err)
	}
	if _, err := metering.Prove(l, 7); !errors.Is(err, metering.ErrProof) {
		t.Errorf("a sample that is not there: %v", err)
	}
}

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
	if _, err := m.Proof(common.Hash{1}, 0); !errors.Is(err, metering.ErrProof) {
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

func FuzzProof(f *testing.F) {
	f.Add(uint64(3), uint64(1), []byte("sample 1"), []byte{})
	f.Add(uint64(1), uint64(0), []byte("x"), make([]byte, 64))
	root := metering.Root(leaves(5))
	f.Fuzz(func(t *testing.T, count, index uint64, sample, path []byte) {
		p := metering.Proof{Count: count, Index: index, Sample: sample}
		for ; len(path) >= 32; path = path[32:] {
			p.Path = append(p.Path, common.BytesToHash(path[:32]))
		}
		if p.Verify(root, count) == nil && (count != 5 || index > 4 || !bytes.Equal(sample, leaves(5)[index])) {
			t.Fatalf("a forged proof passes: %+v", p)
		}
	})
}
