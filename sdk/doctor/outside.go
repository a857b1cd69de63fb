package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/internal/reach"
	"github.com/gpupay/gpupay/sdk/internal/upstream"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wire"
)

func sorted(texts []string) []string { slices.Sort(texts); return texts }

// upstream asks the inference server which models it serves, as OpenAI's API lists them or, where it has none, as ollama's does.
func (c *Config) upstream(ctx context.Context) []Finding {
	if c.Upstream == "" {
		return nil
	}
	var first error
	for _, api := range []upstream.API{upstream.OpenAI, upstream.Ollama} {
		proxy, err := upstream.New(upstream.Config{URL: c.Upstream, APIs: []upstream.API{api}})
		if err != nil {
			return mend("upstream", "%s", err)
		}
		defer proxy.Close()
		models, err := proxy.Models(ctx)
		switch {
		case err == nil && len(models) == 0:
			return mend("upstream", "it serves no model: load one")
		case err == nil:
			return ok("upstream", "serves %s", strings.Join(models, ", "))
		case first == nil:
			first = err
		}
	}
	return mend("upstream", "%s: start the inference server, or name it with --upstream", first)
}

// soon is how near the end of a certificate or an offer is something to mend: who renews them in time has more left.
const soon = 7 * 24 * time.Hour

// certificate looks at the certificate that clients of the public URL get.
func (c *Config) certificate(ctx context.Context) []Finding {
	if c.PublicURL == "" {
		return nil
	}
	at, err := url.Parse(c.PublicURL)
	switch {
	case err != nil || at.Host == "":
		return mend("tls", "the public URL is none such as https://gpus.example.org")
	case at.Scheme != "https":
		return mend("tls", "%s goes without TLS: lease secrets travel in it; put a reverse proxy with a certificate in front", at.Host)
	}
	port := at.Port()
	if port == "" {
		port = "443"
	}
	conn, err := (&tls.Dialer{Config: &tls.Config{RootCAs: c.Roots, ServerName: at.Hostname()}}).DialContext(ctx, "tcp", net.JoinHostPort(at.Hostname(), port))
	if err != nil {
		return mend("tls", "%s: %s", at.Host, untrusted(err))
	}
	defer conn.Close()
	state := conn.(*tls.Conn).ConnectionState()
	ends, by := state.PeerCertificates[0].NotAfter, state.PeerCertificates[0].Issuer.String()
	for _, chain := range state.VerifiedChains {
		for _, certificate := range chain {
			if certificate.NotAfter.Before(ends) {
				ends = certificate.NotAfter
			}
		}
	}
	if left := time.Until(ends); left < soon {
		return mend("tls", "the certificate of %s ends on %s: renew it, and look why that was not done by itself", at.Host, ends.UTC().Format(time.RFC3339))
	}
	return ok("tls", "the certificate of %s, by %s, is good until %s", at.Host, by, ends.UTC().Format(time.RFC3339))
}

// untrusted says what to do about a connection that did not come to be.
func untrusted(err error) string {
	var invalid x509.CertificateInvalidError
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "its certificate has ended, or begins later, by this host's clock: renew it, or set the clock"
	case errors.As(err, &authority):
		return "its certificate is by nobody that clients know: get one of a public authority, and serve its whole chain"
	case errors.As(err, &name):
		return "its certificate is for another name: get one for this"
	}
	if hint := reach.Hint(err); hint != "" {
		return err.Error() + ": " + hint
	}
	return err.Error() + ": start the proxy in front, open its port, and look at its name in DNS"
}

// offer looks at what renters are offered at the public URL: that it is signed by this key for this escrow and token, at these prices, and
// not over.
func (c *Config) offer(ctx context.Context) []Finding {
	if c.PublicURL == "" {
		return nil
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: c.Roots}
	defer transport.CloseIdleConnections()
	var all []Finding
	for _, class := range c.classes() {
		p, err := peer.New(&http.Client{Transport: transport}, c.PublicURL)
		if err != nil {
			return mend("offer", "%s", err)
		}
		p.Class = class
		document, err := p.Offer(ctx)
		if err != nil {
			return append(all, mend("offer", "%s%s: start `gpupay serve`, and have the proxy pass it all paths", err, of(class))...)
		}
		o, err := wire.ParseOffer(document)
		if err != nil {
			return append(all, mend("offer", "%s: something else than a provider answers there", err)...)
		}
		all = append(all, c.checkOffer(o, class)...)
	}
	return all
}

// classes are those whose offers are looked at.
func (c *Config) classes() (all []string) {
	for class := range c.Prices {
		all = append(all, class)
	}
	if len(all) == 0 {
		return []string{""}
	}
	return sorted(all)
}

func (c *Config) checkOffer(o wire.SignedOffer, class string) []Finding {
	price, err := o.Price()
	if err != nil {
		return mend("offer", "%s", err)
	}
	left := time.Until(time.Unix(o.Expires, 0))
	none := common.Address{}
	switch {
	case c.Payee != none && common.Address(o.Payee) != c.Payee:
		return mend("offer", "it pays %s, and this key is %s: another provider runs there, or give its key", o.Payee, c.Payee)
	case c.Escrow != none && common.Address(o.Escrow) != c.Escrow || c.Token != none && common.Address(o.Token) != c.Token:
		return mend("offer", "it is for escrow %s and token %s, which are others than those given: start `serve` with these", o.Escrow, o.Token)
	case left <= 0:
		return mend("offer", "it ended on %s by this host's clock: set the clock, or start `serve` again", time.Unix(o.Expires, 0).UTC().Format(time.RFC3339))
	}
	hourly := units.Hourly(price)
	if want, given := c.Prices[class]; given && c.decimal {
		if now, err := units.PerHour(want, c.decimals); err != nil || units.Hourly(now) != hourly {
			return mend("offer", "it asks %s base units for an hour of a GPU%s, and %s tokens were given: start `serve` with the new price", hourly.Dec(), of(class), want)
		}
	}
	return ok("offer", "%s base units for an hour of a GPU%s, good for another %s, and then renewed", hourly.Dec(), of(class), left.Round(time.Minute))
}
