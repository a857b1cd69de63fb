package tower_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/tilltest"
	"github.com/gpupay/gpupay/sdk/limit"
	"github.com/gpupay/gpupay/sdk/tower"
	"github.com/gpupay/gpupay/sdk/wire"
)

// What is due at once and is more than the budget pays for is settled by what it brings, whatever the ids of its channels
// are and whoever asked to close first.
func TestTowerSettlesTheLargestFirst(t *testing.T) {
	l := newLookout(t, func(c *tower.Config) {
		c.Patience, c.SettleGas = 4*time.Minute, tower.GasBudget{Total: big.NewInt(1)} // one settlement an hour
	})
	all := []channel.Terms{l.Open(1, 1000), l.Open(2, 1000), l.Open(3, 1000), l.Open(4, 1000)}
	slices.SortFunc(all, func(a, b channel.Terms) int { return a.ID().Cmp(b.ID()) })
	large := all[len(all)-1]
	for _, terms := range all {
		amount := uint64(60)
		if terms == large {
			amount = 900
		}
		if got := l.voucher(l.sign(l.Payer, terms, amount)); got != "accepted" {
			t.Fatal(got)
		}
		l.RequestClose(terms)
	}
	for _, terms := range all {
		l.Eventually("the tower knows that it closes", func() bool { return l.towerState(terms).Status == channel.Closing })
	}
	l.AdvanceTime(t, 5*time.Minute)
	l.Eventually("the largest is settled", func() bool { return l.sent() > 0 && tilltest.Is(l.view(large).Settled, 900) })
	for _, terms := range all {
		if view := l.view(terms); terms != large && !view.Settled.IsZero() {
			t.Errorf("a channel of 60 was settled too: %s", view.Settled.Dec())
		}
	}
}

// What ends hours before the rest is settled before it, however little it is: the rest can wait for the next hour's budget.
// What ends at about the same time goes by what it brings.
func TestTowerSettlesFirstWhatEndsFirst(t *testing.T) {
	l := newLookout(t, nil)
	now := time.Now()
	closing := func(ago time.Duration, accepted uint64) channel.State {
		return channel.State{Terms: l.Terms(1), Accepted: *uint256.NewInt(accepted), CloseRequestedAt: uint64(now.Add(-ago).Unix())}
	}
	soon, large, larger := closing(chaintest.Grace-time.Minute, 60), closing(-5*time.Hour, 900), closing(-5*time.Hour-time.Minute, 901)
	due := []channel.State{large, soon, larger}
	l.tower.Order(now, due)
	for i, want := range []channel.State{soon, larger, large} {
		if due[i].Accepted != want.Accepted {
			t.Errorf("channel of %s is number %d", due[i].Accepted.Dec(), i)
		}
	}
}

// A tower of several payees has coin for few settlements, each of which is a transaction: it goes to what is most at risk,
// whoever's that is.
func TestTowerSpendsItsCoinOnTheLargest(t *testing.T) {
	var payees []common.Address
	for i := range byte(12) {
		payees = append(payees, common.Address{0xaa, i})
	}
	l := newLookout(t, func(c *tower.Config) { c.Patience, c.Payees = 4*time.Minute, payees })
	var all []channel.Terms // by what is at risk, the most first
	for i, payee := range payees {
		terms := l.Terms(byte(i))
		terms.Payee = payee
		l.Send(l.Others, l.Contract.OpenAuthorizedCall(terms, l.Authorize(1000, channel.OpenNonce(terms.Payer, terms))))
		if got := l.voucher(l.sign(l.Payer, terms, uint64(900-50*i))); got != "accepted" {
			t.Fatal(got)
		}
		l.RequestClose(terms)
		all = append(all, terms)
	}
	for _, terms := range all {
		l.Eventually("the tower knows that it closes", func() bool { return l.towerState(terms).Status == channel.Closing })
	}
	price, err := l.sender0().GasPrice(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l.RPC(t, nil, "anvil_setBalance", l.config.Key.Address(), (*hexutil.Big)(price.Mul(price, big.NewInt(2*110_000))))
	l.AdvanceTime(t, 5*time.Minute)
	settled := func() (n int) {
		for i, terms := range slices.Backward(all) { // a larger one may be settled while we look
			if view := l.view(terms); !view.Settled.IsZero() {
				n++
			} else if n > 0 {
				t.Fatalf("%d channels were settled, and the larger one %d was not", n, i)
			}
		}
		return n
	}
	l.Eventually("the coin is used", func() bool { return settled() > 0 })
	if settled() == len(all) {
		t.Error("there was coin for all")
	}
}

// withdrawsWithBudget has the payer of a channel leave while the tower has a voucher of it and no budget to settle that: it is refused the
// withdrawal until there is one.
func (l *lookout) withdrawsWithBudget(terms channel.Terms) {
	l.T.Helper()
	if status, answer := l.post("/close-requests", l.request(l.Payer, terms, 0, 1<<40)); status != http.StatusOK {
		l.T.Fatalf("%d %s", status, answer)
	}
	l.AdvanceTime(l.T, chaintest.Grace)
	for range 3 {
		if status, answer := l.post("/withdrawals", wire.NewTerms(terms)); status != http.StatusTooManyRequests {
			l.T.Errorf("%d %s", status, answer)
		}
	}
	if l.view(terms).Finalized {
		l.T.Fatal("the voucher was made worthless")
	}
	l.stop()
	l.config.SettleGas = tower.GasBudget{}
	l.up()
	l.Eventually("it is withdrawn", func() bool { return l.view(terms).Finalized })
}

// A withdrawal would make a voucher worthless that the tower holds and has no budget to settle: it waits for the budget,
// and then comes after the settlement.
func TestTowerDestroysNoVoucherByAWithdrawal(t *testing.T) {
	l := newLookout(t, func(c *tower.Config) { c.SettleGas = tower.GasBudget{PerParty: big.NewInt(1)} })
	first, second := l.Open(1, 1000), l.Open(2, 1000)
	l.voucher(l.sign(l.Payer, first, 400))
	l.RequestClose(first)
	l.AdvanceTime(t, 2*time.Second)
	l.Eventually("the budget is used up", func() bool { return tilltest.Is(l.view(first).Settled, 400) })
	l.voucher(l.sign(l.Payer, second, 600))
	l.withdrawsWithBudget(second)
	l.paidOut(1000, 600) // what is left of the first stays: nobody asked the tower for it
}

// TestTowerDestroysNoVoucherBesideABlockedPayee shows that a payee whom the token blocks, and whose payout is refused for ever, costs
// no other payee the voucher that the tower holds.
func TestTowerDestroysNoVoucherBesideABlockedPayee(t *testing.T) {
	l := newLookout(t, func(c *tower.Config) { c.SettleGas = tower.GasBudget{PerParty: big.NewInt(1)} })
	bad := l.Terms(9)
	bad.Payee = common.Address{0xbb, 1}
	block(l, bad.Payee)
	l.Send(l.Others, l.Contract.OpenAuthorizedCall(bad, l.Authorize(1000, channel.OpenNonce(bad.Payer, bad))))
	l.voucher(l.sign(l.Payer, bad, 100))
	l.RequestClose(bad)
	first, second := l.Open(1, 1000), l.Open(2, 1000)
	l.voucher(l.sign(l.Payer, first, 400))
	l.RequestClose(first)
	l.AdvanceTime(t, 2*time.Second)
	l.Eventually("the budget is used up", func() bool {
		return tilltest.Is(l.view(first).Settled, 400) && tilltest.Is(l.view(bad).Settled, 100)
	})
	l.voucher(l.sign(l.Payer, second, 600))
	l.withdrawsWithBudget(second)
	if v := l.view(second); !tilltest.Is(v.Settled, 600) {
		t.Errorf("settled %s, want 600", v.Settled.Dec())
	}
}

// block has the token refuse transfers to an account, as an issuer's blocklist does: its code moves to another address, to which
// it hands everything else.
func block(l *lookout, who common.Address) {
	l.T.Helper()
	code, err := l.Backend.CodeAt(l.T.Context(), l.Token, nil)
	if err != nil {
		l.T.Fatal(err)
	}
	behind := common.Address{0xbe, 0x41}
	l.RPC(l.T, nil, "anvil_setCode", behind, hexutil.Bytes(code))
	l.RPC(l.T, nil, "anvil_setCode", l.Token, "0x"+
		"60003560e01c63a9059cbb14"+fmt.Sprintf("60043573%x1416605657", who)+ // transfer(who, …): revert
		fmt.Sprintf("365f5f375f5f365f73%x5af4", behind)+"3d5f5f3e605257"+"3d5ffd"+ // else delegatecall
		"5b3d5ff3"+"5b5f5ffd")
}

// A tower that lost its database is told everything anew within an hour, and what is closing the next time.
func TestTowerThatLostItsDatabaseIsToldAnew(t *testing.T) {
	l := newLookout(t, func(c *tower.Config) { c.Patience = 5 * time.Minute })
	l.Run(l.Watcher.Run)
	terms := l.Open(1, 1000)
	l.Accept(terms, 700)
	feed, now := tower.NewTeller(tower.NewFeed(l.Payee, nil, 0, l.config.Log)), time.Now()
	tell := func(after time.Duration, knows bool) {
		t.Helper()
		now = now.Add(after)
		if err := feed.Tell(t.Context(), l.server.URL, now); err != nil {
			t.Fatal(err)
		}
		if known := tilltest.Is(l.towerState(terms).Accepted, 700); known != knows {
			t.Errorf("the tower knows the voucher: %t, want %t", known, knows)
		}
	}
	lose := func() {
		t.Helper()
		l.stop()
		files, err := filepath.Glob(l.config.Database + "*")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
		l.up()
	}
	tell(0, true)
	lose()
	tell(time.Minute, false) // what costs nothing to remember is not sent each time
	tell(time.Hour, true)
	lose()
	l.RequestClose(terms)
	l.Eventually("the payee sees it", func() bool { return l.State(terms).Status == channel.Closing })
	tell(time.Second, true)
}

// A payee's rate is used up by nobody else: not by vouchers of channels that there are not, nor by old ones, which are
// public, nor by those that its payer signs and sends itself.
func TestTowerRatesAreNotUsedUpByOthers(t *testing.T) {
	l := newLookout(t, func(c *tower.Config) {
		c.Limits = tower.Limits{
			ClientIP: func(r *http.Request) string { return r.Header.Get("Client") }, Requests: limit.Rate{PerSecond: -1},
			Vouchers: limit.Rate{PerSecond: 0.001, Burst: 4}, Channel: limit.Rate{PerSecond: 0.001, Burst: 4},
		}
	})
	from := func(client string, vouchers ...tower.Voucher) []tower.Receipt {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, l.server.URL+"/vouchers", bytes.NewReader(marshal(t, tower.Vouchers{Vouchers: vouchers})))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Client", client)
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		var got tower.Receipts
		if err := json.NewDecoder(response.Body).Decode(&got); err != nil || len(got.Receipts) != len(vouchers) {
			t.Fatalf("%d: %v", response.StatusCode, err)
		}
		return got.Receipts
	}
	const payee, stranger, payer = "192.0.2.1", "192.0.2.2", "192.0.2.3"
	terms := l.Open(1, 1000)
	old := l.sign(l.Payer, terms, 100)
	if got := from(payee, old); got[0].Outcome != "accepted" {
		t.Fatalf("%+v", got)
	}
	for n := range byte(3) {
		var junk []tower.Voucher
		for salt := range byte(30) {
			none := l.Terms(100 + 30*n + salt)
			junk = append(junk, l.sign(l.Payer, none, 1), old)
		}
		for _, client := range []string{stranger, payee} { // behind one proxy they may look alike
			from(client, junk...)
		}
	}
	for n := range uint64(8) {
		from(payer, l.sign(l.Payer, terms, 101+n))
	}
	for n := range uint64(3) {
		if got := from(payee, l.sign(l.Payer, terms, 500+n)); got[0].Outcome != "accepted" {
			t.Errorf("the payee's voucher %d: %+v", n, got[0].Problem)
		}
	}
	if got := from(payee, l.sign(l.Payer, terms, 900)); got[0].Problem == nil || got[0].Problem.Status != http.StatusTooManyRequests {
		t.Errorf("the payee's own rate has no end: %+v", got[0])
	}
}
