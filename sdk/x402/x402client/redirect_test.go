package x402client

import (
	"errors"
	"net/http"
	"testing"
)

// TestRedirectsStayAtTheirSite: who is asked to pay elsewhere, or in clear, is not followed.
func TestRedirectsStayAtTheirSite(t *testing.T) {
	request := func(url string) *http.Request {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	first := request("https://gpus.example/tick")
	for url, followed := range map[string]bool{
		"https://gpus.example/other": true, "http://gpus.example/tick": false, "https://gpus.example:8443/tick": false, "https://evil.example/tick": false,
	} {
		if err := sameHost(request(url), []*http.Request{first}); (err == nil) != followed || err != nil && !errors.Is(err, http.ErrUseLastResponse) {
			t.Errorf("%s: %v", url, err)
		}
	}
	for n, followed := range map[int]bool{9: true, 10: false} {
		via := make([]*http.Request, n)
		for i := range via {
			via[i] = first
		}
		if err := sameHost(first, via); (err == nil) != followed {
			t.Errorf("after %d: %v", n, err)
		}
	}
}
