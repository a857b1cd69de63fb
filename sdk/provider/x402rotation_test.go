package provider

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/internal/x402server"
	"github.com/gpupay/gpupay/sdk/x402"
)

// TestX402KeyRotation: the key is exchanged in the middle of a channel. What was
// used under the old one is claimed to its address, and the rest refunded when the
// payer asks, by transactions of the new key that the old one signs: it needs no
// coin. Nothing else is served from the channel, and nothing is claimed without the
// old key.
func TestX402KeyRotation(t *testing.T) {
	r := newPayRig(t)
	old := r.config.Key
	b := r.buyer("/tick")
	b.open(100_000)
	b.again()
	b.idle()
	used := b.used()
	r.shut()
	r.chain.RPC(t, nil, "anvil_setBalance", old.Address(), "0x0")
	r.config.Key, r.config.PastKeys = channel.NewKey(r.chain.Keys[1]), nil
	r.start()
	b.provider = r.provider
	err := r.provider.Settle(t.Context())
	if settled := b.on().View.Settled; err == nil || !settled.IsZero() {
		t.Errorf("without the old key: %v, claimed %s", err, settled.Dec())
	}
	if refused := b.refused(b.pay(b.refunding(0))); refused.Error != string(x402.CodeReceiverMismatch) {
		t.Errorf("a refund without the old key: %q", refused.Error)
	}
	r.shut()
	r.config.PastKeys = []channel.Signer{old}
	r.start()
	b.provider = r.provider
	if refused := b.refused(b.pay(b.payment(b.next()))); refused.Error != string(x402.CodeReceiverMismatch) {
		t.Errorf("a tick from the old key's channel: %q", refused.Error)
	}
	if err := r.provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if settled := b.on().View.Settled; settled != used {
		t.Errorf("claimed %s, used %s", settled.Dec(), used.Dec())
	}
	if got := r.chain.Tokens(t, old.Address()); got != used.Uint64() {
		t.Errorf("the old key has %d, used was %s", got, used.Dec())
	}
	if b.refund(40_000); b.holds() != 60_000 {
		t.Errorf("after a part the contract holds %d", b.holds())
	}
	if b.refund(0); b.holds() != used.Uint64() {
		t.Errorf("the contract holds %d, used was %s", b.holds(), used.Dec())
	}
	b.has(1_000_000 - used.Uint64())
	next := r.buyer("/tick") // and the new key is paid
	next.open(50_000)
	if next.terms.Payee != r.config.Key.Address() {
		t.Errorf("a new channel pays %s", next.terms.Payee)
	}
}

// TestX402RefundAfterKeyRotation: a renter asks the same site for a refund and gets
// back what is in the old key's channel, then what is in the new one's.
func TestX402RefundAfterKeyRotation(t *testing.T) {
	r := newPayRig(t)
	old := r.config.Key
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { r.provider.ServeHTTP(w, req) }))
	defer site.Close()
	n := newTickRenter(t, r)
	var err error
	if n.rental, err = n.x.Rent(t.Context(), site.URL, 1); err != nil {
		t.Fatal(err)
	}
	first := n.tick()
	r.shut()
	r.config.Key, r.config.PastKeys = channel.NewKey(r.chain.Keys[1]), []channel.Signer{old}
	r.start()
	refund, err := n.rental.Close(t.Context())
	if err != nil || refund.Channel != first.Channel || refund.Amount.IsZero() || !refund.Left.IsZero() {
		t.Fatalf("%+v %v", refund, err)
	}
	if _, err := n.rental.Close(t.Context()); err == nil {
		t.Error("refunded twice")
	}
}

// TestRefundOfAnotherKeyIsOver: the provider takes another key and then its first again. A refund that the second key sent
// for a channel of the first is in flight in the outbox for ever. Nothing is served while it may take the deposit; once it
// was mined, or another refund took its place, the channel is served again.
func TestRefundOfAnotherKeyIsOver(t *testing.T) {
	t.Parallel()
	for name, lost := range map[string]bool{"mined": false, "lost": true} {
		t.Run(name, func(t *testing.T) {
			r := newPayRig(t)
			first, second := r.config.Key, channel.NewKey(r.chain.Keys[1])
			b := r.buyer("/tick")
			b.open(100_000)
			b.idle()
			r.shut()
			r.config.Key, r.config.PastKeys = second, []channel.Signer{first}
			r.start()
			b.provider = r.provider
			b.refundGivenUp()
			r.shut()
			r.config.Key, r.config.PastKeys = first, []channel.Signer{second}
			r.start()
			b.provider = r.provider
			if refused := b.refused(b.pay(b.payment(b.next()))); refused.Error != x402server.ErrRefunding.Error() {
				t.Errorf("in flight: %q", refused.Error)
			}
			if lost {
				r.chain.RPC(t, nil, "anvil_dropAllTransactions")
			}
			r.chain.RPC(t, nil, "evm_setAutomine", true)
			r.chain.RPC(t, nil, "evm_mine")
			if lost {
				if refused := b.refused(b.pay(b.payment(b.next()))); refused.Error != x402server.ErrRefunding.Error() {
					t.Errorf("it may still come: %q", refused.Error)
				}
				b.refund(0)
			}
			if resp := b.pay(b.payment(b.next())); resp.StatusCode == http.StatusOK {
				t.Error("served from what was refunded")
			}
			if again := b.take(b.pay(b.depositing(b.next(), 50_000))); again.ChargedAmount.IsZero() {
				t.Errorf("served, and not charged: %+v", again)
			}
			if held, used := b.holds(), b.kept().Settled; held != 50_000+used.Uint64() {
				t.Errorf("the contract holds %d, %s was claimed before", held, used.Dec())
			}
		})
	}
}
