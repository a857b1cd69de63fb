package provider

import (
	"net/http"
	"testing"

	"github.com/gpupay/gpupay/sdk/wire"
)

// TestOpenWithoutASource: an authorization names its payer; and the stream that
// the open begins has a receipt in its head.
func TestOpenWithoutASource(t *testing.T) {
	r := newRig(t)
	terms := r.terms(r.payer.Address(), 1)
	cred := r.openCredential(r.payer, terms, 50_000, 0)
	cred.Source = ""
	resp := r.do("GET", "", cred)
	receipt, err := wire.ParseReceipt(resp.Header)
	if err != nil || resp.StatusCode != http.StatusOK || receipt.Reference != terms.ID() {
		t.Fatalf("%s: %+v %v", resp.Status, receipt, err)
	}
	tab := &tab{rig: r, key: r.payer, terms: terms}
	tab.attach(resp)
	other := r.openCredential(r.payer, r.terms(r.payer.Address(), 2), 50_000, 0)
	other.Source, other.Payload.Authorization.From = "", wire.Address(strangerKey.Address())
	if resp := r.do("GET", "", other); resp.StatusCode == http.StatusOK {
		t.Error("a channel was opened whose payer did not authorize it")
	}
}
