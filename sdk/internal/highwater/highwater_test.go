package highwater

import (
	"errors"
	"path/filepath"
	"sync"
	"testing"

	"github.com/ethereum/go-ethereum/common"
)

// TestMarks: a mark only rises. The same record again is allowed, another one of its number or an earlier one is not,
// also after the file was closed; keys and leases do not get in each other's way.
func TestMarks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db.signed")
	key, lease := common.Address{1}, common.Hash{2}
	mark := func(n uint64, digest byte) Mark { return Mark{Sequence: n, Digest: common.Hash{digest}} }
	open := func() *Marks {
		m, err := Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	m := open()
	for _, step := range []struct {
		key   common.Address
		lease common.Hash
		next  Mark
		good  bool
	}{
		{key, lease, mark(1, 1), true},
		{key, lease, mark(1, 1), true},
		{key, lease, mark(1, 9), false},
		{key, lease, mark(2, 2), true},
		{key, lease, mark(1, 1), false},
		{key, lease, mark(7, 7), true}, // another host signed those between
		{common.Address{9}, lease, mark(1, 9), true},
		{key, common.Hash{9}, mark(1, 9), true},
		{key, lease, mark(7, 8), false},
		{key, lease, mark(7, 7), true},
	} {
		err := m.Raise(t.Context(), step.key, step.lease, step.next, Total{})
		if (err == nil) != step.good || err != nil && !errors.Is(err, ErrBehind) {
			t.Errorf("%+v: %v, allowed: %v", step, err, step.good)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		m = open()
	}
	defer m.Close()
	if got, err := m.Get(t.Context(), key, lease); err != nil || got != mark(7, 7) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := m.Get(t.Context(), key, common.Hash{3}); err != nil || got != (Mark{}) {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestNonces: the highest nonce of a key only rises, on each chain by itself, also after the file was closed.
func TestNonces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db.signed")
	for _, step := range []struct {
		key          common.Address
		chain, nonce uint64
		next         uint64
	}{{common.Address{1}, 1, 0, 1}, {common.Address{1}, 1, 7, 8}, {common.Address{1}, 1, 3, 8}, {common.Address{1}, 2, 3, 4}, {common.Address{2}, 1, 5, 6}} {
		m, err := Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.RaiseNonce(t.Context(), step.key, step.chain, step.nonce); err != nil {
			t.Fatal(err)
		}
		if next, err := m.NextNonce(t.Context(), step.key, step.chain); err != nil || next != step.next {
			t.Errorf("%+v: next is %d, %v", step, next, err)
		}
		if next, err := m.NextNonce(t.Context(), common.Address{9}, step.chain); err != nil || next != 0 {
			t.Errorf("a key that signed nothing: next is %d, %v", next, err)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMarksOfManyAtOnce: of many that raise one number at once with a record each, one may sign.
func TestMarksOfManyAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db.signed")
	var both [2]*Marks // two gateways of one host
	for i := range both {
		m, err := Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		both[i] = m
	}
	var wait sync.WaitGroup
	allowed := make(chan int, 100)
	for i := range 100 {
		wait.Go(func() {
			err := both[i%2].Raise(t.Context(), common.Address{1}, common.Hash{2}, Mark{Sequence: 1, Digest: common.Hash{1, byte(i)}}, Total{})
			if err == nil {
				allowed <- i
			} else if !errors.Is(err, ErrBehind) {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if n := len(allowed); n != 1 {
		t.Errorf("%d records of one number may be signed", n)
	}
}
