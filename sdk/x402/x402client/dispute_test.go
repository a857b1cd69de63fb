package x402client

import (
	"errors"
	"testing"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestX402TwoRecordsOfOneNumber: a provider that signed two records of one number is caught at it, and both are kept and exported: a
// proof for anybody.
func TestX402TwoRecordsOfOneNumber(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	first := n.tick()
	n.line.Alter = rewriteTick(t, func(k *wire.Tick) {
		rec := first.Record
		rec.To++
		var err error
		if rec.Signature, err = n.Config.Key.Sign(t.Context(), rec.Digest(metering.Domain(31337, n.contract.Address()))); err != nil {
			t.Error(err)
		}
		k.Record = &rec
	})
	var err error
	for tries := 0; tries < 10 && !errors.Is(err, verify.ErrForked); tries++ { // the lease may use its slack before each
		_, err = n.rental.Tick(t.Context())
	}
	if !errors.As(err, new(*wallet.Dispute)) {
		t.Fatal(err)
	}
	if b, err := Export(t.Context(), n.wallet, first.Channel); err != nil || len(b.Equivocations()) != 1 {
		t.Errorf("the proof is not kept: %v", err)
	}
}
