package channel_test

import (
	"context"
	"errors"
	"testing"

	"github.com/gpupay/gpupay/channel"
)

// TestSettledIsNoSignature: what an endpoint says was settled counts in the caps and in what is left, and neither raises
// what was signed nor stands before a voucher for less, so that a lie has nothing signed away and stops no payment.
func TestSettledIsNoSignature(t *testing.T) {
	ctx := context.Background()
	p, _, id := newPayer(t)
	pay(t, p, id, 5)
	s, err := p.Observe(ctx, id, channel.ChainView{Deposit: units(1000), Settled: units(1000)})
	if err != nil || s.Signed != units(5) || len(s.Signature) == 0 {
		t.Fatalf("signed %s with %d bytes of signature, %v", s.Signed.Dec(), len(s.Signature), err)
	}
	if s.Cost() != units(1000) || s.Left() != units(0) || s.Locked() != units(0) {
		cost, left, locked := s.Cost(), s.Left(), s.Locked()
		t.Errorf("cost %s, left %s, locked %s", cost.Dec(), left.Dec(), locked.Dec())
	}
	if v := pay(t, p, id, 7); v.Cumulative != units(7) {
		t.Errorf("a voucher for %s", v.Cumulative.Dec())
	}
	if s, err = p.Observe(ctx, id, channel.ChainView{Deposit: units(1000), Settled: units(6)}); err != nil || s.Signed != units(7) || s.Cost() != units(7) {
		t.Errorf("after the lie: %+v, %v", s, err)
	}
	if _, err := p.Pay(ctx, id, units(6)); !errors.Is(err, channel.ErrLower) {
		t.Errorf("a voucher for less than was signed: %v", err)
	}
}
