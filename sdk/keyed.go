package sdk

import (
	"sync"

	"github.com/ethereum/go-ethereum/common"
)

// keyed is a mutex for each channel that is worked on right now.
type keyed struct {
	mu    sync.Mutex
	locks map[common.Hash]*keyedLock
}

type keyedLock struct {
	sync.Mutex
	users int
}

// tryLock is lock for who does not want to wait.
func (k *keyed) tryLock(id common.Hash) (unlock func(), ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.locks[id] != nil {
		return nil, false
	}
	l := k.use(id)
	l.Lock()
	return func() { k.free(id, l) }, true
}

// lock waits for the channel and returns what frees it.
func (k *keyed) lock(id common.Hash) (unlock func()) {
	k.mu.Lock()
	l := k.use(id)
	k.mu.Unlock()
	l.Lock()
	return func() { k.free(id, l) }
}

// use finds or makes the channel's lock. The caller holds mu.
func (k *keyed) use(id common.Hash) *keyedLock {
	if k.locks == nil {
		k.locks = make(map[common.Hash]*keyedLock)
	}
	l := k.locks[id]
	if l == nil {
		l = &keyedLock{}
		k.locks[id] = l
	}
	l.users++
	return l
}

func (k *keyed) free(id common.Hash, l *keyedLock) {
	l.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(k.locks, id)
	}
}
