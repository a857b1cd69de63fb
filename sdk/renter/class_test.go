package renter_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/verify"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestRecordOfAnotherClassIsADispute: a record that bills GPUs of another class than the lease's offer sells is paid by nobody, and shows
// what its payee did.
func TestRecordOfAnotherClassIsADispute(t *testing.T) {
	m := testrig.NewMarket(t)
	v := testrig.NewHostile(t, m, func(o *wire.Offer) {
		o.Version, o.Class = 2, &wire.Class{ID: "h100", Model: "Simulated H100", MemoryBytes: 80 << 30}
	})
	v.Script = func(s *testrig.Stream) {
		if err := s.Meter.Describe("simulated", metering.Device{UUID: sim.UUID(0), Name: "Simulated A100", MemoryBytes: 80 << 30, Simulated: true}); err != nil {
			t.Error(err)
		}
		s.Honest(1)
	}
	l, err := renterrig.Open(t, renterrig.Config(t, m, m.Payer)).Rent(t.Context(), v.Server.URL, renter.Options{Class: "h100", Deposit: "0.3"})
	if err != nil {
		t.Fatal(err)
	}
	var dispute *wallet.Dispute
	if err := l.Run(t.Context()); !errors.As(err, &dispute) || !errors.Is(err, verify.ErrDevices) || !strings.Contains(err.Error(), "Simulated A100") {
		t.Errorf("%v", err)
	}
	if paid := l.Snapshot().Paid; !paid.IsZero() {
		t.Errorf("%s are paid", paid.Dec())
	}
	if kept, err := l.Evidence(t.Context()); err != nil || len(kept) == 0 {
		t.Errorf("%d kept, %v", len(kept), err)
	}
}
