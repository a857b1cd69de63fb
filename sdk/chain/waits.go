package chain

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
)

// waits is how long transactions have waited, as this process saw it: by blocks that could have taken them, and by a clock that may
// be set back.
type waits struct {
	*account
	mu    sync.Mutex          // guards ages
	ages  map[common.Hash]age // by version
	ahead map[stamp]time.Time // moments that were ahead of the clock, and when it was seen; the one who steps has it
}

// An age is since which block a version has waited, and whether a block since then passed it over.
type age struct {
	number, older uint64 // see sight
	passed        bool
}

// maxAges bounds what is remembered of versions that are not mined.
const maxAges = 4096

// born notes the block at which a version was signed.
func (w *waits) born(version common.Hash, head sight) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ages == nil || len(w.ages) >= maxAges {
		w.ages = make(map[common.Hash]age)
	}
	w.ages[version] = age{number: head.number, older: head.older}
}

// passedOver reports whether a block that came since the version was signed could have taken it and did not: it had room,
// or a base fee above what the version offers. On a chain that makes no blocks no fee helps, and none is raised.
func (w *waits) passedOver(tx Tx, version *types.Transaction, g glance) bool {
	w.mu.Lock()
	a, found := w.ages[version.Hash()]
	w.mu.Unlock()
	if !found { // since before a restart
		w.born(version.Hash(), g.head)
		return false
	}
	if a.passed || !g.head.beyond(a.number, a.older) {
		return a.passed
	}
	a.passed = version.GasFeeCap().Cmp(g.head.baseFee) < 0 || tx.Gas <= g.head.room
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ages[version.Hash()] = a
	return a.passed
}

// A stamp is a moment that was written down about a transaction.
type stamp struct {
	tx TxID
	at int64 // unix nanoseconds
}

// waited is how long ago a moment was that was written down about a transaction. One that is still to come, because the
// clock was set back, counts as the first look since: it delays what waits by no more than the wait itself.
func (w *waits) waited(tx Tx, at time.Time) time.Duration {
	now, key := w.now(), stamp{tx.ID, at.UnixNano()}
	since, ahead := w.ahead[key]
	switch {
	case !ahead && !at.After(now):
		return now.Sub(at)
	case !ahead || since.After(now):
		if w.ahead == nil {
			w.ahead = make(map[stamp]time.Time)
		}
		w.ahead[key] = now
		return 0
	}
	return now.Sub(since)
}

// forget drops what is remembered of transactions that are over.
func (w *waits) forget(open []Tx) {
	maps.DeleteFunc(w.ahead, func(key stamp, _ time.Time) bool {
		return !slices.ContainsFunc(open, func(tx Tx) bool { return tx.ID == key.tx })
	})
}
