// Package keyed locks one channel at a time.
package keyed

import (
	"sync"

	"github.com/ethereum/go-ethereum/common"
)

// Mutex is a mutex for each channel that is worked on right now. The zero value
// is ready.
type Mutex struct {
	mu    sync.Mutex
	locks map[common.Hash]*lock
}

type lock struct {
	sync.Mutex
	users int
}

// TryLock is Lock for who does not want to wait.
func (k *Mutex) TryLock(id common.Hash) (unlock func(), ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.locks[id] != nil {
		return nil, false
	}
	l := k.use(id)
	l.Lock()
	return func() { k.free(id, l) }, true
}

// Lock waits for the channel and returns what frees it.
func (k *Mutex) Lock(id common.Hash) (unlock func()) {
	k.mu.Lock()
	l := k.use(id)
	k.mu.Unlock()
	l.Lock()
	return func() { k.free(id, l) }
}

// use finds or makes the channel's lock. The caller holds mu.
func (k *Mutex) use(id common.Hash) *lock {
	if k.locks == nil {
		k.locks = make(map[common.Hash]*lock)
	}
	l := k.locks[id]
	if l == nil {
		l = &lock{}
		k.locks[id] = l
	}
	l.users++
	return l
}

func (k *Mutex) free(id common.Hash, l *lock) {
	l.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(k.locks, id)
	}
}

// Held is how many channels are worked on, or waited for.
func (k *Mutex) Held() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.locks)
}
