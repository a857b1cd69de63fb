package provider

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/eip712"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestKeyRotation: with a new key the provider ends the leases whose offers name the old one, signs nothing of them, and
// closes their channels with the old key's word; new leases are the new key's. Without the old key a close is refused
// with the reason, and what was vouchered is settled all the same.
func TestKeyRotation(t *testing.T) {
	r := newRig(t, quiet, generousCredit)
	old := r.config.Key
	first, second := r.open(1, 100_000, ""), r.open(2, 100_000, "")
	paid := owedIn(first.record())
	owed := owedIn(second.record())
	second.pay(owed)
	r.shut()
	r.config.Key, r.config.PastKeys = channel.NewKey(r.chain.Keys[1]), nil
	r.start()
	row := r.row(first.lease.LeaseID)
	if row.State != wire.StateEnded || !strings.Contains(row.Reason, "key") {
		t.Errorf("the lease is %s: %s", row.State, row.Reason)
	}
	last, err := r.provider.store.Records.Last(t.Context(), first.lease.LeaseID)
	if err != nil {
		t.Fatal(err)
	}
	domain := metering.Domain(first.terms.ChainID, first.terms.Escrow)
	if signer, err := eip712.Recover(last.Digest(domain), last.Signature); err != nil || signer != old.Address() || last.Final {
		t.Errorf("its last record is %+v by %s, %v", last.Record, signer, err)
	}
	first.again()
	first.status(leasestore.Ended)
	cred := second.credential(wire.ActionClose, owed)
	cred.Payload.LeaseSecret = second.lease.Secret
	resp := r.do("POST", "", cred)
	if problem := wire.ParseProblem(resp); resp.StatusCode == http.StatusConflict || !strings.Contains(problem.Error(), old.Address().Hex()) {
		t.Errorf("a close without the old key: %v", problem)
	}
	if err := r.provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := r.balance(old.Address()); got != owed {
		t.Errorf("the old key has %d, %d was vouchered", got, owed)
	}
	r.shut()
	r.config.PastKeys = []channel.Signer{old}
	r.start()
	if receipt := first.close(paid); receipt.TxHash == nil {
		t.Error("a close without a transaction")
	}
	if got := r.balance(old.Address()); got != owed+paid {
		t.Errorf("the old key has %d, want %d", got, owed+paid)
	}
	third := r.open(3, 100_000, "")
	final := third.release()
	third.close(final.Owed.Uint64())
	if got := r.balance(r.config.Key.Address()); got != final.Owed.Uint64() {
		t.Errorf("the new key has %d, is owed %s", got, final.Owed.Dec())
	}
}

// A close that the key from before has in flight is nobody's to send again: it is sent anew with the new key.
func TestCloseAfterAKeyRotation(t *testing.T) {
	r := newAnvilRig(t)
	old := r.config.Key
	lease := r.open(1, 100_000, "")
	final := lease.release()
	paid := final.Owed.Uint64()
	lease.pay(paid)
	r.anvil.Automine(t, false)
	before := r.nonce()
	state, err := r.provider.payee.State(t.Context(), lease.terms.ID())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _, _ = sessionOf(r.provider).Closing.Close(ctx, state)
	}()
	waitFor(t, func() bool { return r.nonce() == before+1 })
	cancel()
	<-ended
	r.shut() // which may send it once more
	r.anvil.RPC(t, nil, "anvil_dropAllTransactions")
	r.anvil.Automine(t, true)
	r.config.Key, r.config.PastKeys = channel.NewKey(r.chain.Keys[3]), []channel.Signer{old}
	r.start()
	if receipt := lease.close(paid); receipt.TxHash == nil {
		t.Error("a close without a transaction")
	}
}

// TestMeterKeyRotation: with another metering key, the payee's being the same, a lease whose offer names the old one ends, and
// nothing more is signed of it: its renter would take the records for a stranger's.
func TestMeterKeyRotation(t *testing.T) {
	r := newRig(t, quiet, generousCredit)
	lease := r.open(1, 100_000, "")
	lease.record()
	r.shut()
	r.config.Metering.Key = channel.NewKey(r.chain.Keys[1])
	r.start()
	if row := r.row(lease.lease.LeaseID); row.State != wire.StateEnded || !strings.Contains(row.Reason, "metering key") {
		t.Errorf("the lease is %s: %s", row.State, row.Reason)
	}
}
