package x402client

import (
	"context"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/internal/rig/providerrig"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestX402RenterTicks: our renter and our provider meet over x402. Each tick is metered, charged what its record adds and
// checked; after settling, the provider has exactly what the renter's books say.
func TestX402RenterTicks(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	var last Tick
	for i := range 6 {
		tick := n.tick()
		if c := n.account().Charged; tick.Record.Owed != c || tick.Charged.IsZero() || tick.Charged.Uint64() >= testMost {
			t.Fatalf("tick %d: %s charged in all, %+v", i, c.Dec(), tick)
		}
		if len(tick.Devices) != 1 || tick.State != wire.StateActive || (i > 0 && tick.Lease != last.Lease) {
			t.Errorf("tick %d: %+v", i, tick)
		}
		last = tick
	}
	n.agrees()
	if kept, err := n.x.Records(t.Context(), last.Channel); err != nil || len(kept) != 6 || kept[5].Owed != last.Record.Owed {
		t.Errorf("%d records, %v", len(kept), err)
	}
	if err := n.Provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, c := n.Tokens(t, n.Config.Key.Address()), n.only()
	if got < c.Charged.Uint64() || got > c.Signed.Uint64() {
		t.Errorf("the provider has %d tokens, %s were charged, %s signed", got, c.Charged.Dec(), c.Signed.Dec())
	}
	n.tick()
	n.agrees()
	if got := n.Tokens(t, n.key.Address()); got != tenantPurse-n.only().Deposit.Uint64() {
		t.Errorf("the renter has %d tokens", got)
	}
}

// TestX402RenterLosesAnswers: an answer that does not come, one that breaks off, and a crash behind either, cost nothing:
// the same payment gets the same answer, and no record is missed.
func TestX402RenterLosesAnswers(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	n.tick()
	for _, row := range []struct {
		name       string
		cut, short int
		crash      bool
	}{
		{"answer cut", 1, 0, false},
		{"answer cut twice", 2, 0, false},
		{"every answer cut", 3, 0, false},
		{"every answer cut, then a crash", 3, 0, true},
		{"body cut", 0, 1, false},
		{"body cut, then a crash", 0, 1, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			before := n.account()
			n.line.Cut, n.line.Short, n.line.Paid = row.cut, row.short, nil
			tick, err := n.rental.Tick(t.Context())
			if (err != nil) != (row.cut > lostTries || row.short > 0) || (err != nil && !errors.Is(err, peer.ErrUnreachable)) {
				t.Fatal(err)
			}
			if row.crash {
				n.open()
			}
			if err != nil {
				tick = n.tick()
			}
			for _, p := range n.line.Paid {
				if p != n.line.Paid[0] {
					t.Error("another payment was made for the same tick")
				}
			}
			seen := before.Ticking.Checker.Sequence // and one more if it was suspended in between
			if s := tick.Record.Sequence; s <= seen || s > seen+2 || tick.Charged.IsZero() {
				t.Errorf("record %d behind %d", s, seen)
			}
			n.agrees()
		})
	}
}

// TestX402RenterForgets: a renter without its database goes on with its channel and its lease, and one that was away for
// longer than the provider waits pays what was metered meanwhile, and no more.
func TestX402RenterForgets(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	n.tick()
	before := n.tick()
	if err := n.Provider.Settle(t.Context()); err != nil { // what was claimed shows that there was something
		t.Fatal(err)
	}
	n.database = filepath.Join(t.TempDir(), "new.db")
	n.open()
	after := n.tick()
	for after.Record.Sequence <= before.Record.Sequence { // copies of what was answered before
		after = n.tick()
	}
	if after.Channel != before.Channel || after.Charged.Uint64() >= testMost {
		t.Errorf("%+v after %+v", after, before)
	}
	n.agrees()
	if n.only().Deposit.Uint64() != n.view(after.Channel) {
		t.Errorf("deposited anew: %s", n.only().Deposit.Dec())
	}
	time.Sleep(3 * providerrig.Slack)
	away := n.tick()
	if away.Lease == after.Lease && away.Record.Sequence <= after.Record.Sequence+1 {
		t.Logf("it was not suspended")
	}
	n.agrees()
	n.tick()
	n.agrees()
}

// TestX402RenterAtOnce: requests at once through one client take turns, and all are answered.
func TestX402RenterAtOnce(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	var wait sync.WaitGroup
	for range 5 {
		wait.Go(func() {
			resp, err := n.x.Client().Get(n.Server.URL + "/tick")
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
				t.Errorf("%s %s %v", resp.Status, body, err)
			}
		})
	}
	wait.Wait()
	n.agrees()
}

// TestX402RenterLeavesProvider: the provider is gone; the money comes back from the contract, all that was not claimed.
func TestX402RenterLeavesProvider(t *testing.T) {
	n := newTenant(t, newPayRig(t, func(c *provider.Config) { c.X402.WithdrawDelay = 15 * time.Minute }))
	n.tick()
	if err := n.Provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.Stop()
	n.RPC(t, nil, "anvil_setBalance", n.key.Address(), "0xde0b6b3a7640000")
	done := make(chan error, 1)
	var refund Refund
	id := n.only().ID
	go func() {
		var err error
		refund, err = n.x.Leave(t.Context(), id)
		done <- err
	}()
	s, err := n.contract.State(t.Context(), id)
	for ; err != nil || s.View.CloseRequestedAt == 0; s, err = n.contract.State(t.Context(), id) {
		time.Sleep(5 * time.Millisecond)
	}
	claimed := s.View.Settled.Uint64() // the lease may have run on after the tick, under its voucher
	n.AdvanceTime(t, 15*time.Minute)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := n.Tokens(t, n.key.Address()); got != tenantPurse-claimed || refund.Left.Uint64() != 0 {
		t.Errorf("%d tokens after %d were claimed, %+v", got, claimed, refund)
	}
}

// TestX402LeaveEndsWithDust: somebody deposits into the channel whenever a withdrawal is pending. The renter gets back all
// that was its own by one withdrawal, and is told of what is left.
func TestX402LeaveEndsWithDust(t *testing.T) {
	n := newTenant(t, newPayRig(t, func(c *provider.Config) { c.X402.WithdrawDelay = 15 * time.Minute }))
	n.tick()
	if err := n.Provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.Stop()
	n.RPC(t, nil, "anvil_setBalance", n.key.Address(), "0xde0b6b3a7640000")
	id := n.only().ID
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	done := make(chan error, 1)
	var refund Refund
	go func() {
		var err error
		refund, err = n.x.Leave(ctx, id)
		done <- err
	}()
	var dust uint64
	for seen := uint64(0); ; time.Sleep(5 * time.Millisecond) {
		select {
		case err := <-done:
			if got := n.Tokens(t, n.key.Address()); err != nil || dust != 1 || refund.Left.Uint64() != dust || got+dust+n.claimed(id) != tenantPurse {
				t.Errorf("%v: %+v, %d of dust, %d tokens, %d claimed", err, refund, dust, got, n.claimed(id))
			}
			return
		default:
		}
		if s, err := n.contract.State(t.Context(), id); err == nil && s.View.CloseRequestedAt > seen {
			seen, dust = s.View.CloseRequestedAt, dust+1
			n.dust(1)
			n.AdvanceTime(t, 15*time.Minute)
		}
	}
}

// TestX402RenterRefunds: a part and then all comes back, the lease ends, every base unit is where both books say, and the
// channel is used on.
func TestX402RenterRefunds(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	n.tick()
	n.tick()
	part, err := n.x.Refund(t.Context(), n.Server.URL+"/tick", "0.001")
	if err != nil || part.Amount.Uint64() != 1000 || part.Transaction == (common.Hash{}) {
		t.Fatalf("a part: %+v, %v", part, err)
	}
	first := n.tick()
	if _, err := n.rental.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := n.only()
	state := n.Books(c.ID)
	if state.Spent != c.Charged || c.Deposit != c.Charged {
		t.Errorf("the provider has %s, we %+v", state.Spent.Dec(), c)
	}
	if got := n.Tokens(t, n.key.Address()); got != tenantPurse-c.Charged.Uint64() {
		t.Errorf("the renter has %d tokens, %s were charged", got, c.Charged.Dec())
	}
	again := n.tick()
	if again.Channel != first.Channel || again.Lease == first.Lease {
		t.Errorf("after a refund: %+v", again)
	}
	if _, err := n.rental.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.Provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	total := n.only().Charged.Uint64()
	if payer, payee := n.Tokens(t, n.key.Address()), n.Tokens(t, n.Config.Key.Address()); payer != tenantPurse-total || payee != total {
		t.Errorf("the renter has %d, the provider %d, %d were charged", payer, payee, total)
	}
}

// TestX402RenterRuns: ticks go on until they are told to stop, and over a provider that was restarted.
func TestX402RenterRuns(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	ctx, cancel := context.WithCancel(t.Context())
	seen := 0
	err := n.rental.Run(ctx, func(Tick) {
		if seen++; seen == 4 {
			cancel()
		}
	})
	if err != nil || seen != 4 || n.account().Tick != nil {
		t.Errorf("%d ticks, %v", seen, err)
	}
	n.agrees()
}
