package tower_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/tilltest"
	"github.com/gpupay/gpupay/sdk/tower"
)

// The words of a channel, counted from the end of an answer that is one.
const wordDeposit, wordSettled, wordRequests, wordOpen, wordFinalized = 6, 5, 3, 2, 1

// says sets words of what an endpoint answers about a channel.
func says(words map[int]uint64) badrpc.Fault {
	return badrpc.About(hexutil.Encode(crypto.Keccak256([]byte("channels(bytes32[])"))[:4]), func(x *badrpc.Exchange) {
		var out hexutil.Bytes
		if json.Unmarshal(x.Result, &out) != nil {
			return
		}
		for n, value := range words {
			if at := len(out) - 32*n; at >= 0 {
				copy(out[at:], uint256.NewInt(value).PaddedBytes(32))
			}
		}
		badrpc.Says(out)(x)
	})
}

// before starts the tower anew on endpoints of which one misbehaves.
func (l *lookout) before(bad *badrpc.Endpoint, place string) {
	l.T.Helper()
	if place != "only" {
		l.beside(bad, place == "first")
		return
	}
	l.stop()
	l.config.Chain.Backend, l.config.RPC = nil, bad.URL
	l.up()
}

// leave hands the tower the payer's signed request to close, and waits until the chain has it.
func (l *lookout) leave(terms channel.Terms) {
	l.T.Helper()
	relay := &tower.Client{URL: l.server.URL, Log: slog.New(slog.DiscardHandler)}
	if err := relay.RequestClose(l.T.Context(), l.request(l.Payer, terms, 0, 1<<40)); err != nil {
		l.T.Fatal(err)
	}
	l.Eventually("it is closing", func() bool { return l.view(terms).CloseRequestedAt != 0 })
}

// withdrawn waits until the payer has its deposit back, while blocks come.
func (l *lookout) withdrawn(terms channel.Terms) {
	l.T.Helper()
	const soon = 30 * time.Second // and not with the next look at all channels, a minute after the last
	for end := time.Now().Add(soon); time.Now().Before(end) && !l.view(terms).Finalized; time.Sleep(5 * tilltest.Poll) {
		l.Mine(l.T, 1)
	}
	if v := l.view(terms); !v.Finalized {
		l.T.Errorf("the payer's %s base units are not withdrawn", v.Deposit.Dec())
	}
}

// An endpoint, one of two or the only one, says for a moment that nothing of a channel is the payer's, or that it is over: no leave is
// forgotten for it, and beside another one nothing waits for it.
func TestTowerForgetsNoLeave(t *testing.T) {
	t.Parallel()
	for name, lie := range map[string]map[int]uint64{
		"the deposit is lower": {wordDeposit: 1, wordSettled: 0},
		"the channel is over":  {wordOpen: 0, wordFinalized: 1},
	} {
		places := []string{"first", "second", "only"}
		if lie[wordFinalized] != 0 {
			places = []string{"only"}
		}
		for _, place := range places {
			t.Run(fmt.Sprintf("%s, %s", name, place), func(t *testing.T) {
				t.Parallel()
				l := newLookout(t, nil)
				bad := badrpc.New(t, l.URL)
				l.before(bad, place)
				terms := l.Open(1, 1000)
				l.leave(terms)
				bad.On("eth_call", says(lie))
				l.AdvanceTime(t, chaintest.Grace+time.Minute)
				if place == "only" {
					l.Eventually("it seems to be over", func() bool { return l.tower.Ending() == 1 })
					bad.Heal()
				}
				l.withdrawn(terms)
			})
		}
	}
}

// One of two endpoints says that a close request was used already: it is sent all the same.
func TestTowerSendsARequestThatOneEndpointCallsUsed(t *testing.T) {
	t.Parallel()
	for _, place := range []string{"first", "second"} {
		t.Run(place, func(t *testing.T) {
			t.Parallel()
			l := newLookout(t, nil)
			bad := badrpc.New(t, l.URL)
			l.before(bad, place)
			terms := l.Open(1, 1000)
			bad.On("eth_call", says(map[int]uint64{wordRequests: 7}))
			l.leave(terms)
		})
	}
}

// One of two endpoints has stood still since a close was requested: what is vouchered is settled once, and the payer's deposit is
// withdrawn after that.
func TestTowerWithdrawsBesideAnEndpointThatStandsStill(t *testing.T) {
	t.Parallel()
	for _, place := range []string{"first", "second"} {
		t.Run(place, func(t *testing.T) {
			t.Parallel()
			l := newLookout(t, nil)
			bad := badrpc.New(t, l.URL)
			l.before(bad, place)
			terms := l.Open(1, 1000)
			l.voucher(l.sign(l.Payer, terms, 400))
			l.leave(terms)
			bad.Stick(l.Head(t))
			l.Mine(t, 1)
			l.AdvanceTime(t, chaintest.Grace+time.Minute)
			l.withdrawn(terms)
			if v := l.view(terms); !tilltest.Is(v.Settled, 400) || l.sent() != 3 {
				t.Errorf("settled %s by %d transactions", v.Settled.Dec(), l.sent())
			}
		})
	}
}

// A leave that is over is looked after for an hour more, and then no longer.
func TestTowerEndsALeave(t *testing.T) {
	l := newLookout(t, nil)
	terms := l.Open(1, 1000)
	l.leave(terms)
	l.AdvanceTime(t, chaintest.Grace+time.Minute)
	l.withdrawn(terms)
	l.Eventually("it seems to be over", func() bool { return l.tower.Ending() == 1 })
	l.Mine(t, 40)
	time.Sleep(20 * tilltest.Poll)
	if n := l.tower.Leaves(t.Context()); n != 1 {
		t.Errorf("%d leaves are open at once after the withdrawal", n)
	}
	l.Eventually("it is ended", func() bool { l.Mine(t, 1); l.tower.Age(time.Hour); return l.tower.Leaves(t.Context()) == 0 })
}
