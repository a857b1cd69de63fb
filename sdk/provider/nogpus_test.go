package provider

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestProviderWithoutItsGPUsSettles: a provider whose GPUs cannot be listed when it starts settles what it is owed, takes
// vouchers, gives leases back and closes, rents out nothing and says why. With nothing to settle it is refused.
func TestProviderWithoutItsGPUsSettles(t *testing.T) {
	host := &sickHost{Source: testclock.GPUs(2)}
	r := newRig(t, quiet, generousCredit, func(c *Config) { c.Source = host })
	kept, released := r.open(1, 300_000, ""), r.open(2, 300_000, "")
	kept.record()
	paid := owedIn(released.record())
	r.shut()
	host.set(errors.New("driver and library differ"))
	r.start()
	rec := httptest.NewRecorder()
	r.provider.Health().ServeHTTP(rec, httptest.NewRequest("GET", "/healthz", nil))
	if rec.Code != http.StatusServiceUnavailable || !strings.Contains(rec.Body.String(), "driver and library differ") {
		t.Errorf("its health is %d: %s", rec.Code, rec.Body)
	}
	waitFor(t, func() bool {
		return kept.row().State == wire.StateSuspended && kept.row().Reason == lease.ReasonUnmetered
	})
	released.pay(paid)
	if final := released.release(); !final.Final {
		t.Errorf("%+v is not final", final.Record)
	}
	before := r.balance(r.config.Key.Address())
	released.close(paid)
	if got := r.balance(r.config.Key.Address()) - before; got != paid {
		t.Errorf("%d is paid out, %d was vouchered", got, paid)
	}
	next := r.terms(r.payer.Address(), 3)
	if resp := r.do("GET", "", r.openCredential(r.payer, next, 300_000, 0)); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a lease without GPUs: %s", resp.Status)
	}
	host.set(nil)
	waitFor(t, func() bool { return kept.row().State == wire.StateActive })
	if resp := r.do("GET", "", r.openCredential(r.payer, next, 300_000, 0)); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a lease on a GPU that its offer does not name: %s", resp.Status)
	}
	host.set(errors.New("driver and library differ"))
	fresh := r.config
	fresh.Database = filepath.Join(t.TempDir(), "fresh.db")
	if p, err := New(t.Context(), fresh); err == nil || !strings.Contains(err.Error(), "listing the GPUs") {
		t.Errorf("with nothing to settle: %v, %v", p, err)
	}
}
