// Package merkle has the tree by which a usage record commits to every reading, or every
// request, that its time was counted from: one of them can be shown without the others.
package merkle

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/bits"

	"github.com/ethereum/go-ethereum/common"
)

// ErrProof says that a sample is not the one a root commits to.
var ErrProof = errors.New("sample does not belong to the root")

// The tree is that of RFC 6962, SHA-256 included: processors have instructions for
// it, and a gateway hashes every reading of every device. Leaves and nodes are hashed
// under different prefixes, so that no node can pass for a sample.
const (
	LeafPrefix = 0x00
	nodePrefix = 0x01
)

// Root is the Merkle root of samples in the order in which they were observed.
func Root(samples [][]byte) common.Hash {
	return root(hashes(samples))
}

// Proof shows that one sample is leaf Index of the Count leaves under a root,
// and shows nothing about the others.
type Proof struct {
	Count  uint64        `json:"count,string"`
	Index  uint64        `json:"index,string"`
	Path   []common.Hash `json:"path"` // siblings, from the leaf up
	Sample []byte        `json:"sample"`
}

// Prove makes the proof of one sample.
func Prove(samples [][]byte, index uint64) (Proof, error) {
	if index >= uint64(len(samples)) {
		return Proof{}, fmt.Errorf("%w: there is no sample %d of %d", ErrProof, index, len(samples))
	}
	return Proof{
		Count:  uint64(len(samples)),
		Index:  index,
		Path:   path(hashes(samples), index),
		Sample: samples[index],
	}, nil
}

// Verify checks a proof against the root and the number of samples that a
// signed record's evidence states.
func (p Proof) Verify(want common.Hash, count uint64) error {
	if p.Count != count || p.Index >= count {
		return fmt.Errorf("%w: sample %d of %d, the evidence has %d", ErrProof, p.Index, p.Count, count)
	}
	hash, rest, ok := climb(leaf(p.Sample), p.Path, p.Index, p.Count)
	if !ok || len(rest) != 0 {
		return fmt.Errorf("%w: a path of %d does not fit sample %d of %d", ErrProof, len(p.Path), p.Index, p.Count)
	}
	if hash != want {
		return fmt.Errorf("%w: sample %d hashes to %s, the evidence says %s", ErrProof, p.Index, hash, want)
	}
	return nil
}

func climb(hash common.Hash, path []common.Hash, index, count uint64) (common.Hash, []common.Hash, bool) {
	if count == 1 {
		return hash, path, true
	}
	k := split(count)
	left := index < k
	size := k
	if !left {
		index, size = index-k, count-k
	}
	hash, path, ok := climb(hash, path, index, size)
	if !ok || len(path) == 0 {
		return hash, path, false
	}
	if left {
		return node(hash, path[0]), path[1:], true
	}
	return node(path[0], hash), path[1:], true
}

func path(hashes []common.Hash, index uint64) []common.Hash {
	n := uint64(len(hashes))
	if n == 1 {
		return nil
	}
	k := split(n)
	if index < k {
		return append(path(hashes[:k], index), root(hashes[k:]))
	}
	return append(path(hashes[k:], index-k), root(hashes[:k]))
}

func root(hashes []common.Hash) common.Hash {
	var t Tree
	for _, h := range hashes {
		t.add(h)
	}
	return t.Root()
}

// Tree makes the Root of samples that come one by one. It keeps no more than the root
// needs: the roots of the full trees that it consists of, the largest first. Their
// sizes are the powers of two in count.
type Tree struct {
	count uint64
	peaks []common.Hash
}

// Add appends a sample.
func (t *Tree) Add(sample []byte) { t.add(leaf(sample)) }

// AddPrefixed appends a sample that has LeafPrefix before it, without a copy of it.
func (t *Tree) AddPrefixed(sample []byte) { t.add(sha256.Sum256(sample)) }

func (t *Tree) add(hash common.Hash) {
	for n := t.count; n&1 == 1; n >>= 1 {
		last := len(t.peaks) - 1
		hash = node(t.peaks[last], hash)
		t.peaks = t.peaks[:last]
	}
	t.peaks = append(t.peaks, hash)
	t.count++
}

// Count is how many samples there are.
func (t *Tree) Count() uint64 { return t.count }

// Clear takes all samples out, and keeps the memory.
func (t *Tree) Clear() { t.count, t.peaks = 0, t.peaks[:0] }

// Root is that of the samples so far.
func (t *Tree) Root() common.Hash {
	if t.count == 0 {
		return sha256.Sum256(nil)
	}
	last := len(t.peaks) - 1
	hash := t.peaks[last]
	for i := last - 1; i >= 0; i-- {
		hash = node(t.peaks[i], hash)
	}
	return hash
}

// split is the largest power of two below n, for n of at least 2.
func split(n uint64) uint64 { return 1 << (bits.Len64(n-1) - 1) }

func hashes(samples [][]byte) []common.Hash {
	out := make([]common.Hash, len(samples))
	for i, s := range samples {
		out[i] = leaf(s)
	}
	return out
}

func leaf(sample []byte) common.Hash {
	var buf [512]byte
	return sha256.Sum256(append(append(buf[:0], LeafPrefix), sample...))
}

func node(left, right common.Hash) common.Hash {
	var buf [65]byte
	buf[0] = nodePrefix
	copy(buf[1:], left[:])
	copy(buf[33:], right[:])
	return sha256.Sum256(buf[:])
}
