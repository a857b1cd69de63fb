package merkle_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering/merkle"
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
	if got := merkle.Root(l); got != want {
		t.Errorf("root %s, want %s", got, want)
	}
	if got := merkle.Root(nil); got != common.BytesToHash(sum()) {
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
		if got := merkle.Root(l[:n]); got != common.HexToHash(want) {
			t.Errorf("%d leaves: root %s, want %s", n, got, want)
		}
	}
}

func TestEverySampleIsProven(t *testing.T) {
	for n := 1; n <= 33; n++ {
		l := leaves(n)
		root := merkle.Root(l)
		for i := range n {
			p, err := merkle.Prove(l, uint64(i))
			if err != nil {
				t.Fatal(err)
			}
			var read merkle.Proof
			if b, err := json.Marshal(p); err != nil || json.Unmarshal(b, &read) != nil {
				t.Fatalf("%s, %v", b, err)
			}
			if err := read.Verify(root, uint64(n)); err != nil {
				t.Errorf("sample %d of %d: %v", i, n, err)
			}
		}
	}
}

func TestForgedProofsAreRefused(t *testing.T) {
	l := leaves(7)
	root := merkle.Root(l)
	good, err := merkle.Prove(l, 4)
	if err != nil {
		t.Fatal(err)
	}
	forge := func(change func(*merkle.Proof)) merkle.Proof {
		p := good
		p.Path, p.Sample = slices.Clone(p.Path), bytes.Clone(p.Sample)
		change(&p)
		return p
	}
	node := sum([]byte{0}, l[0])
	tests := map[string]merkle.Proof{
		"sample":          forge(func(p *merkle.Proof) { p.Sample[0] ^= 1 }),
		"index":           forge(func(p *merkle.Proof) { p.Index = 5 }),
		"index out":       forge(func(p *merkle.Proof) { p.Index = 7 }),
		"count":           forge(func(p *merkle.Proof) { p.Count = 8 }),
		"path":            forge(func(p *merkle.Proof) { p.Path[1][0] ^= 1 }),
		"longer path":     forge(func(p *merkle.Proof) { p.Path = append(p.Path, common.Hash{}) }),
		"shorter path":    forge(func(p *merkle.Proof) { p.Path = p.Path[1:] }),
		"no path":         forge(func(p *merkle.Proof) { p.Path = nil }),
		"node for a leaf": {Count: 7, Index: 0, Path: good.Path[1:], Sample: node},
		"nothing":         {},
	}
	for name, p := range tests {
		if err := p.Verify(root, 7); !errors.Is(err, merkle.ErrProof) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := good.Verify(root, 8); !errors.Is(err, merkle.ErrProof) {
		t.Errorf("another number of samples: %v", err)
	}
	if err := good.Verify(merkle.Root(leaves(6)), 7); !errors.Is(err, merkle.ErrProof) {
		t.Errorf("another root: %v", err)
	}
	if _, err := merkle.Prove(l, 7); !errors.Is(err, merkle.ErrProof) {
		t.Errorf("a sample that is not there: %v", err)
	}
}

func FuzzProof(f *testing.F) {
	f.Add(uint64(3), uint64(1), []byte("sample 1"), []byte{})
	f.Add(uint64(1), uint64(0), []byte("x"), make([]byte, 64))
	root := merkle.Root(leaves(5))
	f.Fuzz(func(t *testing.T, count, index uint64, sample, path []byte) {
		p := merkle.Proof{Count: count, Index: index, Sample: sample}
		for ; len(path) >= 32; path = path[32:] {
			p.Path = append(p.Path, common.BytesToHash(path[:32]))
		}
		if p.Verify(root, count) == nil && (count != 5 || index > 4 || !bytes.Equal(sample, leaves(5)[index])) {
			t.Fatalf("a forged proof passes: %+v", p)
		}
	})
}
