package tower

import (
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
)

// A sighting is a channel as the tower has it, which is the cautious word of two endpoints, and what else a look at the chain said.
type sighting struct {
	channel.State
	deposit uint256.Int // base units, by the endpoint that says more
	final   bool        // all who were asked say that it is finalized, whatever the tower has
	known   uint64      // the newest block up to which all have read
}

// refund is what the payer gets back by the endpoint that says more: that one alone says that a deposit is not there takes
// nobody's way out.
func (s sighting) refund() uint256.Int {
	state := s.State
	if s.deposit.Gt(&state.Deposit) {
		state.Deposit = s.deposit
	}
	return refund(state)
}

// A leave is over when all looks of so long, and of so many blocks, say so. Its looks are ten minutes apart by then.
const (
	endingFor    = time.Hour
	endingBlocks = 32 // no re-org is deeper
)

// endings are the leaves that seem to be over. The zero value knows of none.
type endings struct {
	mu  sync.Mutex
	all map[common.Hash]ending
}

// An ending is since when, and since which block, all looks say that nothing is left to do.
type ending struct {
	since time.Time
	block uint64
}

// lasts hears that a leave seems to be over, and reports whether that was so for long enough to believe it.
func (e *endings) lasts(id common.Hash, now time.Time, block uint64) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	first, known := e.all[id]
	if !known || block < first.block {
		if e.all == nil {
			e.all = make(map[common.Hash]ending)
		}
		e.all[id] = ending{now, block}
		return false
	}
	if now.Sub(first.since) < endingFor || block < first.block+endingBlocks {
		return false
	}
	delete(e.all, id)
	return true
}

// goesOn hears that a leave is not over.
func (e *endings) goesOn(id common.Hash) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.all, id)
}
