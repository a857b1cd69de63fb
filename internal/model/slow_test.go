package model

import (
	"context"
	"math/big"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"pgregory.net/rapid"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/wire"
)

// A slowEndpoint keeps one answer of a contract to the question of an HTTP request back: what the chain said when it was
// asked.
type slowEndpoint struct {
	chain.Backend
	countdown atomic.Int64  // at zero the answer is kept back
	held      chan struct{} // closed when one is
	released  chan struct{} // lets it go when closed
	release   func()
}

func newSlowEndpoint(b chain.Backend) *slowEndpoint {
	s := &slowEndpoint{Backend: b, held: make(chan struct{}), released: make(chan struct{})}
	s.release = sync.OnceFunc(func() { close(s.released) })
	return s
}

func (b *slowEndpoint) CallContract(ctx context.Context, msg ethereum.CallMsg, block *big.Int) ([]byte, error) {
	out, err := b.Backend.CallContract(ctx, msg, block)
	if ctx.Value(http.ServerContextKey) != nil && b.countdown.Add(-1) == 0 {
		close(b.held)
		<-b.released
	}
	return out, err
}

// TestSlowAnswer: an endpoint is slow to answer what a stranger's request has asked, and meanwhile a channel closes, or begins
// to: the old answer undoes neither.
func TestSlowAnswer(t *testing.T) {
	set(t, "rapid.checks", strconv.Itoa(4*markets(t)))
	set(t, "rapid.nofailfile", "true")
	set(t, "rapid.shrinktime", "1ms")
	seen := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		var slow *slowEndpoint
		m := newMarket(rt, seen, func(c *provider.Config) { slow = newSlowEndpoint(c.Chain.Backend); c.Chain.Backend = slow })
		rt.Cleanup(slow.release)
		d := m.lease()
		m.hear(d, 2)
		m.pause(d)
		requested := rapid.Bool().Draw(rt, "asked back")
		answer, late := rapid.Int64Range(1, 3).Draw(rt, "answer"), rapid.IntRange(1, 25).Draw(rt, "ticks")
		slow.countdown.Store(answer)
		asked, ended := make(chan error, 1), make(chan error, 1)
		opened := m.opening(d)
		go func() {
			_, err := m.nameTopUp(d, opened)
			asked <- err
		}()
		select {
		case <-slow.held:
		case err := <-asked: // it was answered without so many questions
			rt.Skip(err)
		}
		go func() { ended <- m.end(d, requested) }()
		time.AfterFunc(time.Duration(late)*tick, slow.release)
		want := channel.Finalized
		if requested {
			want = channel.Closing
		}
		m.onlyForward(d, want)
		<-asked
		m.must(<-ended)
		seen[want.String()]++
	})
	t.Log(seen)
}

// onlyForward looks at the provider's books until they say that a channel is where it should be, and for a moment longer.
func (m *market) onlyForward(d *deal, want channel.Status) {
	db, err := store.Open(m.ctx, m.config.Database)
	m.must(err)
	defer db.Close()
	var last channel.Status
	ends := time.Now().Add(20 * time.Second)
	for there := false; time.Now().Before(ends); time.Sleep(tick / 10) {
		s, err := db.Payee().Load(m.ctx, d.id)
		m.must(err)
		if s.Status < last {
			m.Fatalf("the provider has a channel %s again that was %s", s.Status, last)
		}
		if last = s.Status; last == want && !there {
			there, ends = true, time.Now().Add(30*tick)
		}
	}
	if last != want {
		m.Fatalf("the provider has a channel %s that is %s", last, want)
	}
}

// end closes a deal with its provider's consent, or asks for its money back.
func (m *market) end(d *deal, request bool) error {
	if !request {
		ctx, cancel := context.WithTimeout(m.ctx, 20*time.Second)
		defer cancel()
		_, err := d.rental.Close(ctx)
		d.over = err == nil
		return err
	}
	escrow, err := chain.NewEscrow(m.ctx, m.chain, m.escrow)
	if err != nil {
		return err
	}
	nonce, err := escrow.CloseRequests(m.ctx, d.id)
	if err != nil {
		return err
	}
	signature, err := d.by.config.Key.Sign(m.ctx, escrow.Domain().RequestCloseDigest(d.id, nonce, 1<<40))
	if err != nil {
		return err
	}
	return m.send(m.stranger, escrow.RequestCloseAuthorizedCall(d.rental.Terms(), 1<<40, signature))
}

// opening is the transaction that opened a deal's channel.
func (m *market) opening(d *deal) common.Hash {
	logs, err := m.chain.FilterLogs(m.ctx, ethereum.FilterQuery{Addresses: []common.Address{m.escrow}, Topics: [][]common.Hash{nil, {d.id}}})
	m.must(err)
	if len(logs) == 0 {
		m.Fatal("nothing opened a channel that is open")
	}
	return logs[0].TxHash
}

// nameTopUp names a transaction as a top-up of a deal, as anybody may.
func (m *market) nameTopUp(d *deal, hash common.Hash) (status int, err error) {
	resp, err := http.Get(m.server.URL + "/lease")
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	challenges, err := wire.ParseChallenges(resp.Header)
	if err != nil || len(challenges) == 0 {
		return 0, err
	}
	value, salt := wire.NewAmount(units(1)), d.rental.Terms().Salt
	header, err := wire.Credential{Challenge: challenges[0], Payload: wire.Payload{Action: wire.ActionTopUp, Type: wire.TypeHash,
		ChannelID: d.id, AdditionalDeposit: &value, Salt: &salt, Hash: &hash}}.Header()
	if err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(m.ctx, http.MethodPost, m.server.URL+"/lease", nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", header)
	if resp, err = http.DefaultClient.Do(req); err != nil {
		return 0, err
	}
	resp.Body.Close()
	return resp.StatusCode, nil
}
