package loopback

import (
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/bench"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestFewRenters pays real gateways in every way: each renter holds its receipts against what it sent.
func TestFewRenters(t *testing.T) {
	s := Section{counts: []int{3}}
	r, err := s.Measure(t.Context(), bench.Settings{Rounds: 1, Span: time.Millisecond, Most: 3, Scratch: t.TempDir(), Log: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Tables) != 2 || len(r.Files) != 1 || len(r.Files[0].Data) == 0 || len(r.Tables[0].Rows) != 3 || len(r.Plots) != 1 || len(r.Aims) != 0 {
		t.Fatalf("%+v", r)
	}
	for _, row := range r.Tables[0].Rows {
		if len(row) != len(r.Tables[0].Head) || strings.Contains(strings.Join(row, " "), "NaN") || row[3] == "-" {
			t.Errorf("%v", row)
		}
	}
}

// TestTooFewChannels: an aim that was left out is on the page all the same.
func TestTooFewChannels(t *testing.T) {
	r, err := Section{counts: []int{64}}.Measure(t.Context(), bench.Settings{Most: 1, Scratch: t.TempDir(), Log: t.Logf})
	if err != nil || len(r.Aims) != 1 || r.Aims[0].Result != bench.NotMeasured {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestWrongReceiptIsNoticed: who drops payments wins nothing.
func TestWrongReceiptIsNoticed(t *testing.T) {
	ctx := t.Context()
	crowds, done, err := open(ctx, t.TempDir(), 2)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := done(); err != nil {
			t.Error(err)
		}
	}()
	c := crowds[0] // by requests
	if err := c.prepare(ctx, 4); err != nil {
		t.Fatal(err)
	}
	c.renters[0].headers[1] = c.renters[0].headers[0] // it is answered with a receipt for less
	if err := c.run(ctx, 4); err == nil || !strings.Contains(err.Error(), "a receipt for 1 of 2") {
		t.Errorf("%v", err)
	}
	c = crowds[2]
	if err := c.prepare(ctx, 4); err != nil {
		t.Fatal(err)
	}
	c.renters[1].vouchers[1].Signature = make(wire.Bytes, 65)
	if err := c.run(ctx, 4); err == nil {
		t.Error("a stream that refuses is not noticed")
	}
}
