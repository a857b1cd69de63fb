package provider

import (
	"context"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/internal/testclock"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/wire"
)

// switching is gateways over one database, of which one takes x402 and another, which began first and leads, does not.
func switching(t *testing.T, change ...func(*Config)) (plain, shop *payRig) {
	t.Helper()
	database, signed := pgtest.URL(t), filepath.Join(t.TempDir(), "signed")
	both := func(c *Config) {
		quiet(c)
		c.Database, c.Takeover, c.Records.HighWater, c.X402.Slack = database, 2*time.Second, signed, 10*time.Second
		for _, more := range change {
			more(c)
		}
	}
	plain = newPayRig(t, both, func(c *Config) { c.X402 = nil })
	waitFor(t, func() bool { return plain.provider.settlement.atWork.Load() != nil })
	return plain, payRigOn(t, plain.chain, both)
}

// withdraws has the buyer's account ask the contract for all of its money back.
func (b *buyer) withdraws() {
	b.Helper()
	b.chain.RPC(b, nil, "anvil_setBalance", b.key.Address(), "0xde0b6b3a7640000")
	view := b.on().View
	left := *new(uint256.Int).Sub(&view.Deposit, &view.Settled)
	b.chain.Transact(b, b.private, b.contract.Address(), b.contract.InitiateWithdrawCall(b.terms, left).Data)
}

// isPaid waits until a provider has claimed, and was paid out, all that the buyer used.
func (b *buyer) isPaid(by *Server) {
	b.Helper()
	testrig.Each(b.T, 50*time.Millisecond, "all that was used is claimed", func() bool {
		kept, err := by.payee.State(b.Context(), b.terms.ID())
		used := kept.Payable()
		return err == nil && !used.IsZero() && b.on().View.Settled == used && b.chain.Tokens(b, b.config.Key.Address()) == used.Uint64()
	})
}

// TestLeaderWithoutX402Claims: a gateway that takes no x402 and leads claims what another was paid there when its payer withdraws, counts
// it among what is at risk, and settles it when it is asked to.
func TestLeaderWithoutX402Claims(t *testing.T) {
	plain, shop := switching(t)
	b := shop.buyer("/tick")
	b.open(900_000)
	b.again()
	if _, got := fetched(t, plain.provider.Metrics(), nil); strings.Contains(got, "\ngpupay_at_risk_tokens 0\n") {
		t.Errorf("nothing is at risk at the gateway that leads:\n%s", got)
	}
	asked, done := context.WithTimeout(t.Context(), 30*time.Second)
	defer done()
	if err := shop.provider.Settle(asked); err != nil || b.on().View.Settled == (uint256.Int{}) {
		t.Fatalf("the contract says of its channel %+v: %v", b.on().View, err)
	}
	b.again()
	b.withdraws()
	b.isPaid(plain.provider)
}

// TestLeaseIsLeftToWhoTakesItsScheme: a lease by x402 outlives a restart of its gateway beside one that takes no x402.
func TestLeaseIsLeftToWhoTakesItsScheme(t *testing.T) {
	plain, shop := switching(t, func(c *Config) { c.X402.Slack = time.Minute })
	b := shop.buyer("/tick")
	b.open(900_000)
	shop.shut()
	time.Sleep(3 * time.Second) // several looks for leases that nobody runs
	row, _, err := plain.provider.store.Leases.Newest(t.Context(), b.terms.ID())
	if err != nil || row.State != wire.StateActive {
		t.Fatalf("beside a gateway that takes no x402 its lease is %s: %s: %v", row.State, row.Reason, err)
	}
	shop.start()
	if l := shop.provider.leases.Running(b.terms.ID()); l == nil || l.ID.Hex() != row.ID {
		t.Fatalf("its gateway is back, and runs %v", l)
	}
	kept := b.kept()
	b.charged = kept.Spent.Uint64()
	b.again()
}

// TestLeaseThatNobodyTakesEnds: where no gateway is left that takes a lease's scheme its GPUs are suspended at the credit, and free after
// SuspendTimeout.
func TestLeaseThatNobodyTakesEnds(t *testing.T) {
	command, calls := script(t, "")
	plain, shop := switching(t, func(c *Config) {
		host := hostGPUs(t, 2)
		host.SuspendCommand, host.ReleaseCommand = append(command, "suspend"), append(command[:1:1], "release")
		c.Source, c.Allocator, c.X402.Slack, c.Terms.SuspendTimeout = testclock.GPUs(2), host, time.Minute, 6*time.Second
	})
	b := shop.buyer("/tick")
	b.open(900_000)
	shop.shut()
	testrig.Each(t, 100*time.Millisecond, "the lease ends", func() bool {
		plain.provider.gateway.TryAgain()
		row, _, err := plain.provider.store.Leases.Newest(t.Context(), b.terms.ID())
		return err == nil && row.State == wire.StateEnded && row.Held == 0
	})
	if said := calls(); !strings.HasPrefix(said, "suspend ") || !strings.Contains(said, "\nrelease ") {
		t.Errorf("commands:\n%s", said)
	}
	if held, err := plain.provider.gateway.Devices().Held(t.Context()); err != nil || len(held) > 0 {
		t.Errorf("devices %v are still its: %v", held, err)
	}
}

// TestX402SwitchedOffIsClaimed: a provider on its own that takes no x402 any more claims what it was paid before.
func TestX402SwitchedOffIsClaimed(t *testing.T) {
	r := newPayRig(t, quiet)
	b := r.buyer("/tick")
	b.open(900_000)
	r.shut()
	r.config.X402 = nil
	r.start()
	if resp := r.send("GET", "/tick", nil); resp.Header.Get("PAYMENT-REQUIRED") != "" {
		t.Errorf("%s: it still asks to be paid by x402", resp.Status)
	}
	if err := r.provider.Settle(t.Context()); err != nil || b.on().View.Settled == (uint256.Int{}) {
		t.Fatalf("the contract says of its channel %+v: %v", b.on().View, err)
	}
	b.isPaid(r.provider)
}

// TestUnwatchedContractIsTold: what was paid on a contract that cannot be watched is in the log of each start, in the health and in a metric.
func TestUnwatchedContractIsTold(t *testing.T) {
	r := newPayRig(t, quiet)
	b := r.buyer("/tick")
	b.open(900_000)
	r.shut()
	r.chain.RPC(t, nil, "anvil_setCode", r.contract.Address(), "0x")
	r.config.X402 = nil
	for range 2 {
		var log testrig.Log
		r.config.Log = slog.New(slog.NewTextHandler(&log, nil))
		r.start()
		if !strings.Contains(log.String(), b.terms.ID().Hex()) {
			t.Error("the start does not name the channel")
		}
		if code, health := fetched(t, r.provider.Health(), nil); code != http.StatusOK || !strings.Contains(health, `"unwatchedChannels":1`) || !strings.Contains(health, "degraded") {
			t.Errorf("health: %d %s", code, health)
		}
		if _, got := fetched(t, r.provider.Metrics(), nil); !strings.Contains(got, "\ngpupay_unwatched_channels 1\n") || strings.Contains(got, "\ngpupay_at_risk_tokens 0\n") {
			t.Errorf("metrics:\n%s", got)
		}
		r.shut()
	}
}
