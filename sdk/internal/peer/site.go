package peer

import (
	"net/url"
	"strings"
)

// Site is who answers for a URL: scheme and host, in one spelling.
func Site(u *url.URL) string {
	scheme, host := strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	switch scheme {
	case "http":
		host = strings.TrimSuffix(host, ":80")
	case "https":
		host = strings.TrimSuffix(host, ":443")
	}
	return scheme + "://" + host
}

// SiteOf is the site of an address that was kept, empty if it is none.
func SiteOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return Site(u)
}
