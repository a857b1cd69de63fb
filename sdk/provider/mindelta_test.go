package provider

import (
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/wire"
)

// TestVoucherUnderAStep: a renter whose newest voucher is less than MinVoucherDelta more than what is counted, as one that was signed
// for the record before, is not kept from its stream, which says what is counted; and its close, after which nothing comes, takes it.
func TestVoucherUnderAStep(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Terms.Credit = time.Hour })
	r.provider.payee.MinDelta = *uint256.NewInt(100_000)
	lease := r.open(1, 500_000, "")
	lease.pay(100_000)
	lease.attach(lease.beginAgain("", 150_000))
	if v := lease.lease.Voucher; v == nil || v.CumulativeAmount.Uint64() != 100_000 {
		t.Errorf("the stream shows the voucher %+v", v)
	}
	if err := problemIn(wire.DeltaTooSmall, r.do("POST", "", lease.credential(wire.ActionVoucher, 150_000))); err != nil {
		t.Error(err)
	}
	if receipt := lease.close(150_000); receipt.AcceptedCumulative.Uint64() != 150_000 {
		t.Errorf("%s are counted at the close", receipt.AcceptedCumulative.Dec())
	}
}
