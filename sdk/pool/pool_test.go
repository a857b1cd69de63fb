package pool_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/budget"
	"github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/pool"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/route"
)

// TestOneBudget: what is reserved at two providers counts against one budget and its key's, is corrected to what each provider's records
// bill, which is what the chain settles, and all the rest comes back.
func TestOneBudget(t *testing.T) {
	w := newTown(t)
	dear, cheap := w.shop("36", 4), w.shop("18", 4) // 2,500 and 1,250 base units a second
	client := w.client()
	p := w.pool(client, nil)
	if err := p.SetKeys(map[string]string{"ci": "0.02", "free": ""}); err != nil {
		t.Fatal(err)
	}
	whole, _ := p.Left("")
	if gone, err := p.Left("gone"); err != nil || !gone.IsZero() { // a key that was removed
		t.Errorf("%s %v", gone, err)
	}
	if free, err := p.Left("free"); err != nil || free != whole {
		t.Errorf("%s of %s, %v", free, whole, err)
	}
	offer(t, p, dear, cheap)
	endpoints := p.Endpoints()
	if endpoints[0].Price.PerSlotSecond != route.Base(2500) || endpoints[1].Price.PerSlotSecond != route.Base(1250) || endpoints[0].MaxInFlight != 4 {
		t.Fatalf("%+v", endpoints)
	}
	if rentals, err := client.Rentals(t.Context()); err != nil || len(rentals) != 0 {
		t.Fatalf("%d rentals before a request, %v", len(rentals), err)
	}
	must(t, p, "ci", dear, route.Base(5000), ask{Millis: 400})
	must(t, p, "", cheap, route.Base(5000), ask{Millis: 400})
	must(t, p, "", cheap, route.Base(5000), ask{Fail: true})
	if rentals, err := client.Rentals(t.Context()); err != nil || len(rentals) != 2 {
		t.Fatalf("%d rentals, %v", len(rentals), err)
	}
	var over *budget.ExceededError
	if _, err := p.Reserve(t.Context(), "ci", anyPrice(cheap.URL), route.Base(19_999)); !errors.As(err, &over) || over.Key != "ci" || !over.Ends.After(time.Now()) {
		t.Errorf("%v", err)
	}
	if _, err := p.Reserve(t.Context(), "", anyPrice(cheap.URL), route.Base(499_999)); !errors.As(err, &over) || over.Key != "" {
		t.Errorf("%v", err)
	}
	m, err := p.Money(t.Context())
	if err != nil || len(m.Channels) != 2 || m.Parked.IsZero() || m.Refundable.IsZero() || m.Wallet.Uint64()+m.Parked.Uint64() != funds {
		t.Errorf("%+v, %v", m, err)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	rentals, err := client.History(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var settled, refunded uint64
	for _, r := range rentals {
		if r.Closed == nil || r.Closed.Settled != r.Closed.Owed || r.Closed.Settled.IsZero() {
			t.Fatalf("%+v", r)
		}
		settled += r.Closed.Settled.Uint64()
		refunded += r.Closed.Refunded.Uint64()
	}
	if has, err := client.Token().Balance(t.Context(), client.Address()); err != nil || has.Uint64() != funds-settled {
		t.Errorf("%s are left, %d settled, %d refunded: %v", has.Dec(), settled, refunded, err)
	}
	if settled < 1500 || settled > 10_000 {
		t.Errorf("%d are settled", settled)
	}
	again := w.pool(client, nil) // what counts is what was billed, a base unit a request apart
	if got := counted(t, again); got.Cmp(route.Base(settled)) < 0 || got.Cmp(route.Base(settled+3)) > 0 {
		t.Errorf("%s count, %d are settled", got, settled)
	}
}

// TestTwoPools: the second on one database is refused in words.
func TestTwoPools(t *testing.T) {
	w := newTown(t)
	client := w.client()
	w.pool(client, nil)
	_, err := pool.Open(t.Context(), pool.Config{Client: client, File: w.dir + "/pool.db", Budget: "1"})
	if err == nil || !errors.Is(err, store.ErrInUse) {
		t.Errorf("%v", err)
	}
}

// TestVanished: the money at a provider that vanishes comes back without it, and others go on meanwhile.
func TestVanished(t *testing.T) {
	w := newTown(t)
	lost, stays := w.shop("36", 4), w.shop("36", 4)
	client := w.client()
	p := w.pool(client, nil)
	offer(t, p, lost, stays)
	must(t, p, "", lost, route.Base(5000), ask{Millis: 300})
	must(t, p, "", stays, route.Base(5000), ask{Millis: 100})
	lost.vanish()
	rig.Each(t, 200*time.Millisecond, "its channel to be left", func() bool {
		rentals, err := client.Rentals(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rentals {
			if r.URL == lost.URL && r.Phase == renter.PhaseLeaving {
				return true
			}
		}
		return false
	})
	must(t, p, "", stays, route.Base(5000), ask{Millis: 100})
	m, err := p.Money(t.Context())
	if err != nil || len(m.Channels) != 2 {
		t.Fatalf("%+v, %v", m, err)
	}
	for _, c := range m.Channels {
		if c.Refundable.IsZero() || c.From.IsZero() {
			t.Errorf("%+v", c)
		}
	}
	if err := w.chain.AdvanceTime(11 * time.Minute); err != nil {
		t.Fatal(err)
	}
	rig.Each(t, 200*time.Millisecond, "its refund", func() bool {
		m, err := p.Money(t.Context())
		return err == nil && len(m.Channels) == 1 && m.Channels[0].URL == stays.URL
	})
	must(t, p, "", stays, route.Base(5000), ask{Millis: 100})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := p.Close(ctx); err != nil {
		t.Error(err)
	}
}

// TestRoom: what may be reserved at an endpoint leaves what is set aside there with the first request, and more is refused before a deposit
// is made for it.
func TestRoom(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	s := w.shop("36", 4) // a second in a slot costs 2,500
	client := w.client()
	p := w.pool(client, func(c *pool.Config) { c.Budget = "0.10" })
	offer(t, p, s)
	room := func() route.Nano {
		left, err := p.Left("")
		if err != nil {
			t.Fatal(err)
		}
		return p.Room("", s.URL, left)
	}
	if got := room(); got != route.Base(95_000) {
		t.Errorf("room for %s", got)
	}
	var over *budget.ExceededError
	if _, err := p.Reserve(t.Context(), "", anyPrice(s.URL), route.Base(95_001)); !errors.As(err, &over) {
		t.Errorf("more than there is room for: %v", err)
	}
	if rentals, err := client.Rentals(t.Context()); err != nil || len(rentals) != 0 {
		t.Errorf("%d rentals were opened for what does not fit: %v", len(rentals), err)
	}
	for range 2 { // it is set aside once
		h, err := p.Reserve(t.Context(), "", anyPrice(s.URL), room())
		if err != nil {
			t.Fatal(err)
		}
		if got := counted(t, p); got != route.Base(100_000) {
			t.Errorf("%s count", got)
		}
		if err := h.Done(t.Context(), route.Nano{}); err != nil {
			t.Fatal(err)
		}
		if got := room(); got != route.Base(95_000) {
			t.Errorf("room for %s", got)
		}
	}
}
