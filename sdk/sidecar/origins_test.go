package sidecar_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/sidecar"
	"github.com/gpupay/gpupay/sdk/x402"
)

// TestScriptsOfOtherOrigins: they may ask the inference server's routes, with a lease's token or by x402: the preflight is answered without
// either, and they may read the 402 and what it asks for. Others than those that may are told nothing.
func TestScriptsOfOtherOrigins(t *testing.T) {
	const app = "https://app.example.org"
	s := newShop(t, func(c *sidecar.Config) {
		c.Provider.X402, c.Provider.HTTP.AllowedOrigins = &provider.X402{}, []string{app}
	})
	for origin, allowed := range map[string]string{app: app, "https://evil.example": ""} {
		for name, c := range map[string]struct {
			method, token string
			status        int
		}{
			"preflight": {http.MethodOptions, "", http.StatusNoContent},
			"unpaid":    {http.MethodPost, "", http.StatusPaymentRequired},
			"no token":  {http.MethodPost, "Bearer gp-00", http.StatusUnauthorized},
		} {
			r, _ := http.NewRequestWithContext(t.Context(), c.method, s.site.URL+"/v1/chat/completions", strings.NewReader("{}"))
			r.Header.Set("Origin", origin)
			r.Header.Set("Access-Control-Request-Method", http.MethodPost)
			r.Header.Set("Access-Control-Request-Headers", "authorization,content-type,payment-signature")
			if c.token != "" {
				r.Header.Set("Authorization", c.token)
			}
			res, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			h := res.Header
			exposed := strings.Contains(h.Get("Access-Control-Expose-Headers"), x402.HeaderRequired)
			if res.StatusCode != c.status || h.Get("Access-Control-Allow-Origin") != allowed || exposed != (allowed != "") || len(h.Values("Vary")) != 1 {
				t.Errorf("%s of %s: %s %v", name, origin, res.Status, h)
			}
			if asks := h.Get(x402.HeaderRequired) != ""; asks != (c.status == http.StatusPaymentRequired) {
				t.Errorf("%s of %s asks for a payment: %v", name, origin, asks)
			}
		}
	}
}
