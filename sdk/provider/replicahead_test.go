package provider

import (
	"context"
	"testing"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/sdk/settle"
)

// TestLeaderWhoseEndpointStandsStill: a gateway whose endpoint answers, and has stopped following the chain, leads until another one has
// had newer blocks for some minutes: what is vouchered is settled by that one. The first leads again where it is the only one.
func TestLeaderWhoseEndpointStandsStill(t *testing.T) {
	shared := pgtest.URL(t)
	var bad *badrpc.Endpoint
	change := func(c *Config) { c.Database, c.Takeover = shared, 2*time.Second }
	a := newRig(t, quiet, generousCredit, change, func(c *Config) {
		bad = badrpc.New(t, c.RPC)
		c.RPC = bad.URL
	})
	leads := func(r *rig) bool { return r.provider.settlement.atWork.Load() != nil }
	waitFor(t, func() bool { return leads(a) })
	b := rigOn(t, a.chain, func(*rig) *channel.Key { return a.payer }, quiet, generousCredit, change)
	lease := b.open(1, 100_000, "")
	lease.pay(700)
	head, err := a.provider.escrow.Backend().BlockNumber(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bad.Stick(head)
	if err := a.provider.gateway.Settlement.Heads.See(t.Context()); err != nil {
		t.Fatal(err) // it stands still from here on
	}
	later := func() time.Time { return time.Now().Add(settle.Blindness + time.Second) }
	a.provider.gateway.Settlement.Heads.SetClock(later)
	waitFor(t, func() bool { return !leads(a) && leads(b) })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := b.provider.Settle(ctx); err != nil {
		t.Error(err)
	}
	if got := a.balance(a.config.Key.Address()); got != 700 {
		t.Errorf("the payee has %d, want 700", got)
	}
	b.shut()
	waitFor(t, func() bool { return leads(a) })
}
