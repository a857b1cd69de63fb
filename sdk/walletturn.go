package sdk

import (
	"context"
	"net/url"
	"strings"
	"sync"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
)

// turnKey is what payments must take turns for: all channels of a renter that
// could stand for each other in paying one payee.
type turnKey struct {
	chain        uint64
	payee, token common.Address
	salt         common.Hash
}

func turnOf(t channel.Terms) turnKey { return turnKey{t.ChainID, t.Payee, t.Token, t.Salt} }

// turns hands out turns: one at a time for each key. The zero value is ready. It
// belongs to the renter, whose clients share its channels.
type turns struct {
	mu    sync.Mutex
	lines map[turnKey]*payTurn
}

type payTurn struct {
	token chan struct{}
	users int // who has it or waits for it; zero: it is forgotten
}

// take waits for a turn.
func (t *turns) take(ctx context.Context, key turnKey) (release func(), err error) {
	t.mu.Lock()
	line := t.lines[key]
	if line == nil {
		if t.lines == nil {
			t.lines = make(map[turnKey]*payTurn)
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

func (t *turns) leave(key turnKey, line *payTurn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if line.users--; line.users == 0 {
		delete(t.lines, key)
	}
}

// site is who answers for a URL: scheme and host, in one spelling.
func site(u *url.URL) string {
	scheme, host := strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	switch scheme {
	case "http":
		host = strings.TrimSuffix(host, ":80")
	case "https":
		host = strings.TrimSuffix(host, ":443")
	}
	return scheme + "://" + host
}

// siteOf is the site of an address that was kept, empty if it is none.
func siteOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return site(u)
}
