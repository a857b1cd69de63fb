package renter_test

import (
	"strings"
	"testing"
	"time"

	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// TestExportHoldsNoSecret: an exported bundle has neither the lease's secret nor its access document, under whatever name the
// provider sent them and whenever they were kept.
func TestExportHoldsNoSecret(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	r := renterrig.Open(t, renterrig.Config(t, m, m.Newcomer(t)))
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1"})
	if err != nil {
		t.Fatal(err)
	}
	row, err := r.Store().Load(t.Context(), l.ID())
	if err != nil || len(row.Secret) < 8 {
		t.Fatalf("the lease has no secret: the test shows nothing: %v", err)
	}
	text := "note: " + row.Secret + " and \"access\": hush-hush"
	if err := r.Wallet().Keep(t.Context(), wallet.Evidence{Channel: l.Lease().ID, Reason: "x", At: time.Now(), Document: []byte(text)}); err != nil {
		t.Fatal(err)
	}
	b, err := r.Export(t.Context(), l.Lease().ID)
	if err != nil || len(b.Evidence) != 1 {
		t.Fatal(b, err)
	}
	for name, secret := range map[string]string{"secret": row.Secret, "access": "hush-hush"} {
		if got := string(encoded(t, b)); strings.Contains(got, secret) {
			t.Errorf("the bundle has the lease's %s: %s", name, b.Evidence[0].Document)
		}
	}
}
