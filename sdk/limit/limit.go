// Package limit says how often clients of an HTTP server may do something, and
// tells clients apart.
package limit

import (
	"net"
	"net/netip"

	"golang.org/x/time/rate"
)

// Rate is how often something may happen on average, and how often at once. A
// negative PerSecond is no limit.
type Rate struct {
	PerSecond float64
	Burst     int
}

// Limiter begins to count, with all of the burst there.
func (r Rate) Limiter() *rate.Limiter {
	if r.PerSecond < 0 {
		return rate.NewLimiter(rate.Inf, 0)
	}
	return rate.NewLimiter(rate.Limit(r.PerSecond), max(r.Burst, 1))
}

// Client is the name that a client with this address is known by: the address, of
// IPv6 ones the /64. It is "" for the addresses of this host, and for what is no
// address: these stand for many.
func Client(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		address = host
	}
	ip, err := netip.ParseAddr(address)
	if err != nil || ip.IsLoopback() || ip.IsUnspecified() {
		return ""
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is6() {
		return netip.PrefixFrom(ip, 64).Masked().String() // what one customer of a network gets
	}
	return ip.String()
}
