package transport

import (
	"testing"
	"time"

	"github.com/gpupay/gpupay/bench"
)

// TestEveryTransportCarriesVouchers: pay itself holds each receipt against what was sent.
func TestEveryTransportCarriesVouchers(t *testing.T) {
	r, err := Section{}.Measure(t.Context(), bench.Settings{Rounds: 1, Span: time.Millisecond, Log: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Tables) != 1 || len(r.Tables[0].Rows) != 4 {
		t.Errorf("%+v", r.Tables)
	}
}
