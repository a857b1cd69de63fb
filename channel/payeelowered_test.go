package channel_test

import (
	"context"
	"errors"
	"testing"

	"github.com/gpupay/gpupay/channel"
)

// TestVoucherAboveALoweredDeposit: a refund or a re-org lowers a deposit below what
// was accepted. No voucher that is not covered any more is taken for paid: neither
// the newest, sent again, nor a lower one.
func TestVoucherAboveALoweredDeposit(t *testing.T) {
	p, id := newPayee(t)
	accept(t, p, id, 400)
	accept(t, p, id, 700)
	observe(t, p, id, channel.ChainView{Deposit: units(300)})
	for _, amount := range []uint64{700, 400, 800} {
		if r, err := p.Accept(context.Background(), sign(t, testDomain, payerKey, id, units(amount))); !errors.Is(err, channel.ErrExceedsDeposit) {
			t.Errorf("a voucher over %d with 300 in the channel: %s, %v", amount, r.Outcome, err)
		}
	}
	if r := accept(t, p, id, 300); r.Outcome != channel.Stale {
		t.Errorf("one that is covered: %s", r.Outcome)
	}
}
