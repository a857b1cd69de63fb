package proxy

import (
	"encoding/json"
	"hash/maphash"
	"sync"

	"github.com/gpupay/gpupay/sdk/internal/continuation"
)

// session is where the turns of conversations ran, so that the next turn goes where most of its prompt has been read already. A
// conversation is known by a hash of its messages, seeded anew by each process: no text is kept.
type session struct {
	mu    sync.Mutex
	where map[uint64]turn
	order []uint64 // oldest first
}

type turn struct {
	endpoint string
	tokens   int64 // of the prompt
}

// maxTurns bounds the turns that are remembered.
const maxTurns = 4096

var turnSeed = maphash.MakeSeed()

// turns hash each beginning of a conversation, the shortest first: its first message, its first two, and so on.
func turns(all []continuation.Member) []uint64 {
	for _, m := range all {
		if m.Name != "messages" && m.Name != "input" {
			continue
		}
		var messages []json.RawMessage
		if json.Unmarshal(m.Value, &messages) != nil {
			return nil
		}
		var h maphash.Hash
		h.SetSeed(turnSeed)
		var sums []uint64
		for _, message := range messages {
			_, _ = h.Write(message)
			_ = h.WriteByte(0)
			sums = append(sums, h.Sum64())
		}
		return sums
	}
	return nil
}

// last is where the longest beginning of a conversation ran.
func (s *session) last(turns []uint64) turn {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(turns) - 1; i >= 0; i-- {
		if at, known := s.where[turns[i]]; known {
			return at
		}
	}
	return turn{}
}

// ran notes where a conversation ran.
func (s *session) ran(turns []uint64, endpoint string, tokens int64) {
	if len(turns) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := turns[len(turns)-1]
	if _, known := s.where[sum]; !known {
		s.order = append(s.order, sum)
	}
	s.where[sum] = turn{endpoint, tokens}
	if len(s.order) > maxTurns {
		delete(s.where, s.order[0])
		s.order = s.order[1:]
	}
}
