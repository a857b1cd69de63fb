package sdk

import (
	"context"
	"fmt"
	"sync"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
)

// firstLooks are the channels that were read from the chain since the program
// began, and the blocks with a refund after which one was. Its database may be one from a backup, which does not know what was
// claimed since: nothing is served from a channel, nor given back, before it was
// read once, however long the watcher takes to its first look and at whichever
// gateway that is. It keeps 32 bytes of each channel that was used.
type firstLooks struct {
	mu   sync.Mutex
	done map[common.Hash]struct{}
}

func (f *firstLooks) has(id common.Hash) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.done[id]
	return ok
}

func (f *firstLooks) add(id common.Hash) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.done == nil {
		f.done = make(map[common.Hash]struct{})
	}
	f.done[id] = struct{}{}
}

// look is a channel of our books as the chain has it, if it was not read since the
// program began. It takes recordTimeout at most, and then the request is refused.
func (d *x402Desk) look(ctx context.Context, s channel.State) (channel.State, error) {
	if d.looked.has(s.ID) {
		return s, nil
	}
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	if err := d.outbox.outboxIsWhole(ctx); err != nil { // a refund may be among what it does not know
		return s, err
	}
	s, _, err := d.confirmed(ctx, s.Terms)
	if err != nil {
		return s, fmt.Errorf("channel %s: nothing is served before it was read from the chain once: %w", s.ID, err)
	}
	d.looked.add(s.ID)
	return s, nil
}
