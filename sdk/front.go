package sdk

import (
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/gpupay/gpupay/sdk/limit"
)

func checkPublicURL(text string) error {
	if text == "" {
		return nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return errors.New("provider: PublicURL must be a URL such as https://gpus.example.org, without a query or credentials")
	}
	return nil
}

// maxAddress bounds what of a request's address is repeated in an answer; bytes.
const maxAddress = 1 << 10

// addressOf is the URL of what was asked for, as its client knows it.
func (p *Provider) addressOf(r *http.Request) string {
	uri := r.RequestURI
	if len(uri) > maxAddress || !strings.HasPrefix(uri, "/") {
		uri = "/"
	}
	if p.config.PublicURL != "" {
		return strings.TrimRight(p.config.PublicURL, "/") + uri
	}
	host := r.Host
	if len(host) > maxAddress {
		host = "localhost"
	}
	return p.proxies.Scheme(r) + "://" + host + uri
}

// behind reads who stands in front of the provider. That it can be read was
// checked.
func (p *Provider) behind() { p.proxies, _ = limit.ParseProxies(p.config.TrustedProxies) }
