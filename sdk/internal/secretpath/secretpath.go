// Package secretpath keeps the path of an endpoint, which often is its customer's key, out of what a client of it says.
package secretpath

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/gpupay/gpupay/internal/redact"
)

// A Transport sends requests to the endpoint's full URL while the client above it, whose errors quote the URL, knows
// the host only.
type Transport struct {
	Endpoint *url.URL
	Body     func(io.ReadCloser) io.ReadCloser // as it is read
}

func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	out := req.Clone(req.Context())
	out.URL.Path, out.URL.RawPath = t.Endpoint.Path, t.Endpoint.RawPath
	out.URL.RawQuery = t.Endpoint.RawQuery
	if user := t.Endpoint.User; user != nil {
		password, _ := user.Password()
		out.SetBasicAuth(user.Username(), password)
	}
	resp, err := connections.RoundTrip(out)
	if err == nil {
		resp.Body = t.Body(resp.Body)
		err = t.scrub(resp)
	}
	return resp, err
}

// connections are those to endpoints. Who follows the chain, settles and begins leases asks at the same time: more than Go's two
// connections are kept, each of which may have cost a TLS handshake.
var connections = func() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 16
	return t
}()

// maxScrubbed bounds what of an answer is searched for the secret: results are longer, and errors are not.
const maxScrubbed = 8 << 10

// scrub takes the secret out of an answer that is an error: servers say what they do not know by quoting it.
func (t *Transport) scrub(resp *http.Response) error {
	head, err := io.ReadAll(io.LimitReader(resp.Body, maxScrubbed))
	if err != nil {
		return errors.Join(err, resp.Body.Close())
	}
	rest := resp.Body
	if resp.StatusCode != http.StatusOK || bytes.Contains(head, []byte(`"error"`)) {
		for _, secret := range secrets(t.Endpoint) {
			head = bytes.ReplaceAll(head, []byte(secret), []byte("***"))
		}
		resp.ContentLength = -1
		resp.Header.Del("Content-Length")
	}
	if resp.StatusCode != http.StatusOK { // it ends up in an error: a page of HTML does not
		head, rest = []byte(redact.Line(string(head))), io.NopCloser(strings.NewReader(""))
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(head), rest), resp.Body}
	return nil
}

// secrets are the parts of an endpoint's URL that may be the customer's key, the longest first. Short ones, such as v3, are
// none.
func secrets(endpoint *url.URL) []string {
	const least = 6
	parts := strings.FieldsFunc(endpoint.EscapedPath()+"/"+endpoint.Path, func(r rune) bool { return r == '/' })
	for _, values := range endpoint.Query() {
		parts = append(parts, values...)
	}
	parts = append(parts, strings.FieldsFunc(endpoint.RawQuery, func(r rune) bool { return r == '&' || r == '=' })...)
	if user := endpoint.User; user != nil {
		password, _ := user.Password()
		parts = append(parts, user.Username(), password)
	}
	parts = slices.DeleteFunc(parts, func(part string) bool { return len(part) < least })
	slices.SortFunc(parts, func(a, b string) int { return len(b) - len(a) })
	return parts
}
