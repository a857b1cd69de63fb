package renter_test

import (
	"net/http/httptest"
	"testing"

	"github.com/gpupay/gpupay/sdk"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/providerrig"
)

// serveProvider runs a real provider on simulated GPUs, fast enough to watch.
func serveProvider(t *testing.T, m *testrig.Market, change func(*sdk.ProviderConfig)) *httptest.Server {
	t.Helper()
	return providerrig.New(t, m, change).Server
}
