package fleet

import (
	"bytes"
	"regexp"
	"sync"
)

// Watch has a function see each statement that a client of PostgreSQL runs over the
// cable, before the server does. Where it is false the statement's connection breaks;
// the client's others stay. nil ends that.
func (c *Cable) Watch(look func(statement string) bool) { c.change(func() { c.look = look }) }

// prepared are the texts of statements by their names, which pgx makes of the texts:
// all connections have the same.
var prepared sync.Map

// preparedName is the name of a prepared statement and what follows it: its text where
// it is prepared, something else where it is bound to run.
var preparedName = regexp.MustCompile(`stmtcache_[0-9a-f]+\x00`)

// heeds is false for data that runs a statement which is not to pass. It sees messages
// that come in one piece, as all do that are short.
func (c *Cable) heeds(piece []byte) bool {
	c.mu.Lock()
	look := c.look
	c.mu.Unlock()
	for _, at := range preparedName.FindAllIndex(piece, -1) {
		name := string(piece[at[0]:at[1]])
		text, _, _ := bytes.Cut(piece[at[1]:], []byte{0})
		if len(text) > len("SELECT") {
			prepared.Store(name, string(text))
			continue
		}
		bound := at[0] > 0 && piece[at[0]-1] == 0 // after the empty name of a portal
		statement, known := prepared.Load(name)
		if look != nil && bound && known && !look(statement.(string)) {
			return false
		}
	}
	return true
}
