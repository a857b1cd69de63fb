package limit

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
)

// Proxies are the reverse proxies that stand in front of a server. What they say
// of where a request came from is believed; of everybody else nothing is. None are
// trusted if it is empty.
type Proxies []netip.Prefix

// ParseProxies reads addresses and networks, such as 127.0.0.1 and 10.0.0.0/8.
func ParseProxies(texts []string) (Proxies, error) {
	var p Proxies
	for _, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			addr, single := netip.ParseAddr(text)
			if single != nil {
				return nil, fmt.Errorf("%q is no address and no network such as 10.0.0.0/8", text)
			}
			prefix = netip.PrefixFrom(addr, addr.BitLen())
		}
		p = append(p, prefix.Masked())
	}
	return p, nil
}

func (p Proxies) trust(a netip.Addr) bool {
	for _, prefix := range p {
		if prefix.Contains(a) {
			return true
		}
	}
	return false
}

// Client is the address that a request is from: the peer's or, where that is a
// trusted proxy, the one nearest to this server that is none. It is read from
// X-Forwarded-For, and only where there is none from Forwarded (RFC 7239): a proxy
// that writes Forwarded must take X-Forwarded-For out of what it passes on. What
// stands left of that address can be anybody's invention, and is not read.
func (p Proxies) Client(r *http.Request) string {
	at, ok := address(r.RemoteAddr)
	if !ok {
		return r.RemoteAddr
	}
	hops := hops{values: r.Header.Values("X-Forwarded-For")}
	forwarded := len(hops.values) == 0
	if forwarded {
		hops.values = r.Header.Values("Forwarded")
	}
	for p.trust(at) {
		text, ok := hops.last()
		if ok && forwarded {
			text = parameter(text, "for")
		}
		next, known := address(text)
		if !ok || !known {
			break // the request is of the proxy itself, or it does not say of whom
		}
		at = next
	}
	return at.String()
}

// Scheme is the scheme by which a client reached this server or the trusted proxy
// next to it: "http" or "https".
func (p Proxies) Scheme(r *http.Request) string {
	secure := r.TLS != nil
	if at, ok := address(r.RemoteAddr); ok && p.trust(at) {
		hops := hops{values: r.Header.Values("X-Forwarded-Proto")}
		said, ok := hops.last()
		if !ok {
			hops.values = r.Header.Values("Forwarded")
			said, _ = hops.last()
			said = parameter(said, "proto")
		}
		secure = secure || strings.EqualFold(said, "https")
	}
	if secure {
		return "https"
	}
	return "http"
}

// hops is the list that proxies have made by appending, in a header that may stand
// several times.
type hops struct{ values []string }

// last takes the last entry away. Entries are split at every comma, quoted or not:
// a quote that a client left open must not swallow what its proxy appended.
func (h *hops) last() (string, bool) {
	if len(h.values) == 0 {
		return "", false
	}
	end := len(h.values) - 1
	list := h.values[end]
	comma := strings.LastIndexByte(list, ',')
	if comma < 0 {
		h.values = h.values[:end]
	} else {
		h.values = append(append([]string(nil), h.values[:end]...), list[:comma])
	}
	return strings.TrimSpace(list[comma+1:]), true
}

// parameter is one of the pairs of an entry of Forwarded.
func parameter(entry, name string) string {
	for pair := range strings.SplitSeq(entry, ";") {
		key, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
		if strings.EqualFold(key, name) {
			return strings.Trim(value, `"`)
		}
	}
	return ""
}

// address reads an address with or without a port, and without what tells apart
// writings of one address.
func address(text string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"))
	if err != nil {
		with, failed := netip.ParseAddrPort(text)
		if failed != nil {
			return a, false
		}
		a = with.Addr()
	}
	return a.Unmap().WithZone(""), true
}
