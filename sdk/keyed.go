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

// lock waits for the channel and returns what frees it.
func (k *keyed) lock(id common.Hash) (unlock func()) {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = make(map[common.Hash]*keyedLock)
	}
	l := k.locks[id]
	if l == nil {
		l = &keyedLock{}
		k.locks[id] = l
	}
	l.users++
	k.mu.Unlock()

	l.Lock()
	return func() {
		l.Unlock()
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.locks, id)
		}
	}
}
