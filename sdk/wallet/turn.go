package wallet

import (
	"context"
	"sync"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
)

// TurnKey is what payments must take turns for: all channels of a renter that could
// stand for each other in paying one payee at one site. A site that holds up its own
// turn holds up no other's, whomever it names as its payee.
type TurnKey struct {
	chain        uint64
	Payee, token common.Address
	Salt         common.Hash
	Site         string
}

// TurnOf is the turn of a channel that is paid from at a site. The salt is the client's, which the channel's own may be made of.
func TurnOf(t channel.Terms, salt common.Hash, site string) TurnKey {
	return TurnKey{t.ChainID, t.Payee, t.Token, salt, site}
}

// Turns hands out turns: one at a time for each key. The zero value is ready. It
// belongs to the renter, whose clients share its channels.
type Turns struct {
	mu    sync.Mutex
	lines map[TurnKey]*payTurn
}

type payTurn struct {
	token chan struct{}
	users int // who has it or waits for it; zero: it is forgotten
}

// Take waits for a turn.
func (t *Turns) Take(ctx context.Context, key TurnKey) (release func(), err error) {
	t.mu.Lock()
	line := t.lines[key]
	if line == nil {
		if t.lines == nil {
			t.lines = make(map[TurnKey]*payTurn)
		}
		line = &payTurn{token: make(chan struct{}, 1)}
		t.lines[key] = line
	}
	line.users++
	t.mu.Unlock()
	select {
	case line.token <- struct{}{}:
		return func() { <-line.token; t.leave(key, line) }, nil
	case <-ctx.Done():
		t.leave(key, line)
		return nil, ctx.Err()
	}
}

func (t *Turns) leave(key TurnKey, line *payTurn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if line.users--; line.users == 0 {
		delete(t.lines, key)
	}
}
