package sdk

import (
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/wire/x402"
)

// TestMeteredChargesTheHandlersTime: with a tick of a second, as by default, what
// requests of any length are charged is at least the time of their handler and at
// most the time of the request, of each GPU; at 10 base units a millisecond.
func TestMeteredChargesTheHandlersTime(t *testing.T) {
	const perMilli, gpus = 10, 2
	r := newPayRig(t, func(c *ProviderConfig) {
		c.PricePerGPUHour, c.Tick, c.RecordEvery, c.MaxGap = "36.00", time.Second, time.Second, 3*time.Second
		c.Credit, c.X402.Window, c.X402.Slack = 8*time.Second, 2*time.Second, 4*time.Second
	})
	var ran atomic.Int64
	var work time.Duration
	handler, err := r.provider.Metered(MeteredRoute{Devices: []string{sim.UUID(0), sim.UUID(1)}, MaxTime: 2 * time.Second}, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		began := time.Now()
		time.Sleep(work)
		ran.Store(int64(time.Since(began)))
	}))
	if err != nil {
		t.Fatal(err)
	}
	r.server.Close()
	r.server = httptest.NewServer(handler)
	b := r.buyer("/infer")
	pay := b.depositing(b.next(), 900_000)
	random := rand.New(rand.NewPCG(5, 6))
	for range 12 {
		work = time.Duration(random.IntN(150)) * time.Millisecond
		began := time.Now()
		resp := b.pay(pay)
		whole := time.Since(began)
		receipt, err := x402.ParseSettleResponse(resp.Header)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status, err)
		}
		charged := receipt.ChargedAmount.Uint64()
		b.charged += charged
		least, most := gpus*perMilli*uint64(ran.Load())/1e6, gpus*perMilli*uint64(whole)/1e6+1
		if charged < least || charged > most {
			t.Errorf("a handler of %s in a request of %s was charged %d, want %d to %d", time.Duration(ran.Load()), whole, charged, least, most)
		}
		pay = b.payment(b.next())
	}
	if kept := b.kept(); kept.Spent.Uint64() != b.charged {
		t.Errorf("told %d, booked %s", b.charged, kept.Spent.Dec())
	}
}
