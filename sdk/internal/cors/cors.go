// Package cors says in the answers of a server what a script of another origin may do with it.
package cors

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/gpupay/gpupay/sdk/x402"
)

// What a script of another origin may send and read. No answer ever allows credentials, so that a browser adds neither cookies nor
// certificates of its user to what a script asks here, and the wildcards count.
const (
	methods = "GET, HEAD, POST, PUT, PATCH, DELETE"
	accepts = "*, Authorization, Content-Type, " + x402.HeaderIdempotencyKey + ", Last-Event-ID, " + x402.HeaderSignature
	exposes = "*, WWW-Authenticate, Payment-Receipt, " + x402.HeaderRequired + ", " + x402.HeaderResponse + ", X-PAYMENT-RESPONSE, ETag, Retry-After"
	maxAge  = "7200" // seconds that a browser remembers the answer to a preflight; browsers have bounds of their own
)

// Origins are those whose scripts may use a server; nil: all.
type Origins []string

// Answer says in an answer what a script of another origin may do with it. It answers preflights, which ask for that before anything
// is paid for, and reports that it did.
func (o Origins) Answer(w http.ResponseWriter, r *http.Request) (answered bool) {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return false
	}
	preflight := r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != ""
	if allowed := o.allows(origin); allowed != "" {
		h := w.Header()
		h.Set("Access-Control-Allow-Origin", allowed)
		h.Set("Access-Control-Expose-Headers", exposes)
		if preflight {
			h.Set("Access-Control-Allow-Methods", methods)
			h.Set("Access-Control-Allow-Headers", accepts)
			h.Set("Access-Control-Max-Age", maxAge)
		}
	}
	if o != nil {
		w.Header().Add("Vary", "Origin")
	}
	if preflight {
		w.WriteHeader(http.StatusNoContent)
	}
	return preflight
}

// allows is what is said of an origin: "*" where all may, itself if it is one of those that may, "" if it may not.
func (o Origins) allows(origin string) string {
	switch {
	case o == nil:
		return "*"
	case slices.Contains(o, origin):
		return origin
	}
	return ""
}

// Check refuses what is no origin.
func (o Origins) Check() error {
	for _, text := range o {
		u, err := url.Parse(text)
		if err != nil || u.Scheme == "" || u.Host == "" || text != u.Scheme+"://"+u.Host || text != strings.ToLower(text) {
			return errors.New(`provider: AllowedOrigins: ` + text + ` is no origin such as https://app.example.org, in lower case and without a path; leave AllowedOrigins nil for all`)
		}
	}
	return nil
}
