package provider

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/sweep"
)

// TestIncomeIsMoved: what clients of x402 paid is settled and then moved to the cold address but for the reserve, by a provider alone on
// a file and by the gateway that leads.
func TestIncomeIsMoved(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"sqlite", onPostgres} {
		t.Run(where, func(t *testing.T) {
			cold := common.HexToAddress("0xc01d")
			r := newPayRig(t, func(c *Config) {
				c.Payout = sweep.Policy{To: cold, Reserve: "0.0001", Every: 20 * time.Millisecond}
				c.Terms.MinTransfer = "0.0001"
			})
			b := r.earn()
			if err := r.provider.Settle(t.Context()); err != nil {
				t.Fatal(err)
			}
			for try := 0; r.chain.Tokens(t, cold) == 0 && try < 500; try++ {
				time.Sleep(20 * time.Millisecond)
			}
			if own, moved := r.chain.Tokens(t, r.config.Key.Address()), r.chain.Tokens(t, cold); own != 100 || own+moved != claimed(b) || moved == 0 {
				t.Errorf("the provider has %d, the cold address %d, and %d were settled", own, moved, claimed(b))
			}
		})
	}
}

// TestColdAddressIsRefused: one from which nothing would come back stops the start, and so does a reserve that is no amount.
func TestColdAddressIsRefused(t *testing.T) {
	r := newPayRig(t)
	for _, policy := range []sweep.Policy{{To: r.config.Token}, {To: r.config.Escrow}, {To: r.config.Key.Address()}, {To: common.HexToAddress("0xc01d"), Reserve: "1.0000001"}} {
		c := r.config
		c.Payout = policy
		if p, err := New(t.Context(), c); err == nil || !strings.Contains(err.Error(), "Payout") || policy.Reserve == "" && !errors.Is(err, sweep.ErrAddress) {
			t.Errorf("%+v: %v, %v", policy, p, err)
		}
	}
}
