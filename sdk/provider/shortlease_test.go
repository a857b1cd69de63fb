package provider

import (
	"net/http"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/wire"
)

// beginAgain begins another lease on a channel, by a proof and a voucher.
func (t *tab) beginAgain(query string, amount uint64) *http.Response {
	t.Helper()
	cred := t.credential(wire.ActionVoucher, amount)
	proof, err := wire.Prove(t.Context(), t.key, t.terms, cred.Challenge.ID, "attach")
	if err != nil {
		t.Fatal(err)
	}
	cred.Payload.Proof = proof
	return t.do("GET", query, cred)
}

// TestLeasesShorterThanATickAreNotFree: two GPUs that are leased, used for less than a tick and released, again and again,
// cost their time, and no more than it.
func TestLeasesShorterThanATickAreNotFree(t *testing.T) {
	const use, leases = 400 * time.Millisecond, 4
	r := newRig(t, func(c *Config) {
		c.Metering.Tick, c.Metering.MaxGap, c.Metering.RecordEvery, c.Terms.Credit = time.Second, 3*time.Second, 5*time.Second, time.Minute
	})
	lease := &tab{rig: r, key: r.payer, terms: r.terms(r.payer.Address(), 1)}
	var used, held time.Duration
	var owed uint64
	for n := range leases {
		asked := testclock.Stopwatch()
		if n == 0 {
			lease.attach(r.do("GET", "?gpus=2", r.openCredential(r.payer, lease.terms, 500_000, 0)))
		} else {
			lease.attach(lease.beginAgain("?gpus=2", owed))
		}
		got := testclock.Stopwatch()
		testclock.Sleep(use)
		used += got()
		final := lease.release()
		owed = final.Owed.Uint64()
		held += asked()
		lease.body.Close()
	}
	least, most := uint64(used.Seconds()*2000), uint64(held.Seconds()*2000)
	if owed < least*9/10 || owed > most {
		t.Errorf("%d leases of %s cost %d base units: two GPUs were in hand for %s (%d) to %s (%d)", leases, use, owed, used, least, held, most)
	}
}
