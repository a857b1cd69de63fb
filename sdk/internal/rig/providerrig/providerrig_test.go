package providerrig

import (
	"testing"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// TestRestartedProviderGoesOn: a renter rents from the rig, which is restarted meanwhile, and the books of the rig are what the
// renter closed with.
func TestRestartedProviderGoesOn(t *testing.T) {
	m := rig.NewMarket(t)
	r := New(t, m, func(c *provider.Config) { c.Terms.Credit = time.Hour })
	client, err := renter.New(t.Context(), renter.Config{
		Chain: wallet.Chain{Backend: m.Backend, Poll: 50 * time.Millisecond}, Token: m.Token, Key: channel.NewKey(m.Payer), Database: t.TempDir() + "/renter.db",
		Caps:      wallet.Caps{PricePerGPUHour: "4.00", PerLease: "10", PerDay: "20", PerPayee: wallet.Unlimited},
		Tolerance: 300 * time.Millisecond, Patience: time.Minute, Log: r.Config.Log,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	rental, err := client.Rent(t.Context(), r.Server.URL, renter.Options{Deposit: "1", PayEvery: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, "the lease in the books", func() bool { return r.Books(rental.ID()).Status == channel.Open })
	closed, err := rental.Close(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.Restart()
	if s := r.Books(rental.ID()); s.Spent != closed.Settled {
		t.Errorf("the books have %s spent, closed with %s", s.Spent.Dec(), closed.Settled.Dec())
	}
}

// TestX402RigOffersTicks: the rig of x402 offers ticks.
func TestX402RigOffersTicks(t *testing.T) {
	r := NewX402(t, rig.NewX402Market(t))
	resp, err := r.Server.Client().Get(r.Server.URL + "/tick")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 402 {
		t.Errorf("unpaid it answers %s", resp.Status)
	}
}
