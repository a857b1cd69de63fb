package tower_test

import (
	"bytes"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/limit"
	"github.com/gpupay/gpupay/sdk/tower"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestUnsignedReadsHoldUpNothingSigned: twenty addresses ask for withdrawals of channels that there are not, unsigned, within
// their own rates. A payee's voucher of a new channel gets through, and a renter's close request.
func TestUnsignedReadsHoldUpNothingSigned(t *testing.T) {
	l := newLookout(t, func(c *tower.Config) {
		c.Limits = tower.Limits{ClientIP: func(r *http.Request) string { return r.Header.Get("X-IP") }, Channel: limit.Rate{PerSecond: -1}, Leaves: limit.Rate{PerSecond: -1}}
	})
	terms := l.Open(1, 1000)
	second := l.Open(2, 1000)
	stop := make(chan struct{})
	var work sync.WaitGroup
	for n := range 20 {
		work.Go(func() {
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for i := 0; ; i++ {
				q := wire.NewTerms(terms)
				q.Salt = common.BytesToHash([]byte(fmt.Sprint(n, i)))
				req, _ := http.NewRequest("POST", l.server.URL+"/withdrawals", bytes.NewReader(marshal(t, q)))
				req.Header.Set("X-IP", fmt.Sprintf("203.0.%d.9", n))
				if resp, err := http.DefaultClient.Do(req); err == nil {
					resp.Body.Close()
				}
				if i < 100 {
					continue // its burst
				}
				select {
				case <-stop:
					return
				case <-tick.C:
				}
			}
		})
	}
	time.Sleep(1500 * time.Millisecond)
	got, closes := map[string]int{}, map[int]int{}
	for range 5 {
		got[l.voucher(l.sign(l.Payer, terms, 900))]++
		status, _ := l.post("/close-requests", l.request(l.Payer, second, 0, 1<<40))
		closes[status]++
		time.Sleep(200 * time.Millisecond)
	}
	close(stop)
	work.Wait()
	if got["429"] > 0 || closes[http.StatusTooManyRequests] > 0 {
		t.Errorf("others use up the rate: vouchers of a new channel %v, close requests %v", got, closes)
	}
}
