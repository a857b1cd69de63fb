package provider

import (
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/x402"
)

// TestManySmallRequestsAreNotFree: requests of a few milliseconds, each worth less
// than a base unit, are charged for their time together, also across a restart; one
// that uses no time is free, and a repetition of one that was charged nothing is
// answered from its copy.
func TestManySmallRequestsAreNotFree(t *testing.T) {
	var ran atomic.Int64
	var runs atomic.Int64
	handler := func(http.ResponseWriter, *http.Request) {
		runs.Add(1)
		took := testclock.Stopwatch()
		testclock.Sleep(5 * time.Millisecond)
		ran.Add(int64(took()))
	}
	r, b := meteredRig(t, Route{MaxTime: 30 * time.Second}, handler, func(c *Config) {
		c.PricePerGPUHour, c.Deposits.Min = "0.20", "0.01" // 0.28 base units in 5 ms
		c.X402.Slack, c.X402.Window = time.Second, time.Second
	})
	pay := b.depositing(b.next(), 50_000)
	whole := testclock.Stopwatch()
	var free int
	for i := range 24 {
		resp := b.keyed(pay, strconv.Itoa(i))
		receipt, err := x402.ParseSettleResponse(resp.Header)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status, err)
		}
		if receipt.ChargedAmount.IsZero() {
			free++
			before := runs.Load()
			if again := b.keyed(pay, strconv.Itoa(i)); again.StatusCode != http.StatusOK || runs.Load() != before {
				t.Errorf("asked again for one that was charged nothing: %s, %d runs more", again.Status, runs.Load()-before)
			}
		}
		if b.charged += receipt.ChargedAmount.Uint64(); i == 12 {
			r.restart()
			remeter(t, r, Route{MaxTime: 30 * time.Second, Devices: []string{r.provider.leases.Offered.Devices[0].UUID}}, handler)
		}
		pay = b.payment(b.next())
	}
	perNano := 0.2e6 / 3600e9
	least, most := uint64(float64(ran.Load())*perNano), uint64(float64(whole())*perNano)+1
	if b.charged+1 < least || b.charged > most || least < 2 || free == 0 {
		t.Errorf("%d requests of %s in all were charged %d, want %d to %d; %d of them nothing", runs.Load(), time.Duration(ran.Load()), b.charged, least, most, free)
	}
	if kept := b.kept(); kept.Spent.Uint64() != b.charged {
		t.Errorf("told %d, booked %s", b.charged, kept.Spent.Dec())
	}
}
