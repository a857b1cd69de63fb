package sdk

import (
	"bytes"
	"encoding/json"
	"errors"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/wallet"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestEvidenceHoldsNoAccess: what is kept of a tick that is no good, and what is exported of a lease, does not say how its
// GPUs are reached.
func TestEvidenceHoldsNoAccess(t *testing.T) {
	const hush = "ssh hush-hush"
	n := newTenant(t, newPayRig(t))
	n.line.Alter = func(resp *http.Response) {
		var tick map[string]any
		body, err := io.ReadAll(resp.Body)
		if err != nil || json.Unmarshal(body, &tick) != nil {
			t.Error(err)
		}
		tick["access"], tick["record"] = hush, nil
		body, _ = json.Marshal(tick)
		resp.Body = io.NopCloser(bytes.NewReader(body))
	}
	var d *wallet.Dispute
	if _, err := n.rental.Tick(t.Context()); !errors.As(err, &d) {
		t.Fatal(err)
	}
	kept, err := n.x.w.Evidence(t.Context(), d.Channel)
	if err != nil || len(kept) != 1 || bytes.Contains(kept[0].Document, []byte(hush)) || !bytes.Contains(kept[0].Document, []byte("leaseId")) {
		t.Errorf("%s, %v", kept, err)
	}
}

// TestExportHoldsNoSecret: an exported bundle has neither the lease's secret nor its access document, under whatever name the
// provider sent them and whenever they were kept.
func TestExportHoldsNoSecret(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	r := openRenter(t, renterConfig(t, m, m.Newcomer(t)))
	l, err := r.Rent(t.Context(), server.URL, RentOptions{Deposit: "1"})
	if err != nil {
		t.Fatal(err)
	}
	row, err := r.store.load(t.Context(), l.ID())
	if err != nil || len(row.Secret) < 8 {
		t.Fatalf("the lease has no secret: the test shows nothing: %v", err)
	}
	text := "note: " + row.Secret + " and \"access\": hush-hush"
	if err := r.w.Keep(t.Context(), wallet.Evidence{Channel: l.id, Reason: "x", At: time.Now(), Document: []byte(text)}); err != nil {
		t.Fatal(err)
	}
	b, err := r.Export(t.Context(), l.id)
	if err != nil || len(b.Evidence) != 1 {
		t.Fatal(b, err)
	}
	for name, secret := range map[string]string{"secret": row.Secret, "access": "hush-hush"} {
		if got := string(encoded(t, b)); strings.Contains(got, secret) {
			t.Errorf("the bundle has the lease's %s: %s", name, b.Evidence[0].Document)
		}
	}
}
