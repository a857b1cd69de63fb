package provider

import (
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/chain"
)

// TestAuthorizationThatEndsTooSoon: a provider sends no deposit whose
// authorization may end before its transaction is mined. It would pay the gas of
// a revert.
func TestAuthorizationThatEndsTooSoon(t *testing.T) {
	r := newRig(t)
	lease := r.open(1, 100_000, "")
	for left, want := range map[time.Duration]bool{chain.AuthorizationMargin - 5*time.Second: false, chain.AuthorizationMargin + 5*time.Second: true, -time.Hour: false} {
		payload := lease.topUp(1000, 3)
		payload.Authorization.ValidBefore = wireAmount(uint64(time.Now().Add(left).Unix()))
		_, err := sessionOf(r.provider).Deposits.Authorization(payload, lease.terms.Payer, payload.Authorization.Nonce)
		if (err == nil) != want {
			t.Errorf("good for %s more: %v", left, err)
		}
	}
}
