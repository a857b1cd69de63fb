package sdk

import (
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/settle"
)

// TestChannelOfTheNextLeaseIsNotUrgent: a channel on which a lease ended is settled when its renter has had its time to close, and
// not while the next lease runs on it, however often that is paid: then the policy says when, and at its end.
func TestChannelOfTheNextLeaseIsNotUrgent(t *testing.T) {
	for _, name := range []string{"sqlite", onPostgres} {
		t.Run(name, func(t *testing.T) {
			settled := make(chan settle.Settlement, 16)
			r := newRig(t, generousCredit, func(c *ProviderConfig) {
				c.Settlement.Interval = 50 * time.Millisecond
				c.OnSettled = func(s settle.Settlement) { settled <- s }
			})
			ended := func(lease *tab) { // the renter's minute is over
				if r.provider.replicas == nil {
					r.provider.soon(0, lease.terms)
					return
				}
				r.sql(`UPDATE leases SET ended_at = ended_at - ? WHERE ended_at > 0`, int64(2*closeGrace/time.Second))
				eventually(t, "it leads", func() bool { return r.provider.atWork.Load() != nil })
				if err := r.provider.replicas.serve(t.Context(), r.provider.atWork.Load(), r.provider.store); err != nil {
					t.Fatal(err)
				}
			}
			lease := r.open(1, 500_000, "")
			lease.record()
			lease.release()
			next := lease.begins(lease.spent())
			if next.StatusCode != 200 {
				t.Fatal(next.Status)
			}
			lease.attach(next)
			lease.pay(30_000)
			for range 3 {
				ended(lease)
				select {
				case s := <-settled:
					t.Fatalf("%+v while the next lease runs", s)
				case <-time.After(300 * time.Millisecond):
				}
			}
			lease.release()
			ended(lease)
			select {
			case s := <-settled:
				if s.Paid.Uint64() != 30_000 {
					t.Errorf("settled %+v", s)
				}
			case <-time.After(time.Minute):
				t.Fatal("it is not settled after the next lease's end")
			}
		})
	}
}
