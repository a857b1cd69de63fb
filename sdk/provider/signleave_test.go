package provider

import (
	"errors"
	"testing"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
)

// TestSignLeaveGivesTheGPUsBack: when a leave is signed, the lease ends at its provider at once, whether Run goes on or not, and
// nothing is billed after it. Where the provider is away the leave is signed all the same, and a Run gives the GPU back.
func TestSignLeaveGivesTheGPUsBack(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"running", "not running", "provider away"} {
		t.Run(when, func(t *testing.T) {
			p := newPairWith(t, renter.Options{Deposit: "0.3", PayEvery: time.Hour}, generousCredit)
			id := p.rental.ID()
			var done <-chan error
			switch when {
			case "running":
				done = renterrig.Background(t.Context(), p.rental)
				awaitRecord(t, p.rental, 3)
			case "provider away":
				p.front.provider.Store(nil)
				p.front.CloseClientConnections()
			}
			if _, err := p.rental.SignLeave(t.Context()); err != nil {
				t.Fatal(err)
			}
			if when == "provider away" {
				p.front.provider.Store(p.provider)
				done = renterrig.Background(t.Context(), p.rental)
			}
			if done != nil {
				if err := <-done; !errors.Is(err, channel.ErrClosing) {
					t.Errorf("Run: %v, want %v", err, channel.ErrClosing)
				}
			}
			if l := p.provider.leases.Running(id); l != nil {
				t.Errorf("lease %s goes on", l.ID)
			}
			if s := p.rental.Snapshot(); s.Reason == "" {
				t.Errorf("no word of why it ended: %+v", s)
			}
			if err := p.rental.Run(t.Context()); !errors.Is(err, channel.ErrClosing) {
				t.Errorf("Run again: %v", err)
			}
			if l := p.provider.leases.Running(id); l != nil {
				t.Errorf("lease %s began", l.ID)
			}
		})
	}
}
