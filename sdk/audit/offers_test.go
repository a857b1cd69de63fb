package audit

import (
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestChangeOfOfferIsNamed: each change of offer within a channel is in a line of its own words, one that costs the payer more
// asks to be looked at, and a debt is held to the offer under which it arose, not to a later one's credit.
func TestChangeOfOfferIsNamed(t *testing.T) {
	key := keyOf(t)
	first := offerOf(t, key, 3000) // 13,000 under way
	for name, c := range map[string]struct {
		change       func(*wire.Offer)
		before, owed uint64 // at the end of each lease
		look, fails  string // the checks
	}{
		"the same offer":            {func(*wire.Offer) {}, 5_000, 5_000, "", ""},
		"a cheaper one":             {func(o *wire.Offer) { o.Amount = amountOf(900) }, 5_000, 5_000, "", ""},
		"as dear by another unit":   {func(o *wire.Offer) { o.Amount, o.Unit = amountOf(60_000), "gpu_minute" }, 5_000, 5_000, "", ""},
		"a dearer one":              {func(o *wire.Offer) { o.Amount = amountOf(1001) }, 5_000, 5_000, "offers", ""},
		"a longer credit":           {func(o *wire.Offer) { o.Credit++ }, 5_000, 5_000, "offers", ""},
		"a longer gap":              {func(o *wire.Offer) { o.MaxGap++ }, 5_000, 5_000, "offers", ""},
		"a debt of that credit":     {func(o *wire.Offer) { o.Credit = 3600 }, 5_000, 14_000, "offers credit", ""},
		"a debt before that credit": {func(o *wire.Offer) { o.Credit = 3600 }, 14_000, 15_000, "offers credit", "credit"},
		"a debt over all":           {func(*wire.Offer) {}, 5_000, 14_000, "credit", "credit"},
	} {
		t.Run(name, func(t *testing.T) {
			second := first.Offer
			c.change(&second)
			signed, err := wire.SignOffer(t.Context(), key, second)
			if err != nil {
				t.Fatal(err)
			}
			v := &verifier{Bundle: &Bundle{Leases: []Lease{
				{ID: common.Hash{1}, Offer: first.Document, Devices: []string{"a"}},
				{ID: common.Hash{2}, Offer: signed.Document, Devices: []string{"a"}, OwedBefore: amountOf(c.before)},
			}}, terms: channel.Terms{}}
			v.offers()
			v.debt(uint256.Int{}, *uint256.NewInt(c.owed))
			var look, fails []string
			for _, check := range v.checks {
				if check.Look != "" {
					look = append(look, check.Name)
				}
				if check.Err != nil {
					fails = append(fails, check.Name)
				}
			}
			if strings.Join(look, " ") != c.look || strings.Join(fails, " ") != c.fails {
				t.Errorf("to be looked at: %v, failed: %v: %v", look, fails, v.checks)
			}
			named := strings.Contains(v.checks[0].Detail, signed.Hash.Hex())
			if changed := signed.Hash != first.Hash; named != changed || strings.HasPrefix(v.checks[0].String(), "LOOK") != (c.look != "" && changed) {
				t.Errorf("%s", v.checks[0])
			}
		})
	}
}
