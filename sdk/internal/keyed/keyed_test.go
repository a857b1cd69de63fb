package keyed

import (
	"sync"
	"testing"

	"github.com/ethereum/go-ethereum/common"
)

// One at a time works on a channel, nobody waits for another channel's, and nothing of any is kept afterwards.
func TestMutex(t *testing.T) {
	var m Mutex
	var counts [2]int
	var work sync.WaitGroup
	for n := range 200 {
		work.Go(func() {
			id := common.Hash{byte(n % 2)}
			defer m.Lock(id)()
			counts[n%2]++
		})
	}
	work.Wait()
	if counts != [2]int{100, 100} || m.Held() != 0 {
		t.Errorf("%v, %d held", counts, m.Held())
	}
	unlock := m.Lock(common.Hash{1})
	if _, ok := m.TryLock(common.Hash{1}); ok {
		t.Error("locked twice")
	}
	other, ok := m.TryLock(common.Hash{2})
	if !ok || m.Held() != 2 {
		t.Fatalf("another channel's: %v, %d held", ok, m.Held())
	}
	other()
	unlock()
	if m.Held() != 0 {
		t.Errorf("%d are still held", m.Held())
	}
}
