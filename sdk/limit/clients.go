package limit

import (
	"sync"

	"github.com/ethereum/go-ethereum/common/lru"
)

// Clients keeps a value for each of the names that were asked for last, and forgets those asked for longest ago: clients without
// end take no memory without end. It is safe for concurrent use.
type Clients[V any] struct {
	mu   sync.Mutex
	seen lru.BasicLRU[string, V]
}

// NewClients keeps at most so many values.
func NewClients[V any](most int) *Clients[V] {
	return &Clients[V]{seen: lru.NewBasicLRU[string, V](most)}
}

// Get returns the value of a name: what fresh makes, where none is kept.
func (c *Clients[V]) Get(name string, fresh func() V) V {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.seen.Get(name)
	if !ok {
		v = fresh()
		c.seen.Add(name, v)
	}
	return v
}

// Len is how many values are kept.
func (c *Clients[V]) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen.Len()
}
