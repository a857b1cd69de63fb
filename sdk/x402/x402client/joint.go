package x402client

import (
	"context"
	"sync"

	"github.com/ethereum/go-ethereum/common"
)

// leaves are the channels that are being left by this process. The zero value knows of none.
type leaves struct {
	mu  sync.Mutex
	all map[common.Hash]*left
}

// A left channel is what came of leaving it, once over is closed.
type left struct {
	over   chan struct{}
	refund Refund
	err    error
}

// join runs leave unless the channel is being left already: then it waits for what comes of that, and has it for its own. A second
// one beside it would begin another withdrawal, and start its delay anew. Where the first was cut off, who waited goes on.
func (l *leaves) join(ctx context.Context, id common.Hash, leave func() (Refund, error)) (Refund, error) {
	for {
		first, mine := l.enter(id)
		if mine {
			defer l.end(id, first)
			first.refund, first.err = leave()
			return first.refund, first.err
		}
		select {
		case <-first.over:
			if first.err == nil {
				return first.refund, nil
			}
		case <-ctx.Done():
			return Refund{}, ctx.Err()
		}
	}
}

// enter is who leaves the channel, and whether that is the caller.
func (l *leaves) enter(id common.Hash) (*left, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if first := l.all[id]; first != nil {
		return first, false
	}
	if l.all == nil {
		l.all = make(map[common.Hash]*left)
	}
	mine := &left{over: make(chan struct{}), err: context.Canceled} // until it says otherwise
	l.all[id] = mine
	return mine, true
}

func (l *leaves) end(id common.Hash, mine *left) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.all, id)
	close(mine.over)
}
