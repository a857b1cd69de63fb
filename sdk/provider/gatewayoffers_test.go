package provider

import (
	"bytes"
	"math/rand/v2"
	"net/http/httptest"
	"net/http/httputil"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/sdk/internal/offering"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/x402/x402client"
)

// behindOne is a balancer that has one gateway show the offer, and another one do all else.
func behindOne(t *testing.T, offers, rest string) *httptest.Server {
	t.Helper()
	balancer := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		to := rest
		if strings.HasPrefix(r.In.URL.Path, "/offer") {
			to = offers
		}
		r.Out.URL.Scheme, r.Out.URL.Host = "http", strings.TrimPrefix(to, "http://")
		r.Out.Host = r.In.Host
	}})
	t.Cleanup(balancer.Close)
	return balancer
}

// TestOfferIsOneAtAllGateways: gateways that start at different times, and the next process, make one and the same offer, which is
// good for half of OfferTTL at least and for all of it at most.
func TestOfferIsOneAtAllGateways(t *testing.T) {
	for _, ttl := range []time.Duration{24 * time.Hour, time.Hour, time.Minute, 7 * time.Second} {
		for range 1000 {
			now := time.Unix(1_700_000_000+rand.Int64N(1e8), rand.Int64N(1e9))
			end := offering.End(now, ttl)
			if left := end.Sub(now); left < ttl/2 || left > ttl {
				t.Fatalf("made at %s an offer of %s is good for %s", now, ttl, left)
			}
			next := end.Add(-ttl / 2) // when the next one is made
			if late := now.Add(rand.N(next.Sub(now))); offering.End(late, ttl) != end {
				t.Fatalf("made at %s it ends at %s, made at %s at %s", now, end, late, offering.End(late, ttl))
			}
			if !offering.End(next, ttl).After(end) {
				t.Fatalf("it is not renewed at %s", next)
			}
		}
	}
	a, b := fleet(t)
	first := a.provider.Offer().Hash
	time.Sleep(1100 * time.Millisecond) // an offer says when it expires in seconds
	b.restart()
	if again := b.provider.Offer().Hash; again != first {
		t.Errorf("a gateway that started a second later offers %s, the first one %s", again, first)
	}
}

// TestRentOfTwoGateways: a renter rents, pays and closes where one gateway makes the challenge and another one, which signed an
// offer of its own, shows the offer.
func TestRentOfTwoGateways(t *testing.T) {
	a, b := fleet(t, generousCredit)
	b.config.Terms.OfferTTL = 72 * time.Hour
	b.restart()
	if a.provider.Offer().Hash == b.provider.Offer().Hash {
		t.Fatal("the gateways make one offer: this shows nothing")
	}
	r := a.renter(t, t.TempDir()+"/renter.db")
	for _, way := range [][2]*rig{{a, b}, {b, a}} {
		balancer := behindOne(t, way[0].server.URL, way[1].server.URL)
		rental, err := r.Rent(t.Context(), balancer.URL, renter.Options{Deposit: "0.05"})
		if err != nil {
			t.Fatal(err)
		}
		if b, err := r.Export(t.Context(), rental.ID()); err != nil || len(b.Leases) != 1 || !bytes.Equal(b.Leases[0].Offer, way[1].provider.Offer().Document) {
			t.Errorf("the lease is not under the offer that it was begun under: %+v, %v", b, err)
		}
		closing, err := rental.Close(t.Context())
		if err != nil || closing.Owed != closing.Settled {
			t.Errorf("closed with %+v, %v", closing, err)
		}
	}
}

// TestX402TicksOfTwoGateways: an honest provider of two gateways with offers of their own is not accused: the lease of a tick is
// under the offer of the gateway that began it.
func TestX402TicksOfTwoGateways(t *testing.T) {
	database := pgtest.URL(t)
	change := func(c *Config) { c.Database, c.Takeover = database, 20*time.Second }
	one := newPayRig(t, change)
	two := payRigOn(t, one.chain, change, func(c *Config) { c.Terms.OfferTTL = 72 * time.Hour })
	both := *one
	both.server = behindOne(t, one.server.URL, two.server.URL)
	n := newTickRenter(t, &both)
	var lease common.Hash
	for range 2 { // the second begins after a refund, under the same offer
		tick := n.tick()
		if tick.Lease == lease {
			t.Error("no lease began anew")
		}
		lease = tick.Lease
		n.tick()
		if _, err := n.rental.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := x402client.Export(t.Context(), n.wallet, n.rental.Channel())
	if err != nil || len(kept.Leases) != 2 {
		t.Fatalf("%+v, %v", kept, err)
	}
	for _, l := range kept.Leases {
		if !bytes.Equal(l.Offer, two.provider.Offer().Document) {
			t.Errorf("the renter goes by offer %s, lease %s is under %s", l.Offer, l.ID, two.provider.Offer().Document)
		}
	}
}
