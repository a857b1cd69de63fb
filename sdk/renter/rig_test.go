package renter_test

import (
	"encoding/json"
	"errors"
	"net/http/httptest"
	"testing"

	"github.com/gpupay/gpupay/sdk/audit"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/providerrig"
	"github.com/gpupay/gpupay/sdk/provider"
)

// serveProvider runs a real provider on simulated GPUs, fast enough to watch.
func serveProvider(t *testing.T, m *testrig.Market, change func(*provider.Config)) *httptest.Server {
	t.Helper()
	return providerrig.New(t, m, change).Server
}

func encoded(t *testing.T, v any) []byte {
	t.Helper()
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// parsed is a bundle as whoever gets it reads it.
func parsed(t *testing.T, b *audit.Bundle, err error) *audit.Bundle {
	t.Helper()
	raw, failed := json.Marshal(b)
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	if b, err = audit.Parse(raw); err != nil {
		t.Fatal(err)
	}
	return b
}
