package limit_test

import (
	"fmt"
	"net/http/httptest"

	"golang.org/x/time/rate"

	"github.com/gpupay/gpupay/sdk/limit"
)

// Each client may ask three times at once. Who stands behind the trusted proxy is told apart by what that says, and all addresses
// of one IPv6 /64 are one client.
func Example() {
	proxies, err := limit.ParseProxies([]string{"10.0.0.0/8"})
	if err != nil {
		panic(err)
	}
	three := limit.Rate{PerSecond: 0.01, Burst: 3}
	clients := limit.NewClients[*rate.Limiter](10_000)
	for _, from := range []string{"203.0.113.7", "2001:db8::1", "2001:db8::2"} {
		request := httptest.NewRequest("GET", "/leases", nil)
		request.RemoteAddr = "10.0.0.1:40000"
		request.Header.Set("X-Forwarded-For", from)
		name := limit.Client(proxies.Client(request))
		served := 0
		for range 2 {
			if clients.Get(name, three.Limiter).Allow() {
				served++
			}
		}
		fmt.Println(name, served)
	}
	// Output:
	// 203.0.113.7 2
	// 2001:db8::/64 2
	// 2001:db8::/64 1
}
