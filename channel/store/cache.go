package store

import (
	"bytes"
	"sync"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
)

// maxCached bounds the memory of a cache: about 80 MB.
const maxCached = 1 << 17

// cache is the payee's channels as they are on disk, those that were changed
// lately. An SQLite file has one writer, the commit loop, and only that fills
// the cache, after each commit. Should another program have written the file
// nevertheless, all of it is forgotten.
type cache struct {
	mu     sync.RWMutex
	states map[common.Hash]channel.State

	version int64 // of the file, as the writer's connection counts others' commits
}

func (c *cache) get(id common.Hash) (channel.State, bool) {
	s, ok := c.peek(id)
	s.Signature = bytes.Clone(s.Signature) // the caller's own
	return s, ok
}

// peek is get for who does not write into the signature.
func (c *cache) peek(id common.Hash) (channel.State, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	s, ok := c.states[id]
	return s, ok
}

// keep takes what a commit has put on disk.
func (c *cache) keep(channels map[common.Hash]*entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.states == nil || len(c.states)+len(channels) > maxCached {
		c.states = make(map[common.Hash]channel.State, len(channels))
	}
	for id, e := range channels {
		c.states[id] = e.state
	}
}

// check forgets everything if somebody else has written the file. It runs in a
// write transaction: nobody writes after it.
func (c *cache) check(tx *sqlx.Tx) error {
	var version int64
	if err := tx.QueryRow("PRAGMA data_version").Scan(&version); err != nil {
		return err
	}
	if version != c.version {
		c.mu.Lock()
		c.states = nil
		c.mu.Unlock()
		c.version = version
	}
	return nil
}

// termsCache is the terms of channels. They never change, whoever writes the
// database: an id is the hash of its terms.
type termsCache struct {
	mu sync.RWMutex
	of map[common.Hash]channel.Terms
}

func (c *termsCache) get(id common.Hash) (channel.Terms, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	t, ok := c.of[id]
	return t, ok
}

func (c *termsCache) keep(id common.Hash, t channel.Terms) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil || len(c.of) >= maxCached {
		c.of = make(map[common.Hash]channel.Terms)
	}
	c.of[id] = t
}
