package provider

import (
	"net/http"
	"testing"

	"github.com/gpupay/gpupay/internal/eip712"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// TestUnpaidRequestIsOfferedBothProtocols: who speaks one of them need not know
// of the other.
func TestUnpaidRequestIsOfferedBothProtocols(t *testing.T) {
	r := newPayRig(t)
	for _, path := range []string{"/tick", "/lease", "/tick?gpus=2"} {
		resp := r.send("GET", path, nil)
		if all, err := wire.ParseChallenges(resp.Header); resp.StatusCode != http.StatusPaymentRequired || err != nil || len(all) != 1 {
			t.Errorf("%s: %s, challenges %v, %v", path, resp.Status, all, err)
		}
		required, err := x402.ParsePaymentRequired(resp.Header)
		if err != nil || required.Error != x402.FirstError || len(required.Accepts) != 1 || required.Resource.URL != r.server.URL+path {
			t.Errorf("%s: %+v, %v", path, required, err)
		}
	}
}

// TestTicksFromDepositToPayout: deposit, ticks, claim and payout, each with the
// figures of the other.
func TestTicksFromDepositToPayout(t *testing.T) {
	r := newPayRig(t)
	b := r.buyer("/tick")
	first := b.open(20_000)
	if first.Transaction == (x402.Transaction{}) || first.Amount.Uint64() != 20_000 || b.holds() != 20_000 {
		t.Fatalf("the deposit is %+v, the contract holds %d", first.SettleResponse, b.holds())
	}
	last := first
	for n := range 3 {
		tick := b.again()
		if tick.LeaseID != first.LeaseID || tick.Record.Sequence <= last.Record.Sequence {
			t.Fatalf("tick %d is of lease %s, record %d", n, tick.LeaseID, tick.Record.Sequence)
		}
		domain := metering.Domain(r.contract.ChainID(), r.contract.Address())
		if who, err := eip712.Recover(tick.Record.Digest(domain), tick.Record.Signature); err != nil || who != r.config.Key.Address() {
			t.Fatalf("the record is signed by %s, %v", who, err)
		}
		if tick.Record.Owed.Uint64() != b.charged || (tick.Record.Sequence == last.Record.Sequence+1) != (tick.Record.Previous == last.Record.Digest(domain)) {
			t.Fatalf("charged %d, the record is %+v", b.charged, tick.Record.Record)
		}
		if c := tick.ChargedAmount.Uint64(); c == 0 || c >= testMost { // less where a piece of slack was stated, or the machine stood still
			t.Errorf("tick %d of 300 ms cost %d", n, c)
		}
		last = tick
	}
	told := b.charged
	b.idle()
	if b.charged < told {
		t.Errorf("told %d, charged %d", told, b.charged)
	}
	if err := r.provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if on := b.on().View; on.Settled != b.used() {
		t.Errorf("claimed %s, charged %d", on.Settled.Dec(), b.charged)
	}
	used := b.used()
	b.receives(used.Uint64())
	b.again()
}
