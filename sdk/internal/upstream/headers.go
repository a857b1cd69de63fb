package upstream

import (
	"fmt"
	"net/http"
	"strings"
)

// asked are the headers of a request that are passed on. All others stay here: credentials have many names, and so has what
// leads servers to another path, method, client or replica.
var asked = []string{"Accept", "Accept-Language", "Content-Type", "Anthropic-Version", "Anthropic-Beta", "Openai-Beta"}

// answered are the headers of an answer that are passed on. The others are between the upstream and its proxy, or name what is behind it,
// or would be taken for ours: a challenge, a request for payment, a cookie.
var answered = map[string]bool{
	"Content-Type": true, "Content-Length": true, "Content-Disposition": true, "Content-Language": true, "Cache-Control": true,
	"Retry-After": true, "X-Request-Id": true, "Openai-Processing-Ms": true, "Openai-Version": true,
}

// maxValue bounds one header of a request that is passed on, in bytes.
const maxValue = 1024

// request makes the headers that the upstream gets. Those that are named by Connection are gone from given already.
func (p *Proxy) request(given http.Header) http.Header {
	h := make(http.Header, len(asked)+len(p.config.Credential)+1)
	for _, name := range asked {
		if value := given.Get(name); value != "" && len(value) <= maxValue {
			h.Set(name, value)
		}
	}
	h.Set("Accept-Encoding", "identity") // what is compressed cannot be judged
	for name, values := range p.config.Credential {
		h[http.CanonicalHeaderKey(name)] = values
	}
	return h
}

// answer leaves of the headers of an answer what its client gets.
func answer(h http.Header) {
	for name := range h {
		if !answered[name] {
			delete(h, name)
		}
	}
	h.Set("X-Content-Type-Options", "nosniff") // what a model writes is no page of the gateway's
}

// checkCredential refuses headers that are no credential and would break the request.
func checkCredential(h http.Header) error {
	for name, values := range h {
		switch http.CanonicalHeaderKey(name) {
		case "Host", "Content-Length", "Transfer-Encoding", "Connection", "Upgrade", "Te", "Trailer", "Accept-Encoding", "Expect":
			return fmt.Errorf("the upstream's credential is in no header %s", name)
		}
		for _, value := range append(values, name) {
			if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				return fmt.Errorf("the upstream's credential has control characters: is there a line's end in the file that it is from?")
			}
		}
	}
	return nil
}
