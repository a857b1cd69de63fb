package main

import (
	"math/big"
	"strings"
	"testing"
)

// What a provider may spend on renters is set by flags, and what is no amount is refused by the flag's name.
func TestGasFlags(t *testing.T) {
	t.Setenv("GPUPAY_KEY", strings.Repeat("1", 64))
	always := []string{"--escrow", "0x" + strings.Repeat("1", 40), "--token", "0x" + strings.Repeat("2", 40)}
	o, err := parseServe(t, append(always, "--min-transfer", "0.5", "--sponsored-gas", "0.002, 0.03", "--reserved-settlements", "-1"))
	if err != nil {
		t.Fatal(err)
	}
	l := o.config.Limits
	if o.config.Terms.MinTransfer != "0.5" || l.ReservedSettlements != -1 || l.SponsoredGasPerPayer.Cmp(big.NewInt(2e15)) != 0 || l.SponsoredGas.Cmp(big.NewInt(3e16)) != 0 {
		t.Errorf("%q %+v", o.config.Terms.MinTransfer, l)
	}
	if o, err = parseServe(t, always); err != nil || o.config.Limits.SponsoredGas.Cmp(big.NewInt(1e17)) != 0 || o.config.Limits.SponsoredGasPerPayer.Cmp(big.NewInt(1e16)) != 0 {
		t.Errorf("by default: %v", err)
	}
	for _, wrong := range []string{"0.01", "0.01,x", ",", "-1,1"} {
		if _, err := parseServe(t, append(always, "--sponsored-gas", wrong)); err == nil || !strings.Contains(err.Error(), "--sponsored-gas") {
			t.Errorf("%q: %v", wrong, err)
		}
	}
}
